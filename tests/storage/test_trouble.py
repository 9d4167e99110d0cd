"""A disk that is full or fails: writes are refused, reads go on, nothing answered is lost, service resumes where that
is sound.
"""

from __future__ import annotations

import errno
import io
import os
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from typing import Any, Dict, Iterator, List, Sequence

import pytest

from synap.errors import SynapError
from synap.host.clock import Clock
from synap.storage import store
from synap.storage.backup import copy
from synap.storage.doctor import repair
from synap.storage.layout import DATABASE
from synap.storage.mark import read_mark
from synap.storage.portable import export_directory, import_directory
from synap.storage.store import Store
from tests.helpers.driver import Service, c, contents, contents_of
from tests.helpers.patience import PATIENCE

pytestmark = pytest.mark.usefixtures("commits")

SESSION = "7" * 32
FULL, WRITE, FSYNC = 13, 778, 1034
TEXTS = {FULL: "database or disk is full", WRITE: "disk I/O error", FSYNC: "disk I/O error"}
tells_fsync = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="before Python 3.11 a failed write can't be told from a failed fsync"
)


class Disk:
    """Stands between a store and its database, and fails as told. Rolling back always works."""

    def __init__(self, store: Store) -> None:
        self._execute = store.execute
        self.fails = 0
        self.seen: List[str] = []
        self.written = self.synced = 0
        """Numbers of the last commits written, and certainly on disk."""
        store.execute = self.execute  # type: ignore[method-assign]

    def execute(self, sql: str, parameters: Sequence[Any] = (), *, safe: bool = False) -> List[Any]:
        self.seen.append(sql)
        if not self.fails or sql == "ROLLBACK":
            answer = self._execute(sql, parameters, safe=safe)
            if sql.startswith("INSERT INTO log"):
                self.written = parameters[0]
            if safe:
                self.synced = self.written
            return answer
        if self.fails == FSYNC:
            # It is written, and then the system says that it could not be forced to the disk.
            self._execute(sql, parameters, safe=False)
        error = sqlite3.OperationalError(TEXTS[self.fails])
        if sys.version_info >= (3, 11):
            error.sqlite_errorcode = self.fails
        raise error


@pytest.fixture
def directory(tmp_path: Any) -> str:
    return str(tmp_path / "data")


@pytest.fixture
def service(directory: str) -> Iterator[Service]:
    with Service(directory, session=SESSION) as service:
        yield service


@pytest.fixture
def disk(service: Service) -> Disk:
    return Disk(service.log.store)


def refused(service: Service, payload: Any) -> SynapError:
    with pytest.raises(SynapError) as caught:
        service.do(payload)
    assert caught.value.code == "SERVICE_UNAVAILABLE"
    return caught.value


def resumed(service: Service) -> None:
    service.wait_until(lambda: service.host.unavailable is None)


def test_a_full_disk_refuses_the_write_and_says_why(service: Service, disk: Disk) -> None:
    service.do(c.KvSet("a", b"1"))
    disk.fails = FULL
    error = refused(service, c.KvSet("a", b"2"))
    assert "the disk is full" in error.message
    assert error.details["reason"] == "disk_full"
    assert error.details["retry_after"] > 0
    assert error.may_have_happened is False


def test_only_once_deleting_goes_on_a_refusal_says_that_it_does(service: Service, disk: Disk) -> None:
    service.do(c.KvSet("a", b"1"))
    disk.fails = FULL
    for payload in (c.KvSet("a", b"2"), c.KvDel(["a"])):
        assert "in a moment so does what makes room" in refused(service, payload).message
    service.host.short(store.refused(store.NO_SPACE, sparing=True))
    assert "reads go on, and so does what makes room" in refused(service, c.KvSet("a", b"2")).message


def test_reads_go_on_while_writes_are_refused(service: Service, disk: Disk) -> None:
    service.do(c.KvSet("a", b"1"))
    service.do(c.StreamPublish("room", "e", b"1"))
    disk.fails = FULL
    refused(service, c.KvSet("a", b"2"))
    assert service.do(c.KvGet("a")).value == b"1"
    assert len(service.do(c.StreamHistory("room")).events) == 1
    assert service.do(c.KvScan()).keys == ["a"]


