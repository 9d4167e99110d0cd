"""A bad network between client and service: a documented error in time, and the next call right."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Awaitable, Callable, Dict, Iterator

import pytest

import synap
from synap import AsyncSynapClient, SynapClient, SynapError
from synap.testing import ThrowawayServer
from synap.testing.ports import ReservedPort
from tests.helpers.colour import coated, in_thread
from tests.helpers.fault_proxy import Fault, FaultProxy
from tests.helpers.patience import PATIENCE, impatient
from tests.helpers.seen import Seen
from tests.helpers.streams import served

TIMEOUT = 3.0
"""Seconds after which a call gives up that hears nothing."""
PATIENT: Dict[str, Any] = {"retries": 1000, "retry_delay": 0.02, "retry_max_delay": 0.1, "timeout": PATIENCE}
"""Options of a client that outlasts a restart of the service, however busy the machine is."""
LATE = 20.0
"""Seconds by which giving up may be late, however busy the machine is."""
LARGE = "large " * 50_000
"""A value that no single read or write takes."""
HALF = 150_000

COLOURS = ["async", "sync"]
LANES = ["native", "websocket", "auto"]

HARMLESS: Dict[str, Dict[str, Fault]] = {
    "delayed both ways": {"up": Fault(delay=0.02), "down": Fault(delay=0.02)},
    "byte by byte": {"up": Fault(drip=True), "down": Fault(drip=True)},
}
HARMFUL: Dict[str, Dict[str, Fault]] = {
    "request swallowed": {"up": Fault(swallow=True)},
    "answer swallowed": {"down": Fault(swallow=True)},
    "request cut at once": {"up": Fault(cut=0)},
    "request cut in the head": {"up": Fault(cut=7)},
    "request cut in the body": {"up": Fault(cut=20)},
    "request reset": {"up": Fault(cut=5, reset=True)},
    "answer cut at once": {"down": Fault(cut=0)},
    "answer cut in the head": {"down": Fault(cut=3)},
    "answer cut in the body": {"down": Fault(cut=15)},
    "answer reset": {"down": Fault(cut=5, reset=True)},
}

Call = Callable[[AsyncSynapClient, str, str], Awaitable[Any]]
"""Takes a client, the name of the test's own things, and the id of a message that this client holds."""
READS: Dict[str, Call] = {
    "get": lambda client, name, held: client.kv.get(name),
    "mget": lambda client, name, held: client.kv.mget(name, f"{name}:n"),
    "scan": lambda client, name, held: client.kv.scan(prefix=name),
    "history": lambda client, name, held: client.stream.history(name),
    "read batch": lambda client, name, held: client.batch([{"command": "kv.get", "payload": {"key": name}}]),
    "subscribe to topics": lambda client, name, held: client.pubsub.subscribe([name]),
}
WRITES: Dict[str, Call] = {
    "set": lambda client, name, held: client.kv.set(f"{name}:set", [name]),
    "incr": lambda client, name, held: client.kv.incr(f"{name}:n"),
    "queue.publish": lambda client, name, held: client.queue.publish(name, 1),
    "stream.publish": lambda client, name, held: client.stream.publish(name, "type", 1),
    "pubsub.publish": lambda client, name, held: client.pubsub.publish(name, 1),
    "subscribe to a room": lambda client, name, held: client.stream.subscribe(name),
    "consume": lambda client, name, held: client.queue.consume(name),
    "waiting consume": lambda client, name, held: client.queue.consume(f"{name}:empty", timeout=0.2),
    "ack": lambda client, name, held: client.queue.ack(f"{name}:held", held),
    "nack": lambda client, name, held: client.queue.nack(f"{name}:held", held, requeue=False),
    "batch": lambda client, name, held: client.batch([{"command": "kv.incr", "payload": {"key": f"{name}:n"}}]),
}


@pytest.fixture
def proxy(server: ThrowawayServer) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", server.port) as proxy:
        yield proxy


def connect(colour: str, **options: Any) -> AsyncSynapClient:
    """Make a client of either colour that behaves as the asynchronous one."""
    return AsyncSynapClient(**options) if colour == "async" else coated(SynapClient(**options))


async def prepare(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, {"own": name})
    await client.stream.publish(name, "type", 0)
    for queue in (name, f"{name}:empty", f"{name}:held"):
        await client.queue.create(queue)


