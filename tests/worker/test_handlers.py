"""A handler's message is acknowledged when it returns, and tried again, or given up, when it raises."""

from __future__ import annotations

import asyncio
import functools
import math
import threading
import time
from dataclasses import dataclass
from typing import Any, AsyncIterator, Callable, Dict, Iterator, List

import pytest

from synap import AsyncSynapClient, SynapError, TimeoutError
from synap.worker import Message, Reject, Retry, Worker, WorkerEvent
from tests.helpers.patience import PATIENCE
from tests.worker import jobs
from tests.worker.conftest import running, until


@dataclass
class Email:
    to: str
    tries: int = 0


async def test_a_handler_gets_the_value_and_the_message(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client)
    seen: List[Any] = []

    @worker.handles(name, type=Email)
    async def send(email: Email, message: Message) -> None:
        seen.append((email, message.queue, message.headers, message.retry_count, bool(message.lost)))

    await worker.enqueue(send, Email("alice"), headers={"trace": "1"})
    assert (await worker.run_once()).done == 1
    assert seen == [(Email("alice"), name, {"trace": "1"}, 0, False)]
    stats = await client.queue.stats(name)
    assert (stats.depth, stats.pending, stats.acked_total) == (0, 0, 1)


async def test_many_messages_are_handled_at_once_and_each_once(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client, concurrency=10)
    seen: List[int] = []
    most = now = 0

    @worker.handles(name)
    async def work(value: int) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1
        seen.append(value)

    await asyncio.gather(*(client.queue.publish(name, n) for n in range(300)))
    async with running(worker):
        await until(lambda: len(seen) == 300)
    assert sorted(seen) == list(range(300))
    assert 1 < most <= 10
    stats = await client.queue.stats(name)
    assert (stats.depth, stats.pending, stats.acked_total) == (0, 0, 300)


async def test_one_at_a_time_acknowledges_and_takes_the_next(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client, concurrency=1)
    seen: List[int] = []

    @worker.handles(name)
    async def work(value: int) -> None:
        await asyncio.sleep(0.12 if value == 0 else 0)  # so slow that nothing is leased ahead
        seen.append(value)

    for n in range(20):
        await client.queue.publish(name, n)
    async with running(worker):
        await until(lambda: len(seen) == 20)
    assert seen == list(range(20))
    assert (await client.queue.stats(name)).acked_total == 20


async def test_several_queues_share_a_worker(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client)
    seen: List[Any] = []

    @worker.handles(f"{name}-a")
    async def first(value: int) -> None:
        seen.append(("a", value))

    @worker.handles(f"{name}-b")
    def second(value: int, message: Message) -> None:
        seen.append(("b", value, threading.current_thread() is not threading.main_thread()))

    async with running(worker):
        for n in range(3):
            await worker.enqueue(first, n)
            await worker.enqueue(second, n)
        await until(lambda: len(seen) == 6)
    assert sorted(seen) == [("a", 0), ("a", 1), ("a", 2), ("b", 0, True), ("b", 1, True), ("b", 2, True)]


async def test_a_handler_that_raises_is_tried_again_until_it_is_a_dead_letter(
    client: AsyncSynapClient, name: str
) -> None:
    worker = Worker(client)
    tries: List[int] = []

    @worker.handles(name, retries=2, retry_delay=0)
    async def work(value: int, message: Message) -> None:
        tries.append(message.retry_count)
        raise ValueError("no luck")

    await worker.enqueue(work, 1)
    outcome = await worker.run_once()
    assert tries == [0, 1, 2]
    assert [type(error) for error in outcome.errors] == [ValueError] * 3
    assert (await client.queue.stats(f"{name}.dlq")).depth == 1


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a plain function around a coroutine function, as many decorators do."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return function(*arguments)

    return call


async def test_a_coroutine_that_a_plain_function_returns_is_awaited(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client)
    seen: List[int] = []

    @worker.handles(name)
    @plain
    async def work(value: int) -> None:
        await asyncio.sleep(0)
        seen.append(value)

    @worker.handles(f"{name}-late", timeout=0.05, retry_delay=3600)
    @plain
    async def late(value: int) -> None:
        await asyncio.Event().wait()

    await worker.enqueue(work, 1)
    assert (await worker.run_once()).done == 1
    async with running(worker):
        await worker.enqueue(work, 2)
        await worker.enqueue(late, 3)
        await until(lambda: len(seen) == 2)
        await until(lambda: _delayed(client, f"{name}-late"))
    assert seen == [1, 2]


async def _delayed(client: AsyncSynapClient, name: str) -> int:
    return (await client.queue.stats(name)).delayed


def test_a_generator_is_no_handler_for_calling_it_runs_nothing() -> None:
    worker = Worker("memory://")

    def work(value: int) -> Iterator[int]:
        yield value

    async def work_too(value: int) -> AsyncIterator[int]:
        yield value

    for function in (work, work_too):
        with pytest.raises(SynapError, match="is a generator"):
            worker.handles("a")(function)


