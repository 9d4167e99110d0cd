"""What is given back waits before it is tried again: longer each time, or as long as the handler says."""

from __future__ import annotations

import asyncio
import threading
from typing import List, Optional

import pytest

from synap import AsyncSynapClient
from synap.worker import Message, Overrun, Retry, Worker, WorkerEvent
from tests.helpers.patience import PATIENCE
from tests.worker import jobs
from tests.worker.conftest import running, until


async def test_a_message_that_fails_waits_longer_each_time(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client)
    delays: List[float] = []

    @worker.handles(name, retries=10, retry_delay=0.01, backoff=2.0, retry_max_delay=0.05)
    async def work(value: int, message: Message) -> None:
        if message.retry_count < 4:
            raise ValueError("not yet")

    @worker.on("retried")
    def retried(event: WorkerEvent) -> None:
        delays.append(event.delay)

    await worker.enqueue(work, 1)
    async with running(worker):
        await until(lambda: len(delays) == 4)
    assert delays == [0.01, 0.02, 0.04, 0.05]


async def test_retry_says_when(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client)

    @worker.handles(name)
    async def work(value: int) -> None:
        raise Retry(3600)

    await worker.enqueue(work, 1)
    assert (await worker.run_once()).retried == 1
    stats = await client.queue.stats(name)
    assert (stats.depth, stats.delayed) == (0, 1)


async def test_a_handler_that_overruns_is_cancelled_and_its_message_given_back(
    client: AsyncSynapClient, name: str
) -> None:
    worker = Worker(client)
    cancelled: List[int] = []
    events: List[WorkerEvent] = []

    @worker.handles(name, timeout=0.05, retry_delay=3600)
    async def work(value: int) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(value)
            raise

    worker.on("retried")(events.append)
    await worker.enqueue(work, 1)
    async with running(worker):
        await until(lambda: events)
    assert cancelled == [1]
    assert isinstance(events[0].error, Overrun)


async def test_a_thread_that_overruns_keeps_its_place_and_loses_its_message(
    client: AsyncSynapClient, name: str
) -> None:
    worker = Worker(client, concurrency=2)
    goes_on = threading.Event()
    events: List[WorkerEvent] = []

    @worker.handles(name, timeout=0.05, retry_delay=3600)
    def work(value: int) -> None:
        goes_on.wait(PATIENCE)

    worker.on("retried")(events.append)
    await worker.enqueue(work, 1)
    async with running(worker):
        await until(lambda: events)
        goes_on.set()
    assert isinstance(events[0].error, Overrun)


async def test_a_process_that_overruns_or_dies_is_replaced(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client, processes=1)
    errors: List[str] = []
    worker.handles(f"{name}-a", pool="process", timeout=PATIENCE, result_ttl=60)(jobs.square)
    worker.handles(f"{name}-b", pool="process", timeout=0.2, retry_delay=3600)(jobs.hang)
    worker.handles(f"{name}-c", pool="process", retry_delay=3600)(jobs.die)
    worker.handles(f"{name}-d", pool="process", retry_delay=3600)(jobs.fail)
    worker.on("retried")(lambda event: errors.append(type(event.error).__name__))
    async with running(worker):
        for function in (jobs.hang, jobs.die, jobs.fail):
            await worker.enqueue(function, 1)
        await until(lambda: len(errors) == 3)
        job = await worker.enqueue(jobs.square, 3)
        assert await job.result(timeout=PATIENCE) == 9
    assert sorted(errors) == ["Overrun", "ProcessDied", "ZeroDivisionError"]


@pytest.mark.parametrize("timeout", [None, PATIENCE])
async def test_a_timeout_error_that_a_handler_raises_in_a_process_is_not_its_overrun(
    client: AsyncSynapClient, name: str, timeout: Optional[float]
) -> None:
    worker = Worker(client, processes=1)
    events: List[WorkerEvent] = []
    worker.handles(name, pool="process", timeout=timeout, retry_delay=3600)(jobs.time_out)
    worker.on("retried")(events.append)
    await worker.enqueue(jobs.time_out, 1)
    async with running(worker):
        await until(lambda: events)
    assert type(events[0].error) is TimeoutError
    assert str(events[0].error) == "the database did not answer"
