"""The doctor names what is wrong, saves what is sound into a new directory, and leaves the damaged one as it was."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from typing import Any, Dict, List
from unittest.mock import Mock

import pytest

from synap.engine.records import KEYS
from synap.host.clock import Clock
from synap.storage import Damaged, Unusable, backup, snapshot, wal
from synap.storage.doctor import check, explain, repair
from synap.storage.layout import DATABASE, MARK
from synap.storage.rows import COMMIT, pack, seal
from synap.storage.snapshot import Snapshots
from synap.storage.store import Store
from synap.storage.wal import read_frames
from synap.storage.writer import wake_up
from tests.helpers.driver import Service, c, contents, contents_of

WAL = DATABASE + "-wal"


@pytest.fixture
def directory(tmp_path: Any) -> str:
    """A directory with a snapshot, a log after it and a write-ahead log, as a killed process leaves it."""
    source, copy = str(tmp_path / "source"), str(tmp_path / "data")
    with Service(source, snapshot_minimum=30_000, session="") as service:
        for number in range(200):
            service.do(c.KvSet(f"key{number:03d}", b'"' + b"%03d" % number * 50 + b'"'))
        service.wait_until(lambda: not service.log.snapshots.running and service.log.snapshots.taken > 0)
        for number in range(200, 230):
            service.do(c.KvSet(f"key{number:03d}", b'"' + b"%03d" % number * 50 + b'"'))
        with service.lock:
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("*-shm"))
    return copy


def read_all(directory: str) -> Dict[str, bytes]:
    found = {}
    for name in os.listdir(directory):
        if not name.endswith(("-shm", ".lock")):
            with open(os.path.join(directory, name), "rb") as file:
                found[name] = file.read()
    return found


def break_at(directory: str, name: str, needle: bytes) -> None:
    """Flip a bit of the text `needle`, where it is last in a file."""
    path = os.path.join(directory, name)
    with open(path, "rb") as file:
        content = bytearray(file.read())
    at = content.rfind(needle)
    assert at >= 0
    content[at] ^= 1
    with open(path, "wb") as file:
        file.write(content)


def fold(directory: str) -> None:
    """Bring the write-ahead log into the database."""
    Service(directory, snapshot_minimum=1 << 40).close()


def test_a_sound_directory_has_no_problems(directory: str) -> None:
    before = read_all(directory)
    report = check(directory)
    assert report.sound
    assert list(explain(report)) == []
    assert report.figures["last_commit"] == 230
    assert read_all(directory) == before


def test_a_directory_in_use_can_be_checked(tmp_path: Any) -> None:
    directory = str(tmp_path / "used")
    with Service(directory) as service:
        for number in range(20):
            service.do(c.KvSet(f"k{number}", b"1"))
            assert check(directory).sound


def test_what_is_saved_goes_on_with_the_same_time(tmp_path: Any) -> None:
    wall, steady = [1_000_000.0], [5.0]

    def clock() -> Clock:
        return Clock(wall=lambda: wall[0], steady=lambda: steady[0])

    source, target = str(tmp_path / "data"), str(tmp_path / "saved")
    with Service(source, clock=clock()) as service:
        service.do(c.KvSet("a", b"1", ttl=600))
        wall[0] += 3600  # the wall clock is set
        steady[0] += 1
        service.do(c.KvSet("b", b"1"))
    repair(source, target)
    with Service(target, clock=clock()) as service:
        assert service.do(c.KvGet("a")).ttl == 599


def test_a_damaged_row_is_named_and_the_rest_is_saved(directory: str, tmp_path: Any) -> None:
    fold(directory)
    break_at(directory, DATABASE, b"225" * 50)
    with pytest.raises(Damaged, match="log row 226: does not match its checksum"):
        Service(directory)
    before = read_all(directory)
    report = check(directory)
    assert [problem.place for problem in report.problems] == ["log row 226"]
    target = str(tmp_path / "saved")
    report = repair(directory, target)
    assert report.lost == ["commit 226"]
    assert "lost: commit 226" in list(explain(report))
    assert read_all(directory) == before
    with Service(target) as service:
        keys = service.do(c.KvScan(count=1000)).keys
        assert len(keys) == 229
        assert "key225" not in keys
        assert service.do(c.KvSet("more", b"1")).success


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a snapshot be of several slices, where a fast machine makes one of all that `directory` holds."""
    monkeypatch.setattr(snapshot, "RECORDS", 20)
    monkeypatch.setattr(snapshot, "SLICE_SECONDS", 0)


