"""A copy of a directory in use is one moment's state, whole and checked; restoring is starting on it."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sqlite3
import threading
from contextlib import closing
from typing import Any, List, Tuple

import pytest

from synap.storage import Damaged, Unusable
from synap.storage.backup import copy, receive, stream
from synap.storage.doctor import check
from synap.storage.layout import DATABASE, MARK, WAL
from synap.storage.portable import export_directory
from tests.helpers.driver import Service, c, contents, contents_of


@pytest.fixture
def directory(tmp_path: Any) -> str:
    return str(tmp_path / "data")


@pytest.fixture
def target(tmp_path: Any) -> str:
    return str(tmp_path / "copy")


def fill(service: Service) -> None:
    for number in range(100):
        service.do(c.KvSet(f"k{number}", b'"' + b"v" * 100 + b'"'))
        service.do(c.QueuePublish("q", b"%d" % number))
        service.do(c.StreamPublish("r", "e", b"%d" % number))
    service.do(c.QueueConsume("q", ack_deadline=1000))


def test_a_copy_holds_what_the_original_held(directory: str, target: str) -> None:
    with Service(directory, snapshot_minimum=20_000) as service:
        fill(service)
        expected = contents(service.host.engine)
        found = copy(directory, target)
        assert found.seq == service.log.seq
        service.do(c.KvSet("later", b"1"))
    assert contents_of(target) == expected
    with Service(target) as restored:
        assert contents(restored.host.engine) == expected
        assert restored.do(c.KvSet("goes on", b"1")).success


def test_a_copy_made_while_others_write_is_of_one_moment(directory: str, tmp_path: Any) -> None:
    """Two keys are always set together, in one commit or two after each other: a copy never has the second ahead of
    the first.
    """
    stop = threading.Event()
    with Service(directory, snapshot_minimum=100_000) as service:

        def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                service.do(c.KvSet("first", b"%d" % number))
                service.do(c.KvSet("second", b"%d" % number))
                service.do(c.KvSet(f"filler{number % 100}", b'"' + b"v" * 2000 + b'"'))

        writer = threading.Thread(target=write)
        writer.start()
        try:
            service.wait_until(lambda: service.log.seq > 20)
            acknowledged: List[Tuple[int, str]] = []
            for number in range(5):
                with service.lock:
                    held = int(service.host.engine.keys.values.get("second", b"0"))
                target = str(tmp_path / f"copy{number}")
                copy(directory, target)
                acknowledged.append((held, target))
        finally:
            stop.set()
            writer.join()
    for held, target in acknowledged:
        with Service(target) as restored:
            first = int(restored.do(c.KvGet("first")).value)
            second = int(restored.do(c.KvGet("second")).value)
            assert second <= first <= second + 1
            assert first >= held - 1


def test_a_stream_ends_where_its_maker_gives_up(directory: str) -> None:
    def give_up(done: int, total: int) -> None:
        raise ConnectionResetError

    with Service(directory) as service:
        fill(service)
        before = sorted(os.listdir(directory))
        with pytest.raises(ConnectionResetError):
            next(stream(directory, progress=give_up))
        assert sorted(os.listdir(directory)) == before


def test_a_copy_can_travel_as_a_stream(directory: str, target: str) -> None:
    with Service(directory) as service:
        fill(service)
        expected = contents(service.host.engine)
        told: List[Tuple[int, int]] = []
        receive(stream(directory), target, progress=lambda done, total: told.append((done, total)))
        assert sorted(os.listdir(directory)) == [
            DATABASE,
            DATABASE + "-shm",
            DATABASE + "-wal",
            "synap.lock",
            "synap.mark",
        ]
    assert told[-1][0] == os.path.getsize(os.path.join(target, DATABASE))
    assert contents_of(target) == expected


def test_a_stream_that_was_cut_does_not_become_a_directory(directory: str, target: str) -> None:
    with Service(directory) as service:
        fill(service)
        whole = b"".join(stream(directory))
    with pytest.raises(Unusable):
        receive([whole[: len(whole) // 2]], target)
    assert not os.path.exists(os.path.join(target, DATABASE))
    other = target + "2"
    with pytest.raises(Unusable):
        receive([], other)
    assert not os.path.exists(os.path.join(other, DATABASE))


def test_damage_in_the_original_is_found_when_it_is_copied(directory: str, target: str) -> None:
    with Service(directory, session="") as service:
        service.do(c.KvSet("k", b'"' + b"needle" * 50 + b'"'))
    path = os.path.join(directory, DATABASE)
    with open(path, "r+b") as file:
        at = file.read().find(b"needle" * 50)
        file.seek(at)
        file.write(b"N")
    with pytest.raises(Damaged, match="does not match its checksum"):
        copy(directory, target)
    assert not os.path.exists(os.path.join(target, DATABASE))


def test_progress_is_told_in_bytes(directory: str, target: str) -> None:
    told: List[Tuple[int, int]] = []
    with Service(directory) as service:
        for number in range(50):
            service.send(c.KvSet(f"k{number}", b'"' + b"v" * 200_000 + b'"'))
        service.do(c.KvSet("end", b"1"))
        copy(directory, target, progress=lambda done, total: told.append((done, total)))
    assert len(told) > 1
    assert told[-1][0] == told[-1][1] > 10_000_000
    assert told == sorted(told)


def test_a_target_that_holds_something_is_refused(directory: str, tmp_path: Any) -> None:
    Service(directory).close()
    with pytest.raises(Unusable, match="is not empty"):
        copy(directory, directory)
    (tmp_path / "other").mkdir()
    ((tmp_path / "other") / "file").write_text("mine")
    with pytest.raises(Unusable, match=r"is not empty \(file\)"):
        copy(directory, str(tmp_path / "other"))


def test_a_directory_of_somebody_else_is_not_said_to_be_empty(
    directory: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Service(directory) as service:
        fill(service)
    known = os.stat

    def refused(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(directory + os.sep):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return known(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refused)  # what root can't be refused
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    for attempt in (lambda: copy(directory, target), lambda: check(directory), lambda: export(directory)):
        with pytest.raises(Unusable, match="can't be looked into"):
            attempt()


def export(directory: str) -> None:
    export_directory(directory, io.BytesIO())


def test_an_empty_database_is_damage(directory: str, target: str) -> None:
    with Service(directory) as service:
        fill(service)
    with open(os.path.join(directory, DATABASE), "wb"):
        pass
    with pytest.raises(Damaged, match="it is empty"):
        copy(directory, target)


def test_there_must_be_something_to_copy(tmp_path: Any, target: str) -> None:
    with pytest.raises(Unusable, match="holds no data"):
        copy(str(tmp_path), target)
    assert not os.path.exists(target)


def spoil_log(directory: str) -> None:
    """Flip a bit in the first third of the write-ahead log, so that SQLite takes it for the end of it."""
    with open(os.path.join(directory, WAL), "r+b") as file:
        data = file.read()
        at = len(data.rstrip(b"\0")) // 3
        file.seek(at)
        file.write(bytes([data[at] ^ 1]))


def without_mark(directory: str) -> None:
    os.unlink(os.path.join(directory, MARK))


@pytest.mark.parametrize(
    ("spoil", "said"), [(spoil_log, "commits up to 301 were answered"), (without_mark, "missing")], ids=["log", "mark"]
)
def test_a_copy_has_what_was_answered_or_there_is_none(directory: str, target: str, spoil: Any, said: str) -> None:
    with Service(directory) as service:
        fill(service)
        crashed = directory + "-crashed"
        shutil.copytree(directory, crashed)
    spoil(crashed)
    for attempt in (lambda: copy(crashed, target), lambda: list(stream(crashed))):
        with pytest.raises(Damaged, match=said) as refused:
            attempt()
        assert crashed in refused.value.message
    assert not os.path.exists(target)
    assert not [name for name in os.listdir(crashed) if "copy" in name]


def test_what_is_said_to_be_damaged_is_the_original(directory: str, target: str) -> None:
    with Service(directory) as service:
        fill(service)
    database = sqlite3.connect(os.path.join(directory, DATABASE))
    with closing(database), database:
        database.execute("DELETE FROM log WHERE seq=7")
    with pytest.raises(Damaged, match="log row 7") as refused:
        copy(directory, target)
    assert refused.value.details["directory"] == directory
    assert target not in refused.value.message


def test_a_database_that_is_no_file_is_damage(directory: str, target: str) -> None:
    with Service(directory) as service:
        fill(service)
    os.unlink(os.path.join(directory, DATABASE))
    os.mkdir(os.path.join(directory, DATABASE))
    with pytest.raises(Unusable):
        copy(directory, target)