def test_a_refused_write_changed_nothing(service: Service, disk: Disk, directory: str) -> None:
    service.do(c.KvSet("a", b"1"))
    service.do(c.QueuePublish("q", b"1"))
    service.do(c.StreamPublish("r", "e", b"1"))
    message = service.do(c.QueueConsume("q"))
    before = contents(service.host.engine)
    disk.fails = FULL
    refused(service, c.KvSet("a", b"2"))
    refused(service, c.QueueAck("q", message.message_id, message.lease))
    refused(service, c.QueuePublish("new", b"1"))
    refused(service, c.StreamPublish("r", "e", b"2"))
    refused(service, c.KvDel(["a"]))
    assert contents(service.host.engine) == before
    assert contents_of(directory) == before


def test_everything_under_way_is_taken_back_together(service: Service, disk: Disk, directory: str) -> None:
    service.do(c.KvSet("a", b"1"))
    before = contents(service.host.engine)
    with service.lock:
        disk.fails = FULL
        numbers = [service.send(c.KvIncr("count")) for _ in range(50)]
        reads = [service.send(c.KvGet("count")) for _ in range(5)]
    for number in numbers:
        outcome = service.outcome(number)
        assert isinstance(outcome, SynapError)
        assert outcome.code == "SERVICE_UNAVAILABLE"
    for number in reads:
        outcome = service.outcome(number)
        shown = None if isinstance(outcome, SynapError) else outcome.value
        assert shown is None, "an answer that shows what was taken back must not go out"
    disk.fails = 0
    resumed(service)
    assert contents(service.host.engine) == before
    assert service.do(c.KvIncr("count")).value == 1
    service.close()
    assert contents_of(directory) == contents(service.host.engine)


def test_service_resumes_by_itself_when_there_is_space(service: Service, disk: Disk) -> None:
    disk.fails = FULL
    refused(service, c.KvSet("a", b"1"))
    disk.fails = 0
    resumed(service)
    assert service.do(c.KvSet("a", b"2")).success
    assert service.do(c.KvGet("a")).value == b"2"


def test_a_refused_request_can_be_sent_again_under_its_number(service: Service, disk: Disk) -> None:
    disk.fails = FULL
    number = service.send(c.KvIncr("count"))
    assert isinstance(service.outcome(number), SynapError)
    disk.fails = 0
    resumed(service)
    assert service.do(c.KvIncr("count"), number, retried=True).value == 1
    assert service.do(c.KvIncr("count"), number, retried=True).value == 1


def test_a_step_of_the_wall_clock_is_kept_though_the_change_it_came_with_was_refused(directory: str) -> None:
    wall, steady = [1_000_000.0], [5.0]

    def clock() -> Clock:
        return Clock(wall=lambda: wall[0], steady=lambda: steady[0])

    with Service(directory, clock=clock()) as service:
        service.do(c.KvSet("a", b"1", ttl=600))
        disk = Disk(service.log.store)
        disk.fails = FULL
        wall[0] += 3600
        steady[0] += 1
        refused(service, c.KvSet("b", b"1"))
        with service.lock:  # nor with one that can't be made now
            service.host.engine.execute(c.KvSet("b", b"2"), service.host.clock(), service.client)
            service.host.end_turn()
        disk.fails = 0
        resumed(service)
        service.do(c.KvSet("b", b"3"))
        expected = contents(service.host.engine)
    assert contents_of(directory, wall[0]) == expected
    with Service(directory, clock=clock()) as service:
        assert service.do(c.KvGet("a")).ttl == 599
        assert service.do(c.KvGet("b")).value == b"3"


def test_a_waiting_consumer_is_refused_instead_of_waiting_for_nothing(service: Service, disk: Disk) -> None:
    waiting = service.send(c.QueueConsume("q", timeout=3600))
    service.do(c.KvSet("a", b"1"))
    disk.fails = FULL
    refused(service, c.KvSet("a", b"2"))
    outcome = service.outcome(waiting)
    assert isinstance(outcome, SynapError)
    assert outcome.code == "SERVICE_UNAVAILABLE"


def test_a_message_handed_to_a_waiting_consumer_goes_back_when_that_could_not_be_kept(
    service: Service, disk: Disk
) -> None:
    waiting = service.send(c.QueueConsume("q", timeout=3600))
    service.do(c.KvSet("a", b"1"))
    disk.fails = FULL
    refused(service, c.QueuePublish("q", b"1"))
    assert isinstance(service.outcome(waiting), SynapError)
    disk.fails = 0
    resumed(service)
    assert service.do(c.QueueConsume("q")) is None
    assert service.do(c.QueueStats("q")).pending == 0


