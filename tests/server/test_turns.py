"""Heavy but legal requests are worked off in slices, and others have their turn in between. No clock is asked here."""

from __future__ import annotations

import difflib
import itertools
import json
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from synap import commands
from synap.engine.engine import Engine
from synap.errors import SynapError
from synap.host import ANSWER, Batch, EngineHost, Log, Output, Session, jobs
from synap.host import batches as host_batches
from synap.host import engine as host_engine
from synap.server import grants
from synap.server.grants import Access, Grant
from synap.wire.codec import JSON


class Caller(Session):
    """Keeps what it is told."""

    __slots__ = ("told",)

    def __init__(self, host: EngineHost, session: str = "") -> None:
        super().__init__(host, JSON, session)
        self.told: dict[Any, Any] = {}

    def deliver(self, output: list[Output]) -> None:
        for what, number, content, _ in output:
            assert what == ANSWER or isinstance(content, SynapError)
            self.told[number] = content

    def has_room(self) -> bool:
        return True


class Soon(list[Any]):
    """What is to be called after everybody else's turn; called when a test says so."""

    def one_turn(self) -> bool:
        if not self:
            return False
        self.pop(0)()
        return True

    def all_turns(self) -> None:
        while self.one_turn():
            pass


class Kept(Log):
    """A log that reports when a test says so."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def submit(self, batch: Batch, alone: bool) -> bool:
        self.batches.append(batch)
        return False

    def commit(self, host: EngineHost) -> None:
        batches, self.batches = self.batches, []
        for batch in batches:
            host.committed(batch)


def made(log: Log | None = None) -> tuple[EngineHost, Soon]:
    soon = Soon()
    numbers = iter(range(10**9))
    return EngineHost(Engine(ids=lambda: next(numbers)), log=log, soon=soon.append), soon


def ask(host: EngineHost, caller: Caller, number: int, command: str, *, retried: bool = False, **payload: Any) -> None:
    entry = commands.BATCH if command == "batch" else commands.COMMANDS[command]
    host.execute(caller, number, entry, json.dumps(payload).encode(), retried)
    host.end_turn()


def incr(count: int) -> list[dict[str, Any]]:
    return [{"command": "kv.incr", "payload": {"key": "n"}}] * count


def test_a_long_batch_lets_others_have_their_turn_in_between() -> None:
    host, soon = made()
    heavy, other = Caller(host), Caller(host)
    ask(host, heavy, 1, "batch", commands=incr(10_000))
    assert not heavy.told
    turns = 0
    while 1 not in heavy.told:
        assert soon.one_turn()
        turns += 1
        ask(host, other, turns, "kv.get", key="n")
        assert turns in other.told
    assert turns > 3
    assert heavy.told[1].results[-1].payload.value == 10_000
    assert host.jobs.slices >= turns
    assert host.settled()


def test_two_long_batches_take_turns() -> None:
    host, soon = made()
    first, second = Caller(host), Caller(host)
    ask(host, first, 1, "batch", commands=incr(10_000))
    ask(host, second, 1, "batch", commands=incr(3_000))
    while 1 not in second.told:
        assert soon.one_turn()
    assert 1 not in first.told
    soon.all_turns()
    assert first.told[1].results[-1].payload.value == 13_000


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> float:
    """Have time pass with each look at the clock, as much as this."""
    tick, now = 1e-5, itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(now) * tick)
    for module in (jobs, host_engine, host_batches):
        monkeypatch.setattr(module, "time", clock)
    return tick


def slices_of(host: EngineHost, soon: Soon, heavy: Caller, between: Callable[[int], None]) -> tuple[int, int]:
    """Have a batch of 10,000 commands done, with others' requests `between` its turns: its (slices, turns)."""
    before, turns = host.jobs.slices, 0
    heavy.told.clear()
    ask(host, heavy, 1, "batch", commands=incr(10_000))
    while 1 not in heavy.told:
        turns += 1
        assert turns < 1000
        between(turns)
        soon.one_turn()
    return host.jobs.slices - before, turns


def test_slices_are_short_while_others_ask_and_long_again_after_that(ticks: float) -> None:
    host, soon = made()
    heavy, other = Caller(host), Caller(host)
    long = 10_000 * ticks / jobs.SLICE
    slices, turns = slices_of(host, soon, heavy, lambda turn: None)
    assert slices == pytest.approx(long, rel=0.1)
    assert turns < slices * 0.7

    slices, turns = slices_of(host, soon, heavy, lambda turn: ask(host, other, turn, "kv.get", key="n"))
    assert slices == pytest.approx(10_000 * ticks / jobs.SHORT, rel=0.1)
    assert turns >= slices - 1

    slices, turns = slices_of(host, soon, heavy, lambda turn: None)
    assert slices == pytest.approx(long + jobs.COMPANY, rel=0.2)

    slices, turns = slices_of(
        host, soon, heavy, lambda turn: ask(host, other, 1, "kv.get", key="n") if turn == 1 else None
    )
    assert slices == pytest.approx(long + jobs.COMPANY, rel=0.2)


