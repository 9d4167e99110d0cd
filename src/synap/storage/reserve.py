"""The reserve: a file that allocates disk space, which is released when the disk is full.

A start needs some space (SQLite's index of its write-ahead log, the checkpoint), and so do commands that free space:
an acknowledgement writes a record, too. So a file of some megabytes lies beside the data. When the disk is full, it is
truncated to what the next start needs, and commands that free space use the rest. Once half as much again as its size
is free, it is allocated again.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress

from synap.storage.layout import RESERVE

PART = 8
"""A reserve takes at most one part in so many of the file system."""
START = 128 * 1024
"""Bytes that only a start may use."""
CHUNK = 256 * 1024


def free_space(directory: str) -> int:
    """Return the bytes that can still be written where a directory is."""
    return shutil.disk_usage(directory).free


def allocate(path: str, size: int) -> None:
    """Make a file with `size` bytes allocated on disk. Raises OSError; the file may be there in part then."""
    if not size:
        return
    file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
            return
        for begin in range(0, size, CHUNK):
            # Nothing that a file system could compress, or leave out as a hole.
            os.write(file, os.urandom(min(CHUNK, size - begin)))
        os.fsync(file)
    finally:
        os.close(file)


class Reserve:
    """The reserve of one directory: `size` bytes, at most an eighth of the file system. 0: none."""

    def __init__(self, directory: str, size: int) -> None:
        self.directory = directory
        self.path = os.path.join(directory, RESERVE)
        self.size = min(size, shutil.disk_usage(directory).total // PART) if size else 0
        self._start = min(START, self.size // 4)
        """Bytes of it that are kept for a start."""

    @property
    def held(self) -> bool:
        """Whether it has its full size."""
        try:
            return os.path.getsize(self.path) >= self.size
        except OSError:
            return not self.size

    def make(self) -> bool:
        """Allocate it if there is space for one and a half times its size; returns whether it is there."""
        if not self.size:
            self._cut(0)
            return True
        if self.held:
            self._cut(self.size)
            return True
        try:
            allocate(self.path, self.size + self.size // 2)
        except OSError:
            self.release()
            return False
        self._cut(self.size)
        return True

    def release(self) -> None:
        """Free its space except for what the next start needs."""
        with suppress(OSError):
            allocate(self.path, self._start)
        self._cut(self._start)

    def release_all(self) -> None:
        """Free all of its space if a start may need it."""
        if self.size and free_space(self.directory) < self.size:
            self._cut(0)

    def _cut(self, size: int) -> None:
        """Truncate the file to `size`, if that is possible."""
        try:
            if not size:
                os.unlink(self.path)
            elif os.path.getsize(self.path) > size:
                os.truncate(self.path, size)
        except OSError:
            pass