def test_subscribers_hear_nothing_that_was_taken_back(service: Service, disk: Disk) -> None:
    service.do(c.StreamSubscribe("r"))
    service.do(c.StreamPublish("r", "e", b"0"))
    disk.fails = FULL
    refused(service, c.StreamPublish("r", "e", b"1"))
    disk.fails = 0
    resumed(service)
    assert service.do(c.StreamPublish("r", "e", b"2")).offset == 1
    assert [event.data for event in service.client.pushed] == [b"0", b"2"]


@tells_fsync
def test_a_failed_write_is_refused_and_tried_again(service: Service, disk: Disk) -> None:
    service.do(c.KvSet("a", b"1"))
    disk.fails = WRITE
    error = refused(service, c.KvSet("a", b"2"))
    assert error.details["reason"] == "io_error"
    assert error.may_have_happened is True, "who asked can't know what a broken disk did with it"
    disk.fails = 0
    resumed(service)
    assert service.do(c.KvGet("a")).value == b"1"
    assert service.do(c.KvSet("a", b"3")).success


def test_a_failed_fsync_is_not_tried_again(service: Service, disk: Disk, directory: str) -> None:
    service.do(c.KvSet("a", b"1"))
    disk.fails = FSYNC
    error = refused(service, c.KvSet("a", b"2"))
    assert error.details["reason"] == "fsync_failed"
    assert "restart" in error.message
    assert error.may_have_happened is True
    disk.fails = 0
    disk.seen.clear()
    again = refused(service, c.KvSet("a", b"3"))
    assert again.may_have_happened is False
    assert service.do(c.KvGet("a")).value == b"1"
    service.close()
    assert not disk.seen, "nothing may be written after a failed fsync"
    with Service(directory) as restarted:
        assert restarted.do(c.KvGet("a")).value in (b"1", b"2")
        assert restarted.do(c.KvSet("a", b"4")).success


def test_an_ack_that_a_failed_fsync_refused_is_done_once_however_the_restart_finds_it(
    service: Service, disk: Disk, directory: str
) -> None:
    service.do(c.QueuePublish("q", b"1"))
    message = service.do(c.QueueConsume("q", ack_deadline=80_000))
    ack = c.QueueAck("q", message.message_id, message.lease)
    disk.fails = FSYNC
    refusal = service.outcome(service.send(ack, 7))
    assert isinstance(refusal, SynapError)
    assert refusal.may_have_happened is True
    disk.fails = 0
    service.close()
    with Service(directory, session=SESSION) as restarted:
        assert restarted.do(ack, 7, retried=True).success
        assert restarted.do(c.QueueStats("q")).acked_total == 1


@pytest.mark.parametrize("fsync", ["everysec", "no"])
def test_what_was_answered_before_it_was_written_is_kept_and_written_later(directory: str, fsync: str) -> None:
    service = Service(directory, fsync=fsync, session=SESSION)
    disk = Disk(service.log.store)
    disk.fails = FULL
    service.do(c.KvSet("a", b"1"))
    service.wait_until(lambda: service.host.unavailable is not None)
    assert service.do(c.KvGet("a")).value == b"1"
    refused(service, c.KvSet("b", b"1"))
    disk.fails = 0
    resumed(service)
    service.do(c.KvSet("c", b"1"))
    expected = contents(service.host.engine)
    service.close()
    assert contents_of(directory) == expected
    assert any("'a'" in record for record in expected)


@pytest.mark.parametrize("fsync", ["everysec", "no"])
def test_what_was_kept_through_trouble_is_promised_for_good_only_once_it_is_on_disk(directory: str, fsync: str) -> None:
    with Service(directory, fsync=fsync, session=SESSION) as service:
        disk = Disk(service.log.store)
        disk.fails = FULL
        service.do(c.KvSet("a", b"1"))
        service.wait_until(lambda: service.host.unavailable is not None)
        disk.fails = 0
        resumed(service)
        promise = read_mark(directory)
        assert promise is not None
        assert promise.written == disk.written == 1
        assert promise.synced <= disk.synced


@pytest.mark.parametrize("fsync", ["everysec", "no"])
def test_a_stop_promises_nothing_that_is_not_synced_where_its_checkpoint_does_not_fit(
    directory: str, monkeypatch: pytest.MonkeyPatch, fsync: str
) -> None:
    with Service(directory, fsync=fsync) as service:
        disk = Disk(service.log.store)
        service.do(c.KvSet("a", b'"' + b"v" * 100_000 + b'"'))
        service.wait_until(lambda: not service.log.backlog)
        monkeypatch.setattr(store, "free_space", lambda directory: 0)
    promise = read_mark(directory)
    assert promise is not None
    assert promise.synced == disk.synced == 1
    assert not any("wal_checkpoint" in sql for sql in disk.seen)


