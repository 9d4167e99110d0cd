"""What a worker leases ahead of its work, what time does to periodic jobs, and what two signals do."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, List

import pytest

from synap import AsyncSynapClient, ConnectionError, SynapError
from synap.testing import TestClock
from synap.worker import Message, Worker
from synap.worker.pace import Pace
from synap.worker.runner import POLL_SECONDS, Runner
from tests.helpers.patience import PATIENCE
from tests.worker.conftest import running, until


async def test_long_handlers_lease_only_what_they_work_on(client: AsyncSynapClient, name: str) -> None:
    """Whatever would have to wait for its turn stays in the queue, for other workers too."""
    worker = Worker(client, concurrency=2)
    pending: List[int] = []

    @worker.handles(name)
    async def work(value: int) -> None:
        await asyncio.sleep(0.25)  # longer than what is leased ahead for
        pending.append((await client.queue.stats(name)).pending)

    for n in range(16):
        await client.queue.publish(name, n)
    async with running(worker):
        await until(lambda: len(pending) == 16)
    assert max(pending) <= 4, pending  # two at work, and two whose acknowledgement is on its way


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_with_one_free_place_one_request_acknowledges_and_takes_the_next(
    client: AsyncSynapClient, name: str, monkeypatch: pytest.MonkeyPatch, concurrency: int
) -> None:
    """Of long handlers too, of which nothing is leased ahead."""
    worker = Worker(client, concurrency=concurrency)
    monkeypatch.setattr(Pace, "reserve", lambda pace: 0)
    call = client._calls.call
    sent: List[str] = []
    handled: List[int] = []

    async def note(command: Any, payload: Any, *arguments: Any, **options: Any) -> Any:
        if command.name in ("batch", "queue.consume", "queue.consume_many"):
            sent.append(command.name if command.name != "queue.consume" or payload.ack else "queue.consume alone")
        return await call(command, payload, *arguments, **options)

    monkeypatch.setattr(client._calls, "call", note)
    monkeypatch.setattr(client.queue, "_call", note)
    begun: List[int] = []
    turn = asyncio.Lock()

    @worker.handles(name)
    async def work(value: int) -> None:
        begun.append(value)
        async with turn:  # one ends at a time, when all places are taken
            await until(lambda: len(begun) == min(12, len(handled) + concurrency))
            handled.append(value)

    for n in range(12):
        await client.queue.publish(name, n)
    async with running(worker):
        await until(lambda: len(handled) == 12)
    assert sorted(handled) == list(range(12))
    taken = 12 - concurrency
    assert sent[: 1 + taken] == ["queue.consume_many"] + ["queue.consume"] * taken


async def test_long_handlers_too_run_one_after_the_other_in_run_once(
    client: AsyncSynapClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(client, concurrency=1)
    monkeypatch.setattr(Pace, "took", lambda pace, queue, seconds: pace._averages.update({queue: 1.0}))
    own, tasks = asyncio.current_task(), []

    @worker.handles(name)
    async def work(value: int) -> None:
        tasks.append(asyncio.current_task())

    for n in range(4):
        await client.queue.publish(name, n)
    assert (await worker.run_once()).done == 4
    assert tasks == [own] * 4


async def test_short_handlers_are_leased_ahead_and_nothing_runs_out_before_its_turn(
    client: AsyncSynapClient, name: str
) -> None:
    worker = Worker(client, concurrency=2, lease=20)
    held: List[int] = []
    tries: List[int] = []

    @worker.handles(name)
    async def work(value: int, message: Message) -> None:
        tries.append(message.retry_count)
        if value % 20 == 19:
            held.append((await client.queue.stats(name)).pending)

    for n in range(300):
        await client.queue.publish(name, n)
    async with running(worker):
        await until(lambda: len(tries) >= 300)
    assert max(held) > 2, held
    assert set(tries) == {0}, "a lease ran out before its message's turn"


async def test_a_second_stop_does_not_wait(client: AsyncSynapClient, name: str) -> None:
    """As a second signal does; the first alone would wait for ten minutes."""
    worker = Worker(client, grace=600)
    begun = asyncio.Event()

    @worker.handles(name)
    async def work(value: int) -> None:
        begun.set()
        await asyncio.Event().wait()

    await worker.enqueue(work, 1)
    task = asyncio.ensure_future(worker.run(handle_signals=False))
    await asyncio.wait_for(begun.wait(), PATIENCE)
    worker.stop()
    worker.stop()
    await asyncio.wait_for(task, PATIENCE)
    assert await client.queue.consume(name) is not None


async def test_times_that_nobody_was_there_for_are_made_up_for_once(
    synap_memory: AsyncSynapClient, synap_clock: TestClock
) -> None:
    worker = Worker(synap_memory, clock=synap_clock)
    fired: List[float] = []

    @worker.every("1h")
    async def job(message: Message) -> None:
        fired.append(message.message["due"])

    await worker.run_once()
    fired.clear()
    synap_clock.advance(10 * 3600)
    assert (await worker.run_once()).done == 1
    assert (await worker.run_once()).done == 0
    synap_clock.advance(3600)
    assert (await worker.run_once()).done == 1
    assert len(fired) == 2
    assert fired[1] - fired[0] > 3600, "the times in between are left out"


async def test_a_job_that_takes_longer_than_its_interval_skips_the_times_in_between(
    synap_memory: AsyncSynapClient, synap_clock: TestClock
) -> None:
    worker = Worker(synap_memory, clock=synap_clock, lease=86_400)
    dues: List[float] = []

    @worker.every("1h")
    async def job(message: Message) -> None:
        dues.append(message.message["due"])
        synap_clock.advance(2.5 * 3600)

    await worker.run_once()
    synap_clock.advance(3600 - synap_clock.now % 3600)
    await worker.run_once()
    dues.clear()
    for _ in range(3):
        synap_clock.advance(3600 - synap_clock.now % 3600)
        await worker.run_once()
    assert [later - earlier for earlier, later in zip(dues, dues[1:])] == [3 * 3600.0, 3 * 3600.0]


async def test_run_once_runs_in_the_task_that_calls_it(synap_memory: AsyncSynapClient) -> None:
    """No thread and no other task: what the test has set up (context, patches, breakpoints) is there."""
    worker = Worker(synap_memory)
    where: List[Any] = []

    @worker.handles("async")
    async def one(value: int) -> None:
        where.append((threading.current_thread(), asyncio.current_task()))

    await worker.enqueue(one, 1)
    assert (await worker.run_once()).done == 1
    assert where == [(threading.current_thread(), asyncio.current_task())]


async def test_a_burst_of_a_queue_that_may_be_slow_is_left_for_others(client: AsyncSynapClient, name: str) -> None:
    """However short the messages of the other queues are."""
    worker = Worker(client, concurrency=2)
    short: List[int] = []
    begun: List[int] = []
    go_on = asyncio.Event()
    worker.handles(f"{name}-short", pool="loop")(short.append)

    @worker.handles(f"{name}-slow")
    async def slow(value: int) -> None:
        begun.append(value)
        await go_on.wait()

    async with running(worker):
        async with client.pipeline() as p:
            for n in range(100):
                p.queue.publish(f"{name}-short", n)
        await until(lambda: len(short) == 100)
        async with client.pipeline() as p:
            for n in range(40):
                p.queue.publish(f"{name}-slow", n)
        await until(lambda: len(begun) == 2)
        stats = await client.queue.stats(f"{name}-slow")
        go_on.set()
        assert (stats.pending, stats.depth) == (2, 38)


async def test_stopping_gives_up_no_message_that_has_only_one_try_and_has_not_begun(
    client: AsyncSynapClient, name: str
) -> None:
    worker = Worker(client, concurrency=1, grace=0)
    begun: List[int] = []
    blocked = asyncio.Event()

    @worker.handles(name, retries=0)
    async def work(value: int) -> None:
        begun.append(value)
        if value >= 50:
            blocked.set()
            await asyncio.Event().wait()

    async with client.pipeline() as p:
        for n in range(120):
            p.queue.publish(name, n)
    async with running(worker):
        await asyncio.wait_for(blocked.wait(), PATIENCE)
    stats = await client.queue.stats(name)
    assert len(begun) == 51
    assert (stats.depth, stats.pending) == (69, 0)
    assert (await client.queue.stats(f"{name}.dlq")).depth == 1, "the one that was being handled"


async def test_what_an_acknowledgement_brings_after_a_second_stop_is_given_back(
    client: AsyncSynapClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(client, concurrency=1)
    monkeypatch.setattr(Pace, "took", lambda pace, queue, seconds: pace._averages.update({queue: 1.0}))
    call, taken, go_on = client._calls.call, asyncio.Event(), asyncio.Event()

    async def call_late(command: Any, payload: Any, *arguments: Any, **options: Any) -> Any:
        answer = await call(command, payload, *arguments, **options)
        if command.name == "queue.consume" and payload.ack:
            taken.set()
            await go_on.wait()
        return answer

    monkeypatch.setattr(client.queue, "_call", call_late)

    @worker.handles(name)
    async def work(value: int) -> None: ...

    for n in range(2):
        await client.queue.publish(name, n)
    task = asyncio.ensure_future(worker.run(handle_signals=False))
    await asyncio.wait_for(taken.wait(), PATIENCE)
    worker.stop()
    worker.stop()
    assert worker._runner is not None
    settler = worker._runner._settler
    drain, drains = settler.drain, asyncio.Event()

    async def told() -> None:
        drains.set()
        await drain()

    monkeypatch.setattr(settler, "drain", told)
    await asyncio.wait_for(drains.wait(), PATIENCE)
    go_on.set()
    await asyncio.wait_for(task, PATIENCE)
    stats = await client.queue.stats(name)
    assert (stats.depth, stats.pending) == (1, 0)


async def test_a_worker_has_started_once_the_service_lets_it_take_messages(
    client: AsyncSynapClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which it asks once, without waiting for messages: a request that waits says nothing for a minute."""
    events: List[str] = []
    waits: List[float] = []
    errors: List[SynapError] = [ConnectionError("CONNECTION_FAILED", "nobody listens")] * 3
    worker = Worker(client)
    worker.handles(name)(lambda value: None)
    for event in ("started", "done", "stopping"):
        worker.on(event)(lambda event: events.append(event.name))
    lease = Runner._lease

    async def fail_at_first(runner: Runner, most: int, timeout: float) -> Any:
        waits.append(timeout)
        if errors:
            events.append(errors[-1].code)
            raise errors.pop()
        return await lease(runner, most, timeout)

    monkeypatch.setattr(Runner, "_lease", fail_at_first)
    async with running(worker):
        await until(lambda: len(waits) == 5)
        await client.queue.publish(name, 1)
        await until(lambda: "done" in events)
    assert events == ["CONNECTION_FAILED"] * 3 + ["started", "done", "stopping"]
    assert waits[:5] == [0, 0, 0, 0, POLL_SECONDS]


async def test_a_worker_that_is_refused_has_not_started(client: AsyncSynapClient, name: str) -> None:
    events: List[str] = []
    worker = Worker(client)
    worker.handles(f"{name}\ud800")(lambda value: None)  # no service takes such a name
    for event in ("started", "stopping"):
        worker.on(event)(lambda event: events.append(event.name))
    with pytest.raises(SynapError):
        await worker.run(handle_signals=False)
    assert events == ["stopping"]
