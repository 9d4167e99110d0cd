"""Async clients and event loops: one after the other, and at the same time."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from typing import Any, Awaitable, Callable, List

import pytest

from synap import AsyncSynapClient, ConnectionError, SynapError
from synap.lanes.native.connection import Connection
from synap.wire.frames import Kind
from tests.helpers.patience import PATIENCE, impatient, in_time
from tests.helpers.scripted import Gone, Peer, ScriptedService


def counting(peer: Peer) -> None:
    """Answer every request with the number of the connection."""
    peer.hello()
    while True:
        peer.answer(peer.request(), {"value": peer.number})


def in_a_loop(work: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine function in an event loop of its own, on a thread of its own."""
    outcome: List[Any] = []

    async def run() -> None:
        outcome.append(await work())

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    thread.join()
    return outcome[0]


def test_a_client_goes_from_one_event_loop_to_the_next() -> None:
    with ScriptedService(counting) as service:
        client = AsyncSynapClient(url=service.url)

        async def use() -> List[int]:
            return [await client.kv.incr("n") for _ in range(3)]

        async def use_and_close() -> List[int]:
            used = await use()
            await client.close()
            return used

        assert in_a_loop(use) == [0, 0, 0]
        assert in_a_loop(use) == [1, 1, 1]
        assert in_a_loop(use_and_close) == [2, 2, 2]
        gc.collect()


async def test_a_first_call_that_is_cancelled_leaves_no_connection_behind() -> None:
    arrived, ended = threading.Event(), threading.Event()
    offered: List[bytes] = []

    def slow(peer: Peer) -> None:
        offered.append(peer.head())
        arrived.set()
        try:
            while True:
                peer.say(b"HTTP/1.1 ")  # a piece of an answer, which never comes to an end
                peer.frame()
        except (Gone, OSError):
            ended.set()

    loop = asyncio.get_running_loop()
    with ScriptedService(slow) as service:
        client = AsyncSynapClient(url=service.url, transport="native")
        call = asyncio.ensure_future(client.kv.incr("n"))
        await loop.run_in_executor(None, arrived.wait, PATIENCE)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await loop.run_in_executor(None, ended.wait, PATIENCE)
        await client.close()
    assert len(offered) == 1


