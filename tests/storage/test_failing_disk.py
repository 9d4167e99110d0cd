"""A disk that fails at any statement, again and again: what was refused changed nothing, and what is in memory in the
end is what is on disk.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import sys
import threading
from typing import Any, Callable, List, Sequence, Set, Tuple

import pytest

from synap.engine import records as r
from synap.errors import SynapError
from synap.storage import shortage, snapshot, writer
from synap.storage.reserve import Reserve
from synap.storage.store import Store
from tests.helpers.driver import Service, c, contents, contents_of
from tests.helpers.patience import PATIENCE
from tests.helpers.thorough import rounds
from tests.storage.test_trouble import FULL, WRITE, Disk

STEPS = 30
"""With a disk of each kind."""
NOW = 1_800_000_000.0
FAILURES = [FULL, WRITE] if sys.version_info >= (3, 11) else [FULL]
"""Before Python 3.11 a failed write can't be told from a failed fsync, after which a restart is needed."""


class Unreliable(Disk):
    """Fails each statement with the probability that it is told."""

    def __init__(self, store: Store, chance: random.Random) -> None:
        super().__init__(store)
        self.chance = chance
        self.risk = 0.0

    def execute(self, sql: str, parameters: Sequence[Any] = (), *, safe: bool = False) -> List[Any]:
        self.fails = self.chance.choice(FAILURES) if self.chance.random() < self.risk else 0
        return super().execute(sql, parameters, safe=safe)


class User:
    """Sends whatever comes to its mind."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.held: List[Tuple[str, Any]] = []
        """The queue and the message of each lease it has got."""

    def payload(self) -> Any:
        chance = self.chance
        if self.held and chance.random() < 0.5:
            return self._settle(*self.held.pop(chance.randrange(len(self.held))))
        key, queue, room = f"k{chance.randrange(6)}", f"q{chance.randrange(3)}", f"r{chance.randrange(2)}"
        value = b'"' + b"x" * chance.choice([1, 50, 3000]) + b'"'
        config = c.QueueConfig(max_retries=chance.randrange(3), max_depth=chance.choice([3, 100]))
        choices: List[Callable[[], Any]] = [
            lambda: c.KvSet(key, value, ttl=chance.choice([None, 1000])),
            lambda: c.KvDel([key, "k0"]),
            lambda: c.KvIncr("n"),
            lambda: c.KvExpire(key, 50),
            lambda: c.KvMSet([c.Pair(key, value), c.Pair("k1", value, ttl=7)]),
            lambda: c.KvClear("k"),
            lambda: c.QueuePublish(queue, value, priority=chance.randrange(10), delay=chance.choice([0, 500])),
            lambda: c.QueuePublish(queue, value),
            lambda: c.QueueConsume(queue),
            lambda: c.QueueConsumeMany(["q0", "q1", "q2"], 3, timeout=0),
            lambda: c.QueueCreate(queue, config),
            lambda: c.QueueDelete(queue),
            lambda: c.QueuePurge(queue),
            lambda: c.QueueRedrive(queue),
            lambda: c.StreamPublish(room, "t", value),
            lambda: c.StreamDelete(room),
            lambda: c.StreamSubscribe("r0", name="n"),
            lambda: c.StreamCommit("r0", "n", chance.randrange(3)),
            lambda: c.StreamForget("r0", "n"),
        ]
        return chance.choice(choices)()

    def _settle(self, queue: str, message: Any) -> Any:
        named = (queue, message.message_id)
        choices: List[Callable[[], Any]] = [
            lambda: c.QueueAck(*named, message.lease),
            lambda: c.QueueNack(*named, True, message.lease),
            lambda: c.QueueNack(*named, False, message.lease),
            lambda: c.QueueNack(*named, True, message.lease, delay=100),
            lambda: c.QueueExtend(*named, 100, message.lease),
            lambda: c.QueueConsume(queue, ack=message.message_id, ack_lease=message.lease),
        ]
        return self.chance.choice(choices)()

    def learn(self, payload: Any, answer: Any) -> None:
        if isinstance(payload, c.QueueConsume) and answer is not None:
            self.held.append((payload.queue, answer))
        elif isinstance(payload, c.QueueConsumeMany):
            self.held += [(message.queue, message) for message in answer.messages]


def kept(said: List[str]) -> List[str]:
    """Leave out what undoing leaves as it is: numbers of messages and leases are not given out twice."""
    return [line for line in said if not line.startswith(f"[{r.TOTALS},")]


def copied(service: Service, directory: str, copy: str) -> List[str]:
    """Copy the directory while nothing is written; returns what is in memory then."""
    pause = threading.Event()
    while True:
        with service.lock:
            if service.log._writing.acquire(timeout=0.01):
                try:
                    shutil.rmtree(copy, ignore_errors=True)
                    shutil.copytree(directory, copy, ignore=shutil.ignore_patterns("*-shm"))
                    return contents(service.host.engine)
                finally:
                    service.log._writing.release()
        pause.wait(0.01)


def outcome(service: Service, user: User, number: int) -> str:
    """Do something; returns the code of the error that it was refused with."""
    payload = user.payload()
    try:
        user.learn(payload, service.do(payload, number))
    except SynapError as error:
        return error.code
    return ""


def wait_until_told(service: Service) -> None:
    """Wait until the host knows that the disk fails: what isn't held was answered before the disk was asked."""
    service.wait_until(lambda: service.host.unavailable is not None)


