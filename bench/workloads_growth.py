"""How the cost of an operation grows, over the wire: with keys, messages, leases, events, subscriptions, connections.

The rows are those of the engine's table (`python -m bench.growth`), as far as a client can ask for them. What is left
out is what takes away what it is measured against: a consume that is never settled, an acknowledgement without a next
message. Here they are part of a round that leaves everything as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from typing import Any, Awaitable, Callable, Dict, Iterator, List, Tuple

from bench.clients import Operation, synap_client
from bench.measure import processor_seconds, under_way
from bench.peers import Server
from bench.plan import Curve, Plan

__all__ = ["growth"]

TEXT = "x" * 100
WIDTH = 50
TURNS = 3
"""Runs of each operation at each size; the median counts. Together they last as long as one run of a case."""
STEP = 7919
"""A prime: multiples of it walk through all numbers below a size in no order a cache likes."""
SOON = 0.3
"""Seconds until a lease ends that is meant to end while it is measured."""
EACH = 5000
"""Subscriptions of one client. The service allows 10,000."""

Grow = Callable[[Server, Any, int, int, contextlib.AsyncExitStack], Awaitable[Dict[str, Operation]]]
"""Take the service from `before` to `now` of something, and return the operations to measure there, by curve."""


def growth(plan: Plan) -> Iterator[Curve]:
    """Operations a second against how much is there already, 50 under way."""
    for grow, sizes, titles in GROWTH:
        curves = {key: Curve(f"growth/{key}", title) for key, title in titles.items()}
        plan.run(_measure(plan, plan.servers.synap(), curves, plan.steps(*sizes), grow))
        plan.servers.stop_all()
        yield from curves.values()


async def _measure(plan: Plan, server: Server, curves: Dict[str, Curve], steps: List[int], grow: Grow) -> None:
    before = 0
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(synap_client(server))
        for now in steps:
            operations = await grow(server, client, before, now, stack)
            for key, curve in curves.items():
                cpu, done, rates = processor_seconds(server.pid), 0, []
                for _ in range(TURNS):
                    began = time.perf_counter()
                    tally = await under_way(operations[key], WIDTH, plan.seconds / TURNS)
                    # The last calls under way end after the time is up.
                    rates.append(tally.operations / (time.perf_counter() - began))
                    done += tally.operations
                curve.points.append((now, statistics.median(rates)))
                curve.server_cpu.append((processor_seconds(server.pid) - cpu) / done)
            before = now


def _portions(before: int, now: int) -> Iterator[range]:
    for start in range(before, now, 2000):
        yield range(start, min(start + 2000, now))


# ---------------------------------------------------------------------------------------------------------------- keys


async def _keys(server: Server, client: Any, before: int, now: int, stack: Any) -> Dict[str, Operation]:
    kv = client.kv
    for numbers in _portions(before, now):
        await kv.mset({f"grow:{number}": TEXT for number in numbers})
    portion = min(max(now // 10, 100), 10_000)
    page = await kv.scan("grow:", count=portion)
    cursors = [None]
    while page.has_more:
        cursors.append(page.cursor)
        page = await kv.scan("grow:", page.cursor, portion)

    async def get_and_set(number: int) -> None:
        name = f"grow:{number * STEP % now}"
        await (kv.set(name, TEXT) if number % 2 else kv.get(name))

    async def new_and_delete(number: int) -> None:
        name = f"grow:{number * STEP % now}:{number}"
        await kv.set(name, TEXT)
        await kv.delete(name)

    return {
        "keys": get_and_set,
        "delete": new_and_delete,
        "scan": lambda number: kv.scan("grow:", cursors[number % len(cursors)], 100),
    }


async def _expiring(server: Server, client: Any, before: int, now: int, stack: Any) -> Dict[str, Operation]:
    kv = client.kv
    for numbers in _portions(before, now):
        await kv.mset({f"grow:{number}": TEXT for number in numbers}, ttl=3600 + numbers.start // 2000)

    async def expire(number: int) -> None:
        await kv.set(f"soon:{number}", TEXT, ttl=1)

    # From then on each write goes with an expiry of one written a second ago.
    await under_way(expire, WIDTH, 1.1)
    return {
        "expiry": expire,
        "expiring": lambda number: kv.set(f"grow:{number * STEP % now}", TEXT, ttl=3600 + number % 997),
    }


# -------------------------------------------------------------------------------------------------------------- queues


async def _queue(client: Any, before: int, now: int) -> None:
    if not before:
        await client.queue.create("grow", max_depth=10_000_000, max_retries=1_000_000)
    for numbers in _portions(before, now):
        await client.batch(
            [{"command": "queue.publish", "payload": {"queue": "grow", "message": TEXT}} for _ in numbers]
        )


async def _depth(server: Server, client: Any, before: int, now: int, stack: Any) -> Dict[str, Operation]:
    queue = client.queue
    await _queue(client, before, now)

    async def cycle(number: int) -> None:
        await queue.publish("grow", TEXT, number % 10)
        message = await queue.consume("grow")
        await queue.ack("grow", message.message_id)

    async def give_back(number: int) -> None:
        message = await queue.consume("grow")
        await queue.nack("grow", message.message_id)

    return {"depth": cycle, "nack": give_back, "stats": lambda number: queue.stats("grow")}


async def _leases(server: Server, client: Any, before: int, now: int, stack: Any) -> Dict[str, Operation]:
    queue = client.queue
    await _queue(client, before, now)
    held: List[str] = []

    async def hold() -> str:
        message = await queue.consume("grow", ack_deadline=3600 + len(held) % 997)
        return message.message_id  # type: ignore[no-any-return]

    for numbers in _portions(0, now - before):
        held += await asyncio.gather(*(hold() for _ in numbers))
    count = len(held)

    async def settle(number: int) -> None:
        place = number * STEP % count
        await queue.ack("grow", held[place])
        await queue.publish("grow", TEXT)
        held[place] = await hold()

    async def lapse(number: int) -> None:
        await queue.publish("grow", TEXT)
        await queue.consume("grow", ack_deadline=SOON)

    return {
        "extend": lambda number: queue.extend("grow", held[number * STEP % count], 3600 + number % 997),
        "leases": settle,
        "lapse": lapse,
    }


# ------------------------------------------------------------------------------------------------- events and messages


async def _events(server: Server, client: Any, before: int, now: int, stack: Any) -> Dict[str, Operation]:
    stream = client.stream
    room = f"grow:{now}"
    payload = {"room": room, "event_type": "message", "data": TEXT}
    for numbers in _portions(0, now):
        await client.batch([{"command": "stream.publish", "payload": payload} for _ in numbers])

    async def publish_and_read(number: int) -> None:
        await (stream.publish(room, "message", TEXT) if number % 2 else stream.history(room, -10))

    return {
        "history": lambda number: stream.history(room, number * STEP % now, limit=10),
        "events": publish_and_read,
    }


async def _topics(server: Server, client: Any, before: int, now: int, stack: Any) -> Dict[str, Operation]:
    pubsub = client.pubsub

    def ignore(topic: str, message: object) -> None:
        pass

    for start in range(before, now, EACH):
        other = await stack.enter_async_context(synap_client(server))
        for numbers in _portions(start, min(start + EACH, now)):
            await asyncio.gather(*(other.pubsub.subscribe([_pattern(number)], ignore) for number in numbers))

    async def come_and_go(number: int) -> None:
        subscription = await pubsub.subscribe([f"grow.{number % now}.new"], ignore)
        await subscription.unsubscribe()

    return {
        "subscriptions": lambda number: pubsub.publish(f"grow.{number * STEP % now}.paid", TEXT),
        "subscribe": come_and_go,
    }


def _pattern(number: int) -> str:
    """Return the pattern of one subscription: the kinds that there are in turn, as in the engine's table."""
    return (f"grow.{number}.*", f"*.{number}.paid", f"grow.#.{number}", f"grow.{number}.paid")[number % 4]


