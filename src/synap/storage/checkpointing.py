"""Checkpoints: SQLite's write-ahead log is copied into the database, in parallel to the commits.

A thread with a connection of its own runs passive checkpoints, which block nobody. SQLite reuses the file of the
write-ahead log from its beginning only once all of it is copied and nothing was appended meanwhile. So when the file
has become long, the writing thread itself copies the little that was appended since the last checkpoint.

A commit that makes the file longer takes about twice as long as one that writes over what is there, since the file's
length has to be on disk, too. So where somebody waits for each commit, the file is made longer ahead of the commits.
Where that isn't possible, as little space is free, it is tried again a minute later.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from typing import Optional

from synap.storage.store import Store, connect

CHECKPOINT_PAGES = 1000
"""Written pages after which a checkpoint is due."""
FEW_PAGES = 200
"""The most pages that the writing thread copies itself."""
LONG, TOO_LONG = 1500, 4000
"""Pages after which the write-ahead log's file should, and must, be reused from its beginning.

Commits wait for that, so these bound the file: about 16 MiB, and what is written meanwhile.
"""
FIRST_PAGES = 32
"""The file is made longer ahead once so many pages were written: before, little may be all that ever is."""
PUT_OFF = 60.0
"""Seconds until it is tried again to make the file longer where that wasn't possible."""
STEP, MOST_PAGES = 256, 2048
"""The most pages that the file is made longer by at a time, and for which it is made long enough at all. Usually it is
reused before."""


class Checkpointer:
    """Runs the checkpoints of one store. Its methods belong to the writing thread.

    `preallocate`: the file of the write-ahead log is made longer ahead of the commits.
    """

    def __init__(self, store: Store, *, preallocate: bool) -> None:
        self._store = store
        self._preallocate = preallocate
        self._preallocate_from = 0.0
        """When to try again to make the file longer; 0: it has been possible."""
        self._length = 0
        self._asked = threading.Semaphore(0)
        self._idle = threading.Event()
        self._idle.set()
        self.copying = threading.Lock()
        """Held while the thread is within SQLite."""
        self._copied = False
        self._ended = False
        self._error: Optional[BaseException] = None
        self._thread: Optional[threading.Thread] = None

    def is_due(self) -> bool:
        """Whether `run` has something to do."""
        if not self._idle.is_set():
            return False
        return self._store.pages >= CHECKPOINT_PAGES or self._error is not None or self._is_long() or self._runs_short()

    def _runs_short(self) -> bool:
        """Whether commits will soon make the file longer."""
        used = self._length + self._store.pages
        needed = min(used + min(used, STEP) // 4, MOST_PAGES)
        if not self._preallocate or used < FIRST_PAGES or self._store.room >= needed:
            return False
        return not self._preallocate_from or time.monotonic() >= self._preallocate_from

    def _is_long(self) -> bool:
        return self._copied and self._length >= LONG

    def run(self) -> None:
        """Start a checkpoint, or reuse the log's file, or make it longer.

        Without a thread for it, a checkpoint is run here. Raises what the last checkpoint failed with, `Unsynced`.
        """
        error, self._error = self._error, None
        if error is not None:
            raise error
        store = self._store
        if self._runs_short():
            used = self._length + store.pages
            possible = store.lengthen(min(used + min(used, STEP), MOST_PAGES))
            self._preallocate_from = 0.0 if possible else time.monotonic() + PUT_OFF
        elif self._is_long() and (store.pages <= FEW_PAGES or self._length >= TOO_LONG):
            self._copied = False
            if store.checkpoint():
                self._length = 0
        else:
            self._length += store.pages
            store.pages = 0
            self._copied = False
            if self._thread is None:
                self._thread = self._started()
            if self._thread is None:
                if store.checkpoint():
                    self._length = 0
                return
            self._idle.clear()
            self._asked.release()

    def _started(self) -> Optional[threading.Thread]:
        """Start the thread; None where none can be started: there are as many as there may be."""
        thread = threading.Thread(target=self._work, name="synap-checkpoint", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return None
        return thread

    def holds_back(self) -> bool:
        """Whether `hold_back` would wait."""
        return self._length + self._store.pages > TOO_LONG and not self._idle.is_set()

    def hold_back(self) -> None:
        """Wait for the checkpoint in progress where the write-ahead log has become far too long."""
        if self.holds_back():
            self._idle.wait()
            if self._error is None and self._store.checkpoint():
                self._length = 0

    def end(self) -> None:
        """Stop the thread after its current checkpoint."""
        if self._thread is not None:
            self._ended = True
            self._asked.release()
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        connection: Optional[sqlite3.Connection] = None
        try:
            while True:
                self._asked.acquire()
                if self._ended:
                    return
                try:
                    with self.copying:
                        connection = connection or connect(self._store.path)
                        _, length, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                    self._length = max(length, 0)
                    self._copied = True
                except Exception as error:  # whatever it was, somebody may be waiting
                    self._error = error
                self._idle.set()
        finally:
            if connection is not None:
                with self.copying:
                    connection.close()
