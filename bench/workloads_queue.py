"""Queues: publish, consume, acknowledge, beside the reliable queue people build on Redis lists and JetStream's.

Every worker publishes one message, takes one and acknowledges it, so that there is always one to take and nobody
waits. An acknowledgement is confirmed by the server, with JetStream through `ack_sync`. nats-py's plain `ack` writes
and doesn't ask whether it arrived; it is measured beside, as what one gets for less.
"""

from __future__ import annotations

import contextlib
from typing import Any, AsyncIterator, Iterator

from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StorageType

from bench.clients import Operation, contender, nats_client, redis_client, synap_client
from bench.measure import AsyncRun, Case, Contender, Tally, under_way
from bench.peers import Server
from bench.plan import Plan

__all__ = ["queue"]

TEXT = "x" * 100
RAW = TEXT.encode()
WORKERS = 50


async def synap_cycle(client: Any) -> Operation:
    publish, consume, ack = client.queue.publish, client.queue.consume, client.queue.ack

    async def cycle(number: int) -> None:
        await publish("tasks", TEXT)
        message = await consume("tasks", timeout=1)
        await ack("tasks", message.message_id)

    return cycle


async def redis_cycle(client: Any) -> Operation:
    lpush, lmove, lrem = client.lpush, client.lmove, client.lrem

    async def cycle(number: int) -> None:
        await lpush("tasks", RAW)
        message = await lmove("tasks", "tasks:processing", "RIGHT", "LEFT")
        await lrem("tasks:processing", 1, message)

    return cycle


def nats_cycle(name: str, server: Server, workers: int, *, confirmed: bool) -> Contender:
    queue = "confirmed" if confirmed else "told"

    @contextlib.asynccontextmanager
    async def open() -> AsyncIterator[AsyncRun]:
        async with nats_client(server) as client:
            stream = client.jetstream(timeout=30)
            await stream.add_stream(
                name=queue, subjects=[queue], retention=RetentionPolicy.WORK_QUEUE, storage=StorageType.MEMORY
            )
            durable = ConsumerConfig(durable_name="workers", ack_policy=AckPolicy.EXPLICIT, max_ack_pending=10_000)
            pulls = [await stream.pull_subscribe(queue, durable="workers", config=durable) for _ in range(workers)]
            publish = stream.publish

            async def cycle(number: int) -> None:
                pull = pulls.pop()
                try:
                    await publish(queue, RAW)
                    (message,) = await pull.fetch(1, timeout=30)
                    await (message.ack_sync(30) if confirmed else message.ack())
                finally:
                    pulls.append(pull)

            async def run(seconds: float) -> Tally:
                return await under_way(cycle, workers, seconds)

            yield run
            await stream.delete_stream(queue)

    return Contender(name, server.pid, open)


def queue(plan: Plan) -> Iterator[Case]:
    """The whole cycle with 1 and with 50 workers."""
    ours, valkey, nats = plan.servers.synap(), plan.servers.valkey(), plan.servers.nats()
    for workers in (1, WORKERS):
        contenders = [
            contender("synap", ours, synap_client, synap_cycle, workers),
            contender("redis-py", valkey, redis_client, redis_cycle, workers),
            nats_cycle("nats-py", nats, workers, confirmed=True),
            nats_cycle("nats-py, ack()", nats, workers, confirmed=False),
        ]
        title = f"queue cycle, {'one by one' if workers == 1 else f'{workers} under way'}"
        yield Case(f"queue/cycle/{workers}", title, contenders, unit="cycles")