async def hold(client: AsyncSynapClient, name: str) -> str:
    """Have the client hold a message, and return its id."""
    await client.queue.publish(f"{name}:held", "held")
    message = await client.queue.consume(f"{name}:held", ack_deadline=300)
    assert message is not None
    return message.message_id


async def right(client: AsyncSynapClient, name: str) -> None:
    """See that calls get their own answers."""
    assert (await client.kv.get(name)).value == {"own": name}
    assert (await client.kv.set(f"{name}:after", 1)).key == f"{name}:after"
    assert (await client.stream.history(name, limit=1)).events[0].data == 0


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("fault", HARMLESS)
async def test_a_slow_network_changes_nothing(proxy: FaultProxy, name: str, lane: str, colour: str, fault: str) -> None:
    client = connect(colour, url=proxy.url, transport=lane, retries=0)
    await prepare(client, name)
    proxy.fail(**HARMLESS[fault])
    for call in (*READS.values(), *WRITES.values()):
        await call(client, name, await hold(client, name))
    await right(client, name)
    assert (await client.kv.get(f"{name}:n")).value == 2
    await client.close()


async def fails_in_time(call: Awaitable[Any], timeout: float = TIMEOUT) -> synap.ConnectionError:
    """See that a call fails as is documented, about when it should; returns its error."""
    began = time.monotonic()
    with pytest.raises(synap.ConnectionError) as caught:
        await call
    assert time.monotonic() - began < timeout + LATE
    assert caught.value.code in ("CONNECTION_FAILED", "CONNECTION_LOST", "TIMEOUT")
    return caught.value


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("fault", [fault for fault in HARMFUL if "swallowed" not in fault])
@pytest.mark.parametrize("kind", ["reads", "writes"])
async def test_a_broken_network_gives_a_documented_error_in_time(
    proxy: FaultProxy, name: str, lane: str, colour: str, fault: str, kind: str
) -> None:
    client = connect(colour, url=proxy.url, transport=lane, retries=0, timeout=LATE)
    await prepare(client, name)
    for call in (READS if kind == "reads" else WRITES).values():
        held = await hold(client, name)
        proxy.fail(**HARMFUL[fault])
        error = await fails_in_time(call(client, name, held), LATE)
        if error.code == "CONNECTION_FAILED" or kind == "reads":
            assert not error.may_have_happened
        elif "answer" in fault:
            assert error.may_have_happened
        proxy.heal()
        await right(client, name)
    await client.close()


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("fault", [fault for fault in HARMFUL if "swallowed" in fault])
@pytest.mark.parametrize("subscribed", [False, True], ids=["", "subscribed"])
async def test_whoever_hears_nothing_gives_up_in_time(
    proxy: FaultProxy, name: str, lane: str, colour: str, fault: str, subscribed: bool
) -> None:
    # All at once, for each takes all of its timeout.
    client = connect(colour, url=proxy.url, transport=lane, retries=0, timeout=PATIENCE, pool_size=30)
    await prepare(client, name)
    calls = {**READS, **WRITES}
    held = {called: await hold(client, name) for called in calls}
    if subscribed:
        await client.pubsub.subscribe([f"{name}.other"])
    proxy.fail(**HARMFUL[fault])
    began = time.monotonic()
    with impatient(client, TIMEOUT):
        failing = (fails_in_time(call(client, name, held[called])) for called, call in calls.items())
        errors = await asyncio.gather(*failing)
    assert time.monotonic() - began >= TIMEOUT
    for called, error in zip(calls, errors):
        # The first timeout may end a connection that has said nothing meanwhile, and with it what began later.
        assert error.code in ("TIMEOUT", "CONNECTION_LOST"), called
        if called in READS:
            assert not error.may_have_happened, called
        else:
            assert error.may_have_happened or "nothing was sent" in error.message, called
    proxy.heal()
    await right(client, name)
    await client.close()


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("reset", [False, True], ids=["cut", "reset"])
async def test_a_large_value_that_is_cut_in_its_middle_is_no_value(
    proxy: FaultProxy, name: str, lane: str, colour: str, reset: bool
) -> None:
    client = connect(colour, url=proxy.url, transport=lane, retries=0, timeout=PATIENCE)
    await prepare(client, name)
    await client.kv.set(f"{name}:large", LARGE)
    for _ in range(3):
        proxy.fail(up=Fault(cut=HALF, reset=reset))
        await fails_in_time(client.kv.set(f"{name}:large", f"other {LARGE}"), LATE)
        proxy.heal()
        await right(client, name)
        proxy.fail(down=Fault(cut=HALF, reset=reset))
        error = await fails_in_time(client.kv.get(f"{name}:large"), LATE)
        assert not error.may_have_happened
        proxy.heal()
        assert (await client.kv.get(f"{name}:large")).value == LARGE
        await right(client, name)
    await client.close()


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_large_value_that_gets_stuck_is_given_up_in_time(
    proxy: FaultProxy, name: str, lane: str, colour: str, way: str
) -> None:
    huge = "x" * 9_000_000  # more than all buffers on the way together
    client = connect(colour, url=proxy.url, transport=lane, retries=0, timeout=PATIENCE)
    await prepare(client, name)
    await client.kv.set(f"{name}:large", huge)
    proxy.fail(**{way: Fault(swallow=True)})
    with impatient(client, TIMEOUT):
        if way == "up":
            await fails_in_time(client.kv.set(f"{name}:large", huge))
        else:
            await fails_in_time(client.kv.get(f"{name}:large"))
    proxy.heal()
    await right(client, name)
    await client.close()


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("fault", [fault for fault in HARMFUL if "swallowed" not in fault])
async def test_a_retried_write_takes_effect_once(
    proxy: FaultProxy, name: str, lane: str, colour: str, fault: str
) -> None:
    client = connect(colour, url=proxy.url, transport=lane, retries=30, retry_delay=0.01, retry_max_delay=0.05)
    await prepare(client, name)
    for number in range(1, 6):
        proxy.fail(**HARMFUL[fault])
        counting = asyncio.ensure_future(client.kv.incr(f"{name}:n"))
        publishing = asyncio.ensure_future(client.queue.publish(name, number))
        appending = asyncio.ensure_future(client.stream.publish(name, "type", number))
        await asyncio.sleep(0.03)  # some attempts fail
        proxy.heal()
        assert await counting == number
        assert (await publishing).position == number
        assert (await appending).offset == number
    stats = await client.queue.stats(name)
    assert (stats.depth, stats.published_total) == (5, 5)
    await client.close()


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize(("text", "cut"), [("small", 15), (LARGE, HALF)], ids=["small", "large"])
async def test_a_retried_consume_holds_one_message(
    proxy: FaultProxy, name: str, lane: str, colour: str, text: str, cut: int
) -> None:
    client = connect(colour, url=proxy.url, transport=lane, retries=30, retry_delay=0.01, retry_max_delay=0.05)
    await prepare(client, name)
    for number in range(3):
        await client.queue.publish(name, [number, text])
    for number in range(3):
        proxy.fail(down=Fault(cut=cut))
        consuming = asyncio.ensure_future(client.queue.consume(name, ack_deadline=300))
        await asyncio.sleep(0.03)  # some attempts fail
        proxy.heal()
        message = await consuming
        assert message is not None
        assert (message.message, message.retry_count) == ([number, text], 0)
        assert (await client.queue.stats(name)).pending == 1
        await client.queue.ack(name, message.message_id)
    await client.close()


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("lane", ["native", "websocket"])
async def test_a_write_that_is_retried_across_a_crash_takes_effect_once(
    name: str, lane: str, colour: str, tmp_path: Any
) -> None:
    with ThrowawayServer(data=tmp_path / "data") as server, FaultProxy("127.0.0.1", server.port) as proxy:
        # Two, for each has a connection that stands, on which the request gets through.
        client, other = (connect(colour, url=proxy.url, transport=lane, **PATIENT) for _ in range(2))
        async with AsyncSynapClient(url=server.url, retries=20, retry_delay=0.05) as observer:
            await observer.queue.create(name)
            for number in range(1, 4):
                for connected in (client, other):
                    await connected.kv.get(name)
                proxy.fail(down=Fault(cut=0))
                counting = asyncio.ensure_future(client.kv.incr(name))
                publishing = asyncio.ensure_future(other.queue.publish(name, number))
                while (await observer.kv.get(name)).value != number:
                    await asyncio.sleep(0.01)
                while (await observer.queue.stats(name)).published_total != number:
                    await asyncio.sleep(0.01)
                await in_thread(server.restart)
                proxy.heal()
                assert await counting == number
                await publishing
            assert (await observer.kv.get(name)).value == 3
            assert (await observer.queue.stats(name)).published_total == 3
        await client.close()
        await other.close()


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("lane", ["native", "websocket"])
async def test_an_ack_that_is_retried_across_a_crash_succeeds_and_is_counted_once(
    name: str, lane: str, colour: str, tmp_path: Any
) -> None:
    with ThrowawayServer(data=tmp_path / "data") as server, FaultProxy("127.0.0.1", server.port) as proxy:
        client = connect(colour, url=proxy.url, transport=lane, **PATIENT)
        async with AsyncSynapClient(url=server.url, retries=20, retry_delay=0.05) as observer:
            await client.queue.publish(name, "work")
            message = await client.queue.consume(name, ack_deadline=300)
            assert message is not None
            proxy.fail(down=Fault(cut=0))
            acking = asyncio.ensure_future(client.queue.ack(name, message.message_id))
            while (await observer.queue.stats(name)).acked_total != 1:
                await asyncio.sleep(0.01)
            await in_thread(server.restart)
            proxy.heal()
            await acking
            stats = await observer.queue.stats(name)
            assert (stats.depth, stats.pending, stats.acked_total) == (0, 0, 1)
        await client.close()


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("colour", COLOURS)
async def test_a_service_that_is_not_there_is_a_failed_connection(lane: str, colour: str) -> None:
    nobodys = ReservedPort()
    url = f"http://127.0.0.1:{nobodys.number}"
    client = connect(colour, url=url, transport=lane, retries=1, retry_delay=0.01)
    with pytest.raises(synap.ConnectionError) as caught:
        await client.kv.set("key", 1)
    assert caught.value.code == "CONNECTION_FAILED"
    assert not caught.value.may_have_happened
    assert url.rpartition("/")[2] in caught.value.message
    await client.close()


