"""Snapshots keep the log short, and nobody sees that they are taken."""

from __future__ import annotations

import os
import random
import shutil
from typing import Any, Callable, List

import pytest

from synap.host import jobs
from synap.storage.snapshot import Snapshots
from tests.helpers.driver import Service, c, contents, contents_of


def size_of(directory: str) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(directory))


@pytest.fixture
def directory(tmp_path: Any) -> str:
    return str(tmp_path / "data")


def overwrite(service: Service, keys: int, times: int, value: bytes, most: List[int]) -> None:
    directory = service.log.store.directory
    for number in range(keys * times):
        service.send(c.KvSet(f"key{number % keys:06d}", value))
        if number % 200 == 0:
            # As fast as the disk takes it: who writes faster is kept waiting, and what waits isn't on the disk.
            service.wait_until(lambda: service.log.backlog < 1_000_000)
            most.append(size_of(directory))
    service.do(c.KvExists("end"))


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_endless_overwrites_take_less_than_three_times_what_is_live(directory: str, fsync: str) -> None:
    keys, value = 4000, b'"' + b"v" * 8000 + b'"'
    most: List[int] = []
    with Service(directory, fsync=fsync, session="") as service:
        overwrite(service, keys, 6, value, most)
        assert service.log.snapshots.taken >= 3
    live = keys * len(value)
    # Beside three times what is live: the write-ahead log and what is under way, which are bounded by themselves.
    assert max(most) < 3 * live + 64 * 1024 * 1024
    assert size_of(directory) < 3 * live + 16 * 1024 * 1024


def test_a_directory_becomes_smaller_when_much_is_deleted(directory: str) -> None:
    value = b'"' + b"v" * 40_000 + b'"'
    with Service(directory, session="", snapshot_minimum=200_000) as service:
        for number in range(1000):
            service.send(c.KvSet(f"k{number}", value))
        service.do(c.KvSet("end", b"1"))
        service.wait_until(lambda: not service.log.snapshots.running and not service.log.snapshots.has_cleanup())
        full = size_of(directory)
        service.do(c.KvDel([f"k{number}" for number in range(1000)]))
        for number in range(30):
            service.do(c.KvSet(f"small{number % 5}", value))
        with service.lock:
            service.log.snapshots.begin()
        service.wait_until(lambda: service.log.snapshots.current.size < 1_000_000)
        service.wait_until(lambda: not service.log.snapshots.has_cleanup())
    assert size_of(directory) < full // 2


@pytest.mark.parametrize("seed", range(4))
def test_a_snapshot_taken_while_everything_changes_is_of_the_end(directory: str, seed: int) -> None:
    """Slices show different moments; with the log they make one state, which is that of the engine."""
    chance = random.Random(seed)
    with Service(directory, session="f" * 32, snapshot_minimum=1 << 40) as service:
        snapshots = service.log.snapshots
        for number in range(3000):
            service.send(c.KvSet(f"k{number}", b'"' + b"v" * 150 + b'"'))
            service.send(c.QueuePublish(f"q{number % 3}", b"%d" % number, priority=number % 10))
        service.do(c.KvSet("end", b"1"))
        held: List[Any] = []
        for _ in range(3):
            taken = snapshots.taken
            with service.lock:
                snapshots.begin()
            while snapshots.taken == taken:
                for _ in range(20):
                    change(service, chance, held)
                service.do(c.KvIncr("count"))
        expected = contents(service.host.engine)
    assert contents_of(directory) == expected


def change(service: Service, chance: random.Random, held: List[Any]) -> None:
    kind = chance.randrange(10)
    name = f"q{chance.randrange(3)}"
    if kind < 3:
        service.send(
            c.KvSet(f"k{chance.randrange(4000)}", b"%d" % chance.randrange(10**6), chance.choice([None, 5000]))
        )
    elif kind == 3:
        service.send(c.KvDel([f"k{chance.randrange(4000)}"]))
    elif kind == 4:
        service.send(c.QueuePublish(name, b"0", priority=chance.randrange(10)))
    elif kind == 5:
        message = service.do(c.QueueConsume(name, ack_deadline=5000))
        if message is not None:
            held.append((name, message))
    elif kind == 6 and held:
        name, message = held.pop(chance.randrange(len(held)))
        service.send(c.QueueAck(name, message.message_id, message.lease))
    elif kind == 7 and held:
        name, message = held.pop(chance.randrange(len(held)))
        service.send(c.QueueNack(name, message.message_id, True, message.lease))
    elif kind == 8:
        service.send(c.StreamPublish(f"r{chance.randrange(3)}", "e", b"1"))
    elif chance.random() < 0.05:
        service.send(chance.choice([c.StreamDelete("r0"), c.QueuePurge(name), c.KvExpire("k1", 100)]))


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_a_snapshot_counts_only_once_what_runs_alone_is_done(
    directory: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, fsync: str
) -> None:
    """Its slices may show the half of that, which nobody is to see after a crash, or where the disk refuses it."""
    monkeypatch.setattr(jobs, "SLICE", 0.0)
    later: List[Callable[[], None]] = []
    times: List[int] = []
    written = Snapshots._written

    def count(snapshots: Snapshots, taking: Any, slices: int) -> None:
        times.append(slices)
        written(snapshots, taking, slices)

    monkeypatch.setattr(Snapshots, "_written", count)
    copy = str(tmp_path / "copy")
    with Service(directory, fsync=fsync, snapshot_minimum=1 << 40, soon=later.append) as service:
        host, snapshots = service.host, service.log.snapshots
        service.do(c.KvSet("k", b"1"))
        service.wait_until(lambda: not service.log.backlog)
        before = contents(host.engine)
        with service.lock:
            number = service.send(c.KvMSet([c.Pair(f"many{number}", b"1") for number in range(5000)]))
            while len(host.engine.keys.values) == 1:
                assert not host._go_on(host.jobs.running[0])
            snapshots.begin()
        service.wait_until(lambda: len(times) > 5 or snapshots.taken > 0)
        with service.lock:
            shutil.copytree(directory, copy, ignore=shutil.ignore_patterns("*-shm"))
            assert contents_of(copy) == before
            while later:
                later.pop(0)()
        outcome: Any = service.outcome(number)
        assert outcome.success
        service.wait_until(lambda: snapshots.taken == 1)
        expected = contents(host.engine)
    assert contents_of(directory) == expected


def test_a_snapshot_is_taken_when_the_log_has_grown(directory: str) -> None:
    with Service(directory, snapshot_minimum=50_000) as service:
        for _ in range(100):
            service.do(c.KvSet("k", b'"' + b"v" * 1000 + b'"'))
        service.wait_until(lambda: service.log.snapshots.taken >= 1)
        service.wait_until(lambda: not service.log.snapshots.has_cleanup())
        rows = service.log.store.execute("SELECT count(*) FROM log")[0][0]
        assert rows < 100


def test_an_idle_service_takes_none(directory: str) -> None:
    with Service(directory) as service:
        service.do(c.KvSet("k", b"1"))
        assert service.log.snapshots.is_due(0) is False
    assert isinstance(service.log.snapshots, Snapshots)
    assert service.log.snapshots.taken == 0