@pytest.mark.usefixtures("small_slices")
def test_a_damaged_slice_costs_only_itself(directory: str, tmp_path: Any) -> None:
    fold(directory)
    slices = check(directory).figures["snapshot_slices"]
    assert slices > 1
    connection = sqlite3.connect(os.path.join(directory, DATABASE), isolation_level=None)
    number, body = connection.execute("SELECT min(id), body FROM snapshot").fetchone()
    connection.execute("UPDATE snapshot SET body=? WHERE id=?", (body[:-1] + b"x", number))
    connection.close()
    report = repair(directory, str(tmp_path / "saved"))
    assert report.lost == [f"slice 0 of {slices} of the snapshot"]
    with Service(str(tmp_path / "saved")) as service:
        assert service.do(c.KvGet("key229")).found
        # The log after the snapshot has some 30; rows before it that aren't removed yet may have those of the slice.
        assert len(service.do(c.KvScan(count=1000)).keys) > 100


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("counts", [False, True], ids=["unfinished", "just counts"])
def test_without_the_note_of_the_current_snapshot_the_one_that_counts_is_saved(
    directory: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, counts: bool
) -> None:
    with Service(directory, snapshot_minimum=1 << 40) as service:
        service.log.do(wake_up)
        service.wait_until(lambda: not service.log.snapshots.has_cleanup())
    if not counts:
        write = Snapshots._write
        monkeypatch.setattr(Snapshots, "_write", lambda self, taking: taking.parts or write(self, taking))
    monkeypatch.setattr(Snapshots, "has_cleanup", lambda self: False)
    source = str(tmp_path / "left")
    with Service(directory, snapshot_minimum=1) as service:
        service.do(c.KvDel(["key000"]))
        snapshots = service.log.snapshots
        service.wait_until(lambda: snapshots.taken > 0 if counts else getattr(snapshots._taking, "parts", 0) > 0)
        service.do(c.KvDel(["key001"]))
        with service.lock:
            shutil.copytree(directory, source, ignore=shutil.ignore_patterns("*-shm"))
    with closing(sqlite3.connect(os.path.join(source, DATABASE), isolation_level=None)) as connection:
        assert len(connection.execute("SELECT DISTINCT id >> 32 FROM snapshot").fetchall()) == 2
        connection.execute("UPDATE meta SET body=zeroblob(40) WHERE id=2")
    report = repair(source, str(tmp_path / "saved"))
    assert [problem.place for problem in report.problems] == ["meta row 2"]
    with Service(str(tmp_path / "saved")) as service:
        keys = sorted(service.do(c.KvScan(count=1000)).keys)
    assert keys == [f"key{number:03d}" for number in range(2, 230)]


def test_a_damaged_write_ahead_log_costs_only_the_page_that_is_damaged(directory: str, tmp_path: Any) -> None:
    path = os.path.join(directory, WAL)
    with open(path, "rb") as file:
        content = bytearray(file.read())
    frame = 24 + 4096
    middle = len(content.rstrip(b"\0")) // frame // 2  # what is behind the last frame was made longer ahead
    at = 32 + frame * middle + 100
    content[at] ^= 4
    with open(path, "wb") as file:
        file.write(content)
    before = read_all(directory)
    place = f"frame {middle + 1} .from byte {at - 100}."
    with pytest.raises(Damaged, match=rf"synap\.db-wal is damaged: {place}: it does not match its checksum"):
        Service(directory)
    assert check(directory).problems[0].file == WAL
    target = str(tmp_path / "saved")
    repair(directory, target)
    assert read_all(directory) == before
    with Service(target) as service:
        assert len(service.do(c.KvScan(count=1000)).keys) >= 225


def test_a_damaged_mark_costs_nothing(directory: str, tmp_path: Any) -> None:
    expected = contents_of(directory)
    with open(os.path.join(directory, MARK), "r+b") as file:
        file.write(b"x" * 1024)
    with pytest.raises(Damaged, match=r"synap\.mark is damaged"):
        Service(directory)
    report = repair(directory, str(tmp_path / "saved"))
    assert report.lost == []
    assert [problem.file for problem in report.problems] == [MARK]
    assert contents_of(str(tmp_path / "saved")) == expected


def test_a_database_whose_header_is_gone_is_refused_by_the_doctor_too(directory: str, tmp_path: Any) -> None:
    os.unlink(os.path.join(directory, WAL))
    with open(os.path.join(directory, DATABASE), "r+b") as file:
        file.write(b"x" * 100)
    assert not check(directory).sound
    with pytest.raises(Unusable, match=r"nothing in .* could be saved"):
        repair(directory, str(tmp_path / "saved"))


def test_a_repair_needs_a_new_directory(directory: str, tmp_path: Any) -> None:
    with pytest.raises(Unusable, match="is not empty"):
        repair(directory, directory)
    (tmp_path / "file").write_text("text")
    with pytest.raises(Unusable, match="is a file"):
        repair(directory, str(tmp_path / "file"))


def test_a_directory_without_data_has_nothing_to_check(tmp_path: Any) -> None:
    with pytest.raises(Unusable, match="holds no data"):
        check(str(tmp_path))
    with pytest.raises(Unusable, match="is not a directory"):
        check(str(tmp_path / "missing"))


def test_what_was_repaired_from_a_sound_directory_is_the_same(directory: str, tmp_path: Any) -> None:
    repair(directory, str(tmp_path / "saved"))
    with Service(directory) as service:
        assert contents_of(str(tmp_path / "saved")) == contents(service.host.engine)


