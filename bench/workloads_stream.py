"""Publishing: events into a room beside XADD and JetStream. nats-py has no blocking client to compare ours with."""

from __future__ import annotations

import contextlib
from typing import Any, AsyncIterator, Callable, Iterator

from nats.js.api import StorageType

from bench.clients import (
    contender,
    nats_client,
    redis_for,
    redis_sync,
    synap_client,
    synap_sync,
    sync_contender,
)
from bench.measure import AsyncRun, Case, Contender, Tally, under_way
from bench.peers import Server
from bench.plan import SECONDARY, THREADS, WIDTHS, Plan, threads_title, width_title

__all__ = ["nats_publish", "redis_xadd", "stream", "synap_publish"]

TEXT = "x" * 100
RAW = TEXT.encode()


def synap_publish(client: Any) -> Callable[[int], Any]:
    publish = client.stream.publish
    return lambda number: publish("room", "message", TEXT)


def redis_xadd(client: Any) -> Callable[[int], Any]:
    xadd = client.xadd
    return lambda number: xadd("room", {"message": RAW}, maxlen=100_000, approximate=True)


def nats_publish(server: Server, width: int, storage: StorageType = StorageType.MEMORY) -> Contender:
    """Make JetStream's contender."""

    @contextlib.asynccontextmanager
    async def open() -> AsyncIterator[AsyncRun]:
        async with nats_client(server) as client:
            stream = client.jetstream(timeout=30)
            await stream.add_stream(name="room", subjects=["room"], storage=storage, max_msgs=100_000)
            publish = stream.publish

            async def run(seconds: float) -> Tally:
                return await under_way(lambda number: publish("room", RAW), width, seconds)

            yield run
            await stream.delete_stream("room")

    return Contender("nats-py", server.pid, open)


def stream(plan: Plan) -> Iterator[Case]:
    """1, 10, 100 and 1000 events under way, async and sync; the room keeps its last 100,000 everywhere."""
    ours, valkey, nats = plan.servers.synap(), plan.servers.valkey(), plan.servers.nats()
    for width in WIDTHS:
        contenders = [
            contender("synap", ours, synap_client, synap_publish, width),
            contender("redis-py", valkey, redis_for(width), redis_xadd, width),
            nats_publish(nats, width),
        ]
        title = f"stream publish, {width_title(width)}"
        rounds = None if width == 100 else SECONDARY
        yield Case(f"stream/publish/{width}", title, contenders, unit="events", rounds=rounds)
    for threads in THREADS:
        contenders = [
            sync_contender("synap", ours, synap_sync, synap_publish, threads),
            sync_contender("redis-py", valkey, redis_sync, redis_xadd, threads),
        ]
        title = f"stream publish, sync, {threads_title(threads)}"
        yield Case(f"stream/sync/{threads}", title, contenders, unit="events", sync=True, rounds=SECONDARY)
