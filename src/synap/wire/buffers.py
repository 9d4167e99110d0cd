"""Buffers to receive into that are used again, since new memory costs more than what is received into it.

A buffer of a megabyte that is made for each value has to be mapped, cleared and unmapped by turns. Here one is used
again once nothing refers to it any more, neither a body nor anything decoded from it: the number of references to it
says so, and nobody has to give it back. Where Python doesn't count references, each body gets a buffer of its own.
"""

from __future__ import annotations

import sys
from typing import Callable, List, Optional

__all__ = ["KEPT", "ROOM", "Buffers"]

ROOM = 64 * 1024
"""Size of the buffer for all but large bodies."""
KEPT = 2 * 1024 * 1024
"""Bytes of buffers that are kept, by default."""

_references: Optional[Callable[[object], int]] = getattr(sys, "getrefcount", None)
_probe = [bytearray()]
_ALONE = _references(_probe[0]) if _references is not None else -1
"""What `_references` counts for an object that nothing but a list refers to."""


class Buffers:
    """Buffers of one connection, or of several that are read by one thread. `kept`: how many bytes of them stay."""

    __slots__ = ("_buffers", "_kept", "_room")

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._buffers: List[bytearray] = []
        self._room: Optional[memoryview] = None

    @property
    def room(self) -> memoryview:
        """The buffer for all but large bodies. What is received into it has to be taken out before the next read."""
        if self._room is None:
            self._room = memoryview(bytearray(ROOM))
        return self._room

    def take(self, size: int) -> memoryview:
        """Return a buffer of `size` bytes, with anything in it: the caller's while it or a part of it is in use."""
        buffers = self._buffers
        spare = [at for at in range(len(buffers)) if self._free(at)]
        for at in spare:
            if len(buffers[at]) >= size:
                return memoryview(buffers[at])[:size]
        fresh = bytearray(size)
        if size <= self._kept:
            for at in reversed(spare):
                if sum(map(len, buffers)) + size <= self._kept:
                    break
                del buffers[at]
            if sum(map(len, buffers)) + size <= self._kept:
                buffers.append(fresh)
        return memoryview(fresh)

    def _free(self, at: int) -> bool:
        return _references is not None and _references(self._buffers[at]) == _ALONE