def test_two_event_loops_share_a_client() -> None:
    with ScriptedService(counting) as service:
        client = AsyncSynapClient(url=service.url)
        together = threading.Barrier(2)
        used: List[List[int]] = []

        async def use() -> None:
            await client.connect()
            await asyncio.get_running_loop().run_in_executor(None, together.wait, PATIENCE)
            used.append([await client.kv.incr("n") for _ in range(200)])
            await asyncio.get_running_loop().run_in_executor(None, together.wait, PATIENCE)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # each loop ends with its connection open
            threads = [threading.Thread(target=lambda: asyncio.run(use())) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            in_a_loop(client.close)
            gc.collect()
    assert [len(set(numbers)) for numbers in used] == [1, 1]
    assert used[0] != used[1]


def test_an_engine_in_memory_is_there_in_every_event_loop() -> None:
    client = AsyncSynapClient(url="memory://")

    async def push() -> int:
        seen = []
        subscription = await client.stream.subscribe("room", replay=True)
        await client.stream.publish("room", "number", 1)
        async for event in in_time(subscription):
            seen.append(event.offset)
            break
        await subscription.unsubscribe()
        return seen[0]

    assert in_a_loop(push) == 0
    assert in_a_loop(push) == 0
    assert in_a_loop(lambda: client.stream.history("room")).newest_offset == 1
    in_a_loop(client.close)


@pytest.mark.parametrize("kind", ["room", "durable", "topic"])
@pytest.mark.parametrize("place", ["memory://", "memory://loops", "server"])
def test_subscriptions_end_with_their_event_loop_and_say_so(
    place: str, kind: str, request: pytest.FixtureRequest
) -> None:
    """And not silently: one that is iterated over in the next event loop would wait there for ever."""
    client = AsyncSynapClient(url=request.getfixturevalue(place).url if place == "server" else place)
    told: List[Exception] = []
    client.on("error")(told.append)
    kept: List[Any] = []

    async def subscribe(callback: Any = None) -> Any:
        if kind == "topic":
            return await client.pubsub.subscribe(["numbers"], callback)
        return await client.stream.subscribe(kind, callback, name=f"of {callback}" if kind == "durable" else None)

    async def publish() -> None:
        await client.stream.publish(kind, "number", 1)
        await client.pubsub.publish("numbers", 1)

    async def before() -> None:
        arrived = asyncio.Event()
        kept.append(await subscribe())
        kept.append(await subscribe(lambda *_: arrived.set()))
        await publish()
        await arrived.wait()
        async for _ in in_time(kept[0]):
            break

    async def after() -> None:
        await publish()
        with pytest.raises(ConnectionError, match="event loop has ended: subscribe again") as caught:
            async for _ in in_time(kept[0]):
                pass
        assert caught.value.code == "CONNECTION_LOST"
        assert [getattr(error, "code", error) for error in told] == ["CONNECTION_LOST"] * 2
        for subscription in kept:
            assert "ended" in repr(subscription)
            await subscription.unsubscribe()
        again = await subscribe()
        await publish()
        async for _ in in_time(again):
            break
        await client.close()

    in_a_loop(before)
    assert len(told) == 1  # of the callback's subscription
    in_a_loop(after)


@pytest.mark.parametrize("place", ["memory://", "memory://ended-loops", "server"])
def test_the_subscriptions_of_ended_event_loops_are_gone_at_the_service(
    place: str, request: pytest.FixtureRequest
) -> None:
    client = AsyncSynapClient(url=request.getfixturevalue(place).url if place == "server" else place)

    async def subscribe() -> None:
        await client.pubsub.subscribe(["ended loops"])

    async def settle() -> None:
        """Wait until the service has noticed that the earlier loops' connections are gone."""
        await subscribe()
        while (await client.pubsub.stats()).subscriptions > 1:
            await asyncio.sleep(0.01)

    for _ in range(3):
        in_a_loop(subscribe)
    in_a_loop(lambda: asyncio.wait_for(settle(), PATIENCE))
    in_a_loop(client.close)


@pytest.mark.parametrize("place", ["memory://", "server"])
def test_a_program_that_ends_without_closing_its_client_logs_no_error(
    place: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    client = AsyncSynapClient(url=request.getfixturevalue(place).url if place == "server" else place)

    async def subscribe() -> None:
        await client.pubsub.subscribe(["program"], lambda topic, message: None)
        await client.stream.subscribe("program", lambda event: None)

    in_a_loop(subscribe)
    assert not caplog.records
    in_a_loop(client.close)


async def test_a_subscription_whose_tasks_are_cancelled_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """Also where the event loop goes on: a program may cancel whatever runs."""
    async with AsyncSynapClient("memory://") as client:
        told: asyncio.Queue[SynapError] = asyncio.Queue()
        client.on("error")(told.put)
        await client.stream.subscribe("room", lambda event: None)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            if task.get_name() == "synap subscription to room 'room'":
                task.cancel()
        assert (await asyncio.wait_for(told.get(), PATIENCE)).code == "CONNECTION_LOST"

        async def logged() -> None:
            while "event loop has ended: subscribe again" not in caplog.text:
                await asyncio.sleep(0.01)

        await asyncio.wait_for(logged(), PATIENCE)


async def test_a_client_that_is_dropped_unclosed_says_so_and_closes_its_connection() -> None:
    ended = threading.Event()

    def script(peer: Peer) -> None:
        try:
            counting(peer)
        finally:
            ended.set()

    with ScriptedService(script) as service:
        client = AsyncSynapClient(url=service.url)
        await client.kv.incr("n")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del client
            gc.collect()
        assert any("close the client" in str(warning.message) for warning in caught)
        assert await asyncio.get_running_loop().run_in_executor(None, ended.wait, PATIENCE)


async def test_calls_of_one_turn_leave_together(monkeypatch: pytest.MonkeyPatch) -> None:
    writes: List[int] = []
    write = Connection._write

    def counted(connection: Connection) -> None:
        writes.append(1)
        write(connection)

    with ScriptedService(counting) as service:
        async with AsyncSynapClient(url=service.url) as client:
            await client.connect()
            monkeypatch.setattr(Connection, "_write", counted)
            await client.kv.incr("n")
            assert len(writes) <= 1
            await asyncio.gather(*(client.kv.incr("n") for _ in range(100)))
    assert len(writes) < 10


async def test_cancelling_a_call_disturbs_no_other_and_withdraws_it() -> None:
    kinds: List[int] = []

    def script(peer: Peer) -> None:
        peer.hello()
        first, second = peer.request(), peer.request()
        kinds.append(peer.frame().kind)
        peer.answer(first, {"value": 1})
        peer.answer(second, {"value": 2})
        while True:
            peer.answer(peer.request(), {"value": 3})

    with ScriptedService(script) as service:
        async with AsyncSynapClient(url=service.url) as client:
            await client.connect()
            first = asyncio.ensure_future(client.kv.incr("a"))
            second = asyncio.ensure_future(client.kv.incr("b"))
            await asyncio.sleep(0.05)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            assert await second == 2
            assert await client.kv.incr("c") == 3
    assert kinds == [Kind.CANCEL]


async def test_a_service_that_does_not_read_makes_calls_wait_and_holds_little() -> None:
    """And they fail in time, without having been sent."""
    release = threading.Event()

    def script(peer: Peer) -> None:
        peer.hello()
        release.wait(PATIENCE)

    with ScriptedService(script) as service:
        async with AsyncSynapClient(url=service.url, retries=0) as client:
            await client.connect()
            value = "x" * 1_000_000
            with impatient(client, 4):
                outcomes = await asyncio.gather(
                    *(client.kv.set(f"key-{number}", value) for number in range(50)), return_exceptions=True
                )
            release.set()
    codes = {getattr(outcome, "code", outcome) for outcome in outcomes}
    assert codes <= {"TIMEOUT", "CONNECTION_LOST", "CONNECTION_FAILED"}
    assert any(not getattr(outcome, "may_have_happened", True) for outcome in outcomes)
