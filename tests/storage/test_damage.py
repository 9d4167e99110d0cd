"""Damage is harmless or refused by name: a flipped bit or a cut file never gives wrong data, and refusing changes
nothing.
"""

from __future__ import annotations

import gc
import os
import random
import sqlite3
import threading
from typing import Any, Dict, List, Tuple

import pytest

from synap.storage import Damaged, Unusable
from synap.storage.doctor import check
from synap.storage.layout import DATABASE, MARK
from synap.storage.rows import SLICE, pack, seal, unseal_records
from synap.storage.store import read_current, slice_id
from tests.helpers.driver import Service, c, contents, contents_of
from tests.helpers.thorough import rounds
from tests.storage.conftest import put

FLIPS, CUTS = rounds(250, 900), rounds(40, 100)
"""For each of the two directories that are damaged."""

WAL = DATABASE + "-wal"
FREE_PAGES = slice(36, 40)
"""Where in a database its header says how many pages are free."""
Base = Tuple[Dict[str, bytes], List[str]]


def work(service: Service) -> None:
    """Fill a directory with everything: a snapshot, what came after it, and remains of what came before."""
    for number in range(50):
        service.do(c.KvSet(f"key{number % 30}", b'"%d"' % number * 3, ttl=10**6 if number % 3 else None))
        service.do(c.QueuePublish("work", b"%d" % number, priority=number % 10, headers={"n": str(number)}))
        if number % 2:
            message = service.do(c.QueueConsume("work", ack_deadline=86_000))
            if number % 4 == 1:
                service.do(c.QueueAck("work", message.message_id, message.lease))
        service.do(c.StreamPublish("room", "n", b"%d" % number, {"m": "d"}))


def files_of(directory: str) -> Dict[str, bytes]:
    found = {}
    for name in (DATABASE, WAL, MARK):
        path = os.path.join(directory, name)
        if os.path.exists(path):
            with open(path, "rb") as file:
                found[name] = file.read()
    return found


@pytest.fixture(scope="module")
def running(tmp_path_factory: Any) -> Base:
    """The files of a directory whose process was killed, and what was in it."""
    directory = str(tmp_path_factory.mktemp("running") / "data")
    with Service(directory, session="c" * 32, snapshot_minimum=25_000) as service:
        work(service)
        service.wait_until(lambda: not service.log.snapshots.running and service.log.snapshots.taken > 0)
        service.do(c.KvSet("the last", b"1"))
        with service.lock:
            return files_of(directory), contents(service.host.engine)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: Any) -> Base:
    """The files of a directory whose process was stopped, and what was in it."""
    directory = str(tmp_path_factory.mktemp("stopped") / "data")
    with Service(directory, session="c" * 32, snapshot_minimum=25_000) as service:
        work(service)
        service.wait_until(lambda: not service.log.snapshots.running and service.log.snapshots.taken > 0)
        service.do(c.KvSet("the last", b"1"))
        truth = contents(service.host.engine)
    return files_of(directory), truth


def outcome(directory: str, files: Dict[str, bytes], truth: List[str]) -> str:
    """Start on damaged files; returns whether that was refused. What is wrong data fails the test."""
    put(directory, files)
    refusal = None
    try:
        found = contents_of(directory)
    except Unusable as error:
        refusal = error
    if refusal is None:
        assert found == truth, "wrong data"
    else:
        assert directory in refusal.message
        if isinstance(refusal, Damaged):
            assert refusal.details["file"] in (DATABASE, WAL, MARK)
            assert refusal.details["place"]
            assert "synap doctor" in refusal.message
    assert {name: content for name, content in files_of(directory).items() if name in files} == files
    assert gc.isenabled()
    assert not {thread.name for thread in threading.enumerate()} & {"synap-read", "synap-check"}
    return "harmless" if refusal is None else "refused"


