"""Publishing: events into a room beside XADD and JetStream."""

from __future__ import annotations

import contextlib
from typing import Any, AsyncIterator, Iterator

from nats.js.api import StorageType

from bench.clients import Operation, contender, nats_client, redis_client, synap_client
from bench.measure import AsyncRun, Case, Contender, Tally, under_way
from bench.peers import Server
from bench.plan import Plan

__all__ = ["stream"]

TEXT = "x" * 100
RAW = TEXT.encode()


async def synap_publish(client: Any) -> Operation:
    publish = client.stream.publish
    return lambda number: publish("room", "message", TEXT)


async def redis_xadd(client: Any) -> Operation:
    xadd = client.xadd
    return lambda number: xadd("room", {"message": RAW}, maxlen=100_000, approximate=True)


def nats_publish(server: Server, width: int) -> Contender:
    @contextlib.asynccontextmanager
    async def open() -> AsyncIterator[AsyncRun]:
        async with nats_client(server) as client:
            stream = client.jetstream(timeout=30)
            await stream.add_stream(name="room", subjects=["room"], storage=StorageType.MEMORY, max_msgs=100_000)
            publish = stream.publish

            async def run(seconds: float) -> Tally:
                return await under_way(lambda number: publish("room", RAW), width, seconds)

            yield run
            await stream.delete_stream("room")

    return Contender("nats-py", server.pid, open)


def stream(plan: Plan) -> Iterator[Case]:
    """One publisher at a time, and 100 under way; the room keeps its last 100,000 events everywhere."""
    ours, valkey, nats = plan.servers.synap(), plan.servers.valkey(), plan.servers.nats()
    for width in (1, 100):
        contenders = [
            contender("synap", ours, synap_client, synap_publish, width),
            contender("redis-py", valkey, redis_client, redis_xadd, width),
            nats_publish(nats, width),
        ]
        title = f"stream publish, {'one by one' if width == 1 else f'{width} under way'}"
        yield Case(f"stream/publish/{width}", title, contenders, unit="events")
