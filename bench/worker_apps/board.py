"""Where jobs note that they ran, for whoever measures: a file that all processes map.

A process has a slot: its id, how many jobs it ran, when the first and the latest began, how long the latest waited.
Only the standard library is imported here, since peers run it under a Python of their own.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from typing import List, Optional, Tuple

__all__ = ["SLOTS", "Board", "ran"]

SLOTS = 64
WAITS = 2_000
HEAD = struct.Struct("<qqdd")  # process, jobs, when the first began, when the latest did
WAIT = struct.Struct("<d")
SIZE = HEAD.size + WAITS * WAIT.size


class Board:
    """The file, mapped."""

    def __init__(self, path: str) -> None:
        with open(path, "a+b") as file:
            if file.seek(0, os.SEEK_END) < SLOTS * SIZE:
                file.truncate(SLOTS * SIZE)
            self._memory = mmap.mmap(file.fileno(), SLOTS * SIZE)
        self._turn = threading.Lock()
        self._offset = -1
        self._jobs = 0
        self._first = 0.0

    def note(self, sent: Optional[float]) -> None:
        """Note that a job began in this process; `sent` is when it was enqueued, by the monotonic clock."""
        with self._turn:  # some workers have threads
            self._note(time.monotonic(), sent)

    def _note(self, now: float, sent: Optional[float]) -> None:
        if self._offset < 0:
            self._offset = self._slot()
        if not self._jobs:
            self._first = now
        if sent is not None:
            position = self._offset + HEAD.size + (self._jobs % WAITS) * WAIT.size
            WAIT.pack_into(self._memory, position, now - sent)
        self._jobs += 1
        HEAD.pack_into(self._memory, self._offset, os.getpid(), self._jobs, self._first, now)

    def _slot(self) -> int:
        for step in range(SLOTS):
            offset = ((os.getpid() + step) % SLOTS) * SIZE
            if HEAD.unpack_from(self._memory, offset)[0] in (0, os.getpid()):
                return offset
        raise RuntimeError("more processes than slots")

    def read(self) -> Tuple[int, float, float, List[float]]:
        """Return the jobs of all processes, when the first and the latest began, and how long the latest waited."""
        jobs, first, last = 0, 0.0, 0.0
        waits: List[float] = []
        for slot in range(SLOTS):
            process, count, began, latest = HEAD.unpack_from(self._memory, slot * SIZE)
            if not process:
                continue
            jobs += count
            first = min(first or began, began)
            last = max(last, latest)
            for number in range(min(count, WAITS)):
                waits.append(WAIT.unpack_from(self._memory, slot * SIZE + HEAD.size + number * WAIT.size)[0])
        return jobs, first, last, waits

    def clear(self) -> None:
        """Forget everything. Processes that run go on with their counts: to be used between workers."""
        self._memory[:] = bytes(SLOTS * SIZE)


_board: Optional[Board] = None


def ran(sent: Optional[float]) -> None:
    """Note a job on the board that `BENCH_BOARD` names."""
    global _board
    if _board is None:
        _board = Board(os.environ["BENCH_BOARD"])
    _board.note(sent)