def test_frames_of_an_earlier_use_of_the_write_ahead_log_are_not_sound(tmp_path: Any) -> None:
    """SQLite begins the file anew after a checkpoint: behind the new frames stand old ones, each right for itself."""
    path = str(tmp_path / "some.db")
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("CREATE TABLE t (n)")
    for number in range(10):
        connection.execute("INSERT INTO t VALUES (?)", (number,))
    connection.execute("PRAGMA wal_checkpoint(FULL)")
    connection.execute("INSERT INTO t VALUES (10)")
    with open(path + "-wal", "rb") as file:
        frames = read_frames(file.read(), connection.execute("PRAGMA page_size").fetchone()[0])
    connection.close()
    assert [frame.sound for frame in frames] == [True] + [False] * (len(frames) - 1)
    assert len(frames) > 5


def test_zeros_made_ahead_of_the_frames_are_not_summed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are most of the file soon after a start, and three sums of each would be most of a refusal's time."""
    path = str(tmp_path / "some.db")
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE t (n)")
    with open(path + "-wal", "rb") as file:
        content = file.read()
    page = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.close()
    add = Mock(wraps=wal._add)
    monkeypatch.setattr(wal, "_add", add)
    written = read_frames(content, page)
    alone = add.call_count
    frames = read_frames(content + bytes(100 * (page + 24)), page)
    assert add.call_count == 2 * alone
    assert frames[: len(written)] == written
    assert [frame.sound for frame in frames[len(written) :]] == [False] * 100


def test_keys_of_a_record_that_makes_no_sense_are_counted_as_lost_one_by_one(tmp_path: Any) -> None:
    directory = str(tmp_path / "data")
    with Service(directory) as service:
        service.do(c.KvSet("sound", b"1"))
        sensible = check(directory).records
    odd: List[Any] = [(KEYS, {f"k{number}": b"1" for number in range(30)}), (KEYS, 5, {}), (KEYS,), (), (99, 1)]
    store = Store(directory)
    seq = store.execute("SELECT max(seq) FROM log")[0][0] + 1
    store.append(seq, seal(COMMIT, seq, 0, [pack(odd)]), safe=True)
    store.close()
    report = repair(directory, str(tmp_path / "saved"))
    assert report.records == sensible + 34
    assert report.lost == ["34 records that refer to something lost"]
    with Service(str(tmp_path / "saved")) as service:
        assert service.do(c.KvScan()).keys == ["sound"]


def test_what_else_is_in_the_directory_is_no_obstacle(directory: str, tmp_path: Any) -> None:
    """Such as the lost+found of a file system, which only root may read."""
    expected = contents_of(directory)
    os.mkdir(os.path.join(directory, "lost+found"))
    os.mkfifo(os.path.join(directory, "pipe"))
    os.symlink("nowhere", os.path.join(directory, "link"))
    os.chmod(os.path.join(directory, DATABASE), 0o400)
    report = repair(directory, str(tmp_path / "saved"))
    assert report.sound, report.problems
    assert contents_of(str(tmp_path / "saved")) == expected
    assert "examined" not in os.listdir(tmp_path / "saved")


@pytest.mark.parametrize("stopped", [True, False])
def test_what_may_not_be_written_is_not_damaged(directory: str, tmp_path: Any, stopped: bool) -> None:
    """A directory on a file system that is mounted read-only, of a service that was stopped, or killed."""
    expected = contents_of(directory)
    if stopped:
        fold(directory)
    else:
        os.unlink(os.path.join(directory, DATABASE + "-shm"))  # with it SQLite reads
    place = tmp_path / "mounted"
    place.mkdir()
    mount = ["mount", "-o", "bind,ro", directory, str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("a file system can't be mounted here")
    try:
        if stopped:
            assert check(str(place)).sound
            backup.copy(str(place), str(tmp_path / "copy"))
            assert contents_of(str(tmp_path / "copy")) == expected
        else:
            for read in (check, lambda path: backup.copy(path, str(tmp_path / "copy"))):
                with pytest.raises(Unusable, match=r"let user \d+ write to .*mounted, or copy it") as caught:
                    read(str(place))
                assert not isinstance(caught.value, Damaged)
        report = repair(str(place), str(tmp_path / "saved"))
    finally:
        subprocess.run(["umount", str(place)], check=True)
    assert report.sound, report.problems
    assert contents_of(str(tmp_path / "saved")) == expected


@pytest.mark.parametrize("name", [DATABASE, WAL, MARK])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_named_and_not_read(directory: str, tmp_path: Any, name: str, make: Any) -> None:
    path = os.path.join(directory, name)
    os.unlink(path)
    make(path)
    found = check(directory).problems
    assert (name, "the file", "it is no file") in found
    with pytest.raises(Unusable, match=r"it is (no file|empty)"):
        Service(directory)
    with pytest.raises(Unusable, match=r"it is (no file|empty)"):
        backup.copy(directory, str(tmp_path / "copy"))
    if name == MARK:
        assert repair(directory, str(tmp_path / "saved")).records > 200
