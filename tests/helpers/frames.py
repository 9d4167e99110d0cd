"""Frames whose parts have names, for tests that look at single ones."""

from __future__ import annotations

from typing import List, NamedTuple

from synap.wire import frames
from synap.wire.frames import MAX_BODY

__all__ = ["Frame", "FrameReader"]


class Frame(NamedTuple):
    """A received frame; equal to what the package's own reader makes of it."""

    kind: int
    flags: int
    code: int
    id: int
    body: bytes


class FrameReader:
    """Cuts a stream of bytes into frames, with the package's own reader."""

    def __init__(self, limit: int = MAX_BODY) -> None:
        self._reader = frames.FrameReader(limit)

    @property
    def pending(self) -> int:
        """Bytes held for the incomplete frame."""
        return self._reader.pending

    def feed(self, data: bytes) -> List[Frame]:
        """Process received bytes and return the frames they complete."""
        return [Frame(*one) for one in self._reader.feed(data)]
