"""Commits for a lone writer are made on the host's thread, where that disturbs nobody."""

from __future__ import annotations

import random
import threading
import weakref
from typing import Any, Callable, List, Sequence

import pytest

from synap.errors import SynapError
from synap.storage import inline
from synap.storage.inline import CAP, PROVEN, REQUESTS, SIZE, InlineCommits
from tests.helpers.driver import Service, c, contents, contents_of
from tests.helpers.patience import PATIENCE


class Turns:
    """An event loop's turns."""

    def __init__(self) -> None:
        self.later: List[Callable[[], None]] = []

    def soon(self, function: Callable[[], None]) -> None:
        self.later.append(function)

    def over(self) -> None:
        later, self.later = self.later, []
        for function in later:
            function()


class Caller:
    """One caller, whose commits take as long as they are told to."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.policy = InlineCommits(self.turns.soon)
        self.requests = [0, 0]

    def commits(self, count: int, *, seconds: float = CAP / 4, requests: int = 1, size: int = 200) -> int:
        """Commit one by one; returns how many of the commits were inline."""
        made = 0
        for _ in range(count):
            self.requests[1] += requests
            allowed = self.policy.allowed(True, self.requests, size)
            made += allowed
            self.policy.took(seconds, allowed)
            self.turns.over()
        return made


@pytest.fixture
def caller() -> Caller:
    return Caller()


@pytest.fixture
def moment(monkeypatch: pytest.MonkeyPatch) -> List[float]:
    now = [1000.0]
    monkeypatch.setattr(inline, "monotonic", lambda: now[0])
    return now


def test_a_lone_caller_s_commits_are_inline_once_it_has_proved_to_be_one(caller: Caller) -> None:
    assert caller.commits(PROVEN) == 0
    assert caller.commits(100) == 100
    assert caller.policy.count == 100


def test_reads_of_its_own_in_between_leave_it_alone(caller: Caller) -> None:
    caller.commits(PROVEN, requests=REQUESTS)
    assert caller.commits(10, requests=REQUESTS) == 10


def test_where_others_ask_in_between_the_thread_commits(caller: Caller) -> None:
    caller.commits(PROVEN)
    assert caller.commits(10, requests=REQUESTS + 1) == 0
    assert caller.commits(PROVEN) == 1


def test_where_another_commits_in_the_same_turn_the_thread_does_both_later_ones(caller: Caller) -> None:
    caller.commits(PROVEN)
    caller.requests[0] += 1
    assert caller.policy.allowed(True, caller.requests, 200)
    assert not caller.policy.allowed(True, caller.requests, 200)
    caller.turns.over()
    assert caller.commits(PROVEN) == 0
    assert caller.commits(1) == 1


class Somebody:
    """A session, as far as this is concerned."""


def test_a_session_that_goes_on_alone_asks_nothing_of_the_event_loop(caller: Caller) -> None:
    asked = 0
    session = Somebody()
    for number in range(PROVEN + 100):
        allowed = caller.policy.allowed(True, [number], 200, session)
        assert allowed is (number >= PROVEN)
        asked += len(caller.turns.later)
        caller.turns.over()
    assert asked == 1


def test_where_a_second_session_joins_one_commit_is_inline_too_many(caller: Caller) -> None:
    number = 0
    everybody = [Somebody() for _ in range(4)]

    def turn(*sessions: int) -> List[bool]:
        nonlocal number
        number += 1
        made = [caller.policy.allowed(True, [number], 200, everybody[session]) for session in sessions]
        caller.turns.over()
        return made

    for _ in range(PROVEN):
        turn(1)
    assert turn(1) == [True]
    assert turn(1, 2) == [True, True]
    assert turn(1, 2) == [True, False]
    assert not any(any(turn(1, 2)) for _ in range(PROVEN))
    assert not any(any(turn(2, 1, 3)) for _ in range(PROVEN))
    for _ in range(PROVEN):
        assert turn(3) == [False]
    assert turn(3) == [True]


def test_sessions_of_one_request_each_are_not_taken_for_one_that_goes_on(caller: Caller) -> None:
    """As those of HTTP are: freed once they are answered, so that the next one lies where the last one was."""
    number = 0
    freed: List[int] = []

    def commit() -> bool:
        nonlocal number
        number += 1
        session = Somebody()
        weakref.finalize(session, freed.append, number)
        return caller.policy.allowed(True, [number], 200, session)

    for _ in range(PROVEN + 1):
        one = commit()
        caller.turns.over()
    assert one, "one after the other they are a lone caller"
    assert [commit() for _ in range(20)] == [True] + [False] * 19
    assert len(freed) == number, "a session is kept alive"


def test_where_something_is_under_way_the_thread_commits(caller: Caller) -> None:
    caller.commits(PROVEN)
    assert not caller.policy.allowed(False, caller.requests, 200)


def test_a_large_commit_is_the_thread_s(caller: Caller) -> None:
    caller.commits(PROVEN)
    assert caller.commits(1, size=SIZE + 1) == 0
    assert caller.commits(1, size=SIZE) == 1


def test_on_a_slow_disk_there_are_no_inline_commits(caller: Caller) -> None:
    assert caller.commits(10 * PROVEN, seconds=2 * CAP) == 0


def test_a_disk_that_becomes_slow_holds_the_host_up_once_and_then_ever_more_seldom(
    caller: Caller, moment: List[float]
) -> None:
    slow: List[float] = []
    for _ in range(10_000):
        moment[0] += CAP
        caller.requests[1] += 1
        allowed = caller.policy.allowed(True, caller.requests, 200)
        too_slow = allowed and len(slow) < 5
        if too_slow:
            slow.append(moment[0])
        caller.policy.took(2 * CAP if too_slow else CAP / 4, allowed)
        caller.turns.over()
    pauses = [after - before for before, after in zip(slow, slow[1:])]
    assert len(slow) == 5
    assert pauses == sorted(pauses)
    assert pauses[0] >= inline.PAUSE * 2 * CAP
    assert pauses[-1] >= 8 * inline.PAUSE * 2 * CAP


def test_a_disk_that_is_slow_now_and_then_is_paused_for_shortly(caller: Caller, moment: List[float]) -> None:
    caller.commits(PROVEN)
    for _ in range(20):
        assert caller.commits(inline.TRUSTED) == inline.TRUSTED
        assert caller.commits(1, seconds=2 * CAP) == 1
        assert caller.commits(PROVEN) == 0
        moment[0] += inline.PAUSE * 2 * CAP


def test_where_one_commit_in_a_hundred_is_slow_most_are_still_inline(caller: Caller, moment: List[float]) -> None:
    chance = random.Random(5)
    made = 0
    blocked = 0.0
    for _ in range(20_000):
        seconds = 1.5 * CAP if chance.random() < 0.01 else CAP / 10
        inline_commits = caller.commits(1, seconds=seconds)
        made += inline_commits
        blocked += seconds if inline_commits and seconds > CAP else 0.0
        moment[0] += seconds + CAP / 10  # and the caller's own time
    assert made > 20_000 / 2
    assert blocked < (moment[0] - 1000.0) / inline.PAUSE


def test_where_one_commit_in_five_is_slow_few_are_inline(caller: Caller, moment: List[float]) -> None:
    chance = random.Random(5)
    made = 0
    for _ in range(20_000):
        seconds = 1.5 * CAP if chance.random() < 0.2 else CAP / 10
        made += caller.commits(1, seconds=seconds)
        moment[0] += seconds + CAP / 10
    assert made < 20_000 / 50


def test_without_an_event_loop_every_commit_is_the_thread_s() -> None:
    policy = InlineCommits(None)
    assert not any(policy.allowed(True, [number], 200) for number in range(100))


# -------------------------------------------------------------------------------------- in a log


@pytest.fixture
def service(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(Service, "inline", True)
    with Service(str(tmp_path / "data"), session="9" * 32, snapshot_minimum=20_000) as service:
        yield service


def test_an_inline_commit_is_answered_before_the_turn_ends(service: Service, tmp_path: Any) -> None:
    threads = set()
    execute = service.log.store.execute

    def notice(sql: str, parameters: Sequence[Any] = (), *, safe: bool = False) -> List[Any]:
        if sql.startswith("INSERT INTO log"):
            threads.add(threading.current_thread())
        return execute(sql, parameters, safe=safe)

    service.log.store.execute = notice  # type: ignore[method-assign]
    with service.lock:
        number = service.send(c.KvSet("a", b"1"))
        assert not isinstance(service.outcome(number, 0.0), SynapError)
    assert threads == {threading.current_thread()}
    assert service.log.inline.count == service.log.commits == 1
    assert service.log.backlog == 0


def test_what_a_log_does_beside_commits_is_done_with_inline_commits_too(service: Service, tmp_path: Any) -> None:
    value = b'"' + b"v" * 1000 + b'"'
    number = 0
    while service.log.snapshots.taken < 3 and number < 20_000:
        number += 1
        service.do(c.KvSet(f"k{number % 50}", value))
    assert service.log.snapshots.taken >= 3
    assert service.log.inline.count > number / 2
    expected = contents(service.host.engine)
    service.close()
    assert contents_of(str(tmp_path / "data")) == expected


def test_what_comes_in_one_read_is_committed_together_and_inline(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline, "CAP", PATIENCE)  # however slow the disk is here
    turns = Turns()
    under_way = 10
    with Service(str(tmp_path / "data"), soon=turns.soon) as service:
        number = 0
        for _ in range(PROVEN + 20):
            with service.lock:
                for _ in range(under_way):
                    number += 1
                    payload = c.KvSet(f"k{number}", b"1")
                    service.host.execute(service.client, number, c.KV_SET, payload, decoded=True)
                service.host.end_turn()
                turns.over()
            service.outcome(number, PATIENCE)
            service.wait_until(lambda: not service.log._writing.locked())
        assert service.log.commits == PROVEN + 20
        assert service.log.inline.count >= 15  # the writing thread may do chores beside one or another


def test_inline_commits_keep_their_order_with_those_of_the_thread(service: Service, tmp_path: Any) -> None:
    def write(name: str) -> None:
        for _ in range(500):
            service.do(c.StreamPublish("room", "n", name.encode().join((b'"', b'"'))))

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert 0 < service.log.inline.count <= service.log.commits <= 1500
    expected = contents(service.host.engine)
    service.close()
    assert contents_of(str(tmp_path / "data")) == expected
