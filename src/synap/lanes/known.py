"""Which servers are known not to offer the native lane."""

from __future__ import annotations

from time import monotonic
from typing import Dict, Tuple

__all__ = ["MEMORY", "forget", "remember", "remembered"]

MEMORY = 300.0
"""Seconds until a server is asked again."""

Place = Tuple[str, int]

_until: Dict[Place, float] = {}


def remember(place: Place) -> None:
    """Note that the server at (host, port) doesn't offer the native lane."""
    if len(_until) > 1000:
        _until.clear()
    _until[place] = monotonic() + MEMORY


def remembered(place: Place) -> bool:
    """Say whether that was noted a short while ago."""
    return _until.get(place, 0.0) > monotonic()


def forget() -> None:
    """Forget all that was noted."""
    _until.clear()
