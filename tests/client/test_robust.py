"""Troubles that strangers had with clients like this one: each is a rule here, for both colours and every lane."""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import logging
import os
import pickle
import ssl
import threading
import time
import warnings
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple
from unittest.mock import patch

import pytest

import synap
from synap import AsyncSynapClient, ClientConfig, SynapClient, SynapError
from synap.commands import STREAM_SUBSCRIBE
from synap.storage.durable import prepare
from synap.storage.layout import Locked
from synap.testing import ThrowawayServer
from synap.wire.codec import JSON
from synap.wire.frames import Kind, frame
from tests.client.conftest import Make
from tests.helpers.loops import run
from tests.helpers.patience import PATIENCE, in_time
from tests.helpers.scripted import Peer, ScriptedService, name_of

CLIENTS = [AsyncSynapClient, SynapClient]
LANES = ["native", "websocket"]
NOWHERE = "http://127.0.0.1:1"


# ------------------------------------------------------------------------------------------ nothing but SynapError


SECRETS = ["s3cr3t ", " s3cr3t", "s3cr3t\n", "s3cr\nt", "s3cr\u00e9t", ""]


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("key", SECRETS)
def test_a_key_that_can_not_travel_is_refused_and_not_shown(
    client: Any, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SynapError, match="api_key must") as caught:
        client(NOWHERE, api_key=key)
    assert "s3cr" not in repr(caught.value)
    assert "s3cr" not in str(caught.value.details)
    if key:
        monkeypatch.setenv("SYNAP_API_KEY", key)
        with pytest.raises(SynapError, match="api_key must"):
            client(NOWHERE)


async def test_a_host_with_other_letters_is_looked_up_or_refused(make: Make) -> None:
    client = make("http://b\u00fccher.invalid", retries=0)
    with pytest.raises(synap.ConnectionError, match=r"no connection to xn--bcher-kva\.invalid"):
        await client.kv.get("key")
    with pytest.raises(SynapError, match="url must be with the name of a host"):
        make("http://" + "\u00fc" * 80 + ".example")


ODD: List[Any] = [
    None, True, -1, 0, 2**70, 1.5, float("nan"), float("inf"), "", "x", "\ud800", "a\x00b", b"bytes", [], [None], {},
    {1: 2}, set(), object(), len, Ellipsis, "http://[::1", "https://", "file:///", "http://x:99999",
]  # fmt: skip


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("option", [*ClientConfig.__dataclass_fields__, "config"])
def test_no_option_raises_anything_else(client: Any, option: str) -> None:
    for value in ODD:
        with suppress(SynapError):  # and nothing else
            client(value) if option == "config" else client(**{"url": "memory://", option: value})


def _arguments(function: Callable[..., Any]) -> List[Tuple[str, bool]]:
    return [
        (name, parameter.default is inspect.Parameter.empty)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]


@pytest.mark.parametrize("group", ["kv", "queue", "stream", "pubsub"])
def test_no_argument_of_a_method_raises_anything_else(group: str) -> None:
    good: Dict[str, Any] = {
        "key": "k", "value": 1, "prefix": "k", "queue": "q", "message": 1, "message_id": "1", "ack_deadline": 1,
        "queues": ["q"], "room": "r", "event_type": "t", "data": 1, "topic": "t", "topics": ["t"], "ttl": 5,
        "mapping": {"a": 1}, "name": "n", "offset": 0, "callback": print,
    }  # fmt: skip
    with SynapClient("memory://") as client:
        methods = getattr(client, group)
        for name in dir(methods):
            if name.startswith("_"):
                continue
            method = getattr(methods, name)
            arguments = _arguments(method)
            for odd, _ in arguments:
                for value in ODD:
                    if odd in ("timeout", "wait") and isinstance(value, (int, float)) and value > 0:
                        continue  # it would wait
                    given = {argument: good.get(argument, 1) for argument, needed in arguments if needed}
                    given[odd] = value
                    with suppress(SynapError):  # and nothing else
                        outcome = method(**given)
                        if isinstance(outcome, synap.SyncSubscription):
                            outcome.unsubscribe()


def test_without_an_event_loop_of_asyncio_s_it_is_said_what_to_use() -> None:
    client = AsyncSynapClient("memory://")
    call = client.kv.get("key")
    with pytest.raises(SynapError, match=r"needs a running asyncio event loop.*trio"):
        call.send(None)
    call.close()


@pytest.mark.parametrize("lane", LANES)
def test_a_client_can_be_closed_in_another_loop_than_it_was_used_in(server: ThrowawayServer, lane: str) -> None:
    client = AsyncSynapClient(server.url, transport=lane)
    for number in range(3):
        run(client.kv.set("a", number))
    run(client.close())


