"""Folding: what SQLite's write-ahead log holds goes into the database, beside the commits.

A thread with a connection of its own copies what is there (a passive checkpoint: it keeps nobody waiting), which
takes as long as the disk takes. The file of the write-ahead log is used from its beginning again once all of it is
copied and nothing came meanwhile, so when it has become long, the writing thread copies the little that came since
the last time itself.
"""

from __future__ import annotations

import sqlite3
import threading
from typing import Optional

from synap.storage.store import Store, connect

__all__ = ["Folder"]

FOLD_PAGES = 1000
"""Pages after which they are folded."""
FEW_PAGES = 200
"""Pages that the writing thread may fold itself."""
LONG, TOO_LONG = 1500, 4000
"""Pages after which the write-ahead log's file should, and must, be used from its beginning again.

What comes in waits then, so these bound the file: about 16 MiB, and what is written meanwhile.
"""


class Folder:
    """Folds the write-ahead log of one store. All but its thread belongs to the thread that writes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._length = 0
        self._asked = threading.Semaphore(0)
        self._idle = threading.Event()
        self._idle.set()
        self._folded = False
        self._ended = False
        self._error: Optional[BaseException] = None
        self._thread: Optional[threading.Thread] = None

    def is_due(self) -> bool:
        """Whether `fold` has something to do."""
        if not self._idle.is_set():
            return False
        return self._store.pages >= FOLD_PAGES or self._error is not None or self._is_long()

    def _is_long(self) -> bool:
        return self._folded and self._length >= LONG

    def fold(self) -> None:
        """Begin to fold, or end it. Raises sqlite3.Error where the last folding failed."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        store = self._store
        if self._is_long() and (store.pages <= FEW_PAGES or self._length >= TOO_LONG):
            self._folded = False
            if store.fold():
                self._length = 0
        else:
            self._length += store.pages
            store.pages = 0
            self._folded = False
            self._idle.clear()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="synap-fold", daemon=True)
                self._thread.start()
            self._asked.release()

    def holds_back(self) -> bool:
        """Whether `hold_back` would wait."""
        return self._length + self._store.pages > TOO_LONG and not self._idle.is_set()

    def hold_back(self) -> None:
        """Wait for the folding in progress where the write-ahead log has become far too long."""
        if self.holds_back():
            self._idle.wait()
            if self._error is None and self._store.fold():
                self._length = 0

    def end(self) -> None:
        """End the thread, after what it is doing."""
        if self._thread is not None:
            self._ended = True
            self._asked.release()
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        try:
            connection = connect(self._store.path)
        except sqlite3.Error as error:
            self._error = error
            self._idle.set()
            self._thread = None
            return
        try:
            while True:
                self._asked.acquire()
                if self._ended:
                    return
                try:
                    _, length, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                    self._length = max(length, 0)
                    self._folded = True
                except sqlite3.Error as error:
                    self._error = error
                self._idle.set()
        finally:
            connection.close()