def test_a_stop_in_the_middle_of_trouble_keeps_what_was_answered(directory: str) -> None:
    service = Service(directory, session=SESSION)
    service.do(c.KvSet("a", b"1"))
    before = contents(service.host.engine)
    disk = Disk(service.log.store)
    disk.fails = FULL
    refused(service, c.KvSet("a", b"2"))
    service.close()
    assert contents_of(directory) == before


@pytest.mark.parametrize("ends", [False, True], ids=["trouble lasts", "trouble ends"])
def test_a_stop_tells_what_was_answered_and_could_not_be_written(
    directory: str, caplog: pytest.LogCaptureFixture, ends: bool
) -> None:
    service = Service(directory, fsync="everysec")
    disk = Disk(service.log.store)
    disk.fails = FULL
    service.do(c.KvSet("a", b"1"))
    service.wait_until(lambda: service.host.unavailable is not None)
    if ends:
        disk.fails = 0
    service.close()
    assert any("is lost: the disk is full" in message for message in caplog.messages) is not ends
    with Service(directory) as service:
        assert service.do(c.KvGet("a")).found is ends


def test_on_a_full_disk_no_commit_waits_for_whoever_reads_the_database(directory: str) -> None:
    """Such as a backup: SQLite would wait for its end to empty the write-ahead log, up to five seconds each time."""
    with Service(directory, snapshot_minimum=1 << 40) as service:
        service.do(c.KvSet("a", b'"' + b"v" * 1_500_000 + b'"'))
        store = service.log.store
        execute, patience = store.execute, {}

        def watched(sql: str, parameters: Sequence[Any] = (), *, safe: bool = False) -> List[Any]:
            patience[sql] = execute("PRAGMA busy_timeout", safe=safe)[0][0]
            return execute(sql, parameters, safe=safe)

        with closing(sqlite3.connect(os.path.join(directory, DATABASE), isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM log").fetchone()
            with service.log._writing:
                store.execute = watched  # type: ignore[method-assign]
                service.log.shortage.checkpoint()
        assert patience["PRAGMA wal_checkpoint(TRUNCATE)"] == 0
        service.do(c.KvSet("b", b"1"))
        assert patience["INSERT INTO log VALUES(?, ?)"] == 5000


def test_a_snapshot_that_finds_the_disk_full_refuses_no_write(directory: str) -> None:
    with Service(directory, snapshot_minimum=1 << 40) as service:
        for number in range(200):
            service.do(c.KvSet(f"k{number}", b'"' + b"v" * 100 + b'"'))
        store, snapshots = service.log.store, service.log.snapshots
        execute = store.execute

        def fail_slices(sql: str, parameters: Sequence[Any] = (), *, safe: bool = False) -> List[Any]:
            if "snapshot" in sql:
                error = sqlite3.OperationalError(TEXTS[FULL])
                if sys.version_info >= (3, 11):
                    error.sqlite_errorcode = FULL
                raise error
            return execute(sql, parameters, safe=safe)

        store.execute = fail_slices  # type: ignore[method-assign]
        with service.lock:
            snapshots.begin()
        service.wait_until(lambda: snapshots._pending is None)
        assert service.do(c.KvSet("more", b"1")).success
        store.execute = execute  # type: ignore[method-assign]
        with service.lock:
            snapshots.begin()
        service.wait_until(lambda: snapshots.taken == 1)
        expected = contents(service.host.engine)
    assert contents_of(directory) == expected


def test_snapshots_are_taken_again_after_a_full_disk_failed_and_recovered(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Service(directory, snapshot_minimum=100_000, reserve=1 << 20) as service:
        log = service.log
        service.do(c.KvSet("a", b"1"))
        with service.lock:
            log.reserve.release()
            monkeypatch.setattr(log.reserve, "make", lambda: False)
            disk = Disk(log.store)
            disk.fails = FULL
        refused(service, c.KvSet("a", b"2"))
        disk.fails = 0
        service.wait_until(lambda: log.shortage.active)
        disk.fails = FULL
        while log.shortage.active:  # at first the host may not know yet that what frees space is written
            refused(service, c.KvDel(["a"]))
        monkeypatch.undo()
        disk.fails = 0
        resumed(service)
        for number in range(200):
            service.do(c.KvSet(f"k{number}", b'"' + b"v" * 1000 + b'"'))
        service.wait_until(lambda: log.snapshots.taken > 0)


def test_a_snapshot_under_way_is_given_up_when_writes_are_taken_back(directory: str) -> None:
    with Service(directory, snapshot_minimum=1 << 40, session="") as service:
        for number in range(3000):
            service.send(c.KvSet(f"k{number}", b'"' + b"v" * 100 + b'"'))
        service.do(c.KvSet("last", b"1"))
        disk = Disk(service.log.store)
        with service.lock:
            # Slices show what isn't written, and never will be.
            disk.fails = FULL
            number = service.send(c.KvSet("taken back", b"1"))
            service.log.snapshots.begin()
        assert isinstance(service.outcome(number), SynapError)
        disk.fails = 0
        resumed(service)
        service.do(c.KvSet("after", b"1"))
        with service.lock:
            service.log.snapshots.begin()
        service.wait_until(lambda: service.log.snapshots.taken == 1)
        expected = contents(service.host.engine)
    assert not any("taken back" in record for record in expected)
    assert contents_of(directory) == expected


# ------------------------------------------------------------------------------------------ real ones

FILL = """
import sys
from synap import commands as c
from synap.errors import SynapError
from tests.helpers.driver import Service, contents
directory, limit = sys.argv[1], int(sys.argv[2])
service = Service(directory, session="8" * 32)
if limit:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
answered, error = 0, None
for number in range(20_000):
    try:
        service.do(c.KvSet(f"k{number}", b'"' + b"v" * 1000 + b'"'))
    except SynapError as caught:
        error = caught
        break
    answered += 1
assert error is not None and error.code == "SERVICE_UNAVAILABLE", error
for number in range(answered):
    assert service.do(c.KvGet(f"k{number}")).found
print(answered, error.details["reason"], flush=True)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if error.details["reason"] != "fsync_failed":
        service.wait_until(lambda: service.host.unavailable is None)
        service.do(c.KvSet("after", b"1"))
service.close()
"""


def fill(directory: str, limit: int) -> List[str]:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FILL), directory, str(limit)],
        capture_output=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().split()


@pytest.mark.skipif(os.name == "nt", reason="needs limits on the size of files")
def test_a_file_that_may_not_grow_refuses_writes_until_it_may(directory: str) -> None:
    answered, reason = fill(directory, 3_000_000)
    with Service(directory) as service:
        assert all(service.do(c.KvGet(f"k{number}")).found for number in range(int(answered)))
        if reason != "fsync_failed":
            assert service.do(c.KvGet("after")).found


@pytest.fixture
def small_disk(tmp_path: Any) -> Iterator[str]:
    path = tmp_path / "small"
    path.mkdir()
    try:
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(path)], stderr=subprocess.DEVNULL)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if made.returncode:
        pytest.skip("a small file system can't be mounted here")
    yield str(path)
    subprocess.run(["umount", str(path)], check=True)


