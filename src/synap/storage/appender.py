"""Appends commits to the log, each as one row, and keeps the mark: how far the log must reach after a crash."""

from __future__ import annotations

import logging
from typing import Sequence

from synap.storage.crashpoints import CrashPoints
from synap.storage.mark import Mark
from synap.storage.rows import COMMIT, Packed, seal
from synap.storage.store import Store

_log = logging.getLogger("synap.storage")


class Appender:
    """The end of the log. For the thread that holds the lock to write.

    `seq`: the number of the last commit. `synced`: that of the last one known to be on disk.
    """

    def __init__(self, store: Store, mark: Mark, seq: int, crash: CrashPoints) -> None:
        self.seq = seq
        self.synced = seq
        self._store = store
        self._mark = mark
        self._mark_works = True
        self._crash = crash

    def append(self, packed: Sequence[Packed], *, safe: bool) -> int:
        """Write a row; returns its size in bytes. `safe`: it is on disk then, with all before it.

        Raises sqlite3.Error, OSError or whatever else kept it from being written.
        """
        crash = self._crash
        seq = self.seq + 1
        body = seal(COMMIT, seq, 0, packed)
        crash("before-append")
        if crash.point == "after-append":
            # Usually one step writes and syncs. Here it is two, so that there is a point between them.
            self._store.append(seq, body, safe=False)
            crash("after-append")
            self._store.force()
        else:
            self._store.append(seq, body, safe=safe)
        crash("after-fsync")
        self.seq = seq
        if safe:
            self.synced = seq
        self._keep_mark()
        crash("after-mark")
        return len(body)

    def sync(self) -> None:
        """Have all that was appended on disk. Raises sqlite3.Error."""
        self._store.force()
        self.synced = self.seq
        self._keep_mark()

    def _keep_mark(self) -> None:
        try:
            self._mark.put(self.seq, self.synced)
        except OSError as error:
            if self._mark_works:
                _log.warning(
                    "%s can't be written (%s): damage at the end of the log may go unnoticed", self._mark.path, error
                )
            self._mark_works = False
