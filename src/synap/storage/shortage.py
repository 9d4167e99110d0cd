"""A full disk: the reserve is released, and only what frees space is written until the reserve can be allocated again.

Meanwhile checkpoints run as far as they fit, unused pages go back to the file system, and now and then it is tried
whether there is space for everything.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from typing import Optional

from synap.storage.mark import Mark
from synap.storage.reserve import Reserve, free_space
from synap.storage.snapshot import Snapshots
from synap.storage.store import FULL, Store, diagnose

_log = logging.getLogger("synap.storage")

FIRST_RETRY, LAST_RETRY = 0.1, 5.0
"""Seconds until a failed attempt is repeated: at first, and doubled each time up to the last."""
PROBE, LARGEST_PROBE = 4096, 1024 * 1024
"""Bytes written to see whether there is space: as many as the commit that failed, within these bounds."""
FEW_PAGES = 64
"""Written pages after which a checkpoint is due on a full disk, if it fits."""


class Shortage:
    """Watches the free space of one store. For the writing thread, and before it starts for the thread that starts it.

    `active`: whether only what frees space is written. `room`: the free bytes then, else None. `failed`: bytes of the
    last commit that failed. `started`: whether the checkpoint of the start has been done.
    """

    def __init__(self, store: Store, mark: Mark, reserve: Reserve, snapshots: Snapshots, *, started: bool) -> None:
        self.active = False
        self.room: Optional[int] = None
        self.failed = 0
        self._store = store
        self._mark = mark
        self._reserve = reserve
        self._snapshots = snapshots
        self._started = started
        self._retry = FIRST_RETRY
        self.next_try = 0.0
        """When to see whether there is space again."""

    def begin(self) -> None:
        """Write only what frees space from now on."""
        self.active = True
        self.room = 0
        self._retry = FIRST_RETRY
        self.next_try = time.monotonic() + self._retry
        self._snapshots.be_thrifty(True)
        _log.warning("%s: the disk is full; only what frees space is written", self._store.directory)

    def end(self) -> None:
        """Write everything again, or nothing. Safe to call when there is no shortage."""
        if self.active:
            self.active = False
            self.room = None
            self._snapshots.be_thrifty(False)

    def put_off(self) -> None:
        """Note how much space there is, and wait longer before the next look."""
        self._retry = min(self._retry * 2, LAST_RETRY)
        self.next_try = time.monotonic() + self._retry
        try:
            self.room = free_space(self._store.directory) + self._store.unused()
        except (OSError, sqlite3.Error):
            self.room = 0

    def has_space(self, seq: int) -> bool:
        """Allocate the reserve if it is missing; returns whether it is there, so that everything may be written.

        `seq`: the number of the last commit. Raises where the disk isn't full, and fails.
        """
        if self._reserve.held and self._started:
            return self._reserve.make()
        if not self._reserve.make():
            return False
        try:
            if not self._started:
                # In case an fsync failed before the start: this writes everything again.
                self._store.checkpoint(whole=True)
                self._mark.settle(seq)
                self._started = True
            self._store.probe(self._probe_size())
        except Exception as error:
            if diagnose(error).reason != FULL:
                raise
            self._reserve.release()
            return False
        return True

    def probe(self) -> None:
        """Write as much as the commit that failed, or only a page where a reserve gives space. Raises if that fails."""
        self._store.probe(PROBE if self._reserve.size else self._probe_size())

    def _probe_size(self) -> int:
        return min(max(self.failed, PROBE), LARGEST_PROBE)

    def wants_checkpoint(self) -> bool:
        """Whether so much was written that a checkpoint is due."""
        return self._store.pages > FEW_PAGES

    def checkpoint(self) -> None:
        """Run a checkpoint as far as it fits, and as nobody reads: callers wait for this thread."""
        self._store.checkpoint_what_fits(whole=self._store.file_sizes()[1] > LARGEST_PROBE, waits=False)