def test_slices_stay_long_where_each_is_a_commit(ticks: float) -> None:
    log = Kept()
    host, soon = made(log)
    heavy, other = Caller(host), Caller(host)

    def between(turn: int) -> None:
        ask(host, other, turn, "kv.get", key="n")
        log.commit(host)

    slices, _ = slices_of(host, soon, heavy, between)
    assert slices == pytest.approx(10_000 * ticks / jobs.SLICE, rel=0.1)


def test_slices_stay_long_beside_other_long_requests(ticks: float) -> None:
    host, soon = made()
    heavy, other = Caller(host), Caller(host)
    slices, turns = slices_of(
        host, soon, heavy, lambda turn: ask(host, other, turn, "batch", commands=incr(1)) if turn == 1 else None
    )
    assert slices == pytest.approx(10_000 * ticks / jobs.SLICE, rel=0.1)
    assert turns < slices * 0.7


def begin_alone(host: EngineHost, soon: Soon) -> None:
    """Go on until the request has been read, and runs alone."""
    while not host.jobs.exclusive:
        assert soon.one_turn()


def test_what_nobody_may_see_half_done_runs_alone() -> None:
    host, soon = made()
    heavy, other = Caller(host), Caller(host)
    pairs = [{"key": f"key-{number}", "value": number} for number in range(10_000)]
    ask(host, heavy, 1, "kv.mset", pairs=pairs)
    begin_alone(host, soon)
    ask(host, other, 1, "kv.mget", keys=["key-0", "key-9999"])
    assert not other.told
    soon.all_turns()
    assert heavy.told[1].success
    assert [value.found for value in other.told[1].values] == [True, True]


def test_what_runs_alone_is_written_in_one_batch() -> None:
    log = Kept()
    host, soon = made(log)
    heavy = Caller(host)
    ask(host, heavy, 1, "kv.mset", pairs=[{"key": f"key-{number}", "value": number} for number in range(10_000)])
    begin_alone(host, soon)
    host.end_turn()
    assert not log.batches
    soon.all_turns()
    assert [len(batch.records) for batch in log.batches] == [10_000 + 1]  # and the time
    log.commit(host)
    assert heavy.told[1].success


def test_a_disk_that_refuses_takes_all_back_of_what_runs_alone() -> None:
    log = Kept()
    host, soon = made(log)
    heavy, other = Caller(host), Caller(host)
    ask(host, heavy, 1, "kv.mset", pairs=[{"key": f"key-{number}", "value": number} for number in range(10_000)])
    begin_alone(host, soon)
    host.failed(SynapError("SERVICE_UNAVAILABLE", "the disk is full"))
    assert heavy.told[1].code == "SERVICE_UNAVAILABLE"
    soon.all_turns()
    ask(host, other, 1, "kv.get", key="key-0")
    assert other.told[1].found is False
    assert host.settled()


FULL = SynapError("SERVICE_UNAVAILABLE", "the disk is full")


def begin_batch(host: EngineHost, soon: Soon, caller: Caller) -> int:
    """Have some of a batch of 10,000 commands done, the last of which reads; returns how many."""
    before = int(host.engine.keys.values.get("n", 0))
    commands = [*incr(9_999), {"command": "kv.get", "payload": {"key": "n"}}]
    ask(host, caller, 1, "batch", commands=commands)
    while int(host.engine.keys.values.get("n", 0)) == before:
        assert soon.one_turn()
    return int(host.engine.keys.values["n"]) - before


def done(host: EngineHost, soon: Soon, log: Kept, caller: Caller, number: int) -> Any:
    """Go on until a request is answered, with a disk that keeps up; returns the answer."""
    while number not in caller.told:
        soon.one_turn()
        log.commit(host)
    return caller.told[number]


