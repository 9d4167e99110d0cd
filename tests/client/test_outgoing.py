"""What the async client says on the native lane, in how many writes, and what happens when nobody takes it."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from typing import Any, Awaitable, Callable, List, Tuple

import pytest

import synap
from synap import AsyncSynapClient
from synap.lanes.io.network import AsyncNetwork
from synap.lanes.native.connection import HIGH_WATER, LARGE, Connection
from synap.lanes.native.pipelining import MOST as TOGETHER
from synap.wire.codec import JSON
from synap.wire.frames import MAX_BODY, Kind, frame
from synap.wire.handshake import accept
from tests.helpers.at_once import AT_ONCE
from tests.helpers.frames import Frame, FrameReader
from tests.helpers.patience import PATIENCE, Stopwatch, impatient
from tests.helpers.scripted import Peer, ScriptedService, name_of, payload_of


class Memory(asyncio.Transport):
    """A service in the test's own event loop: it keeps what is written and answers when it is told to."""

    def __init__(self, protocol: Connection) -> None:
        super().__init__()
        self.protocol = protocol
        self.writes: List[bytes] = []
        self._agreed = False
        self._reader = FrameReader()

    def write(self, data: Any) -> None:
        if self._agreed:
            self.writes.append(bytes(data))
        else:
            self._agreed = True
            asyncio.get_running_loop().call_soon(self._say, accept("memory", MAX_BODY))

    def _say(self, data: bytes) -> None:
        """Have the client read that much at once."""
        assert len(data) <= len(self.protocol.get_buffer(-1))
        self.protocol.get_buffer(-1)[: len(data)] = data
        self.protocol.buffer_updated(len(data))

    def requests(self) -> List[Frame]:
        """Return the requests that were written since this was asked last."""
        written, self.writes = b"".join(self.writes), []
        return [received for received in self._reader.feed(written) if received.kind == Kind.REQUEST]

    async def answer(self, requests: List[Frame]) -> int:
        """Answer requests to get with their keys, all in one read; returns how many writes there were in its turn."""
        said = b"".join(
            frame(Kind.ANSWER, request.id, JSON.encode({"found": True, "value": payload_of(request)["key"]}))
            for request in requests
        )
        read: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def say() -> None:  # where no task runs, as a read is
            self._say(said)
            read.set_result(len(self.writes))

        asyncio.get_running_loop().call_soon(say)
        return await read

    def set_write_buffer_limits(self, high: Any = None, low: Any = None) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close


async def connected() -> Tuple[AsyncSynapClient, Memory]:
    """Make a client whose event loop connects it to nothing but `Memory`."""
    made: List[Memory] = []

    class InMemory(AsyncNetwork):
        async def connect(self, protocol: Any, host: str, port: int, context: Any) -> None:
            made.append(Memory(protocol))
            protocol.connection_made(made[-1])

    client = AsyncSynapClient(url="http://127.0.0.1:1", transport="native", retries=0)
    client._calls.network = InMemory()
    await client.connect()
    return client, made[0]


async def get(client: AsyncSynapClient, key: str) -> Any:
    return (await client.kv.get(key)).value


def few(calls: int) -> int:
    """Say how many writes so many calls may take."""
    return math.ceil(calls / 25) + 1


@pytest.mark.parametrize("calls", [2, 10, 25, 100, 1000])
async def test_calls_of_one_turn_leave_in_few_writes(calls: int) -> None:
    client, memory = await connected()
    keys = [f"key{number}" for number in range(calls)]
    tasks = [asyncio.ensure_future(get(client, key)) for key in keys]
    await asyncio.sleep(0)  # they make their calls
    await asyncio.sleep(0)  # the end of that turn
    assert 0 < len(memory.writes) <= few(calls)
    requests = memory.requests()
    assert [payload_of(request)["key"] for request in requests] == keys
    await memory.answer(requests)
    assert await asyncio.gather(*tasks) == keys
    await client.close()


async def test_a_lone_call_leaves_at_once() -> None:
    client, memory = await connected()
    for number in range(3):
        call: Any = client.kv.get(f"key{number}")
        call.send(None)  # up to where it waits, and no turn of the event loop
        assert [payload_of(request)["key"] for request in memory.requests()] == [f"key{number}"]
        call.close()
        await asyncio.sleep(0)
        memory.requests()
    await client.close()


