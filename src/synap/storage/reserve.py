"""The reserve: space that is held by a file, and let go of when the disk is full.

A start needs a little space (SQLite's index of its write-ahead log, what is folded into the database), and so does what
makes room: an acknowledgement is a record like any other. So a file of some megabytes lies beside the data. When the
disk is full it is cut to the little that the next start needs, and the rest serves what makes room. Once there is room
for it and half as much again, it is made anew.
"""

from __future__ import annotations

import os
import shutil

from synap.storage.layout import RESERVE

__all__ = ["Reserve", "allocate", "free_space"]

PART = 8
"""A reserve takes at most this part of the file system, an eighth."""
START = 128 * 1024
"""Bytes that only a start may use."""
CHUNK = 256 * 1024


def free_space(directory: str) -> int:
    """Return the bytes that can still be written where a directory is."""
    return shutil.disk_usage(directory).free


def allocate(path: str, size: int) -> None:
    """Make a file that really takes `size` bytes of its disk. Raises OSError; what was made by then stays."""
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
        """Bytes of it that only a start may use."""

    @property
    def held(self) -> bool:
        """Whether all of it is there."""
        try:
            return os.path.getsize(self.path) >= self.size
        except OSError:
            return not self.size

    def make(self) -> bool:
        """Make it where it isn't there and half as much again would be free; returns whether it is there."""
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
        """Let its space go, but for what the next start needs."""
        try:
            allocate(self.path, self._start)
        except OSError:
            pass
        self._cut(self._start)

    def lend(self) -> None:
        """Let all of its space go where a start may need it."""
        if self.size and free_space(self.directory) < self.size:
            self._cut(0)

    def _cut(self, size: int) -> None:
        """Make the file no larger than `size`. Where that can't be done, it stays as it is."""
        try:
            if not size:
                os.unlink(self.path)
            elif os.path.getsize(self.path) > size:
                os.truncate(self.path, size)
        except OSError:
            pass