def place(random: random.Random, files: Dict[str, bytes]) -> Tuple[str, int]:
    """Choose a byte: mostly evenly over all that was written, sometimes in the mark or in the first page.

    The zeros at the end of a write-ahead log, more than half of it, are where nothing was written yet.
    """
    files = {name: content.rstrip(b"\0") for name, content in files.items()}
    if random.random() < 0.1:
        name = random.choice(sorted(files))
        return name, random.randrange(min(len(files[name]), 4096))
    at = random.randrange(sum(map(len, files.values())))
    for name, content in sorted(files.items()):
        if at < len(content):
            return name, at
        at -= len(content)
    raise AssertionError


@pytest.mark.parametrize("base", ["running", "stopped"])
def test_a_flipped_bit_is_harmless_or_refused(base: str, request: pytest.FixtureRequest, tmp_path: Any) -> None:
    files, truth = request.getfixturevalue(base)
    directory = str(tmp_path / "data")
    assert outcome(directory, files, truth) == "harmless"
    chance = random.Random(20_240 + len(base))
    verdicts = {"harmless": 0, "refused": 0}
    for _ in range(FLIPS):
        name, at = place(chance, files)
        content = bytearray(files[name])
        content[at] ^= 1 << chance.randrange(8)
        verdicts[outcome(directory, {**files, name: bytes(content)}, truth)] += 1
    assert verdicts["refused"] > FLIPS // 4
    assert verdicts["harmless"] > 0


@pytest.mark.parametrize("base", ["running", "stopped"])
def test_a_cut_file_is_harmless_or_refused(base: str, request: pytest.FixtureRequest, tmp_path: Any) -> None:
    files, truth = request.getfixturevalue(base)
    directory = str(tmp_path / "data")
    chance = random.Random(77)
    for _ in range(CUTS):
        name, at = place(chance, files)
        outcome(directory, {**files, name: files[name][:at]}, truth)
    for name in files:
        outcome(directory, {**files, name: b""}, truth)
        outcome(directory, {other: content for other, content in files.items() if other != name}, truth)


def test_damage_that_was_harmless_stays_harmless(stopped: Base, tmp_path: Any) -> None:
    """What is damaged and not in use now must not come into use later, such as a free page."""
    files, truth = stopped
    directory = str(tmp_path / "data")
    chance = random.Random(99)
    survived = 0
    while survived < 40:
        name, at = place(chance, files)
        content = bytearray(files[name])
        content[at] ^= 1 << chance.randrange(8)
        if outcome(directory, {**files, name: bytes(content)}, truth) == "refused":
            continue
        survived += 1
        with Service(directory, snapshot_minimum=20_000) as service:
            for number in range(60):
                service.send(c.KvSet(f"more{number}", b'"' + b"v" * 500 + b'"'))
            service.do(c.KvSet("end", b"1"))
            expected = contents(service.host.engine)
        assert contents_of(directory) == expected


def test_rows_that_changed_places_are_noticed(stopped: Base, tmp_path: Any) -> None:
    directory = str(tmp_path / "data")
    put(directory, stopped[0])
    connection = sqlite3.connect(os.path.join(directory, DATABASE), isolation_level=None)
    first, second = (row[0] for row in connection.execute("SELECT seq FROM log ORDER BY seq DESC LIMIT 2"))
    bodies = {
        seq: connection.execute("SELECT body FROM log WHERE seq=?", (seq,)).fetchone()[0] for seq in (first, second)
    }
    connection.execute("UPDATE log SET body=? WHERE seq=?", (bodies[second], first))
    connection.execute("UPDATE log SET body=? WHERE seq=?", (bodies[first], second))
    connection.close()
    with pytest.raises(Damaged, match=f"log row {second}: belongs elsewhere"):
        contents_of(directory)


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("DELETE FROM log WHERE seq=(SELECT max(seq) FROM log)", "the log ends at commit"),
        ("DELETE FROM log WHERE seq=(SELECT max(seq) - 1 FROM log)", "is missing"),
        ("DELETE FROM snapshot WHERE id=(SELECT max(id) FROM snapshot)", "of the snapshot is missing"),
        ("DELETE FROM meta WHERE id=2", "meta row 2"),
        ("UPDATE log SET body='text' WHERE seq=(SELECT max(seq) FROM log)", "holds str"),
        ("UPDATE log SET body=NULL WHERE seq=(SELECT max(seq) FROM log)", "holds NoneType"),
        ("DROP TABLE snapshot", "its schema"),
    ],
)
def test_damage_is_named_with_its_place(stopped: Base, tmp_path: Any, statement: str, named: str) -> None:
    directory = str(tmp_path / "data")
    put(directory, stopped[0])
    connection = sqlite3.connect(os.path.join(directory, DATABASE), isolation_level=None)
    connection.execute(statement)
    connection.close()
    with pytest.raises(Damaged) as caught:
        Service(directory)
    assert named in caught.value.message
    assert os.path.join(directory, DATABASE) in caught.value.message


