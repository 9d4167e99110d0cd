"""Snapshots: a description of the whole state, so that the log before it can be truncated.

A snapshot is taken slice by slice while the host goes on working. The engine describes itself piecewise, each slice
as things are at that moment; replaying the log from where the first slice was taken makes one state of them, since
records are absolute outcomes. A slice goes into the database between two commits. One small transaction makes the
snapshot count, after every change that any slice may show has been committed; until then the old one does. What it
replaces is removed a little at a time, and its pages are used again.

Taken when the log since the last snapshot has more than 0.4 times its size, and 8 MiB: then old snapshot, new one and
both stretches of log stay under three times the live data (plus 64 MiB, for small ones).
"""

from __future__ import annotations

import itertools
import sqlite3
import struct
import time
import zlib
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Deque, Iterator, List, Optional, Tuple

from synap.engine.journal import Record
from synap.host import EngineHost
from synap.storage.crashpoints import CrashPoints
from synap.storage.rows import SLICE, Packed, checksum, pack, seal, seal_map
from synap.storage.store import CURRENT, FULL, PAGE, Current, Store, diagnose, slice_id

if TYPE_CHECKING:
    from synap.storage.commit import DiskLog

MINIMUM = 8 * 1024 * 1024
RATIO = 0.4
SLICE_BYTES = 256 * 1024
SLICE_SECONDS = 0.001
"""Seconds of the host's time that one slice takes at most, about: the engine's own slices are not cut."""
RECORDS = 200
ROW = 768 * 1024
"""Bytes after which no further slice goes into a row."""
PACE = 6
"""Bytes of snapshot that are taken at least for each byte of log that comes in meanwhile."""
PAUSE = 0.002
"""Seconds from a slice that was written to the next one, where the log doesn't ask for more."""
AT_ONCE = 4
"""Slices that are taken in one turn at most."""
UNDER_WAY = 64
"""The most slices that wait to be written."""
SEGMENT = 256 * 1024
"""Bytes of log that are removed at a time."""
SLACK = 16 * 1024 * 1024
"""Bytes that a database may hold unused, beside twice what is live, before it is made smaller."""
SHRINK_PAGES, THRIFTY_PAGES = 256, 16_384
"""Pages that are returned to the file system at a time. More on a full disk, since each time takes some space."""
THRIFTY_PIECES = 200
"""Pieces that are removed at once on a full disk."""
POSTPONE = 30.0
"""Seconds after which a snapshot that failed is tried again."""


def digest(sums: int, body_sum: int) -> int:
    """Add a slice's checksum to those of the slices before it."""
    return zlib.crc32(struct.pack(">I", body_sum), sums)


