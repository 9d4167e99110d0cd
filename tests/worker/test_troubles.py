"""What handlers and people do to a worker ends neither it nor its jobs."""

from __future__ import annotations

import asyncio
import functools
import sys
from typing import Any, Callable, List

import pytest

from synap import AsyncSynapClient
from synap.worker import Reject, Worker, WorkerEvent, runner
from tests.helpers.patience import PATIENCE
from tests.worker import jobs
from tests.worker.conftest import running, until


class Odd(BaseException):
    """An exception of the kind that `except Exception` doesn't catch, as gevent's `Timeout` is."""


async def exits_in_the_loop(value: int) -> None:
    sys.exit(3)


def exits_in_a_thread(value: int) -> None:
    sys.exit(3)


async def raises_odd_in_the_loop(value: int) -> None:
    raise Odd


def raises_odd_in_a_thread(value: int) -> None:
    raise Odd


def ends_an_iteration_in_a_thread(value: int) -> None:
    next(iter(()))


async def awaits_what_was_cancelled(value: int) -> None:
    task = asyncio.ensure_future(asyncio.sleep(60))
    task.cancel()
    await task


@pytest.mark.parametrize(
    ("function", "pool", "kind"),
    [
        (exits_in_the_loop, "loop", SystemExit),
        (exits_in_a_thread, "thread", SystemExit),
        (jobs.leave, "process", SystemExit),
        (raises_odd_in_the_loop, "loop", Odd),
        (raises_odd_in_a_thread, "thread", Odd),
        (ends_an_iteration_in_a_thread, "thread", RuntimeError),
        (functools.partial(ends_an_iteration_in_a_thread), "thread", RuntimeError),
        (jobs.end_iteration, "process", RuntimeError),
        (awaits_what_was_cancelled, "loop", asyncio.CancelledError),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_whatever_a_handler_raises_fails_its_message_and_the_worker_goes_on(
    client: AsyncSynapClient, name: str, function: Callable[..., Any], pool: str, kind: type
) -> None:
    worker = Worker(client, processes=1)
    retried: List[WorkerEvent] = []
    done: List[int] = []
    worker.handles(name, pool=pool, retry_delay=3600)(function)
    worker.on("retried")(retried.append)

    @worker.handles(f"{name}-after")
    async def after(value: int) -> None:
        done.append(value)

    async with running(worker):
        await client.queue.publish(name, 1)
        await until(lambda: retried)
        await client.queue.publish(f"{name}-after", 2)
        await until(lambda: done)
    assert isinstance(retried[0].error, kind)
    assert retried[0].delay == 3600
    stats = await client.queue.stats(name)
    assert (stats.delayed, stats.pending) == (1, 0)


async def test_the_log_names_the_message_and_the_try(
    client: AsyncSynapClient, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(client)

    @worker.handles(name, retries=1, retry_delay=0)
    async def work(value: int) -> None:
        raise ValueError(value) if value == 1 else Reject("no")

    failing, rejected = await worker.enqueue(work, 1), await worker.enqueue(work, 2)
    await worker.run_once()
    told = "\n".join(caplog.messages)
    for attempt in (1, 2):
        assert f"failed on message {failing.message_id} of {name}, try {attempt} of 2" in told
    assert f"rejected message {rejected.message_id} of {name}: no" in told


async def test_a_plain_function_runs_in_the_loop_where_it_is_told_to(client: AsyncSynapClient, name: str) -> None:
    seen: List[int] = []
    worker = Worker(client)
    worker.handles(name, pool="loop", timeout=PATIENCE)(seen.append)
    await client.queue.publish(name, 1)
    assert (await worker.run_once()).done == 1
    assert seen == [1]


async def test_run_once_fails_a_message_whose_handler_exits(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client)
    worker.handles(name, retry_delay=3600)(exits_in_a_thread)
    await client.queue.publish(name, 1)
    drained = await worker.run_once()
    assert (drained.retried, [type(error) for error in drained.errors]) == (1, [SystemExit])


async def test_run_once_ends_when_it_is_cancelled_and_requeues(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client)
    began = asyncio.Event()

    @worker.handles(name)
    async def work(value: int) -> None:
        began.set()
        await asyncio.Event().wait()

    await client.queue.publish(name, 1)
    running_once = asyncio.ensure_future(worker.run_once())
    await asyncio.wait_for(began.wait(), PATIENCE)
    running_once.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running_once, PATIENCE)
    stats = await client.queue.stats(name)
    assert (stats.depth, stats.pending) == (1, 0)


async def test_a_worker_outlives_the_deletion_of_its_queue_and_creates_it_as_it_was(
    client: AsyncSynapClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "CHECK_INTERVAL", 0.05)
    worker = Worker(client)
    seen: List[int] = []

    @worker.handles(name, retries=0)
    async def work(value: int) -> None:
        seen.append(value)
        if value == 2:
            raise ValueError

    async with running(worker):
        await client.queue.publish(name, 1)
        await until(lambda: seen == [1])
        await client.queue.delete(name)
        await client.queue.publish(name, 2)
        await until(lambda: _there(client, f"{name}.dlq"))


async def test_a_deletion_does_not_bring_a_former_schedule_back(client: AsyncSynapClient, name: str) -> None:
    """While an old version of a program still runs beside the new one."""
    old, new = Worker(client), Worker(client)
    for worker, interval in ((old, "1d"), (new, "2d")):
        worker.every(interval, name=name)(lambda: None)

    @old.handles(f"{name}-q", retries=1)
    async def work(value: int) -> None: ...

    async with running(old):
        await until(lambda: _there(client, f"{name}-q"))
        await new.run_once()
        schedule = await client.kv.get(f"periodic:{name}")
        await client.queue.delete(f"{name}-q")
        await until(lambda: _there(client, f"{name}-q"))
    assert await client.kv.get(f"periodic:{name}") == schedule


async def _there(client: AsyncSynapClient, queue: str) -> bool:
    return queue in await client.queue.list()


@pytest.mark.parametrize("loses", ["purge", "delete"])
async def test_a_job_goes_on_after_somebody_took_its_tick(
    client: AsyncSynapClient, name: str, loses: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "CHECK_INTERVAL", 0.05)
    worker = Worker(client)
    fired: List[int] = []
    worker.every(0.1, name=name)(lambda: fired.append(1))
    queue = f"periodic:{name}"
    async with running(worker):
        await until(lambda: fired)
        await (client.queue.purge(queue) if loses == "purge" else client.queue.delete(queue))
        count = len(fired)
        await until(lambda: len(fired) >= count + 3)
    stats = await client.queue.stats(queue)
    assert stats.depth + stats.delayed + stats.pending == 1