def test_a_disk_that_refuses_in_the_middle_of_a_batch_ends_it_and_a_retry_goes_on_behind_what_is_kept(
    ticks: float,
) -> None:
    log = Kept()
    host, soon = made(log)
    name = os.urandom(16).hex()
    heavy, again, never = Caller(host, name), Caller(host, name), Caller(host, os.urandom(16).hex())
    kept = begin_batch(host, soon, heavy)
    log.commit(host)
    begin_batch(host, soon, never)
    host.failed(FULL)
    assert int(host.engine.keys.values["n"]) == kept
    for caller, in_part in ((heavy, True), (never, False)):
        assert (caller.told[1].code, caller.told[1].may_have_happened) == ("SERVICE_UNAVAILABLE", in_part)
    soon.all_turns()
    assert host.settled()
    host.recovered()
    ask(host, again, 1, "batch", retried=True, commands=incr(10_000))
    while 1 not in again.told:
        soon.one_turn()
        log.commit(host)
    assert [outcome.payload.value for outcome in again.told[1].results] == list(range(1, 10_001))


def test_a_disk_that_refuses_the_end_of_a_batch_is_no_proof_that_nothing_of_it_happened(ticks: float) -> None:
    log = Kept()
    host, soon = made(log)
    heavy, alone = (Caller(host, os.urandom(16).hex()) for _ in range(2))
    begin_batch(host, soon, heavy)
    log.commit(host)
    soon.all_turns()
    ask(host, alone, 1, "batch", commands=incr(1))
    assert not heavy.told
    assert not alone.told
    host.failed(FULL)
    assert [caller.told[1].may_have_happened for caller in (heavy, alone)] == [True, False]


@pytest.fixture
def everysec() -> tuple[EngineHost, Soon]:
    """Make a host that answers before it writes."""
    log = Kept()
    log.holds = False
    return made(log)


def test_where_answers_do_not_wait_for_the_disk_only_the_rest_of_a_batch_is_refused(
    everysec: tuple[EngineHost, Soon], ticks: float
) -> None:
    host, soon = everysec
    heavy = Caller(host, os.urandom(16).hex())
    before = begin_batch(host, soon, heavy)
    host.failed(FULL)
    soon.all_turns()
    *results, last = heavy.told[1].results
    assert [outcome.payload.value for outcome in results[:before]] == list(range(1, before + 1))
    assert {outcome.error and outcome.error.code for outcome in results[before:]} == {"SERVICE_UNAVAILABLE"}
    assert int(last.payload.value) == int(host.engine.keys.values["n"]) == before


def test_what_runs_alone_is_seen_whole_also_where_nothing_is_taken_back(everysec: tuple[EngineHost, Soon]) -> None:
    host, soon = everysec
    heavy = Caller(host)
    ask(host, heavy, 1, "kv.mset", pairs=[{"key": f"key-{number}", "value": number} for number in range(10_000)])
    begin_alone(host, soon)
    host.failed(FULL)
    soon.all_turns()
    assert heavy.told[1].success
    assert len(host.engine.keys.values) == 10_000


def test_an_atomic_batch_that_was_read_too_late_is_refused(everysec: tuple[EngineHost, Soon]) -> None:
    host, soon = everysec
    heavy = Caller(host)
    value = ["x"] * 30_000
    sets = [{"command": "kv.set", "payload": {"key": f"key-{number}", "value": value}} for number in range(5)]
    ask(host, heavy, 1, "batch", atomic=True, commands=sets)
    while not isinstance(heavy.told.get(1), SynapError):
        steps: Any = host.jobs.running[0].steps
        if getattr(steps.gi_yieldfrom, "__name__", "") != "decode_in_steps":  # the request is read, not its values
            host.failed(FULL)
        assert soon.one_turn()
    assert heavy.told[1].code == "SERVICE_UNAVAILABLE"
    assert not host.engine.keys.values


@pytest.mark.parametrize("atomic", [False, True])
def test_reads_go_on_in_batches_too(atomic: bool) -> None:
    host, _ = made(Kept())
    caller = Caller(host)
    host.failed(FULL)
    ask(host, caller, 1, "batch", atomic=atomic, commands=[{"command": "kv.get", "payload": {"key": "n"}}])
    assert not caller.told[1].results[0].payload.found
    ask(host, caller, 2, "batch", atomic=atomic, commands=incr(1))
    assert caller.told[2].code == "SERVICE_UNAVAILABLE"


def test_a_batch_sent_again_goes_on_where_it_was() -> None:
    host, soon = made()
    name = os.urandom(16).hex()
    first = Caller(host, name)
    ask(host, first, 1, "batch", commands=incr(10_000))
    soon.one_turn()
    again = Caller(host, name)
    ask(host, again, 1, "batch", retried=True, commands=incr(10_000))
    soon.all_turns()
    for caller in (first, again):
        assert [outcome.payload.value for outcome in caller.told[1].results] == list(range(1, 10_001))
    third = Caller(host, name)
    ask(host, third, 1, "batch", retried=True, commands=incr(10_000))
    soon.all_turns()
    assert third.told[1].results[-1].payload.value == 10_000
    ask(host, third, 2, "kv.get", key="n")
    assert third.told[2].value == b"10000"


