"""The log that hosts submit their changes to: a writing thread with group commit.

All that was submitted while the disk was busy goes into the next commit. The outcome of a commit is reported on the
host's thread, through the `call` that the log is made with; the host's thread waits for the disk only where it has
nothing else to do (`synap.storage.inline`).

    always     answers wait until their commit is on disk
    everysec   answers go out at once; commits are written within about ten milliseconds and synced once a second
    no         like everysec, and never synced except by SQLite's checkpoints

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
from queue import Empty, SimpleQueue
from typing import Any, Callable, Deque, Dict, List, NamedTuple, Optional, Union

from synap.engine.journal import Record
from synap.host import Batch, EngineHost, Log
from synap.storage.appender import Appender
from synap.storage.checkpointing import Checkpointer
from synap.storage.crashpoints import CrashPoints
from synap.storage.inline import InlineCommits
from synap.storage.mark import Mark
from synap.storage.reserve import Reserve
from synap.storage.rows import Packed, pack
from synap.storage.shortage import FIRST_RETRY, LAST_RETRY, Shortage
from synap.storage.snapshot import Snapshots
from synap.storage.store import FULL, NO_SPACE, Store, Trouble, diagnose, refused

__all__ = ["DiskLog", "Entry", "Job"]

_log = logging.getLogger("synap.storage")

GROUP = 4 * 1024 * 1024
"""The most bytes of one row, unless one turn alone has more."""
JOBS = 4
"""The most jobs (slices of a snapshot) that are done between two commits."""
CHUNK = 50_000
"""Records that are encoded at once."""
GATHER = 0.01
"""Seconds between commits that nobody waits for."""
SYNC_EVERY = 1.0
CHORE_BYTES = 32 * 1024
INLINE_COST = 4096
"""Bytes that an inline commit counts for at least, where it is about chores."""
MOST_CHORES = 64
"""A turn does one chore, one more for each so many bytes that it has written, and at most so many."""
STALL = 8 * 1024 * 1024
"""Bytes that wait for the disk from which on no more requests should be read."""
LATE = 0.05
"""Seconds that what was answered already may wait to be handed to the system; then, too, no more requests are read.

The writing thread gets the interpreter only every few milliseconds beside a thread that is always busy, and needs it
several times for a commit; so without a bound a burst could be answered and be lost with the process.
"""

Call = Callable[..., object]


class Entry(NamedTuple):
    """One turn's submitted changes."""

    term: int
    batch: Batch
    packed: List[Packed]
    size: int


class Job(NamedTuple):
    """Something else for the writing thread to do, after all that was submitted before.

    `ordered`: and before all that was submitted later. `always`: also in trouble.
    """

    term: int
    run: Callable[[], object]
    ordered: bool
    always: bool


_STOP = object()


def _nothing() -> None:
    """A job that only wakes the writing thread."""


Item = Union[Entry, Job, object]


