"""Periodic jobs fire once across all workers, and go on whatever happens to one."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, timezone
from typing import Any, List

import pytest

from synap import AsyncSynapClient, PermissionDeniedError, SynapError
from synap.errors import ConnectionError
from synap.testing import TestClock
from synap.worker import Message, Worker
from synap.worker.schedule import Cron, every
from tests.worker.conftest import running, until

if sys.version_info >= (3, 9):
    from zoneinfo import ZoneInfo
else:
    from backports.zoneinfo import ZoneInfo


async def test_a_job_fires_once_across_workers(client: AsyncSynapClient, name: str) -> None:
    fired: List[str] = []
    dues: List[float] = []

    def make(who: str) -> Worker:
        worker = Worker(client)

        @worker.every(0.1, name=name)
        async def job(message: Message) -> None:
            fired.append(who)
            dues.append(message.message["due"])

        return worker

    async with running(make("a")), running(make("b")), running(make("c")):
        await until(lambda: len(fired) >= 5)
    assert len(dues) == len(set(dues)), "a tick fired twice"
    assert dues == sorted(dues)
    stats = await client.queue.stats(f"periodic:{name}")
    assert stats.depth + stats.delayed + stats.pending == 1


async def test_a_job_that_fails_is_tried_again_and_its_chain_goes_on(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client)
    tries: List[int] = []

    @worker.every(0.05, name=name)
    async def job(message: Message) -> None:
        tries.append(message.retry_count)
        if len(tries) == 1:
            raise ValueError("the first time")

    async with running(worker):
        await until(lambda: len(tries) >= 3)
    assert tries[:3] == [0, 1, 0]


async def test_a_changed_schedule_replaces_the_old_one(client: AsyncSynapClient, name: str) -> None:
    fired: List[str] = []
    old, new = Worker(client), Worker(client)
    old.cron("0 0 1 1 *", name=name)(lambda: fired.append("old"))
    assert (await old.run_once()).done == 0
    new.every(0.05, name=name)(lambda: fired.append("new"))
    async with running(new):
        await until(lambda: fired)
    assert set(fired) == {"new"}


async def test_a_tick_that_is_not_due_by_the_workers_clock_waits(client: AsyncSynapClient, name: str) -> None:
    """A queue holds a message back a year at most, and its clock is another machine's."""
    now = 1_000_000.0
    fired: List[float] = []
    worker = Worker(client, clock=lambda: now)
    worker.every("1d", name=name)(lambda: fired.append(now))
    await worker.run_once()
    await client.queue.purge(f"periodic:{name}")
    await client.queue.publish(f"periodic:{name}", {"due": now + 60})
    await worker.run_once()
    assert not fired
    assert (await client.queue.stats(f"periodic:{name}")).delayed == 1


async def test_a_job_goes_on_at_its_times_after_a_clock_that_was_ahead_is_put_right() -> None:
    """It waited for as long as the clock had been ahead."""
    clock = TestClock()
    async with AsyncSynapClient(url="memory://ahead", clock=clock) as client:
        worker = Worker(client, clock=clock.wall)
        fired: List[float] = []

        @worker.every("1m", name="ahead")
        async def job() -> None:
            fired.append(clock.now)

        for ahead in (0, 86_400, -86_400):
            clock.set_wall(ahead)
            before = len(fired)
            for _ in range(5):
                await worker.run_once()
                clock.advance(60)
            assert len(fired) - before >= 3


def test_intervals_are_multiples_since_1970() -> None:
    assert every("5m").after(301) == 600
    assert every("1h30m").seconds == 5400
    assert every(timedelta(days=1)).after(0) == 86_400
    assert every(2.5).after(2.5) == 5.0
    for wrong in ("", "5", "five minutes", 0, -1, True, "1y"):
        with pytest.raises(SynapError, match="an interval must be"):
            every(wrong)


def test_the_next_time_is_always_later() -> None:
    """That of a job that comes a moment early is asked for at its own time: it fired twice."""
    for interval in (0.1, 0.3, 1.1, 90.1, 1 / 3):
        due = every(interval).after(1_790_000_000.0)
        for _ in range(100):
            before, due = due, every(interval).after(due)
            assert interval / 2 < due - before < interval * 1.5


def test_cron_expressions_are_in_utc_unless_told() -> None:
    morning = datetime(2024, 3, 1, 5, 0, tzinfo=timezone.utc).timestamp()
    due = Cron("0 3 * * *").after(morning)
    assert datetime.fromtimestamp(due, timezone.utc) == datetime(2024, 3, 2, 3, 0, tzinfo=timezone.utc)
    due = Cron("0 3 * * *", timezone(timedelta(hours=-5))).after(morning)
    assert datetime.fromtimestamp(due, timezone.utc) == datetime(2024, 3, 1, 8, 0, tzinfo=timezone.utc)


def test_cron_across_a_change_of_the_clocks() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    before = datetime(2024, 3, 30, 12, 0, tzinfo=berlin).timestamp()
    due = Cron("30 3 * * *", berlin).after(before)
    assert datetime.fromtimestamp(due, timezone.utc) == datetime(2024, 3, 31, 1, 30, tzinfo=timezone.utc)
    assert Cron("30 3 * * *", berlin).after(due) - due == 86_400


def test_a_time_that_clocks_leave_out_is_due_as_they_go_forward() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    before = datetime(2024, 3, 31, 0, 0, tzinfo=berlin).timestamp()
    assert Cron("30 2 * * *", berlin).after(before) == datetime(2024, 3, 31, 1, 0, tzinfo=timezone.utc).timestamp()


