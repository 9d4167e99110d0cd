"""The writing thread of the log: it commits in groups, and does chores in between.

When a commit fails, the log is in *trouble*. The host undoes the changes whose answers were held, and all that was
submitted until it knew of the failure: each submission carries the *term* it was made in, and a failure ends the term,
so nothing of it can be written later. Where answers were not held, their changes are kept and written once that is
possible. Either way writes are refused until an attempt succeeds.

On a full disk the log writes, and the host executes only what frees space (`synap.storage.shortage`).
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from contextlib import ExitStack, contextmanager
from queue import Empty, SimpleQueue
from typing import Callable, Deque, Iterator, List, NamedTuple, Optional, Union

from synap.host import Batch, EngineHost, Log
from synap.storage.appender import Appender
from synap.storage.checkpointing import Checkpointer
from synap.storage.crashpoints import CrashPoints
from synap.storage.inline import InlineCommits
from synap.storage.mark import Mark
from synap.storage.reserve import Reserve
from synap.storage.rows import Packed
from synap.storage.shortage import FIRST_RETRY, LAST_RETRY, Shortage
from synap.storage.snapshot import Snapshots
from synap.storage.store import FULL, NO_SPACE, Store, Trouble, diagnose, refused

_log = logging.getLogger("synap.storage")

_MAY_FAIL = (sqlite3.Error, OSError, OverflowError, MemoryError)
"""How work that no answer waits for may fail; anything else is a fault in the code, and ends the log."""
GROUP = 4 * 1024 * 1024
"""The most bytes of one row, unless one turn alone has more."""
TASKS = 4
"""The most tasks (slices of a snapshot) that are done between two commits."""
GATHER = 0.01
"""Seconds between commits that nobody waits for."""
SYNC_EVERY = 1.0
CHORE_BYTES, MOST_CHORES = 32 * 1024, 64
"""A turn does one chore, one more for each so many bytes that it has written, and at most so many."""

Call = Callable[..., object]


class Submission(NamedTuple):
    """One turn's submitted changes."""

    term: int
    batch: Batch
    packed: List[Packed]
    size: int


class Task(NamedTuple):
    """Something else for the writing thread to do, after all that was submitted before.

    `ordered`: and before all that was submitted later. `always`: also in trouble.
    """

    term: int
    run: Callable[[], object]
    ordered: bool
    always: bool


STOP = object()


def wake_up() -> None:
    """A task that only wakes the writing thread."""


Queued = Union[Submission, Task, object]


