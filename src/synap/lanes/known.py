"""Remember which servers refuse the upgrade to native frames and take a WebSocket."""

from __future__ import annotations

from time import monotonic
from typing import Dict, Tuple, TypeVar

__all__ = ["MEMORY", "cut", "forget", "kept", "remember", "remembered"]

MEMORY = 300.0
"""Seconds until the upgrade is tried again."""
MOST = 1000
"""Servers that are remembered."""

T = TypeVar("T")
Place = Tuple[str, int]

_until: Dict[Place, float] = {}
_cut: Dict[Place, None] = {}


def remember(place: Place) -> None:
    """Remember that the server at (host, port) refuses the upgrade and takes a WebSocket."""
    _note(_until, place, monotonic() + MEMORY)


def remembered(place: Place) -> bool:
    """Return whether a server was remembered in the last `MEMORY` seconds."""
    return _until.get(place, 0.0) > monotonic()


def cut(place: Place) -> bool:
    """Record that a connection was closed without an answer to the upgrade; returns whether twice in a row.

    Once, it may be a server that is stopping; twice, a proxy that refuses this way is more likely.
    """
    if place in _cut:
        return True
    _note(_cut, place, None)
    return False


def kept(place: Place) -> None:
    """Record that the upgrade was answered."""
    _cut.pop(place, None)


def forget() -> None:
    """Forget all servers, for tests."""
    _until.clear()
    _cut.clear()


def _note(notes: Dict[Place, T], place: Place, what: T) -> None:
    if len(notes) > MOST:
        notes.clear()
    notes[place] = what