@pytest.mark.parametrize(
    ("expression", "hours"),
    [
        ("30 2 * * *", [0.5, 25.5]),
        ("0,30 2 * * *", [0.0, 0.5, 25.0]),
        ("0 */2 * * *", [0.0, 3.0, 5.0]),
        ("0 * * * *", [0.0, 1.0, 2.0, 3.0]),
        ("30 * * * *", [0.5, 1.5, 2.5]),
        ("@hourly", [0.0, 1.0, 2.0]),
    ],
)
def test_an_hour_that_comes_twice_counts_once_where_it_is_named(expression: str, hours: List[float]) -> None:
    """In Berlin it was twice from two to three on 27 October 2024, first from midnight UTC on."""
    first = datetime(2024, 10, 27, 0, 0, tzinfo=timezone.utc).timestamp()
    schedule, moment, dues = Cron(expression, ZoneInfo("Europe/Berlin")), first - 1, []
    for _ in hours:
        moment = schedule.after(moment)
        dues.append((moment - first) / 3600)
    assert dues == hours


def test_a_named_hour_does_not_count_the_second_time_for_a_job_that_begins_in_it() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    second = datetime(2024, 10, 27, 1, 10, tzinfo=timezone.utc).timestamp()
    assert Cron("30 2 * * *", berlin).after(second) == datetime(2024, 10, 28, 1, 30, tzinfo=timezone.utc).timestamp()


@pytest.mark.parametrize("expression", ["0 0 30 2 *", "0 0 1 1 * 0 2999", "R 2 * * *", "0 R(1-3) * * *", "0 3 * *"])
def test_a_cron_expression_that_names_no_time_of_ours_is_refused(expression: str) -> None:
    with pytest.raises(SynapError, match="cron must") as refused:
        Cron(expression)
    assert refused.value.code == "INVALID_REQUEST"


def test_a_cron_expression_may_name_days_and_months() -> None:
    assert Cron("0 3 * APR FRI").after(0.0) == datetime(1970, 4, 3, 3, 0, tzinfo=timezone.utc).timestamp()


async def test_a_job_that_fails_is_tried_again_at_its_next_time_at_the_latest(
    synap_memory: AsyncSynapClient, synap_clock: TestClock
) -> None:
    worker = Worker(synap_memory, clock=synap_clock)
    delays: List[float] = []

    @worker.every("10s", name="job")
    async def job() -> None:
        raise ValueError

    worker.on("retried")(lambda event: delays.append(event.delay))
    await worker.run_once()
    synap_clock.advance(10)
    for _ in range(10):
        await worker.run_once()
        synap_clock.advance(delays[-1])
    assert len(delays) >= 10
    assert delays[:2] == [1.0, 2.0]
    assert max(delays) <= 10


async def test_a_changed_schedule_holds_although_a_process_of_the_former_renews_a_tick(
    client: AsyncSynapClient, name: str
) -> None:
    """As processes of both versions run for a while when a program is replaced."""
    fired: List[str] = []
    old, new = Worker(client), Worker(client)
    old.every("7d", name=name)(lambda: fired.append("old"))
    new.every(0.1, name=name)(lambda: fired.append("new"))
    async with running(old):
        await until(lambda: _waits(client, name))
        await new.run_once()
        await until(lambda: "old" in fired)
    async with running(new):
        count = len(fired)
        await until(lambda: len(fired) > count)
    assert set(fired[count:]) == {"new"}


async def test_a_key_that_may_not_read_is_enough_for_a_job(
    synap_memory: AsyncSynapClient, synap_clock: TestClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = synap_memory._calls.call

    async def writes_only(command: Any, *arguments: Any, **options: Any) -> Any:
        if command.name in ("kv.get", "queue.peek"):
            raise PermissionDeniedError("FORBIDDEN", "this key may not read")
        return await call(command, *arguments, **options)

    monkeypatch.setattr(synap_memory.kv, "_call", writes_only)
    monkeypatch.setattr(synap_memory.queue, "_call", writes_only)
    fired: List[str] = []
    old, new = (Worker(synap_memory, clock=synap_clock) for _ in range(2))
    old.every("1h", name="job")(lambda: fired.append("old"))
    new.every("10s", name="job")(lambda: fired.append("new"))
    for worker in (old, new, new):
        await worker.run_once()
    assert (await synap_memory.queue.stats("periodic:job")).delayed == 1
    synap_clock.advance(10)
    await new.run_once()
    assert fired == ["new"]


async def _waits(client: AsyncSynapClient, name: str) -> bool:
    queue = f"periodic:{name}"
    return queue in await client.queue.list() and (await client.queue.stats(queue)).delayed == 1


async def test_a_changed_schedule_holds_although_the_service_was_away_while_the_old_one_was_dropped(
    client: AsyncSynapClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fired: List[int] = []
    old, new = Worker(client), Worker(client)
    old.every("300d", name=name)(lambda: None)
    new.every(0.1, name=name)(lambda: fired.append(1))
    await old.run_once()
    call = client.queue._call
    failed: List[int] = []

    async def call_once_away(command: Any, *arguments: Any, **options: Any) -> Any:
        if command.name == "queue.purge" and not failed:
            failed.append(1)
            raise ConnectionError("CONNECTION_FAILED", "the service restarts")
        return await call(command, *arguments, **options)

    monkeypatch.setattr(client.queue, "_call", call_once_away)
    async with running(new):
        await until(lambda: fired)
    assert failed