@pytest.mark.parametrize("place", ["memory", "native"])
@pytest.mark.parametrize("debug", [False, True])
def test_closing_a_client_in_another_loop_ends_who_waits_in_this_one(
    server: ThrowawayServer, place: str, debug: bool
) -> None:
    client = AsyncSynapClient("memory://" if place == "memory" else server.url)
    ended, waits = threading.Event(), threading.Event()

    async def main() -> None:
        subscription = await client.stream.subscribe("room")
        asyncio.get_running_loop().call_soon(waits.set)  # runs once the iteration below waits
        async for _ in in_time(subscription):
            pass
        ended.set()

    thread = threading.Thread(target=lambda: asyncio.run(main(), debug=debug), daemon=True)
    thread.start()
    assert waits.wait(PATIENCE)
    run(client.close())
    assert ended.wait(PATIENCE)
    thread.join(PATIENCE)


def test_a_connection_is_closed_whose_loop_ends_before_it_comes_to_that(server: ThrowawayServer) -> None:
    client = AsyncSynapClient(server.url, transport="native")
    loop = asyncio.new_event_loop()
    loop.run_until_complete(client.kv.set("a", 1))
    lane: Any = client._calls.lane
    sock = lane._channel.connection._transport._sock
    ask = loop.call_soon_threadsafe

    def ask_and_end(*arguments: Any) -> None:
        ask(*arguments)
        loop.close()

    with patch.object(loop, "call_soon_threadsafe", ask_and_end):
        run(client.close())
    assert sock.fileno() == -1


def test_all_loops_elsewhere_are_asked_to_close_before_one_is_waited_for(server: ThrowawayServer) -> None:
    client = AsyncSynapClient(server.url, transport="native")
    loops = [asyncio.new_event_loop() for _ in range(3)]
    for loop in loops:
        loop.run_until_complete(client.kv.set("a", 1))
    lane: Any = client._calls.lane
    connections = [channel.connection for channel in lane._channels.values()]

    async def close_and_be_cancelled() -> None:
        closing = asyncio.ensure_future(lane.close())
        await asyncio.sleep(0)  # it waits for the first
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing

    run(close_and_be_cancelled())
    for loop, connection in zip(loops, connections):
        loop.run_until_complete(asyncio.wait({connection.lost}, timeout=PATIENCE))
        loop.close()
        assert connection.lost.done()
    run(client.close())


@pytest.mark.parametrize("running", [False, True])
def test_closing_a_client_waits_little_for_a_loop_elsewhere_that_does_nothing(
    server: ThrowawayServer, running: bool
) -> None:
    client = AsyncSynapClient(server.url, transport="native")
    over, begun = threading.Event(), threading.Event()

    async def main() -> None:
        await client.kv.set("a", 1)
        if running:
            begun.set()
            assert over.wait(PATIENCE)  # the loop is held up

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    if running:
        assert begun.wait(PATIENCE)
    else:
        thread.join(PATIENCE)
    run(client.close())
    over.set()
    thread.join(PATIENCE)
    loop.run_until_complete(asyncio.sleep(0))  # it comes to it
    loop.close()


@pytest.mark.parametrize("lane", LANES)
def test_several_loops_at_once_do_not_hold_each_other_up(server: ThrowawayServer, lane: str) -> None:
    client = AsyncSynapClient(server.url, transport=lane, timeout=20)
    raised: List[BaseException] = []

    async def main(number: int) -> None:
        for count in range(30):
            await client.kv.set(f"loop{number}", count)

    def work(number: int) -> None:
        try:
            run(main(number))
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not raised
    run(client.close())


# ------------------------------------------------------------------------------------------ subscriptions