class LogWriter(Log):
    """The part of the log that writes: its thread, and all that this and the host's thread share.

    `seq`: the number of the last commit there is. `trouble`: why nothing can be written now. `call(function,
    *arguments)` runs a function on the host's thread, in the order of the calls.
    """

    def __init__(
        self,
        store: Store,
        mark: Mark,
        snapshots: Snapshots,
        *,
        seq: int,
        fsync: str,
        call: Call,
        reserve: Reserve,
        trouble: Optional[Trouble] = None,
        soon: Optional[Callable[[Callable[[], None]], object]] = None,
    ) -> None:
        self.holds = fsync == "always"
        self.fsync = fsync
        self.store = store
        self._checkpointer = Checkpointer(store, preallocate=self.holds)
        self.mark = mark
        self.snapshots = snapshots
        self._crash = CrashPoints()
        self._appender = Appender(store, mark, seq, self._crash)
        self.reserve = reserve
        self.trouble = trouble
        self.shortage = Shortage(store, mark, reserve, snapshots, started=trouble is None)
        self.commits = 0
        self.commit_seconds = 0.0
        self.closed = False
        self._call_host = call
        self._host: EngineHost
        self.inline = InlineCommits(soon)
        self._writing = threading.Lock()
        """Held by whoever writes: the writing thread between two waits, or the host's for an inline commit."""
        self._tasks_given = self._tasks_done = 0
        self._counting = threading.Lock()
        self._chores_owed = 0
        """Bytes that inline commits have written since the writing thread did chores."""
        self._queue: SimpleQueue[Queued] = SimpleQueue()
        self._submitted = 0
        self._written = 0
        self._taken = 0.0
        """When the writing thread last took what had come; all that waits is younger, where answers are not held."""
        self._term = 0  # of submissions, on the host's thread
        self._since = 0  # submissions of earlier terms are void, on the writing thread
        self._items: Deque[Queued] = deque()
        self._going = True
        self._stuck: Deque[Submission] = deque()
        self._last_commit = 0.0
        self._gathered = 0.0
        self._next_sync: Optional[float] = None
        self._next_try = 0.0
        self._retry = FIRST_RETRY
        self._chores_from = 0.0
        self._thread = threading.Thread(target=self._run, name="synap-log", daemon=True)

    @property
    def seq(self) -> int:
        """The number of the last commit there is."""
        return self._appender.seq

    @property
    def backlog(self) -> int:
        """Bytes submitted and not yet written."""
        return self._submitted - self._written

    @contextmanager
    def still(self) -> Iterator[None]:
        """Keep this log's threads out of SQLite, whose own locks a forked child would have for ever."""
        with ExitStack() as held:
            if threading.current_thread() is not self._thread:  # that forks as it tells of trouble, not within SQLite
                held.enter_context(self._writing)
            held.enter_context(self._checkpointer.copying)
            yield

    # ------------------------------------------------------------------------------------------ the host's thread

    def _committed(self, entries: List[Submission]) -> None:
        for entry in entries:
            self._host.committed(entry.batch)

    def _failed(self, trouble: Trouble) -> None:
        self._term += 1
        self.snapshots.abandon()
        self._host.failed(refused(trouble), uncertain=trouble.uncertain)

    # ------------------------------------------------------------------------------------------ the writing thread

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call a function on the host's thread."""
        try:
            self._call_host(function, *arguments)
        except RuntimeError as error:
            # The host's event loop is closed: there is nobody to report to.
            if not self.closed:
                _log.warning("the log of %s can't reach its host: %s", self.store.directory, error)

    def _run(self) -> None:
        try:
            going = True
            while going:
                self._gather()
                with self._writing:
                    going = self._turn()
        except BaseException as error:
            _log.exception("the log of %s ended", self.store.directory)
            # Whatever it was, nobody is left to try again.
            self._turn_to(diagnose(error)._replace(reason="log_failed", lasting=True, uncertain=True), [])
            closing = STOP in self._items or not self._going
            while not closing:
                closing = self._queue.get() is STOP

    def _turn(self) -> bool:
        """Do what was submitted, then chores. Returns False once the log is closed and all is done."""
        self._attempt(self._checkpointer.hold_back)
        items = self._items
        group: List[Submission] = []
        tasks: List[Task] = []
        size = 0
        written = self._written
        while items and size < GROUP and len(tasks) < TASKS:
            item = items.popleft()
            if isinstance(item, Submission):
                if item.term < self._since or (self.trouble is not None and self.trouble.lasting):
                    self._written += item.size
                elif self.trouble is not None:
                    self._stuck.append(item)
                else:
                    group.append(item)
                    size += item.size
            elif isinstance(item, Task):
                tasks.append(item)
                if item.ordered:
                    self._finish(group, tasks)
                    group, tasks = [], []
            else:
                self._going = False
        self._finish(group, tasks)
        going = self._going or bool(items)
        if self.trouble is not None:
            if not self.trouble.lasting and (time.monotonic() >= self._next_try or not going):
                self._try_again()
            return going
        self._sync_if_due(not going)
        if self.shortage.active:
            self._make_room(look=going and time.monotonic() >= self.shortage.next_try)
        if going and self.trouble is None:
            # In proportion to what was written, so that cleaning up never falls behind.
            for _ in range(1 + min((self._written - written) // CHORE_BYTES, MOST_CHORES)):
                if self.trouble is None and self._has_chore():
                    self._chore()
            self.snapshots.go_on()
            if self.trouble is None and self.snapshots.is_due(self.backlog, self.shortage.room):
                self.call(self.snapshots.begin)
        return going

    def _finish(self, group: List[Submission], tasks: List[Task]) -> None:
        """Commit, then do the tasks: answers wait only for the commit."""
        if group:
            self._commit(group)
        for task in tasks:
            if task.always:
                task.run()
            elif task.term >= self._since and self.trouble is None:
                self._attempt(task.run)
            self._tasks_done += 1

    def _gather(self) -> None:
        """Wait until there is something to do, and take all that was submitted."""
        queue, items = self._queue, self._items
        timeout = 0.0 if items else self._patience()
        try:
            if timeout is None:
                items.append(queue.get())
            elif timeout > 0:
                items.append(queue.get(timeout=timeout))
            if items and not self.holds and isinstance(items[0], Submission) and not self.snapshots.running:
                wait = self._last_commit + GATHER - time.monotonic()
                if wait > 0:
                    time.sleep(wait)
            self._gathered = time.monotonic()
            while True:
                items.append(queue.get_nowait())
        except Empty:
            pass

    def _patience(self) -> Optional[float]:
        """Return how long to wait for submissions; None: for ever."""
        if self.trouble is not None:
            return None if self.trouble.lasting else max(self._next_try - time.monotonic(), 0.0)
        if self._has_chore():
            return 0.0
        next_look = self.shortage.next_try if self.shortage.active else None
        times = [moment for moment in (self._next_sync, self.snapshots.next_at(), next_look) if moment is not None]
        return max(min(times) - time.monotonic(), 0.0) if times else None

    # ---- commits
    def _commit(self, group: List[Submission]) -> None:
        """Write a group and report it."""
        if self.trouble is not None:
            # An earlier group of this turn failed.
            self._set_aside(group)
            return
        packed = [piece for entry in group for piece in entry.packed]
        if not self._write(group, packed, sum([entry.size for entry in group])):
            return
        if self.holds:
            self.call(self._committed, group)
        else:
            self.call(self._committed, group[-1:])
            if self._next_sync is None and self.fsync == "everysec":
                self._next_sync = self._last_commit + SYNC_EVERY

    def _write(self, group: List[Submission], packed: List[Packed], size: int, *, inline: bool = False) -> bool:
        """Write a group as one row, which is `packed` and counts `size` bytes.

        Returns False where that failed, with the log in trouble.
        """
        began = time.monotonic()
        try:
            length = self._appender.append(packed, safe=self.holds)
        except Exception as error:  # whatever it was, callers wait to be told
            self._turn_to(diagnose(error), group)
            return False
        now = self._last_commit = time.monotonic()
        self.commits += 1
        self.commit_seconds += now - began
        self.inline.took(now - began, inline)
        self.snapshots.logged(self.seq, length)
        if not inline and not any(isinstance(item, Submission) for item in self._items):
            self._taken = self._gathered  # else some of what was gathered waits still
        self._written += size
        return True

    def _sync_if_due(self, at_once: bool) -> None:
        """Sync what is written: a commit that syncs brings all before it to the disk."""
        if self._next_sync is None or (time.monotonic() < self._next_sync and not at_once):
            return
        self._next_sync = None
        try:
            self._appender.sync()
        except Exception as error:  # likewise
            self._turn_to(diagnose(error), [])

    # ---- trouble
    def _set_aside(self, group: List[Submission]) -> None:
        """Discard what was not written, or keep it where it was answered already."""
        assert self.trouble is not None
        if self.holds or self.trouble.lasting:
            self._written += sum(entry.size for entry in group)
        else:
            self._stuck.extend(group)

    def _log_trouble(self, trouble: Trouble) -> None:
        _log.error("%s: %s", self.store.directory, trouble.text)

    def _turn_to(self, trouble: Trouble, group: List[Submission]) -> None:
        """Be in trouble: writing `group` failed, or something else did."""
        self._log_trouble(trouble)
        self.trouble = trouble
        self.shortage.end()
        if trouble.reason == FULL:
            self.reserve.release()
        if self.holds:
            self._since += 1
        self.shortage.failed = sum(entry.size for entry in group)
        self._set_aside(group)
        self._retry = FIRST_RETRY
        self._next_try = time.monotonic() + self._retry
        self.call(self._failed, trouble)

    def _try_again(self) -> None:
        """Try to write again, first what was answered already."""
        stuck = list(self._stuck)
        try:
            self.shortage.probe()
            if self.holds or not stuck:
                self._appender.sync()
            else:
                length = self._appender.append([piece for entry in stuck for piece in entry.packed], safe=True)
                self.snapshots.logged(self.seq, length)
                self._written += sum(entry.size for entry in stuck)
                self._stuck.clear()
            has_space = self.shortage.has_space(self.seq)
        except Exception as error:  # it is tried again, or told
            before, self.trouble = self.trouble, diagnose(error)
            if self.trouble.reason == FULL:
                self.reserve.release()
            self._retry = min(self._retry * 2, LAST_RETRY)
            self._next_try = time.monotonic() + self._retry
            if self.trouble.lasting:
                self._log_trouble(self.trouble)
                self.call(self._failed, self.trouble)
            elif before is None or before.reason != self.trouble.reason:
                self._log_trouble(self.trouble)
                self.call(self._host.failed, refused(self.trouble))
            return
        self.trouble = None
        if has_space:
            _log.warning("%s: writing works again", self.store.directory)
            self.call(self._host.recovered)
        else:
            self._begin_shortage()
            self.call(self._host.short, refused(NO_SPACE, sparing=True))
        if self._stuck:
            group = list(self._stuck)
            self._stuck.clear()
            self._commit(group)

    # ---- a full disk
    def _begin_shortage(self) -> None:
        self.shortage.begin()
        self._chores_from = 0.0

    def _make_room(self, *, look: bool) -> None:
        """Free what isn't needed any more, and if `look`, see whether there is space for everything again."""
        if not look and not self.shortage.wants_checkpoint():
            return
        try:
            self.shortage.checkpoint()
        except Exception as error:
            self._chore_failed(error)
        if not look or self.trouble is not None:
            return
        try:
            has_space = self.shortage.has_space(self.seq)
        except Exception as error:
            self._turn_to(diagnose(error), [])
            return
        if has_space:
            self.shortage.end()
            _log.warning("%s: there is space again", self.store.directory)
            self.call(self._host.recovered)
        else:
            self.shortage.put_off()

    # ---- chores
    def _attempt(self, run: Callable[[], object]) -> None:
        """Do something that no answer waits for; if it fails, the current snapshot is given up."""
        try:
            run()
        except _MAY_FAIL as error:
            self._chore_failed(error)

    def _has_chore(self) -> bool:
        if self._chores_from and time.monotonic() < self._chores_from:
            return False
        return (not self.shortage.active and self._checkpointer.is_due()) or self.snapshots.has_cleanup()

    def _chore(self) -> None:
        """Do a bounded piece of maintenance: checkpoints and clean-up."""
        self._chores_from = 0.0
        try:
            if not self.shortage.active and self._checkpointer.is_due():
                self._checkpointer.run()
            elif self.snapshots.has_cleanup():
                self.snapshots.clean_up()
                self._crash("inside-cleanup")
        except _MAY_FAIL as error:
            self._chore_failed(error)

    def _chore_failed(self, error: BaseException) -> None:
        trouble = diagnose(error)
        if trouble.lasting:
            # A checkpoint could not be synced: the write-ahead log is untouched, but this disk isn't to be trusted.
            self._turn_to(trouble, [])
            return
        _log.warning("%s: a snapshot waits: %s", self.store.directory, trouble.text)
        self._chores_from = time.monotonic() + LAST_RETRY
        self.call(self.snapshots.abandon)