def heal(service: Service, disk: Unreliable, number: int) -> None:
    disk.risk = 0.0
    service.wait_until(lambda: service.host.unavailable is None)
    service.do(c.KvSet("probe", b"1"), number)
    service.wait_until(lambda: not service.log.backlog)


class FailsWhenAsked(Disk):
    """Fails one kind of statement as often as it comes."""

    wanted = ""

    def execute(self, sql: str, parameters: Sequence[Any] = (), *, safe: bool = False) -> List[Any]:
        self.fails = FULL if self.wanted and self.wanted in sql else 0
        return super().execute(sql, parameters, safe=safe)


def test_a_disk_that_fails_while_it_is_asked_for_space_is_asked_again(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (writer, shortage):
        monkeypatch.setattr(module, "FIRST_RETRY", 0.01)
        monkeypatch.setattr(module, "LAST_RETRY", 0.05)
    with Service(str(tmp_path / "data"), reserve=65536) as service:
        disk = FailsWhenAsked(service.log.store)
        with monkeypatch.context() as full:
            full.setattr(Reserve, "make", lambda reserve: False)
            disk.wanted = "INSERT INTO log"
            with pytest.raises(SynapError):
                service.do(c.KvSet("k", b"1"))
            disk.wanted = "freelist_count"
            disk.seen.clear()
            service.wait_until(lambda: sum("freelist_count" in sql for sql in disk.seen) > 2)
            disk.wanted = ""
        service.wait_until(lambda: service.host.unavailable is None)
        service.do(c.KvSet("k", b"1"))


def test_where_the_writing_thread_ends_it_is_said_that_a_restart_is_needed(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = str(tmp_path / "data")
    with Service(directory) as service:
        service.do(c.KvSet("k", b"1"))

        def fail(*arguments: Any) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(service.log.snapshots, "go_on", fail)
        service.log.do(lambda: None)
        service.wait_until(lambda: service.host.unavailable is not None)
        with pytest.raises(SynapError, match="a restart is needed") as caught:
            service.do(c.KvSet("k", b"2"))
        assert caught.value.details["reason"] == "log_failed"
    with Service(directory) as service:
        assert service.do(c.KvGet("k")).value == b"1"


@pytest.mark.parametrize("failing", ["_finish", "_attempt"])
def test_a_writing_thread_that_ends_while_the_log_is_closed_keeps_nobody_waiting(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    service = Service(str(tmp_path / "data"))

    def fail(*arguments: Any) -> None:
        raise RuntimeError("a bug of the log")

    monkeypatch.setattr(service.log, failing, fail)
    closing = threading.Thread(target=service.close, daemon=True)
    closing.start()
    closing.join(PATIENCE)
    assert not closing.is_alive()


@pytest.mark.parametrize("seed", range(rounds(1, 20)))
@pytest.mark.parametrize(("fsync", "inline"), [("always", False), ("always", True), ("everysec", False), ("no", False)])
def test_a_disk_that_fails_at_any_statement_leaves_memory_and_disk_alike(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, seed: int, fsync: str, inline: bool
) -> None:
    monkeypatch.setattr(Service, "inline", inline)
    monkeypatch.setattr(snapshot, "POSTPONE", 0.05)
    for module in (writer, shortage):
        monkeypatch.setattr(module, "FIRST_RETRY", 0.01)
        monkeypatch.setattr(module, "LAST_RETRY", 0.1)
    chance = random.Random(seed)
    user = User(chance)
    directory, copy = str(tmp_path / "data"), str(tmp_path / "copy")
    number = 0
    codes: Set[str] = set()
    for risk in (0.02, 0.3, 0.02, 1.0):
        with Service(directory, session="7" * 32, fsync=fsync, snapshot_minimum=20_000, clock=lambda: NOW) as service:
            disk = Unreliable(service.log.store, random.Random(f"{seed} {risk}"))
            disk.risk = risk
            for _ in range(STEPS):
                number += 1
                with service.lock:
                    before = kept(contents(service.host.engine))
                code = outcome(service, user, number)
                codes.add(code)
                if code == "SERVICE_UNAVAILABLE" and fsync == "always":
                    with service.lock:
                        assert kept(contents(service.host.engine)) == before
            while risk == 1.0 and "SERVICE_UNAVAILABLE" not in codes:
                wait_until_told(service)
                number += 1
                codes.add(outcome(service, user, number))
            number += 1
            heal(service, disk, number)
            assert kept(copied(service, directory, copy)) == kept(contents_of(copy, NOW))
    assert "SERVICE_UNAVAILABLE" in codes
    assert "INTERNAL_ERROR" not in codes