async def test_everybody_who_iterates_over_one_subscription_ends_with_it(make: Make) -> None:
    client = AsyncSynapClient("memory://")
    subscription = await client.pubsub.subscribe(["t"])
    got: List[Any] = []

    async def work() -> None:
        async for _, message in in_time(subscription):
            got.append(message)

    tasks = [asyncio.ensure_future(work()) for _ in range(3)]
    await asyncio.sleep(0)
    for number in range(9):
        await client.pubsub.publish("t", number)
    while len(got) < 9:
        await asyncio.sleep(0.001)
    await subscription.unsubscribe()
    await client.close()
    await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)
    assert sorted(got) == list(range(9))


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), ValueError("x")])
def test_whatever_a_sync_callback_raises_is_told_and_ends_nothing(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    got: List[Any] = []
    told: List[BaseException] = []

    def callback(topic: str, message: Any) -> None:
        got.append(message)
        raise error

    with caplog.at_level(logging.ERROR, "synap"), SynapClient("memory://") as client:
        client.on("error")(told.append)
        client.pubsub.subscribe(["t"], callback)
        for number in range(3):
            assert client.pubsub.publish("t", number).subscribers_matched == 1
        until = time.monotonic() + PATIENCE
        while len(told) < 3 and time.monotonic() < until:
            time.sleep(0.001)
    assert got == [0, 1, 2]
    assert told == [error] * 3
    assert "the callback of" in caplog.text


class Outcome(BaseException):
    """No `Exception`: pytest's `fail` and `skip` raise such, for one."""


async def test_whatever_an_async_callback_raises_is_told_and_ends_nothing(make: Make) -> None:
    told: List[BaseException] = []

    async def callback(topic: str, message: Any) -> None:
        raise Outcome

    client = make("memory://")
    client.on("error")(told.append)
    await client.pubsub.subscribe(["t"], callback)
    for number in range(3):
        assert (await client.pubsub.publish("t", number)).subscribers_matched == 1
    until = time.monotonic() + PATIENCE
    while len(told) < 3 and time.monotonic() < until:
        await asyncio.sleep(0.001)
    assert [type(one) for one in told] == [Outcome] * 3


async def test_an_unreadable_answer_to_subscribing_fails_at_once(make: Make) -> None:
    def script(peer: Peer) -> None:
        peer.hello()
        request = peer.request()
        assert name_of(request) == STREAM_SUBSCRIBE.name
        peer.say(frame(Kind.ANSWER, request.id, JSON.encode(["nonsense"])))
        peer.frame()

    with ScriptedService(script) as service:
        client = make(service.url, timeout=600, retries=0)
        with pytest.raises(synap.ConnectionError, match=r"not one to stream\.subscribe"):
            await client.stream.subscribe("room", print)


# ------------------------------------------------------------------------------------------ what is left behind


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="this system has no /proc")


@needs_proc
@pytest.mark.parametrize("lane", LANES)
async def test_a_client_closed_in_the_middle_of_its_handshake_leaves_no_socket(
    server: ThrowawayServer, lane: str
) -> None:
    before = open_files()
    for turns in range(12):
        client = AsyncSynapClient(server.url, transport=lane)
        call = asyncio.ensure_future(client.kv.get("a"))
        for _ in range(turns):
            await asyncio.sleep(0)
            time.sleep(0.002)  # noqa: ASYNC251  # so that what comes meanwhile is found in one turn
        call.cancel()
        await client.close()
        await asyncio.gather(call, return_exceptions=True)
    until = time.monotonic() + PATIENCE
    while open_files() > before and time.monotonic() < until:
        await asyncio.sleep(0.01)
    assert open_files() <= before


@needs_proc
@pytest.mark.parametrize("lane", LANES)
async def test_a_dropped_client_warns_and_closes(server: ThrowawayServer, lane: str) -> None:
    before = open_files()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(5):
            client = AsyncSynapClient(server.url, transport=lane)
            await client.kv.get("a")
            del client
            sync = SynapClient(server.url, transport=lane)
            sync.kv.get("a")
            sync.pubsub.subscribe(["t"]).unsubscribe()
            del sync
        gc.collect()
    until = time.monotonic() + PATIENCE
    while open_files() > before and time.monotonic() < until:
        await asyncio.sleep(0.01)
    assert open_files() <= before
    texts = [str(warning.message) for warning in seen if warning.category is ResourceWarning]
    assert len([text for text in texts if "was left open: close the client" in text]) >= 10


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("used", [False, True])
def test_a_client_pickles_as_its_configuration(client: Any, used: bool) -> None:
    made = client("memory://pickled", timeout=70, format="msgpack")
    if used:
        outcome = made.kv.set("a", 1)
        if client is AsyncSynapClient:
            run(outcome)
    for other in (pickle.loads(pickle.dumps(made)), copy.copy(made), copy.deepcopy(made)):
        assert type(other) is client
        assert other.config == made.config
        assert other._calls is not made._calls
    closing = made.close()
    if client is AsyncSynapClient:
        run(closing)


def test_a_client_with_a_context_of_its_own_says_why_it_does_not_pickle() -> None:
    client = SynapClient("https://localhost", ssl=ssl.create_default_context())
    with pytest.raises(SynapError, match="give it tls_ca, tls_cert and tls_key instead"):
        pickle.dumps(client)


# ------------------------------------------------------------------------------------------ what is told


def test_a_key_that_travels_in_the_open_to_another_host_warns_once() -> None:
    with pytest.warns(UserWarning, match=r"travels unencrypted to db\.example:15500"):
        SynapClient("http://db.example", api_key="k")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SynapClient("http://db.example", api_key="k")
        SynapClient("https://other.example", api_key="k")
        SynapClient("http://localhost", api_key="k")
        SynapClient("http://127.0.0.7:1", api_key="k")
        SynapClient("http://[::1]:1", api_key="k")