@AT_ONCE
@pytest.mark.parametrize("tasks", [1, 2, 50, 200])
async def test_calls_of_tasks_that_one_read_resumed_leave_together_and_with_it(tasks: int) -> None:
    client, memory = await connected()
    steps = 4

    async def worker(number: int) -> None:
        for step in range(steps):
            assert await get(client, f"{number}.{step}") == f"{number}.{step}"

    workers = [asyncio.ensure_future(worker(number)) for number in range(tasks)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for step in range(steps):
        requests = memory.requests()
        assert [payload_of(request)["key"] for request in requests] == [f"{number}.{step}" for number in range(tasks)]
        writes = await memory.answer(requests)
        if step < steps - 1:
            assert 0 < writes <= (few(tasks) if tasks > 2 else 1)
            await asyncio.sleep(0)
            assert len(memory.writes) == writes, "what the read brought about did not leave with it"
    await asyncio.gather(*workers)
    await client.close()


# ------------------------------------------------------------------------------------------ nobody takes it


class Stubborn:
    """A service that lives, and reads nothing until `reading` is set. Then it answers everything."""

    def __init__(self) -> None:
        self.reading = threading.Event()

    def __call__(self, peer: Peer) -> None:
        peer.hello()
        while not self.reading.wait(0.05):
            peer.say(frame(Kind.PING, 1))  # so that its silence is no reason to give it up
        while True:
            request = peer.request()
            key = payload_of(request)["key"]
            if name_of(request) == "kv.set":
                peer.answer(request, {"success": True, "key": key})
            else:
                peer.answer(request, {"found": True, "value": key})


async def watched(client: AsyncSynapClient) -> Tuple[asyncio.Transport, Connection]:
    """Connect a client, and return what its event loop made of it."""
    made: List[Any] = []

    class Watched(AsyncNetwork):
        async def connect(self, protocol: Any, host: str, port: int, context: Any) -> None:
            made.append(protocol)
            await super().connect(protocol, host, port, context)

    client._calls.network = Watched()
    await client.connect()
    [connection] = made
    assert isinstance(connection, Connection)
    assert connection._transport is not None
    return connection._transport, connection


async def fill(client: AsyncSynapClient, connection: Connection, value: str) -> List[asyncio.Future[Any]]:
    """Set keys until the connection takes no more."""
    calls: List[asyncio.Future[Any]] = []
    while not connection.full:
        assert len(calls) * len(value) < 200_000_000, "the connection takes anything"
        calls.append(asyncio.ensure_future(client.kv.set(f"key{len(calls)}", value)))
        await asyncio.sleep(0)
    return calls


async def eventually(call: Callable[[], Awaitable[Any]]) -> Any:
    """Make a call until there is time enough for it."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return await call()
        except synap.TimeoutError:
            assert time.monotonic() < until


SIZES = [pytest.param(20_000, id="small"), pytest.param(200_000, id="large")]
MOST = HIGH_WATER + TOGETHER * LARGE + 300_000
"""Bytes that may wait in the client, at most: those that make it full came in one piece."""


@pytest.mark.parametrize("size", SIZES)
async def test_what_nobody_takes_is_not_sent_and_times_out(size: int) -> None:
    stubborn = Stubborn()
    with ScriptedService(stubborn) as service:
        client = AsyncSynapClient(url=service.url, transport="native", retries=0)
        transport, connection = await watched(client)
        with impatient(client, 2.5):
            sent = await fill(client, connection, "x" * size)
            assert transport.get_write_buffer_size() <= MOST
            with Stopwatch() as watch:
                calls = (client.kv.set(f"further{number}", "x" * size) for number in range(100))
                outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), PATIENCE)
        assert watch.seconds < 100  # one timeout after the other would be 250 seconds
        assert transport.get_write_buffer_size() <= MOST, "calls that were to wait were sent"
        for outcome in outcomes:
            assert isinstance(outcome, synap.TimeoutError), outcome
            assert "kv.set could not be sent within 2.5 seconds" in outcome.message
            assert not outcome.may_have_happened
        for outcome in await asyncio.gather(*sent, return_exceptions=True):
            assert isinstance(outcome, synap.TimeoutError), outcome
            assert outcome.may_have_happened or "nothing was sent" in outcome.message
        assert not connection.pending, "calls that are over are kept"
        stubborn.reading.set()
        assert await eventually(lambda: get(client, "key")) == "key"
        assert len(service.peers) == 1
        await client.close()


@pytest.mark.parametrize("size", SIZES)
async def test_calls_that_wait_for_room_go_on_when_there_is_some(size: int) -> None:
    stubborn = Stubborn()
    with ScriptedService(stubborn) as service:
        client = AsyncSynapClient(url=service.url, transport="native", timeout=30, retries=0)
        transport, connection = await watched(client)
        sent = await fill(client, connection, "x" * size)
        before = transport.get_write_buffer_size()
        waiting = [asyncio.ensure_future(client.kv.set(f"further{number}", "x" * size)) for number in range(50)]
        gets = [asyncio.ensure_future(get(client, f"got{number}")) for number in range(50)]
        await asyncio.sleep(0.2)  # nothing is to happen
        assert not any(call.done() for call in (*waiting, *gets))
        assert transport.get_write_buffer_size() < before + 1000  # answers to pings
        stubborn.reading.set()
        assert [(await call).key for call in waiting] == [f"further{number}" for number in range(50)]
        assert [await call for call in gets] == [f"got{number}" for number in range(50)]
        assert [(await call).key for call in sent] == [f"key{number}" for number in range(len(sent))]
        assert len(service.peers) == 1
        await client.close()


async def test_a_call_that_waits_for_room_can_be_cancelled() -> None:
    stubborn = Stubborn()
    with ScriptedService(stubborn) as service:
        client = AsyncSynapClient(url=service.url, transport="native", timeout=30, retries=0)
        _, connection = await watched(client)
        sent = await fill(client, connection, "x" * 200_000)
        waiting = [asyncio.ensure_future(get(client, f"got{number}")) for number in range(20)]
        await asyncio.sleep(0)
        for call in waiting[::2]:
            call.cancel()
        stubborn.reading.set()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes[::2])
        assert outcomes[1::2] == [f"got{number}" for number in range(1, 20, 2)]
        await asyncio.gather(*sent)
        await client.close()