GARBAGE: Dict[str, bytes] = {
    "nothing": b"",
    "text": b"220 mail.example.com ESMTP\r\n",
    "zeros": b"\x00" * 100,
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "html": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 13\r\n\r\n<html></html>",
    "json of another kind": (
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{"hello":"you"}'
    ),
    "a bad gateway": b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 11\r\n\r\nBad Gateway",
    "an endless head": b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"x" * 100_000,
    "a huge length": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n{",
    "101 and garbage": (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: synap/1\r\n"
        b"Synap-Version: 1\r\nSynap-Max-Body: 1000\r\n\r\n" + b"\xff" * 50
    ),
}


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("garbage", GARBAGE)
async def test_a_service_that_answers_garbage_gives_a_documented_error(garbage: str, lane: str, colour: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read(65_536)
            writer.write(GARBAGE[garbage])
            await writer.drain()
        except OSError:
            pass

    async with served(answer) as port:
        client = connect(colour, url=f"http://127.0.0.1:{port}", transport=lane, retries=0)
        with impatient(client, 2), pytest.raises(SynapError) as caught:
            await asyncio.wait_for(client.kv.set("key", 1), 2 + LATE)
        await client.close()
    assert caught.value.code in synap.errors.CODES
    assert caught.value.message


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("lane", LANES)
async def test_a_subscription_goes_on_through_lost_connections_without_gap_or_repeat(
    proxy: FaultProxy, server: ThrowawayServer, name: str, lane: str, colour: str
) -> None:
    client = connect(colour, url=proxy.url, transport=lane, retries=30, retry_delay=0.01, retry_max_delay=0.05)
    seen = Seen()
    await client.stream.subscribe(name, seen)
    async with AsyncSynapClient(url=server.url) as publisher:
        for number in range(200):
            await publisher.stream.publish(name, "number", number)
            if number % 40 == 20:
                await in_thread(proxy.drop_all, reset=number % 80 == 20)
            if number == 100:
                proxy.fail(down=Fault(cut=100))
                await asyncio.sleep(0.05)
                proxy.heal()
    events = await seen.until(lambda event: event.offset == 199)
    assert [event.offset for event in events] == list(range(200))
    assert [event.data for event in events] == list(range(200))
    await client.close()