class DiskLog(Log):
    """Makes a host's changes durable. `attach` it before the first `submit`; `close` waits for all that was submitted.

    `seq`: the number of the last commit there is. `trouble`: why writing can't begin yet. `call(function, *arguments)`
    runs a function on the host's thread, in the order of the calls; it may be called while `close` waits, so whatever
    it locks must not be held then.
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
        self._checkpointer = Checkpointer(store, ahead=self.holds)
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
        self._jobs_given = self._jobs_done = 0
        self._counting = threading.Lock()
        self._chores_owed = 0
        """Bytes that inline commits have written since the writing thread did chores."""
        self._queue: SimpleQueue[Item] = SimpleQueue()
        self._submitted = 0
        self._written = 0
        self._taken = 0.0
        """When the writing thread last took what had come; all that waits is younger, where answers are not held."""
        self._term = 0  # of submissions, on the host's thread
        self._since = 0  # submissions of earlier terms are void, on the writing thread
        self._items: Deque[Item] = deque()
        self._going = True
        self._stuck: Deque[Entry] = deque()
        self._last_commit = 0.0
        self._gathered = 0.0
        self._next_sync: Optional[float] = None
        self._next_try = 0.0
        self._retry = FIRST_RETRY
        self._chores_from = 0.0
        self._thread = threading.Thread(target=self._run, name="synap-log", daemon=True)

    # ------------------------------------------------------------------------------------------ the host's thread

    def attach(self, host: EngineHost) -> None:
        """Set the host whose changes these are, and start the writing thread."""
        self._host = host
        self.snapshots.attach(self, host)
        if self.trouble is None:
            try:
                if not self.shortage.has_space(self.seq):
                    self._begin_shortage()
            except Exception as error:  # not through `call`, which may take the lock that is held here
                self.trouble = diagnose(error)
                _log.error("%s: %s", self.store.directory, self.trouble.text)
        if self.trouble is not None:
            host.failed(refused(self.trouble, 30.0 if self.trouble.lasting else 1.0))
        elif self.shortage.active:
            host.short(refused(NO_SPACE, 1.0))
        self._thread.start()

    @property
    def seq(self) -> int:
        """The number of the last commit there is."""
        return self._appender.seq

    @property
    def stalled(self) -> bool:  # type: ignore[override]  # a plain attribute in the base, for logs that never are
        """Whether so much waits for the disk, or for so long, that no requests should be read for now."""
        waiting = self._submitted - self._written
        if not waiting or self.trouble is not None:
            return False
        return waiting > STALL or (not self.holds and time.monotonic() - self._taken > LATE)

    @property
    def backlog(self) -> int:
        """Bytes submitted and not yet written."""
        return self._submitted - self._written

    def submit(self, batch: Batch, alone: bool) -> bool:
        """Take a turn's changes; returns whether they are on disk already, else that is reported later.

        They are encoded now: what is in flight is then known in bytes, and the writing thread, which shares the
        interpreter with this one, has less to do.
        """
        records: List[Record] = batch.records
        if len(records) <= CHUNK:
            packed = [pack(records)]
            size = len(packed[0].data)
        else:
            packed = [pack(records[at : at + CHUNK]) for at in range(0, len(records), CHUNK)]
            size = sum(len(piece.data) for piece in packed)
        batch.records = []
        if not self.holds and self._submitted == self._written:
            self._taken = time.monotonic()
        self._submitted += size
        entry = Entry(self._term, batch, packed, size)
        held = batch.held
        who = held[0][0] if len(held) == 1 else None
        inline = self.holds and self.inline.allowed(alone, self._host.requests, size, who)
        if inline and self._writing.acquire(blocking=False):
            try:
                if self._is_at_rest():
                    return self._commit_inline(entry)
            finally:
                self._writing.release()
        self._queue.put(entry)
        if self.snapshots.running:
            self.snapshots.keep_up(size)
        return False

    def _is_at_rest(self) -> bool:
        """Return whether the writing thread has no work, and none in progress."""
        return not (
            self.closed
            or self.trouble is not None
            or self.shortage.active
            or self.snapshots.running
            or self._jobs_given != self._jobs_done
            or self._checkpointer.holds_back()
        )

    def _commit_inline(self, entry: Entry) -> bool:
        """Commit on the host's thread; returns False where that failed, which is reported like a failure elsewhere."""
        if not self._write([entry], entry.packed, entry.size, inline=True):
            self.do(_nothing)  # so that the writing thread tries again
            return False
        self._chores_owed += entry.size + INLINE_COST
        if self._chores_owed >= CHORE_BYTES:
            self._chores_owed = 0
            if self._has_chore() or self.snapshots.is_wanted(self.backlog):
                self.do(_nothing)  # so that the writing thread does it
        return True

    def do(self, run: Callable[[], object], *, ordered: bool = False, always: bool = False) -> None:
        """Have the writing thread call `run`, after all that was submitted before.

        `ordered`: and before all that is submitted later. What a failed commit makes void is not done, unless `always`.
        """
        with self._counting:
            self._jobs_given += 1
        self._queue.put(Job(self._term, run, ordered, always))

    def figures(self) -> Dict[str, Any]:
        """Return figures for metrics: sizes are in bytes, `commit_seconds` is their total duration."""
        database, ahead = self.store.file_sizes()
        return {
            "fsync": self.fsync,
            "commits_total": self.commits,
            "commit_seconds_total": round(self.commit_seconds, 6),
            "commits_inline_total": self.inline.count,
            "last_commit": self.seq,
            "backlog_bytes": self.backlog,
            "database_bytes": database,
            "write_ahead_bytes": ahead,
            "snapshot_bytes": self.snapshots.live,
            "snapshots_total": self.snapshots.taken,
            "writable": self.trouble is None and not self.shortage.active,
            "reserve_bytes": self.reserve.size if self.reserve.held else 0,
        }

    def give_up(self, text: str) -> None:
        """Stop writing for good: the files are not those of the directory any more."""
        trouble = Trouble("directory_gone", text, True, True)
        self.do(lambda: self._turn_to(trouble, []), always=True)

    def close(self) -> None:
        """Write what was submitted, run the last checkpoint and close the database. Safe to call twice."""
        if self.closed:
            return
        self.closed = True
        self._queue.put(_STOP)
        if self._thread.is_alive():
            self._thread.join()
        self._checkpointer.end()
        try:
            if self.trouble is None:
                self.store.checkpoint_what_fits(whole=True)
                self.mark.settle(self.seq)
        except (sqlite3.Error, OSError) as error:
            _log.warning("closing %s: %s; what was answered is in its write-ahead log", self.store.directory, error)
        finally:
            self.store.close()
            self.mark.close()

    def _committed(self, entries: List[Entry]) -> None:
        for entry in entries:
            self._host.committed(entry.batch)

    def _failed(self, trouble: Trouble, retry_after: float) -> None:
        self._term += 1
        self.snapshots.abandon()
        self._host.failed(refused(trouble, retry_after), uncertain=trouble.uncertain)

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
            while self._queue.get() is not _STOP:
                pass

    def _turn(self) -> bool:
        """Do what was submitted, then chores. Returns False once the log is closed and all is done."""
        self._checkpointer.hold_back()
        items = self._items
        group: List[Entry] = []
        jobs: List[Job] = []
        size = 0
        written = self._written
        while items and size < GROUP and len(jobs) < JOBS:
            item = items.popleft()
            if isinstance(item, Entry):
                if item.term < self._since or (self.trouble is not None and self.trouble.lasting):
                    self._written += item.size
                elif self.trouble is not None:
                    self._stuck.append(item)
                else:
                    group.append(item)
                    size += item.size
            elif isinstance(item, Job):
                jobs.append(item)
                if item.ordered:
                    self._finish(group, jobs)
                    group, jobs = [], []
            else:
                self._going = False
        self._finish(group, jobs)
        going = self._going or bool(items)
        if self.trouble is not None:
            if not self.trouble.lasting and (time.monotonic() >= self._next_try or not going):
                self._try_again()
            return going
        self._sync_if_due(not going)
        if self.shortage.active:
            self._make_room(look=going and time.monotonic() >= self.shortage.next_try)
        if going and self.trouble is None:
            # The more is written, the more must be cleaned up.
            for _ in range(1 + min((self._written - written) // CHORE_BYTES, MOST_CHORES)):
                if self.trouble is None and self._has_chore():
                    self._chore()
            self.snapshots.go_on()
            if self.trouble is None and self.snapshots.is_due(self.backlog, self.shortage.room):
                self.call(self.snapshots.begin)
        return going

    def _finish(self, group: List[Entry], jobs: List[Job]) -> None:
        """Commit, then do the jobs: answers wait only for the commit."""
        if group:
            self._commit(group)
        for job in jobs:
            if job.always:
                job.run()
            elif job.term >= self._since and self.trouble is None:
                self._attempt(job.run)
            self._jobs_done += 1

    def _gather(self) -> None:
        """Wait until there is something to do, and take all that was submitted."""
        queue, items = self._queue, self._items
        timeout = 0.0 if items else self._patience()
        try:
            if timeout is None:
                items.append(queue.get())
            elif timeout > 0:
                items.append(queue.get(timeout=timeout))
            if items and not self.holds and isinstance(items[0], Entry) and not self.snapshots.running:
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
    def _commit(self, group: List[Entry]) -> None:
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

    def _write(self, group: List[Entry], packed: List[Packed], size: int, *, inline: bool = False) -> bool:
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
        if not inline and not any(isinstance(item, Entry) for item in self._items):
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
    def _set_aside(self, group: List[Entry]) -> None:
        """Discard what was not written, or keep it where it was answered already."""
        assert self.trouble is not None
        if self.holds or self.trouble.lasting:
            self._written += sum(entry.size for entry in group)
        else:
            self._stuck.extend(group)

    def _turn_to(self, trouble: Trouble, group: List[Entry]) -> None:
        _log.error("%s: %s", self.store.directory, trouble.text)
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
        self.call(self._failed, trouble, 30.0 if trouble.lasting else 1.0)

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
                _log.error("%s: %s", self.store.directory, self.trouble.text)
                self.call(self._failed, self.trouble, 30.0)
            elif before is None or before.reason != self.trouble.reason:
                _log.error("%s: %s", self.store.directory, self.trouble.text)
                self.call(self._host.failed, refused(self.trouble, 1.0))
            return
        self.trouble = None
        if has_space:
            _log.warning("%s: writing works again", self.store.directory)
            self.call(self._host.recovered)
        else:
            self._begin_shortage()
            self.call(self._host.short, refused(NO_SPACE, 1.0))
        if self._stuck:
            group = list(self._stuck)
            self._stuck.clear()
            self._commit(group)

    # ---- a full disk
    def _has_space(self) -> bool:
        try:
            return self.shortage.has_space(self.seq)
        except Exception as error:
            self._turn_to(diagnose(error), [])
            return False

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
        if self._has_space():
            self.shortage.end()
            _log.warning("%s: there is space again", self.store.directory)
            self.call(self._host.recovered)
        elif self.trouble is None:
            self.shortage.put_off()

    # ---- chores
    def _attempt(self, run: Callable[[], object]) -> None:
        """Do something that no answer waits for; if it fails, the current snapshot is given up."""
        try:
            run()
        except (sqlite3.Error, OSError, OverflowError, MemoryError) as error:
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
        except (sqlite3.Error, OSError) as error:
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
