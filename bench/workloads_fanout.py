"""One publisher, fifty subscribers, each of them a client with a connection of its own.

The publisher keeps a burst of messages under way and sends the next burst when everybody has the last. What is counted
is deliveries; the time of a call is that of a burst.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, AsyncIterator, Awaitable, Callable, Iterator

from bench.clients import nats_client, redis_client, synap_client
from bench.measure import AsyncRun, Case, Contender, Tally, under_way
from bench.peers import Server
from bench.plan import Plan

__all__ = ["fanout"]

TEXT = "x" * 100
RAW = TEXT.encode()
SUBSCRIBERS = 50
BURST = 20


class Arrivals:
    """Counts deliveries and wakes the publisher when a burst is with everybody."""

    def __init__(self) -> None:
        self._due = 0
        self._all: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def expect(self, number: int) -> None:
        self._due = number
        self._all = asyncio.get_running_loop().create_future()

    def one(self, *_: object) -> None:
        self._due -= 1
        if self._due == 0 and not self._all.done():
            self._all.set_result(None)

    async def all(self) -> None:
        await asyncio.wait_for(self._all, 60)


Publish = Callable[[int], Awaitable[Any]]
Setting = Callable[[Server, int, Arrivals, contextlib.AsyncExitStack], Awaitable[Publish]]


def fan(name: str, server: Server, subscribers: int, setting: Setting) -> Contender:
    """Make a contender: `setting` connects publisher and subscribers and returns how to publish."""

    @contextlib.asynccontextmanager
    async def open() -> AsyncIterator[AsyncRun]:
        arrivals = Arrivals()
        async with contextlib.AsyncExitStack() as stack:
            publish = await setting(server, subscribers, arrivals, stack)

            async def burst(number: int) -> None:
                arrivals.expect(BURST * subscribers)
                await asyncio.gather(*(publish(turn) for turn in range(BURST)))
                await arrivals.all()

            async def run(seconds: float) -> Tally:
                return await under_way(burst, 1, seconds, weight=BURST * subscribers)

            yield run

    return Contender(name, server.pid, open)


async def _background(stack: contextlib.AsyncExitStack, work: Any) -> None:
    task = asyncio.ensure_future(work)

    async def end() -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task

    stack.push_async_callback(end)


# -------------------------------------------------------------------------------------------------------------- topics


def synap_topics(pattern: str, topic: str, format: str = "json") -> Setting:
    async def setting(server: Server, subscribers: int, arrivals: Arrivals, stack: Any) -> Publish:
        for _ in range(subscribers):
            client = await stack.enter_async_context(synap_client(server, format=format))
            await client.pubsub.subscribe([pattern], arrivals.one)
        publisher = await stack.enter_async_context(synap_client(server, format=format))
        return lambda number: publisher.pubsub.publish(topic, TEXT)

    return setting


def redis_topics(topic: str, pattern: str = "") -> Setting:
    async def setting(server: Server, subscribers: int, arrivals: Arrivals, stack: Any) -> Publish:
        async def listen(pubsub: Any, ready: asyncio.Event) -> None:
            async for message in pubsub.listen():
                if message["type"] in ("message", "pmessage"):
                    arrivals.one()
                else:
                    ready.set()

        client = await stack.enter_async_context(redis_client(server))
        for _ in range(subscribers):
            pubsub = client.pubsub()
            stack.push_async_callback(pubsub.aclose)
            await (pubsub.psubscribe(pattern) if pattern else pubsub.subscribe(topic))
            ready = asyncio.Event()
            await _background(stack, listen(pubsub, ready))
            await ready.wait()
        return lambda number: client.publish(topic, RAW)

    return setting


def nats_topics(pattern: str, topic: str) -> Setting:
    async def setting(server: Server, subscribers: int, arrivals: Arrivals, stack: Any) -> Publish:
        async def arrived(message: Any) -> None:
            arrivals.one()

        for _ in range(subscribers):
            client = await stack.enter_async_context(nats_client(server))
            await client.subscribe(pattern, cb=arrived)
            await client.flush()
        publisher = await stack.enter_async_context(nats_client(server))
        return lambda number: publisher.publish(topic, RAW)

    return setting


# --------------------------------------------------------------------------------------------------------------- rooms


async def synap_room(server: Server, subscribers: int, arrivals: Arrivals, stack: Any) -> Publish:
    for _ in range(subscribers):
        client = await stack.enter_async_context(synap_client(server))
        await client.stream.subscribe("room", arrivals.one)
    publisher = await stack.enter_async_context(synap_client(server))
    return lambda number: publisher.stream.publish("room", "message", TEXT)


async def redis_room(server: Server, subscribers: int, arrivals: Arrivals, stack: Any) -> Publish:
    client = await stack.enter_async_context(redis_client(server))
    await client.xadd("room", {"message": RAW})

    async def read(last: Any) -> None:
        while True:
            answer = await client.xread({"room": last}, block=0, count=100)
            found = answer.items() if isinstance(answer, dict) else answer
            for _, entries in found:
                events = entries[0] if isinstance(answer, dict) else entries
                for _ in events:
                    arrivals.one()
                last = events[-1][0]

    ((last, _),) = await client.xrevrange("room", count=1)
    for _ in range(subscribers):
        await _background(stack, read(last))
    await asyncio.sleep(0.2)
    return lambda number: client.xadd("room", {"message": RAW}, maxlen=100_000, approximate=True)


async def nats_room(server: Server, subscribers: int, arrivals: Arrivals, stack: Any) -> Publish:
    from nats.js.api import StorageType

    publisher = await stack.enter_async_context(nats_client(server))
    stream = publisher.jetstream(timeout=30)
    await stream.add_stream(name="room", subjects=["room"], storage=StorageType.MEMORY, max_msgs=100_000)

    async def arrived(message: Any) -> None:
        arrivals.one()

    for _ in range(subscribers):
        client = await stack.enter_async_context(nats_client(server))
        await client.jetstream(timeout=30).subscribe("room", cb=arrived, ordered_consumer=True)
    stack.push_async_callback(stream.delete_stream, "room")
    return lambda number: stream.publish("room", RAW)


def fanout(plan: Plan) -> Iterator[Case]:
    """Topics by name, topics by wildcard, and rooms, to fifty subscribers each."""
    ours, valkey, nats = plan.servers.synap(), plan.servers.valkey(), plan.servers.nats()
    many = min(SUBSCRIBERS, plan.many(SUBSCRIBERS, least=5))
    yield Case(
        "fanout/topic",
        f"pub/sub 1→{many}",
        [
            fan("synap", ours, many, synap_topics("news.sport", "news.sport")),
            fan("redis-py", valkey, many, redis_topics("news.sport")),
            fan("nats-py", nats, many, nats_topics("news.sport", "news.sport")),
        ],
        unit="deliveries",
    )
    yield Case(
        "fanout/wildcard",
        f"pub/sub 1→{many}, wildcards",
        [
            fan("synap", ours, many, synap_topics("news.*", "news.sport")),
            fan("redis-py", valkey, many, redis_topics("news.sport", "news.*")),
            fan("nats-py", nats, many, nats_topics("news.*", "news.sport")),
        ],
        unit="deliveries",
    )
    yield Case(
        "fanout/room",
        f"event stream 1→{many}",
        [
            fan("synap", ours, many, synap_room),
            fan("redis-py", valkey, many, redis_room),
            fan("nats-py", nats, many, nats_room),
        ],
        unit="deliveries",
    )