async def test_reject_gives_up_at_once(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client)

    @worker.handles(name)
    async def work(value: int) -> None:
        raise Reject("never")

    await worker.enqueue(work, 1)
    assert (await worker.run_once()).rejected == 1
    assert (await client.queue.stats(f"{name}.dlq")).depth == 1


async def test_a_message_that_does_not_fit_its_type_is_a_dead_letter(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client)

    @worker.handles(name, type=Email)
    async def send(email: Email) -> None:
        raise AssertionError("not called")

    await client.queue.publish(name, {"from": "alice"})
    outcome = await worker.run_once()
    assert outcome.rejected == 1
    assert "$" in str(outcome.errors[0])
    assert (await client.queue.stats(f"{name}.dlq")).depth == 1


async def test_a_process_of_the_pool_runs_plain_functions(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client, processes=1)
    worker.handles(name, pool="process", result_ttl=60)(jobs.square)
    async with running(worker):
        job = await worker.enqueue(jobs.square, 12)
        assert await job.result(timeout=PATIENCE) == 144
        assert (await client.kv.get(f"{name}-{job.message_id}")).value == 144


async def test_a_result_that_cannot_be_sent_back_is_an_error_that_says_so(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client, processes=1)
    worker.handles(name, pool="process", retry_delay=60)(jobs.unsendable)
    retried: asyncio.Queue[WorkerEvent] = asyncio.Queue()
    worker.on("retried")(retried.put_nowait)
    async with running(worker):
        await worker.enqueue(jobs.unsendable, 1)
        event = await asyncio.wait_for(retried.get(), PATIENCE)
    assert str(event.error).startswith("the result can't be sent back: ")
    assert "lock" in str(event.error)


def test_a_partial_goes_by_the_name_of_its_function() -> None:
    worker = Worker("memory://")
    worker.handles("a")(functools.partial(print, 1))
    worker.every("1d")(functools.partial(functools.partial(jobs.square, 2), None))
    assert [handler.name for handler in worker.handlers.values()] == ["builtins.print", "tests.worker.jobs.square"]


async def test_results_are_kept_where_asked(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client)

    @worker.handles(name, result_ttl=60)
    async def work(value: int) -> Email:
        return Email("alice", value)

    @worker.handles(f"{name}-quiet")
    async def quiet(value: int) -> None: ...

    job = await worker.enqueue(work, 3)
    with pytest.raises(TimeoutError):
        await job.result(timeout=0)
    await worker.run_once()
    assert await job.result(timeout=0, type=Email) == Email("alice", 3)
    with pytest.raises(SynapError, match="result_ttl"):
        await (await worker.enqueue(quiet, 1)).result()


async def test_hooks_hear_of_everything_and_share_context_with_the_handler(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client)
    heard: List[str] = []

    @worker.handles(name, retry_delay=0)
    async def work(value: int, message: Message) -> None:
        heard.append("work")
        if value == 1 and message.retry_count == 0:
            raise Retry(0)

    for event in ("begin", "done", "retried"):

        @worker.on(event)
        def hook(event: WorkerEvent) -> None:
            assert event.queue == name
            assert event.message is not None
            heard.append(event.name)

    @worker.on("done")
    def breaks(event: WorkerEvent) -> None:
        raise RuntimeError("of no consequence")

    await worker.enqueue(work, 1)
    await worker.run_once()
    assert heard == ["begin", "work", "retried", "begin", "work", "done"]


async def test_stopping_waits_for_what_runs_and_takes_nothing_new(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client, concurrency=1)
    begun, ended = asyncio.Event(), []

    @worker.handles(name)
    async def work(value: int) -> None:
        begun.set()
        await asyncio.sleep(0.05)
        ended.append(value)

    for n in range(5):
        await client.queue.publish(name, n)
    task = asyncio.ensure_future(worker.run(handle_signals=False))
    await asyncio.wait_for(begun.wait(), PATIENCE)
    worker.stop()
    await asyncio.wait_for(task, PATIENCE)
    assert 1 <= len(ended) < 5
    stats = await client.queue.stats(name)
    assert (stats.pending, stats.depth + len(ended)) == (0, 5)


async def test_what_does_not_end_within_the_grace_is_given_back_at_once(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client, grace=0.05)
    begun = asyncio.Event()

    @worker.handles(name)
    async def work(value: int) -> None:
        begun.set()
        await asyncio.Event().wait()

    await worker.enqueue(work, 1)
    task = asyncio.ensure_future(worker.run(handle_signals=False))
    await asyncio.wait_for(begun.wait(), PATIENCE)
    worker.stop()
    await asyncio.wait_for(task, PATIENCE)
    message = await client.queue.consume(name)
    assert message is not None
    assert message.retry_count == 1


