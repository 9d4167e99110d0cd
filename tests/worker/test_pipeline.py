"""What a handler puts into `message.pipeline()` takes effect together with the acknowledgement, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
from typing import List

from synap import AsyncSynapClient
from synap.cluster.places import Places
from synap.worker import Message, Worker
from tests.helpers.patience import PATIENCE
from tests.worker.conftest import running, until


async def test_writes_happen_with_the_acknowledgement(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client)

    @worker.handles(name)
    async def work(value: int, message: Message) -> None:
        with message.pipeline() as p:
            p.kv.incr(f"{name}-count", value)
            p.queue.publish(f"{name}-next", {"from": message.message_id})
        message.pipeline().stream.publish(f"{name}-room", "done", value)
        assert not await client.kv.exists(f"{name}-count")

    await worker.enqueue(work, 5)
    assert (await worker.run_once()).done == 1
    assert (await client.kv.get(f"{name}-count")).value == 5
    assert (await client.queue.stats(f"{name}-next")).depth == 1
    assert (await client.stream.history(f"{name}-room")).newest_offset == 0
    assert (await client.queue.stats(name)).acked_total == 1


async def test_a_handler_that_raises_has_written_nothing(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client)

    @worker.handles(name, retry_delay=0)
    async def work(value: int, message: Message) -> None:
        message.pipeline().kv.incr(f"{name}-count")
        if message.retry_count < 2:
            raise ValueError("after writing")

    await worker.enqueue(work, 1)
    outcome = await worker.run_once()
    assert (outcome.done, outcome.retried) == (1, 2)
    assert (await client.kv.get(f"{name}-count")).value == 1


async def test_a_write_that_is_refused_takes_all_back_and_the_message_is_tried_again(
    client: AsyncSynapClient, name: str
) -> None:
    worker = Worker(client)
    await client.kv.set(f"{name}-text", "no number")

    @worker.handles(name, retry_delay=0, retries=1)
    async def work(value: int, message: Message) -> None:
        p = message.pipeline()
        p.kv.set(f"{name}-other", 1)
        p.kv.incr(f"{name}-text")

    await worker.enqueue(work, 1)
    outcome = await worker.run_once()
    assert (outcome.done, outcome.retried, outcome.rejected, len(outcome.errors)) == (0, 1, 1, 2)
    assert not await client.kv.exists(f"{name}-other")
    assert (await client.queue.stats(f"{name}.dlq")).depth == 1


async def test_a_block_left_by_an_exception_takes_back_only_its_own(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client)

    @worker.handles(name)
    async def work(value: int, message: Message) -> None:
        message.pipeline().kv.set(f"{name}-kept", 1)
        with contextlib.suppress(KeyError):
            async with message.pipeline() as p:
                p.kv.set(f"{name}-dropped", 1)
                raise KeyError("inside")

    await worker.enqueue(work, 1)
    assert (await worker.run_once()).done == 1
    assert await client.kv.exists(f"{name}-kept")
    assert not await client.kv.exists(f"{name}-dropped")


async def test_effects_are_exactly_once_although_handlers_run_twice(client: AsyncSynapClient, name: str) -> None:
    """Two workers, leases that run out while handlers still work: whoever is late writes nothing."""
    runs: List[int] = []

    def make() -> Worker:
        worker = Worker(client, concurrency=5, lease=0.4)

        @worker.handles(name, retries=1000, retry_delay=0)
        async def work(value: int, message: Message) -> None:
            runs.append(value)
            message.pipeline().kv.incr(f"{name}-{value}")
            if value % 5 == 0 and message.retry_count == 0:
                message.expires += 10  # as a process that was stopped: it renews nothing, and thinks all is well
                await asyncio.sleep(1.2)

        return worker

    await asyncio.gather(*(client.queue.publish(name, n) for n in range(40)))
    await client.queue.create(name, max_retries=1000)
    async with running(make()), running(make()):
        await until(lambda: _empty(client, name))
    assert sorted(set(runs)) == list(range(40))
    counts = await client.kv.mget(*(f"{name}-{n}" for n in range(40)))
    assert [count.value for count in counts] == [1] * 40


async def _empty(client: AsyncSynapClient, name: str) -> bool:
    stats = await client.queue.stats(name)
    return stats.depth + stats.pending + stats.delayed == 0


async def test_results_and_periodic_jobs_find_their_place_whatever_they_are_called(
    client: AsyncSynapClient, name: str
) -> None:
    """On a cluster, a name without a tag may lie anywhere, and what belongs to it has to lie beside it."""
    plain = name.strip("{}")
    worker = Worker(client)

    @worker.handles(f"{plain}-sums", result_ttl=60)
    async def add(numbers: List[int]) -> int:
        return sum(numbers)

    ticks: List[int] = []

    @worker.every(1, name=f"{plain}-tick")
    async def tick() -> None:
        ticks.append(1)

    jobs = [await worker.enqueue(add, [number, 1]) for number in range(10)]
    async with running(worker):
        assert [await job.result(timeout=PATIENCE) for job in jobs] == list(range(1, 11))
        await until(lambda: len(ticks) >= 2)


async def test_an_effect_that_lies_elsewhere_is_refused_on_a_cluster_with_what_to_do(
    client: AsyncSynapClient, name: str, place: str
) -> None:
    plain, partition = name.strip("{}"), Places().partition
    orders = f"{plain}-orders"
    total = next(key for key in (f"{plain}-{n}" for n in range(10)) if partition(key) != partition(orders))
    worker = Worker(client)

    @worker.handles(orders, retries=0)
    async def work(value: int, message: Message) -> None:
        message.pipeline().kv.incr(total, value)

    await worker.enqueue(work, 5)
    errors = [str(error) for error in (await worker.run_once()).errors]
    if place in ("valkey", "gateways"):
        (error,) = errors
        assert f"'{total}' isn't in that of '{orders}'" in error
        assert "give them a common {tag}" in error
        assert (await client.queue.stats(f"{orders}.dlq")).depth == 1
    else:
        assert (errors, (await client.kv.get(total)).value) == ([], 5)