def test_a_crash_in_the_middle_of_a_batch_repeats_nothing() -> None:
    host, soon = made()
    name = os.urandom(16).hex()
    ask(host, Caller(host, name), 1, "batch", commands=incr(10_000))
    soon.one_turn()
    # A restart: the engine is there, the job is not.
    revived = EngineHost(host.engine, soon=soon.append)
    again = Caller(revived, name)
    ask(revived, again, 1, "batch", retried=True, commands=incr(10_000))
    while 1 not in again.told:
        revived.work()
    assert [outcome.payload.value for outcome in again.told[1].results] == list(range(1, 10_001))


def test_a_hundred_thousand_misspelt_commands_get_twenty_hints() -> None:
    host, soon = made()
    heavy = Caller(host)
    ask(host, heavy, 1, "batch", commands=[{"command": "kv.gett", "payload": {}}] * 5_000)
    soon.all_turns()
    messages = [outcome.error.message for outcome in heavy.told[1].results]
    assert sum("did you mean" in message for message in messages) == 20
    assert all("there is no command 'kv.gett'" in message for message in messages)


def test_what_was_meant_is_looked_for_once_in_an_atomic_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    look = difflib.get_close_matches
    looks: list[Any] = []

    def noted(*given: Any) -> list[str]:
        looks.append(given)
        return look(*given)

    monkeypatch.setattr(difflib, "get_close_matches", noted)
    host, soon = made()
    heavy = Caller(host)
    ask(host, heavy, 1, "batch", commands=[{"command": "kv.gett", "payload": {}}] * 5_000, atomic=True)
    soon.all_turns()
    messages = [outcome.error.message for outcome in heavy.told[1].results]
    assert messages[0].endswith("did you mean 'kv.get'?")
    assert len(looks) == 1


def test_the_answers_of_a_batch_are_bounded_together() -> None:
    host, soon = made()
    heavy = Caller(host)
    ask(host, heavy, 1, "kv.set", key="k", value="x" * 1_000_000)
    soon.all_turns()
    ask(host, heavy, 2, "batch", commands=[{"command": "kv.get", "payload": {"key": "k"}}] * 200)
    soon.all_turns()
    codes = [outcome.error.code if outcome.error else "" for outcome in heavy.told[2].results]
    assert codes.count("") == 66  # of 1 MB, in 64 MiB with room for refusals
    assert set(codes) == {"", "PAYLOAD_TOO_LARGE"}


def test_an_atomic_batch_is_bounded() -> None:
    host, soon = made()
    heavy = Caller(host)
    ask(host, heavy, 1, "batch", atomic=True, commands=incr(5_000))
    soon.all_turns()
    assert heavy.told[1].results[-1].payload.value == 5_000
    ask(host, heavy, 2, "batch", atomic=True, commands=incr(5_001))
    soon.all_turns()
    assert heavy.told[2].code == "INVALID_REQUEST"


def test_subscriptions_that_wait_for_others_jobs_count_before_they_begin() -> None:
    """All that came meanwhile had been checked before the first was made, and a key's quota was no bound."""

    class Few(Caller):
        def check_again(self, command: commands.Command, payload: Any, made: int = 0) -> None:
            if len(self.subscriptions) >= 2:
                raise SynapError("RATE_LIMIT_EXCEEDED", "two are enough")

    host, soon = made()
    heavy, caller = Caller(host), Few(host)
    ask(host, heavy, 1, "batch", commands=incr(10_000))
    for number in range(1, 6):
        ask(host, caller, number, "pubsub.subscribe", topics=[f"{number}.{each}" for each in range(1_000)])
    assert not caller.subscriptions
    soon.all_turns()
    assert len(caller.subscriptions) == 2
    assert [getattr(told, "code", "") for told in caller.told.values()].count("RATE_LIMIT_EXCEEDED") == 3