async def _connections(server: Server, client: Any, before: int, now: int, stack: Any) -> Dict[str, Operation]:
    for _ in range(before, now):
        await stack.enter_async_context(synap_client(server))
    await client.kv.set("grow", TEXT)
    return {"connections": lambda number: client.kv.get("grow")}


GROWTH: Tuple[Tuple[Grow, Tuple[int, ...], Dict[str, str]], ...] = (
    (
        _keys,
        (1000, 10_000, 100_000, 1_000_000),
        {
            "keys": "get and set, by number of keys",
            "delete": "set a new key and delete it, by number of keys",
            "scan": "a page of 100 from anywhere, by number of keys",
        },
    ),
    (
        _expiring,
        (1000, 10_000, 100_000, 1_000_000),
        {
            "expiry": "set, and one of a second ago expires, by number of keys that expire later",
            "expiring": "set with another ttl, by number of keys that expire",
        },
    ),
    (
        _depth,
        (1000, 10_000, 100_000, 1_000_000),
        {
            "depth": "publish, consume, ack, by depth of the queue",
            "nack": "consume and nack, by depth of the queue",
            "stats": "statistics of the queue, by its depth",
        },
    ),
    (
        _leases,
        (1000, 10_000, 100_000),
        {
            "extend": "extend any lease, by number of leases",
            "leases": "ack any lease, publish, consume, by number of leases",
            "lapse": "publish and consume while leases end, by number of leases that don't",
        },
    ),
    (
        _events,
        (1000, 10_000, 100_000),
        {
            "history": "read ten from anywhere, by events in the room",
            "events": "publish and read the last ten, by events in the room (from 100,000 on the oldest go)",
        },
    ),
    (
        _topics,
        (100, 1000, 10_000, 100_000),
        {
            "subscriptions": "publish to one of the topics, by topics subscribed",
            "subscribe": "subscribe and unsubscribe, by topics subscribed",
        },
    ),
    (_connections, (10, 100, 1000), {"connections": "get, by idle connections"}),
)