def test_a_slice_that_the_snapshot_was_not_made_of_is_refused(stopped: Base, tmp_path: Any) -> None:
    """One that is sealed as it should be, for its place, and holds a record less."""
    directory = str(tmp_path / "data")
    put(directory, stopped[0])
    connection = sqlite3.connect(os.path.join(directory, DATABASE), isolation_level=None)
    current = read_current(connection, directory)
    row = slice_id(current.generation, 0)
    body = connection.execute("SELECT body FROM snapshot WHERE id=?", (row,)).fetchone()[0]
    records = unseal_records(SLICE, current.generation, 0, body)
    other = bytes(seal(SLICE, current.generation, 0, [pack(records[:-1])]))
    connection.execute("UPDATE snapshot SET body=? WHERE id=?", (other, row))
    connection.close()
    with pytest.raises(Damaged, match="its slices are not those it was made of"):
        contents_of(directory)


def test_a_structure_that_is_wrong_where_no_data_is_is_refused(stopped: Base, tmp_path: Any) -> None:
    directory = str(tmp_path / "data")
    content = bytearray(stopped[0][DATABASE])
    free = int.from_bytes(content[FREE_PAGES], "big")
    content[FREE_PAGES] = (free + 1).to_bytes(4, "big")
    put(directory, {**stopped[0], DATABASE: bytes(content)})
    with pytest.raises(Damaged, match=f"size is {free} but should be {free + 1}"):
        contents_of(directory)


def test_a_mark_of_another_database_is_refused(running: Base, stopped: Base, tmp_path: Any) -> None:
    directory = str(tmp_path / "data")
    put(directory, {**stopped[0], MARK: running[0][MARK]})
    with pytest.raises(Damaged, match="belongs to another database"):
        Service(directory)


def test_a_missing_database_is_not_taken_for_a_new_directory(stopped: Base, tmp_path: Any) -> None:
    directory = str(tmp_path / "data")
    put(directory, {MARK: stopped[0][MARK]})
    with pytest.raises(Damaged, match=r"it is missing, and synap\.mark is there"):
        Service(directory)
    assert sorted(os.listdir(directory)) == ["synap.lock", MARK]


def test_a_database_without_its_mark_is_not_taken_for_whole(running: Base, tmp_path: Any) -> None:
    """Alone, what was in use would look sound: as it was when its write-ahead log was last folded, or empty."""
    directory = str(tmp_path / "data")
    put(directory, {DATABASE: running[0][DATABASE]})
    with pytest.raises(Damaged, match=r"synap\.mark is damaged: the file: it is missing") as caught:
        Service(directory)
    assert "--repair" in caught.value.message
    assert [problem.file for problem in check(directory).problems] == [MARK]


def test_a_mark_without_the_write_ahead_log_is_refused(running: Base, tmp_path: Any) -> None:
    directory = str(tmp_path / "data")
    put(directory, {DATABASE: running[0][DATABASE], MARK: running[0][MARK]})
    with pytest.raises(Damaged, match="the log ends at commit"):
        Service(directory)
