"""A pool of buffers for large answers: their memory is mapped, and in the CPU's cache already.

All connections of a process share them. A buffer that isn't given back is garbage-collected like any object.
"""

from __future__ import annotations

from typing import List, cast

MAX_SIZE = 2 * 1024 * 1024
"""Bytes of a buffer up to which it is kept."""
MAX_BUFFERS = 2
"""Buffers that are kept."""


class BufferPool:
    """Up to `MAX_BUFFERS` buffers. For any number of threads."""

    def __init__(self) -> None:
        self._kept: List[bytearray] = []

    def take(self, size: int) -> memoryview:
        """Return a buffer of `size` bytes, whatever is in them."""
        try:
            buffer = self._kept.pop()
        except IndexError:
            buffer = bytearray()
        if len(buffer) < size:
            buffer = bytearray(size)
        return memoryview(buffer)[:size]

    def give(self, view: memoryview) -> None:
        """Take back what `take` returned. It can't be read any more."""
        buffer = cast(bytearray, view.obj)
        view.release()
        if len(buffer) <= MAX_SIZE and len(self._kept) < MAX_BUFFERS:
            self._kept.append(buffer)

    @property
    def size(self) -> int:
        """Bytes of all buffers that are kept."""
        return sum(map(len, self._kept))


BUFFERS = BufferPool()