@pytest.mark.usefixtures("nothing_known")
async def test_retries_reconnects_and_fallbacks_leave_a_line_at_debug(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def script(peer: Peer) -> None:
        if peer.number < 2:
            head = peer.head()
            assert (b"/api/v1/ws" in head) == (peer.number == 1)
            peer.say(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        peer.hello()
        peer.answer(peer.request(), {"value": 1})

    with caplog.at_level(logging.DEBUG, "synap.client"), ScriptedService(script) as service:
        client = make(service.url, retries=3, api_key="s3cr3t")
        assert await client.kv.incr("n") == 1
        await client.close()
    assert "takes no upgrade, trying a WebSocket" in caplog.text
    assert "retry 1 in" in caplog.text
    assert "connected to" in caplog.text
    assert "s3cr3t" not in caplog.text


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_client_of_a_directory_that_is_dropped_warns_and_lets_go_of_it(
    tmp_path: Path, asynchronous: bool
) -> None:
    url = f"file://{tmp_path}/data"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        if asynchronous:
            client: Any = AsyncSynapClient(url=url)
            await client.kv.set("k", 1)
        else:
            client = SynapClient(url=url)
            client.kv.set("k", 1)
        del client
        gc.collect()
    assert [one for one in seen if one.category is ResourceWarning and "was left open: close it" in str(one.message)]
    give_up = time.monotonic() + PATIENCE
    while True:  # somebody else may have it now, without anything else being done in this process
        try:
            prepare(f"{tmp_path}/data").release()
            break
        except Locked:
            assert time.monotonic() < give_up
            await asyncio.sleep(0.02)


async def test_an_engine_in_memory_ends_with_the_last_client_that_is_dropped() -> None:
    before = threading.active_count()
    for _ in range(20):
        client = SynapClient(url="memory://")
        client.queue.publish("q", 1, delay=3600)  # so that somebody keeps its time
        del client
    gc.collect()
    give_up = time.monotonic() + PATIENCE
    while threading.active_count() > before + 1:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("atomic", [False, True])
async def test_a_pipeline_that_fails_as_a_whole_says_so_in_each_of_its_results(make: Make, atomic: bool) -> None:
    client = make(NOWHERE, retries=0, timeout=5)
    with pytest.raises(synap.ConnectionError):
        async with client.pipeline(atomic=atomic) as p:
            handles: List[Any] = [p.kv.set("key", 1), p.kv.get("key")]
    for handle in handles:
        with pytest.raises(synap.ConnectionError):
            handle.result()


async def test_the_results_of_a_pipeline_whose_block_was_cancelled_cancel_nobody_else() -> None:
    """They raised the block's `CancelledError`, which ended whatever task asked for one."""

    def script(peer: Peer) -> None:
        peer.hello()
        peer.request()
        block.get_loop().call_soon_threadsafe(block.cancel)
        peer.frame()

    handles: List[Any] = []

    async def work() -> None:
        async with client.pipeline() as p:
            handles.extend([p.kv.set("key", 1), p.kv.get("key")])

    with ScriptedService(script) as service:
        async with AsyncSynapClient(service.url, transport="native") as client:
            block = asyncio.ensure_future(work())
            await asyncio.wait({block}, timeout=PATIENCE)
            assert block.cancelled()
    for handle in handles:
        with pytest.raises(synap.ConnectionError, match="CancelledError ended the wait") as caught:
            handle.result()
        assert caught.value.may_have_happened


async def test_an_unreadable_result_in_a_batch_is_the_error_of_its_own_command(make: Make) -> None:
    def script(peer: Peer) -> None:
        peer.hello()
        wrong, right = {"value": "no number"}, {"value": 2}
        results = [{"status": "success", "payload": payload, "error": None} for payload in (wrong, right)]
        peer.answer(peer.request(), {"results": results})
        peer.request()

    with ScriptedService(script) as service:
        client = make(service.url, transport="native")
        async with client.pipeline() as p:
            one, other = p.kv.incr("one"), p.kv.incr("other")
        assert other.result() == 2
        with pytest.raises(synap.ConnectionError) as caught:
            one.result()
        assert caught.value.may_have_happened
        await client.close()


async def test_an_error_is_freed_without_the_garbage_collector(make: Make, server: ThrowawayServer) -> None:
    """Its traceback holds what was sent."""
    client = make(server.url, transport="native")
    await client.kv.set("key", 1)
    gc.disable()
    try:
        try:
            await client.queue.stats("none")
        except SynapError as error:
            seen = weakref.ref(error)
        await client.kv.get("key")
        while seen() is not None:  # a thread that made the call may still be ending it
            await asyncio.sleep(0.001)
    finally:
        gc.enable()
