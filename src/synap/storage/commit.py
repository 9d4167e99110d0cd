"""The log that hosts submit their changes to: a writing thread with group commit.

All that was submitted while the disk was busy goes into the next commit. The outcome of a commit is reported on the
host's thread, through the `call` that the log is made with; the host's thread waits for the disk only where it has
nothing else to do (`synap.storage.inline`).

    always     answers wait until their commit is on disk
    everysec   answers go out at once; commits are written within about ten milliseconds and synced once a second
    no         like everysec, and never synced except by SQLite's checkpoints
"""

from __future__ import annotations

import logging
import sqlite3
import time
from typing import Any, Callable, Dict, List

from synap.engine.journal import Record
from synap.errors import SynapError
from synap.host import Batch, EngineHost
from synap.storage.rows import pack
from synap.storage.store import NO_SPACE, Trouble, diagnose, refused
from synap.storage.writer import CHORE_BYTES, STOP, LogWriter, Submission, Task, wake_up

_log = logging.getLogger("synap.storage")

CHUNK = 50_000
"""Records that are encoded at once."""
INLINE_COST = 4096
"""Bytes that an inline commit counts for at least, where it is about chores."""
STALL = 8 * 1024 * 1024
"""Bytes that wait for the disk from which on no more requests should be read."""
LATE = 0.05
"""Seconds that what was answered already may wait to be handed to the system; then, too, no more requests are read.

The writing thread gets the interpreter only every few milliseconds beside a thread that is always busy, and needs it
several times for a commit; so without a bound a burst could be answered and be lost with the process.
"""
INTERRUPTED = Trouble(
    "interrupted",
    "an exception of a signal handler came in the middle of a change (close all clients of the directory, and open it "
    "again)",
    True,
    True,
)
ENDED = Trouble("closed", "the program ends, and its directories are closed", True, False)


class DiskLog(LogWriter):
    """Makes a host's changes durable. `attach` it before the first `submit`; `close` waits for all that was submitted.

    Its methods belong to the host's thread; `call` may be called while `close` waits, so whatever it locks must not be
    held then.
    """

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
                self._log_trouble(self.trouble)
        if self.trouble is not None:
            host.failed(refused(self.trouble))
        elif self.shortage.active:
            host.short(refused(NO_SPACE, sparing=True))
        self._thread.start()

    @property
    def stalled(self) -> bool:  # type: ignore[override]  # a plain attribute in the base, for logs that never are
        """Whether so much waits for the disk, or for so long, that no requests should be read for now."""
        waiting = self._submitted - self._written
        if not waiting or self.trouble is not None:
            return False
        return waiting > STALL or (not self.holds and time.monotonic() - self._taken > LATE)

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
        if not self.holds and self._submitted == self._written:
            self._taken = time.monotonic()
        entry = Submission(self._term, batch, packed, size)
        held = batch.held
        who = held[0][0] if len(held) == 1 else None
        inline = self.holds and self.inline.allowed(alone, self._host.requests, size, who)
        self._submitted += size
        if inline and self._writing.acquire(blocking=False):
            try:
                if self._is_at_rest():
                    return self._commit_inline(entry)
            finally:
                self._writing.release()
        self._queue.put(entry)
        batch.records = []
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
            or self._tasks_given != self._tasks_done
            or self._checkpointer.holds_back()
        )

    def _commit_inline(self, entry: Submission) -> bool:
        """Commit on the host's thread; returns False where that failed, which is reported like a failure elsewhere."""
        if not self._write([entry], entry.packed, entry.size, inline=True):
            self.do(wake_up)  # so that the writing thread tries again
            return False
        self._chores_owed += entry.size + INLINE_COST
        if self._chores_owed >= CHORE_BYTES:
            self._chores_owed = 0
            if self._has_chore() or self.snapshots.is_wanted(self.backlog):
                self.do(wake_up)  # so that the writing thread does it
        return True

    def do(self, run: Callable[[], object], *, ordered: bool = False, always: bool = False) -> None:
        """Have the writing thread call `run`, after all that was submitted before.

        `ordered`: and before all that is submitted later. What a failed commit makes void is not done, unless `always`.
        """
        with self._counting:
            self._tasks_given += 1
        self._queue.put(Task(self._term, run, ordered, always))

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
            "snapshot_bytes": self.snapshots.current.size,
            "snapshots_total": self.snapshots.taken,
            "writable": self.trouble is None and not self.shortage.active,
            "reserve_bytes": self.reserve.size if self.reserve.held else 0,
        }

    def give_up(self, text: str) -> None:
        """Stop writing for good: the files are not those of the directory any more."""
        self._stop_with(Trouble("directory_gone", text, True, True))

    def interrupted(self) -> SynapError:
        self.snapshots.abandon()
        self._stop_with(INTERRUPTED)
        return refused(INTERRUPTED)

    def _stop_with(self, trouble: Trouble) -> None:
        self.do(lambda: self._turn_to(trouble, []), ordered=True, always=True)

    def end(self) -> None:
        """Close in a program that ends: whoever calls the host after that is refused."""
        self.call(self._host.fence, refused(ENDED))
        self.close()

    def close(self) -> None:
        """Write what was submitted, run the last checkpoint and close the database. Safe to call twice."""
        if self.closed:
            return
        self.closed = True
        self._queue.put(STOP)
        if self._thread.is_alive():
            self._thread.join()
        self._checkpointer.end()
        if self._stuck:
            assert self.trouble is not None
            what = "closing %s: what was answered just before the first refusal could not be written and is lost: %s"
            _log.error(what, self.store.directory, self.trouble.text)
        try:
            if self.trouble is None:
                if not self.store.checkpoint_what_fits(whole=True) and self._appender.synced < self.seq:
                    self._appender.sync()
                self.mark.settle(self.seq)
        except (sqlite3.Error, OSError) as error:
            _log.warning("closing %s: %s; what was answered is in its write-ahead log", self.store.directory, error)
        finally:
            self.store.close()
            self.mark.close()
