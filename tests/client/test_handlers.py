"""Event handlers and callbacks: who is told what, on which thread, and what happens when they raise."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from typing import Any, List

import pytest

from synap import AsyncSynapClient, StreamEvent, SynapClient, SynapError
from tests.client.conftest import Make
from tests.helpers.colour import in_thread
from tests.helpers.listener import end
from tests.helpers.patience import PATIENCE, Stopwatch
from tests.helpers.scripted import Peer, ScriptedService, name_of


def answering(peer: Peer) -> None:
    """Answer one request for each connection, then end it."""
    peer.hello()
    peer.answer(peer.request(), {"value": peer.number})


async def test_handlers_hear_of_connections_that_come_and_go(make: Make) -> None:
    heard: List[str] = []
    with ScriptedService(answering) as service:
        client = make(service.url)

        @client.on("connected")
        def on_connected() -> None:
            heard.append("connected")

        @client.on("disconnected")
        def on_disconnected(reason: str) -> None:
            assert reason
            heard.append("disconnected")

        for _ in range(3):
            await client.kv.incr("n")
        await client.close()
    assert heard[0] == "connected"
    assert heard[-1] == "disconnected"
    assert heard == ["connected", "disconnected"] * (len(heard) // 2)
    assert len(heard) >= 6


async def test_handlers_may_be_coroutine_functions(make: Make) -> None:
    heard = threading.Event()
    client = make("memory://")

    @client.on("connected")
    async def on_connected() -> None:
        await asyncio.sleep(0)
        heard.set()

    await client.kv.get("key")
    assert await in_thread(heard.wait, PATIENCE)


def test_a_coroutine_handler_runs_although_the_callers_thread_has_an_event_loop() -> None:
    """As in a notebook."""
    heard: List[str] = []

    async def notebook() -> None:
        with SynapClient(url="memory://") as client:

            @client.on("connected")
            async def on_connected() -> None:
                await asyncio.sleep(0)
                heard.append("connected")

            assert client.kv.incr("n") == 1

    thread = threading.Thread(target=asyncio.run, args=(notebook(),))
    thread.start()
    thread.join()
    assert heard == ["connected"]


@pytest.mark.parametrize("client", [AsyncSynapClient(url="memory://"), SynapClient(url="memory://")])
def test_an_unknown_event_is_refused_with_the_nearest_one(client: Any) -> None:
    with pytest.raises(SynapError, match="there is no event 'conected', did you mean 'connected'"):
        client.on("conected")
    with pytest.raises(SynapError, match="there is no event 7"):
        client.on(7)
    with pytest.raises(SynapError, match="a handler must be callable"):
        client.on("error")("print")


async def test_a_handler_that_raises_is_logged_and_disturbs_nobody(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    client = make("memory://")

    @client.on("connected")
    def on_connected() -> None:
        raise RuntimeError("of the handler's own")

    with caplog.at_level(logging.ERROR, "synap"):
        assert await client.kv.incr("n") == 1
    assert "of the handler's own" in caplog.text


async def test_a_subscription_goes_on_whatever_a_handler_raises(
    make: Make, colour: str, caplog: pytest.LogCaptureFixture
) -> None:
    def script(peer: Peer) -> None:
        peer.hello()
        while True:
            request = peer.request()
            if name_of(request) == "pubsub.subscribe":
                peers.append(peer)
                peer.answer(request, {"subscription_id": 1, "topics": ["t"]})

    def on_disconnected(reason: str) -> None:
        raise SystemExit(1) if colour == "sync" else asyncio.CancelledError

    peers: List[Peer] = []
    with ScriptedService(script) as service, caplog.at_level(logging.ERROR, "synap"):
        client = make(service.url, transport="native")
        client.on("disconnected")(on_disconnected)
        await client.pubsub.subscribe(["t"])
        end(peers[0].sock)
        over = Stopwatch()
        with over:
            while len(peers) < 2 and over.seconds < PATIENCE:
                await asyncio.sleep(0.01)
        assert len(peers) == 2
        assert "a handler of 'disconnected' raised" in caplog.text
        await client.close()


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_a_callback_that_raises_is_reported_and_called_again(
    make: Make, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = make("memory://")
    offsets: List[int] = []
    errors: List[Exception] = []
    done = threading.Event()
    client.on("error")(errors.append)

    def plain(event: StreamEvent) -> None:
        offsets.append(event.offset)
        if event.offset == 1:
            raise ValueError("no good")
        if event.offset == 2:
            done.set()

    async def coroutine(event: StreamEvent) -> None:
        await asyncio.sleep(0)
        plain(event)

    with caplog.at_level(logging.ERROR, "synap"):
        await client.stream.subscribe("room", plain if kind == "plain" else coroutine)
        for number in range(3):
            await client.stream.publish("room", "number", number)
        assert await in_thread(done.wait, PATIENCE)
    assert offsets == [0, 1, 2]
    assert [str(error) for error in errors] == ["no good"]
    assert "no good" in caplog.text


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tasks of this Python don't tell who is cancelled")
async def test_a_callback_that_awaits_what_was_cancelled_is_reported_and_called_again() -> None:
    told: List[BaseException] = []
    seen: List[int] = []
    both = asyncio.Event()

    async def callback(event: StreamEvent) -> None:
        seen.append(event.offset)
        if event.offset == 1:
            both.set()
        cancelled = asyncio.get_running_loop().create_future()
        cancelled.cancel()
        await cancelled

    async with AsyncSynapClient("memory://") as client:
        client.on("error")(told.append)
        await client.stream.subscribe("room", callback)
        for number in range(2):
            await client.stream.publish("room", "number", number)
        await asyncio.wait_for(both.wait(), PATIENCE)
    assert seen == [0, 1]
    assert told
    assert {type(error) for error in told} == {asyncio.CancelledError}


def test_an_event_loop_that_ends_cancels_a_callback_and_its_subscription_ends() -> None:
    subscriptions: List[Any] = []

    async def main() -> None:
        began = asyncio.Event()

        async def callback(event: StreamEvent) -> None:
            began.set()
            await asyncio.get_running_loop().create_future()

        client = AsyncSynapClient("memory://")
        subscriptions.append(await client.stream.subscribe("room", callback))
        await client.stream.publish("room", "number", 1)
        await began.wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)  # on this one, a loop of pytest's is set
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert "ended" in repr(subscriptions[0])


async def test_callbacks_run_one_at_a_time_and_in_order(make: Make) -> None:
    client = make("memory://")
    running = 0
    seen: List[Any] = []
    done = threading.Event()

    async def on_message(topic: str, message: Any) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(0.001)
        running -= 1
        seen.append(message)
        if message == 19:
            done.set()

    await client.pubsub.subscribe(["numbers"], on_message)
    for number in range(20):
        await client.pubsub.publish("numbers", number)
    assert await in_thread(done.wait, PATIENCE)
    assert seen == list(range(20))


def test_the_sync_clients_callbacks_run_on_a_thread_of_their_own() -> None:
    threads: List[threading.Thread] = []
    seen = threading.Event()

    def on_event(event: StreamEvent) -> None:
        threads.append(threading.current_thread())
        seen.set()

    with SynapClient(url="memory://") as client:
        client.stream.subscribe("room", on_event)
        client.stream.publish("room", "type", 1)
        assert seen.wait(PATIENCE)
    assert threads[0] is not threading.current_thread()
    assert threads[0].daemon


async def test_a_callback_may_end_its_own_subscription(make: Make) -> None:
    client = make("memory://")
    seen: List[int] = []
    ended = threading.Event()

    if isinstance(client, AsyncSynapClient):

        async def on_event(event: StreamEvent) -> None:
            seen.append(event.offset)
            await subscription.unsubscribe()
            ended.set()
    else:

        def on_event(event: StreamEvent) -> None:
            seen.append(event.offset)
            subscription._inner.unsubscribe()
            ended.set()

    await client.stream.publish("room", "type", 0)
    subscription: Any = await client.stream.subscribe("room", on_event)
    for number in range(1, 4):
        await client.stream.publish("room", "type", number)
    assert await in_thread(ended.wait, PATIENCE)
    assert (await client.stream.stats("room")).subscribers == 0
    assert seen == [1]


async def test_a_callback_may_use_the_client(make: Make) -> None:
    client = make("memory://")
    done = threading.Event()

    if isinstance(client, AsyncSynapClient):

        async def on_message(topic: str, message: Any) -> None:
            await client.kv.set("seen", message)
            done.set()
    else:

        def on_message(topic: str, message: Any) -> None:
            client._inner.kv.set("seen", message)
            done.set()

    await client.pubsub.subscribe(["a.*"], on_message)
    await client.pubsub.publish("a.b", 7)
    assert await in_thread(done.wait, PATIENCE)
    assert (await client.kv.get("seen")).value == 7