def test_a_disk_that_is_really_full_loses_nothing_answered(small_disk: str) -> None:
    directory = os.path.join(small_disk, "data")
    answered, reason = fill(directory, 0)
    assert reason == "disk_full"
    assert int(answered) > 100
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    with Service(directory) as service:
        assert all(service.do(c.KvGet(f"k{number}")).found for number in range(int(answered)))
        assert service.do(c.KvSet("after", b"1")).success


@pytest.mark.parametrize("made", ["copy", "repair", "import"])
def test_a_full_disk_is_not_taken_for_damage_of_what_is_saved_on_it(small_disk: str, tmp_path: Any, made: str) -> None:
    source, target = str(tmp_path / "data"), os.path.join(small_disk, "saved")
    with Service(source) as service:
        for number in range(100):
            service.do(c.KvSet(f"k{number}", b'"' + b"v" * 50_000 + b'"'))
    exported = io.BytesIO()
    export_directory(source, exported)
    make: Dict[str, Any] = {
        "copy": lambda: copy(source, target),
        "repair": lambda: repair(source, target),
        "import": lambda: import_directory(exported.getvalue().splitlines(keepends=True), target),
    }
    with pytest.raises(OSError, match="No space left") as refused:
        make[made]()
    assert refused.value.errno == errno.ENOSPC
    assert str(refused.value.filename).startswith(target)
    assert os.listdir(small_disk) == [], "nothing that stands in the way of the next try"
