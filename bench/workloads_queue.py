"""Queues: publish, consume, acknowledge, beside the reliable queue people build on Redis lists and JetStream's.

Every worker publishes one message, takes one and acknowledges it, so that there is always one to take and nobody
waits. An acknowledgement is confirmed by the server, with JetStream through `ack_sync`. nats-py's plain `ack` writes
and doesn't ask whether it arrived; it is measured beside, as what one gets for less.

nats-py has no blocking client, so the blocking ones are compared with redis-py's alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, AsyncIterator, Callable, Iterator, List

from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StorageType

from bench.clients import (
    Operation,
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

__all__ = ["WORKERS", "nats_cycle", "queue", "redis_cycle", "synap_cycle"]

TEXT = "x" * 100
RAW = TEXT.encode()
WORKERS = 50
PULLS = 100
"""Pull subscriptions of nats-py at the most. A consumer takes 512 requests that wait (`max_waiting`), so 1000 workers
with one each time out; where that is raised they get less done than when they share 100, the best of what was tried
(10, 50, 100, 500, 1000)."""


def synap_cycle(client: Any) -> Operation:
    publish, consume, ack = client.queue.publish, client.queue.consume, client.queue.ack

    async def cycle(number: int) -> None:
        await publish("tasks", TEXT)
        message = await consume("tasks", timeout=1)
        await ack("tasks", message.message_id)

    return cycle


def synap_combined_cycle(client: Any) -> Operation:
    """Publish, and with one call acknowledge the message before and take the next."""
    publish, consume = client.queue.publish, client.queue.consume
    held: List[str] = []  # of all workers: which of them acknowledges a message is all the same

    async def cycle(number: int) -> None:
        await publish("tasks", TEXT)
        message = await consume("tasks", timeout=1, ack=held.pop() if held else None)
        held.append(message.message_id)

    return cycle


def redis_cycle(client: Any) -> Operation:
    lpush, lmove, lrem = client.lpush, client.lmove, client.lrem

    async def cycle(number: int) -> None:
        await lpush("tasks", RAW)
        message = await lmove("tasks", "tasks:processing", "RIGHT", "LEFT")
        await lrem("tasks:processing", 1, message)

    return cycle


def synap_sync_cycle(client: Any) -> Callable[[int], None]:
    publish, consume, ack = client.queue.publish, client.queue.consume, client.queue.ack

    def cycle(number: int) -> None:
        publish("tasks", TEXT)
        message = consume("tasks", timeout=1)
        ack("tasks", message.message_id)

    return cycle


def redis_sync_cycle(client: Any) -> Callable[[int], None]:
    lpush, lmove, lrem = client.lpush, client.lmove, client.lrem

    def cycle(number: int) -> None:
        lpush("tasks", RAW)
        message = lmove("tasks", "tasks:processing", "RIGHT", "LEFT")
        lrem("tasks:processing", 1, message)

    return cycle


def nats_cycle(
    name: str, server: Server, workers: int, *, confirmed: bool, storage: StorageType = StorageType.MEMORY
) -> Contender:
    """Make JetStream's contender: a work queue, a durable pull consumer, `workers` who take turns at its pulls."""
    queue = "confirmed" if confirmed else "told"

    @contextlib.asynccontextmanager
    async def open() -> AsyncIterator[AsyncRun]:
        async with nats_client(server) as client:
            stream = client.jetstream(timeout=30)
            await stream.add_stream(name=queue, subjects=[queue], retention=RetentionPolicy.WORK_QUEUE, storage=storage)
            durable = ConsumerConfig(durable_name="workers", ack_policy=AckPolicy.EXPLICIT, max_ack_pending=10_000)
            pulls: asyncio.LifoQueue[Any] = asyncio.LifoQueue()
            for _ in range(min(workers, PULLS)):
                pulls.put_nowait(await stream.pull_subscribe(queue, durable="workers", config=durable))
            publish = stream.publish

            async def cycle(number: int) -> None:
                await publish(queue, RAW)
                pull = await pulls.get()
                try:
                    (message,) = await pull.fetch(1, timeout=30)
                finally:
                    pulls.put_nowait(pull)
                await (message.ack_sync(30) if confirmed else message.ack())

            async def run(seconds: float) -> Tally:
                return await under_way(cycle, workers, seconds)

            yield run
            await stream.delete_stream(queue)

    return Contender(name, server.pid, open)


def queue(plan: Plan) -> Iterator[Case]:
    """The whole cycle with 1, 10, 50, 100 and 1000 workers, and with the blocking clients."""
    ours, valkey, nats = plan.servers.synap(), plan.servers.valkey(), plan.servers.nats()
    for workers in sorted({*WIDTHS, WORKERS}):
        contenders = [
            contender("synap", ours, synap_client, synap_cycle, workers),
            contender("redis-py", valkey, redis_for(workers), redis_cycle, workers),
            nats_cycle("nats-py", nats, workers, confirmed=True),
        ]
        if workers in (1, WORKERS):
            contenders.append(nats_cycle("nats-py, ack()", nats, workers, confirmed=False))
        rounds = None if workers == WORKERS else SECONDARY
        title = f"queue cycle, {width_title(workers)}"
        yield Case(f"queue/cycle/{workers}", title, contenders, unit="cycles", rounds=rounds)
    for workers in (1, WORKERS, 100):
        contenders = [
            contender("synap", ours, synap_client, synap_combined_cycle, workers),
            contender("synap, three calls", ours, synap_client, synap_cycle, workers),
            nats_cycle("nats-py", nats, workers, confirmed=True),
        ]
        title = f"queue cycle, acknowledge and take in one call, {width_title(workers)}"
        rounds = None if workers == WORKERS else SECONDARY
        yield Case(f"queue/combined/{workers}", title, contenders, unit="cycles", rounds=rounds)
    for threads in THREADS:
        contenders = [
            sync_contender("synap", ours, synap_sync, synap_sync_cycle, threads),
            sync_contender("redis-py", valkey, redis_sync, redis_sync_cycle, threads),
        ]
        title = f"queue cycle, sync, {threads_title(threads)}"
        yield Case(f"queue/sync/{threads}", title, contenders, unit="cycles", sync=True, rounds=SECONDARY)