class Snapshots:
    """Takes snapshots of one host's engine into one store.

    `begin`, `abandon` and the taking of slices belong to the host's thread; all else to the log's.
    """

    def __init__(self, store: Store, current: Current, *, minimum: int = MINIMUM) -> None:
        self.store = store
        self.current = current
        self.minimum = minimum
        self.taken = 0
        self.segments: Deque[Tuple[int, int]] = deque()
        """(last number, bytes) of stretches of the log, oldest first."""
        self.log_bytes = 0
        """Bytes of log that count: those from the current snapshot on."""
        self.leftovers: Deque[Tuple[int, int]] = deque()
        """(first id, last id) of slices that don't count any more."""
        self._log: DiskLog
        self._host: EngineHost
        self._pending: Optional[Taking] = None
        """The one being taken, as the host's thread knows it."""
        self._taking: Optional[Taking] = None
        """The one being taken, as the log's thread knows it."""
        self.running = False
        """Whether one is being taken, or about to be."""
        self._boundary = 0
        self._pause: Optional[Tuple[float, Taking, int]] = None
        """When to go on with which snapshot, and how many of its slices have been written meanwhile."""
        self._not_before = 0.0
        self._shrink = False
        self._thrifty = False
        """Whether unused space is returned to the file system at once."""
        self._crash = CrashPoints()

    def attach(self, log: DiskLog, host: EngineHost) -> None:
        """Set the log that this belongs to, and the host whose engine is described."""
        self._log = log
        self._host = host

    # ------------------------------------------------------------------------------------------ the host's thread

    def begin(self) -> None:
        """Begin to take a snapshot, unless one is being taken."""
        host, log = self._host, self._log
        if self._pending is not None or host.stopped or log.closed:
            self.running = self._pending is not None
            return
        taking = self._pending = Taking(self.current.generation + 1, host.engine.dump(RECORDS))
        log.do(lambda: self._open(taking), ordered=True)
        self._take(taking)

    def keep_up(self, size: int) -> None:
        """Take a slice more often where the log grows fast: it grew by `size` bytes just now.

        So the log that comes in while a snapshot is taken stays a fraction of it.
        """
        taking = self._pending
        if taking is not None:
            taking.owed += PACE * size
            for _ in range(AT_ONCE):
                if taking.owed <= 0 or taking.exhausted or taking.under_way >= UNDER_WAY:
                    break
                self._take(taking)

    def abandon(self) -> None:
        """Give up the snapshot that is being taken: it may contain changes that were undone."""
        taking, self._pending = self._pending, None
        if taking is not None:
            taking.abandoned = True
            self._log.do(lambda: self._close(taking), always=True)

    def _done(self) -> None:
        self._pending = None
        self.running = False

    def _take(self, taking: Taking) -> None:
        """Take the next slice and have it written."""
        log = self._log
        packed: List[Packed] = []
        size = 0
        until = time.perf_counter() + SLICE_SECONDS
        for records in taking.slices:
            piece = pack(records)
            packed.append(piece)
            size += len(piece.data)
            if size >= SLICE_BYTES or time.perf_counter() >= until:
                break
        else:
            taking.exhausted = True
        taking.owed -= size
        taking.under_way += 1
        taking.waiting.append(packed)
        log.do(lambda: self._write(taking))

    def _written(self, taking: Taking, count: int) -> None:
        """Continue after slices were written: take the next one, or end the snapshot."""
        host, log = self._host, self._log
        taking.under_way -= count
        if taking.abandoned or log.closed:
            return
        if not taking.exhausted or host.jobs.exclusive:
            # What runs alone is submitted once it is done, and slices may show half of it. An empty one is a pause.
            self._take(taking)
        elif taking.under_way == 0:
            # Behind every change that a slice may show.
            host.end_turn()
            log.do(lambda: self._swap(taking))

    # ------------------------------------------------------------------------------------------ the log's thread

    def logged(self, seq: int, size: int) -> None:
        """Account for a row of the log that counts."""
        self.log_bytes += size
        if self.segments and self.segments[-1][1] < SEGMENT and self.segments[-1][0] >= self._boundary:
            size += self.segments.pop()[1]
        self.segments.append((seq, size))

    def found(self, stretches: List[Tuple[int, int, bool]], leftovers: List[Tuple[int, int]]) -> None:
        """Account for the rows and slices that were there at the start."""
        for last, size, counts in stretches:
            self.segments.append((last, size))
            self.log_bytes += size if counts else 0
        self.leftovers.extend(leftovers)

    def is_due(self, backlog: int, room: Optional[int] = None) -> bool:
        """Return, once, whether a snapshot is to be taken: see `is_wanted`."""
        if not self.is_wanted(backlog, room):
            return False
        self.running = True
        return True

    def is_wanted(self, backlog: int, room: Optional[int] = None) -> bool:
        """Return whether a snapshot is to be taken; `backlog` are bytes that the log will have soon.

        `room` are the bytes that are free where the disk is full: then one is taken when it fits, and frees more than
        a little.
        """
        if self.running:
            return False
        if room is None:
            if self.log_bytes + backlog < max(self.minimum, RATIO * self.current.size):
                return False
        elif not self._makes_room(room):
            return False
        return not self.leftovers and time.monotonic() >= self._not_before

    def _makes_room(self, room: int) -> bool:
        # In memory; on disk it is less, first in the write-ahead log and then in the database.
        needed: int = self._host.engine.budget.total
        return 2 * needed < max(room, SEGMENT // 4) and self.current.size + self.log_bytes > 2 * needed + SEGMENT

    def _open(self, taking: Taking) -> None:
        if taking.abandoned:
            return
        self._taking = taking
        taking.start = self._boundary = self._log.seq + 1
        first = slice_id(taking.generation, 0)
        # Slices of a try that was given up, if they have not been removed yet.
        self.store.execute("DELETE FROM snapshot WHERE id>=?", (first,))

    def _write(self, taking: Taking) -> None:
        """Write the slices that are waiting, as one row: beside a busy host, this thread gets to do little."""
        if taking is not self._taking:
            self._pause = None
            return
        packed: List[Packed] = []
        count = 0
        size = 0
        while taking.waiting and size < ROW:
            slice = taking.waiting.popleft()
            packed += slice
            size += sum(len(piece.data) for piece in slice)
            count += 1
        if packed:
            body = seal(SLICE, taking.generation, taking.parts, packed)
            self.store.execute("INSERT INTO snapshot VALUES(?, ?)", (slice_id(taking.generation, taking.parts), body))
            self._crash("inside-snapshot")
            self.store.pages += len(body) // PAGE + 2
            taking.parts += 1
            taking.size += len(body)
            taking.digest = digest(taking.digest, checksum(body))
        if count:
            self._pause = (time.monotonic() + PAUSE, taking, self._pause[2] + count if self._pause else count)

    def next_at(self) -> Optional[float]:
        """Return when `go_on` is to be called; None: there is nothing to do."""
        return self._pause[0] if self._pause else None

    def go_on(self) -> None:
        """Have the next slice taken, if it is time."""
        if self._pause is not None and time.monotonic() >= self._pause[0]:
            _, taking, count = self._pause
            self._pause = None
            self._log.call(self._written, taking, count)

    def _swap(self, taking: Taking) -> None:
        if taking is not self._taking:
            return
        self._crash("before-swap")
        new = Current(taking.generation, taking.parts, taking.digest, taking.size, taking.start)
        row = (CURRENT, seal_map(CURRENT, list(new)))
        self.store.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", row, safe=True)
        self._crash("after-swap")
        old, self.current = self.current, new
        self.taken += 1
        if old.parts:
            self.leftovers.append((slice_id(old.generation, 0), slice_id(old.generation, old.parts - 1)))
        self.log_bytes = sum(size for last, size in self.segments if last >= new.start)
        self._taking = None
        self._shrink = True
        self._log.call(self._done)

    def _close(self, taking: Taking) -> None:
        """End a snapshot that was given up; its slices are removed like those of an old one."""
        self.running = False
        self._pause = None
        self._not_before = time.monotonic() + POSTPONE
        if self._taking is taking:
            self._taking = None
            if taking.parts:
                self.leftovers.append((slice_id(taking.generation, 0), slice_id(taking.generation, taking.parts - 1)))

    def be_thrifty(self, thrifty: bool) -> None:
        """Set whether unused space is returned to the file system at once, as on a full disk."""
        self._thrifty = thrifty
        self._not_before = 0.0

    def has_cleanup(self) -> bool:
        """Whether there is something to remove."""
        return bool(self.leftovers) or self._shrink or bool(self.segments and self.segments[0][0] < self.current.start)

    def clean_up(self) -> None:
        """Remove a bounded piece of what doesn't count any more, or give unused pages back to the file system."""
        store = self.store
        if self._thrifty:
            self._clean_up_at_once()
        elif self.leftovers:
            first, last = self.leftovers[0]
            store.execute("DELETE FROM snapshot WHERE id=?", (first,))
            if first >= last:
                self.leftovers.popleft()
            else:
                self.leftovers[0] = (first + 1, last)
            store.pages += 8
        elif self.segments and self.segments[0][0] < self.current.start:
            store.execute("DELETE FROM log WHERE seq<=?", (self.segments[0][0],))
            self.segments.popleft()
            store.pages += 8
        elif self._shrink:
            if store.unused() > 2 * (self.current.size + self.log_bytes) + SLACK:
                store.execute(f"PRAGMA incremental_vacuum({SHRINK_PAGES})")
                store.pages += SHRINK_PAGES
            else:
                self._shrink = False

    def _clean_up_at_once(self) -> None:
        """Remove what doesn't count any more in one transaction: in small ones each would take some pages itself.

        Then give back what that leaves unused. What lies behind it is moved, through the write-ahead log: in pieces
        for which there is room.
        """
        store = self.store
        leftovers = list(itertools.islice(self.leftovers, THRIFTY_PIECES))
        over = [last for last, _ in itertools.islice(self.segments, THRIFTY_PIECES) if last < self.current.start]
        store.execute("BEGIN")
        try:
            for first, last in leftovers:
                store.execute("DELETE FROM snapshot WHERE id>=? AND id<=?", (first, last))
            if over:
                store.execute("DELETE FROM log WHERE seq<=?", (over[-1],))
            store.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # it may have been rolled back already
                store.execute("ROLLBACK")
            raise
        for _ in leftovers:
            self.leftovers.popleft()
        for _ in over:
            self.segments.popleft()
        store.checkpoint_what_fits()
        pages = THRIFTY_PAGES
        while store.unused() and pages >= SHRINK_PAGES // 4:
            try:
                store.execute(f"PRAGMA incremental_vacuum({pages})")
            except sqlite3.OperationalError as error:
                if diagnose(error).reason != FULL:
                    raise
                pages //= 4
            store.checkpoint_what_fits()
        self._shrink = False


class Taking:
    """A snapshot that is being taken. Fields below `start` belong to the host's thread, the others to the log's."""

    def __init__(self, generation: int, slices: Iterator[List[Record]]) -> None:
        self.generation = generation
        self.slices = slices
        self.waiting: Deque[List[Packed]] = deque()
        """Slices that wait to be written."""
        self.parts = 0
        self.digest = 0
        self.size = 0
        self.start = 0
        self.abandoned = False
        self.exhausted = False
        self.under_way = 0
        """Slices taken and not yet written."""
        self.owed = 0
        """Bytes of slices that should be taken at once to keep up with the log."""
