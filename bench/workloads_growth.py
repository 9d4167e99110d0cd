"""How the cost of an operation grows, over the wire: with keys, queue depth, events, subscriptions and connections."""

from __future__ import annotations

import contextlib
from typing import Any, AsyncIterator, Awaitable, Callable, Iterator, List

from bench.clients import Operation, synap_client
from bench.measure import under_way
from bench.peers import Server
from bench.plan import Curve, Plan

__all__ = ["growth"]

TEXT = "x" * 100
WIDTH = 50


def growth(plan: Plan) -> Iterator[Curve]:
    """Operations a second against how much is there already, 50 under way."""
    for key, title, sizes, grow in (
        ("keys", "get and set, by number of keys", (1000, 10_000, 100_000, 1_000_000), _keys),
        ("depth", "publish, consume, ack, by depth of the queue", (1000, 10_000, 100_000, 1_000_000), _depth),
        ("events", "publish and read the last ten, by events in the room", (1000, 10_000, 100_000), _events),
        ("subscriptions", "publish to one of the topics, by topics subscribed", (100, 1000, 10_000), _topics),
        ("connections", "get, by idle connections", (10, 100, 1000), _connections),
    ):
        server = plan.servers.synap()
        yield plan.run(_curve(plan, server, Curve(f"growth/{key}", title), plan.steps(*sizes), grow))
        plan.servers.stop_all()


Grow = Callable[[Server, Any, int, int, contextlib.AsyncExitStack], Awaitable[Operation]]
"""Take the service from `before` to `now` of something, and return the operation to measure there."""


async def _curve(plan: Plan, server: Server, curve: Curve, steps: List[int], grow: Grow) -> Curve:
    before = 0
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(synap_client(server))
        for now in steps:
            operation = await grow(server, client, before, now, stack)
            rates = []
            for _ in range(max(1, plan.rounds // 2)):
                tally = await under_way(operation, WIDTH, plan.seconds)
                rates.append(tally.operations / plan.seconds)
            curve.points.append((now, sorted(rates)[len(rates) // 2]))
            before = now
    return curve


async def _batches(before: int, now: int) -> AsyncIterator[range]:
    for start in range(before, now, 2000):
        yield range(start, min(start + 2000, now))


async def _keys(server: Server, client: Any, before: int, now: int, stack: Any) -> Operation:
    async for numbers in _batches(before, now):
        await client.kv.mset({f"grow:{number}": TEXT for number in numbers})
    get, set = client.kv.get, client.kv.set

    async def operation(number: int) -> None:
        name = f"grow:{number * 7919 % now}"
        await (set(name, TEXT) if number % 2 else get(name))

    return operation


async def _depth(server: Server, client: Any, before: int, now: int, stack: Any) -> Operation:
    if not before:
        await client.queue.create("grow", max_depth=10_000_000)
    async for numbers in _batches(before, now):
        await client.batch(
            [{"command": "queue.publish", "payload": {"queue": "grow", "message": TEXT}} for _ in numbers]
        )

    async def operation(number: int) -> None:
        await client.queue.publish("grow", TEXT)
        message = await client.queue.consume("grow")
        await client.queue.ack("grow", message.message_id)

    return operation


async def _events(server: Server, client: Any, before: int, now: int, stack: Any) -> Operation:
    payload = {"room": "grow", "event_type": "message", "data": TEXT}
    async for numbers in _batches(before, now):
        await client.batch([{"command": "stream.publish", "payload": payload} for _ in numbers])

    async def operation(number: int) -> None:
        await (client.stream.publish("grow", "message", TEXT) if number % 2 else client.stream.history("grow", -10))

    return operation


async def _topics(server: Server, client: Any, before: int, now: int, stack: Any) -> Operation:
    for number in range(before, now):
        await client.pubsub.subscribe([f"grow.{number}.*"], lambda topic, message: None)
    return lambda number: client.pubsub.publish(f"grow.{number * 7919 % now}.news", TEXT)


async def _connections(server: Server, client: Any, before: int, now: int, stack: Any) -> Operation:
    for _ in range(before, now):
        await stack.enter_async_context(synap_client(server))
    await client.kv.set("grow", TEXT)
    return lambda number: client.kv.get("grow")