@pytest.mark.parametrize("grant", ["queue:read:*7", "queue:read:n*"])
def test_names_that_a_caller_may_not_see_are_left_out_in_slices(monkeypatch: pytest.MonkeyPatch, grant: str) -> None:
    """A million names and ten grants took four seconds, in one piece."""

    class Limited(Caller):
        def deliver(self, output: list[Output]) -> None:
            assert self.permit is not None
            super().deliver([(what, number, self.permit.visible(answer), 0) for what, number, answer, _ in output])

    monkeypatch.setattr(jobs, "SLICE", 0.0)
    looked = itertools.count()
    allows = grants._Rule.allows
    monkeypatch.setattr(grants._Rule, "allows", lambda rule, name: next(looked) >= 0 and allows(rule, name))
    host, soon = made()
    caller, other = Limited(host), Caller(host)
    for number in range(2_000):
        ask(host, other, number, "queue.publish", queue=f"n{number}", message=1)
    caller.permit = Access("k", False, [Grant(grant)])
    at: list[int] = []  # each look leaves a number out
    run = host.jobs.slice
    monkeypatch.setattr(host.jobs, "slice", lambda job: at.append(next(looked)) or run(job))  # type: ignore[func-returns-value]
    ask(host, caller, 1, "queue.list")
    soon.all_turns()
    at.append(next(looked))
    assert 0 < max(after - before for before, after in itertools.pairwise(at)) < 1_000
    assert caller.told[1].queues == sorted(f"n{n}" for n in range(2_000) if grant[-1] == "*" or n % 10 == 7)


LISTS = {
    "queue.list": ("queues", {"command": "queue.create"}, "queue", {}),
    "stream.rooms": ("rooms", {"command": "stream.publish"}, "room", {"event_type": "t", "data": 1}),
}


@pytest.mark.parametrize("listing", LISTS)
def test_long_lists_are_sorted_in_slices(listing: str) -> None:
    host, soon = made()
    caller = Caller(host)
    field, command, name, more = LISTS[listing]
    for at in range(0, 30_000, 10_000):
        names = [f"{(at + number) * 7919 % 30_011:06}" for number in range(10_000)]
        ask(host, caller, at + 1, "batch", commands=[{**command, "payload": {name: one, **more}} for one in names])
        soon.all_turns()
    turns = host.jobs.slices
    ask(host, caller, 9, listing)
    soon.all_turns()
    assert host.jobs.slices > turns + 1
    told = getattr(caller.told[9], field)
    assert len(told) == 30_000
    assert told == sorted(told)


@pytest.mark.parametrize("state", ["delayed", "ready"])
def test_a_look_into_a_long_queue_is_taken_in_steps(state: str) -> None:
    host, soon = made()
    caller = Caller(host)
    ask(host, caller, 1, "queue.create", queue="q", config={"max_depth": 1_000_000})
    delay = {"delay": 1000} if state == "delayed" else {}
    publish = {"command": "queue.publish", "payload": {"queue": "q", "message": 1, **delay}}
    for number in range(2, 6):
        ask(host, caller, number, "batch", commands=[publish] * 10_000)
        soon.all_turns()
    last = caller.told[5].results[-2].payload.message_id
    asked: Any = {"queue": "q", "state": state, "after": last}
    look: Any = host.engine.execute(commands.QueuePeek(**asked), host.clock(), caller)
    assert sum(1 for _ in look) > 10
    ask(host, caller, 10, "queue.peek", queue="q", state=state, after=last)
    soon.all_turns()
    assert [message.message_id for message in caller.told[10].messages] == [
        caller.told[5].results[-1].payload.message_id
    ]


def test_a_large_value_is_looked_at_in_slices_and_what_is_wrong_in_it_is_refused() -> None:
    host, soon = made()
    heavy, other = Caller(host), Caller(host)
    ask(host, heavy, 1, "kv.set", key="k", value=[[]] * 500_000)
    turns = 0
    while 1 not in heavy.told:
        assert soon.one_turn()
        turns += 1
        ask(host, other, turns, "kv.exists", key="k")
        assert turns in other.told
    assert turns > 3
    ask(host, heavy, 2, "batch", commands=[{"command": "kv.set", "payload": {"key": "b", "value": [10**30] * 50_000}}])
    ask(host, heavy, 3, "queue.publish", queue="q", message=[10**30] * 50_000)
    soon.all_turns()
    assert heavy.told[1].success
    assert heavy.told[2].results[0].error.code == heavy.told[3].code == "INVALID_PAYLOAD"


def test_what_one_batch_may_list_is_bounded() -> None:
    host, soon = made()
    heavy = Caller(host)
    ask(host, heavy, 1, "kv.mset", pairs=[{"key": f"k{number}", "value": 1} for number in range(10_000)])
    soon.all_turns()
    ask(host, heavy, 2, "batch", commands=[{"command": "kv.scan", "payload": {"count": 10_000}}] * 30)
    soon.all_turns()
    codes = [outcome.error.code if outcome.error else "" for outcome in heavy.told[2].results]
    assert codes == [""] * 21 + ["PAYLOAD_TOO_LARGE"] * 9