async def test_leases_are_renewed_while_a_handler_runs(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client, lease=12)
    seen: List[int] = []
    lost: List[WorkerEvent] = []

    async def ends() -> float:
        (held,) = (await client.queue.peek(name, state="leased")).messages
        assert held.due is not None
        return held.due

    @worker.handles(name)
    async def work(value: int, message: Message) -> None:
        seen.append(message.retry_count)
        first = await ends()

        async def renewed() -> bool:
            return await ends() > first

        await until(renewed)

    worker.on("lost")(lost.append)
    await worker.enqueue(work, 1)
    async with running(worker):
        await until(lambda: _acked(client, name, 1))
    assert seen == [0]
    assert not lost


async def _acked(client: AsyncSynapClient, name: str, count: int) -> bool:
    return (await client.queue.stats(name)).acked_total >= count


async def test_a_lost_lease_is_told_to_the_handler_before_it_can_acknowledge(
    client: AsyncSynapClient, name: str
) -> None:
    worker = Worker(client, lease=6)
    events: List[str] = []

    @worker.handles(name)
    async def work(value: int, message: Message) -> None:
        message.pipeline().kv.incr(f"{name}-done")
        await client.queue.purge(name)  # the message is gone, and its lease with it
        await asyncio.wait_for(message.lost.wait(), PATIENCE)
        events.append("told")

    worker.on("lost")(lambda event: events.append("lost"))
    worker.on("done")(lambda event: events.append("done"))
    await worker.enqueue(work, 1)
    async with running(worker):
        await until(lambda: "told" in events)
    assert events == ["lost", "told"]
    assert not await client.kv.exists(f"{name}-done")


async def test_a_process_that_was_stopped_knows_that_its_leases_are_over(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client, lease=0.2)
    events: List[str] = []

    @worker.handles(name, retries=1000)  # a busy machine may keep it from settling in time, too
    async def work(value: int, message: Message) -> None:
        if message.retry_count == 0:
            time.sleep(0.5)  # noqa: ASYNC251  # nobody renews meanwhile: this is what a stopped process looks like

    for event in ("lost", "done"):
        worker.on(event)(lambda event: events.append(event.name))
    await worker.enqueue(work, 1)
    async with running(worker):
        await until(lambda: "done" in events)
    assert (events[0], events[-1]) == ("lost", "done")


WRONG: List[Dict[str, Any]] = [
    *({"timeout": timeout} for timeout in (-1, 0, math.nan, "soon")),
    {"retry_delay": -1},
    {"retry_max_delay": -1},
    {"backoff": -2.0},
    {"retries": -1},
    {"retries": 1.5},
    {"result_ttl": 0},
]


@pytest.mark.parametrize("name", ["concurrency", "lease", "grace", "processes"])
@pytest.mark.parametrize("value", ["30", -1, float("nan"), [], True])
def test_what_a_worker_can_not_be_made_of_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(SynapError, match=f"{name} must be"):
        Worker("memory://", **{name: value})


async def test_what_a_worker_cannot_be_made_with_is_refused(client: AsyncSynapClient, name: str) -> None:
    with pytest.raises(SynapError, match="concurrency must be"):
        Worker(client, concurrency=0)
    with pytest.raises(SynapError, match="AsyncSynapClient"):
        Worker(5)  # type: ignore[arg-type]
    worker = Worker(client)
    worker.handles(name)(jobs.square)
    refused: List[Callable[[], Any]] = [
        lambda: worker.handles(name)(jobs.fail),
        lambda: worker.handles("other", pool="fibre")(jobs.fail),
        lambda: worker.handles("other", pool="process")(_acked),
        lambda: worker.handles("other", type="Email"),
        *(functools.partial(worker.handles, "other", **wrong) for wrong in WRONG),
        lambda: Retry(-1),
        lambda: Retry(math.inf),
        lambda: worker.every("soon"),
        lambda: worker.cron("at noon"),
        lambda: worker.on("finished")(print),
    ]
    for refuse in refused:
        with pytest.raises(SynapError) as caught:
            refuse()
        assert caught.value.code in ("INVALID_REQUEST", "INVALID_PAYLOAD")
    with pytest.raises(SynapError, match="handles no queue"):
        await worker.enqueue(jobs.fail, 1)
    with pytest.raises(SynapError, match=r"no handler for the queue 'other'; it has those of: '"):
        await worker.run_once(queues=["other"])
    for number in range(101):
        worker.handles(f"{name}-{number}")(print)
    with pytest.raises(SynapError, match="takes from 100 queues, each periodic job's counted, not 10"):
        await worker.run()
    with pytest.raises(SynapError, match="no handler for any queue; it has those of: none"):
        await Worker(client).run()


async def test_a_settlement_that_is_refused_is_not_done(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client, concurrency=2)

    @worker.handles(name)
    async def work(value: int) -> None:
        await client.queue.purge(name)

    await worker.enqueue(work, 1)
    outcome = await worker.run_once()
    assert (outcome.done, outcome.lost) == (0, 1)
