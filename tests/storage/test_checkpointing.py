"""The file of the write-ahead log is made longer ahead of the commits that are waited for, and the thread that does so
is woken only for that and other work it has.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from typing import Any, List, Optional, Sequence

import pytest

from synap.errors import SynapError
from synap.storage import checkpointing, store, writer
from synap.storage.checkpointing import FIRST_PAGES, MOST_PAGES
from synap.storage.layout import WAL
from synap.storage.store import FRAME
from tests.helpers.driver import Service, c, contents, contents_of
from tests.storage.test_trouble import FULL, Disk

pytestmark = pytest.mark.usefixtures("commits")

COMMITS = 400


class Lengths:
    """How long the file was after each commit, and how many of them made it longer."""

    def __init__(self, service: Service) -> None:
        self.path = os.path.join(service.log.store.directory, WAL)
        self.longer = 0
        self._execute = service.log.store.execute
        service.log.store.execute = self._run  # type: ignore[method-assign]

    def _run(self, sql: str, parameters: Sequence[Any] = (), *, safe: bool = False) -> List[Any]:
        before = self.now()
        result = self._execute(sql, parameters, safe=safe)
        if sql.startswith("INSERT INTO log") and self.now() > before:
            self.longer += 1
        return result

    def now(self) -> int:
        return os.path.getsize(self.path) if os.path.exists(self.path) else 0


def write(service: Service, count: int = COMMITS) -> None:
    for number in range(count):
        service.do(c.KvSet(f"k{number % 50}", b'"' + b"v" * 100 + b'"'))


def test_few_commits_make_the_file_longer_themselves(tmp_path: Any) -> None:
    directory, copy = str(tmp_path / "data"), str(tmp_path / "copy")
    with Service(directory) as service:
        lengths = Lengths(service)
        write(service)
        assert 0 < lengths.longer <= 2 * FIRST_PAGES
        assert lengths.now() <= MOST_PAGES * FRAME
        with service.lock:
            shutil.copytree(directory, copy, ignore=shutil.ignore_patterns("*-shm"))
        expected = contents(service.host.engine)
    with open(os.path.join(copy, WAL), "rb") as file:
        assert file.read().endswith(bytes(FRAME)), "it was copied while it was longer than what is in it"
    assert contents_of(copy) == expected


def test_little_that_is_written_takes_no_more_room_than_it_needs(tmp_path: Any) -> None:
    with Service(str(tmp_path / "data")) as service:
        write(service, FIRST_PAGES // 4)
        assert service.log.store.room == 0


def test_where_nobody_waits_for_commits_the_file_is_as_long_as_what_is_in_it(tmp_path: Any) -> None:
    with Service(str(tmp_path / "data"), fsync="everysec") as service:
        write(service)
        service.do(c.QueuePublish("q", b"1"))
        service.wait_until(lambda: not service.log.backlog)
        assert service.log.store.room == 0


def test_where_little_space_is_free_none_is_taken_ahead(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "free_space", lambda directory: store.AMPLE - 1)
    with Service(str(tmp_path / "data")) as service:
        lengths = Lengths(service)
        write(service, 100)
        assert lengths.longer >= 50
        assert service.log.store.room == 0


def test_where_there_is_space_again_it_is_taken_ahead_again(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [store.AMPLE - 1]
    monkeypatch.setattr(store, "free_space", lambda directory: free[0])
    monkeypatch.setattr(checkpointing, "PUT_OFF", 0.0)
    with Service(str(tmp_path / "data")) as service:
        write(service, 100)
        assert service.log.store.room == 0
        free[0] = 2 * store.AMPLE
        write(service, 100)
        service.wait_until(lambda: service.log.store.room > 0)


def test_a_file_that_cannot_be_made_longer_ahead_is_written_as_it_is(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: List[str] = []

    def refuse(path: str, mode: str, buffering: int) -> Any:
        asked.append(path)
        raise OSError(errno.EACCES, "not allowed")

    monkeypatch.setattr(store, "open", refuse, raising=False)
    with Service(str(tmp_path / "data")) as service:
        write(service, 100)
        assert len(asked) == 1, "it isn't tried again and again"
        assert service.log.trouble is None


def test_where_what_was_made_longer_cannot_be_synced_nothing_more_is_promised(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: int) -> None:
        raise OSError(errno.ENOSPC, "no space, found too late")

    with Service(str(tmp_path / "data")) as service:
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(SynapError) as caught:
            write(service, 100)
        assert caught.value.details["reason"] == "fsync_failed"
        monkeypatch.undo()


def test_inline_commits_wake_the_writing_thread_only_where_it_has_something_to_do(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Service, "inline", True)
    with Service(str(tmp_path / "data")) as service:
        write(service)
        assert service.log.inline.count > 0.9 * COMMITS
        lengthened = (MOST_PAGES // checkpointing.STEP) + 12
        assert service.log._tasks_given <= lengthened


class Ends(threading.Event):
    """A checkpoint in progress, which ends once somebody waits for it."""

    def wait(self, timeout: Optional[float] = None) -> bool:
        self.set()
        return super().wait(timeout)


def test_a_disk_that_is_full_while_commits_wait_for_a_checkpoint_is_written_again_once_it_is_not(tmp_path: Any) -> None:
    with Service(str(tmp_path / "data")) as service:
        write(service, 1)
        disk, checkpointer = Disk(service.log.store), service.log._checkpointer
        with service.log._writing:
            checkpointer._length, checkpointer._idle = checkpointing.TOO_LONG + 1, Ends()
            disk.fails = FULL
        with pytest.raises(SynapError) as caught:
            write(service, 1)
        assert caught.value.details["reason"] == "disk_full"
        assert any("wal_checkpoint" in sql for sql in disk.seen)
        disk.fails = 0
        service.wait_until(lambda: service.host.unavailable is None)
        write(service, 1)


def test_a_disk_that_fails_while_the_file_is_made_longer_leaves_nobody_locked_out(tmp_path: Any) -> None:
    with Service(str(tmp_path / "data")) as service:
        write(service, FIRST_PAGES)
        disk = Disk(service.log.store)
        execute = service.log.store.execute

        def fail_after_the_beginning(sql: str, parameters: Sequence[Any] = (), *, safe: bool = False) -> List[Any]:
            result = execute(sql, parameters, safe=safe)
            if sql == "BEGIN IMMEDIATE":
                disk.fails = FULL
            return result

        service.log.store.execute = fail_after_the_beginning  # type: ignore[method-assign]
        with service.lock, service.log._writing:
            service.log.store.lengthen(MOST_PAGES)
        disk.fails = 0
        write(service, 10)


def test_where_no_thread_can_be_started_the_log_is_still_copied(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: List[str] = []
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "synap-checkpoint":
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(checkpointing, "CHECKPOINT_PAGES", 50)
    with Service(str(tmp_path / "data")) as service:
        disk = Disk(service.log.store)
        write(service)
        service.wait_until(lambda: len(refused) > 1)
        assert sum("wal_checkpoint" in sql for sql in disk.seen) > 1
        assert service.log.trouble is None


def test_a_checkpoint_for_which_there_is_no_memory_is_made_later(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread ended then, and what waited for it waited for ever."""
    made: List[str] = []
    connect = store.connect

    class Short:
        def __init__(self, path: str) -> None:
            self._connection = connect(path)
            self.close = self._connection.close

        def execute(self, sql: str) -> Any:
            made.append(sql)
            if len(made) == 1:
                raise MemoryError
            return self._connection.execute(sql)

    monkeypatch.setattr(checkpointing, "connect", Short)
    monkeypatch.setattr(checkpointing, "CHECKPOINT_PAGES", 50)
    monkeypatch.setattr(writer, "LAST_RETRY", 0.0)
    with Service(str(tmp_path / "data")) as service:
        while len(made) < 3:
            write(service, 10)
        assert service.log.trouble is None
