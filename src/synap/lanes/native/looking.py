"""Looking for an answer instead of sleeping: when a call that is alone does it, and when not.

Waking a core that went to sleep takes longer than a fast answer does. So after a lone request the sync client tries to
read for a while, and the async client lets its event loop poll its sockets. Where answers take longer than that (a
far-away service, a busy machine), looking is in vain, so it is given up for the next calls.
"""

from __future__ import annotations

import os

__all__ = ["LOOK", "Luck", "pays"]

LOOK = 60e-6
"""Seconds that an event loop polls after a lone request."""
RESERVE = 16
PRICE = 4
"""A look in vain costs as much as so many good ones earn: where more than one in five is in vain, it does not pay."""
PAUSE = 256
"""Lone calls without a look, once it is given up; then one look decides anew."""


def pays() -> bool:
    """Return whether looking can be worth it: not where the service needs the one CPU that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) > 1
    return (os.cpu_count() or 1) > 1


class Luck:
    """Decides by what looking brought whether the next lone call does it."""

    __slots__ = ("_left", "_pause")

    def __init__(self) -> None:
        self._left = RESERVE
        self._pause = 0

    def worth(self) -> bool:
        """Return whether to look for the answer of the call that is made now."""
        if not self._pause:
            return True
        self._pause -= 1
        return False

    def found(self) -> None:
        """Take note of an answer that came in time."""
        if self._left < RESERVE:
            self._left += 1

    def missed(self) -> None:
        """Take note of a look in vain."""
        self._left -= PRICE
        if self._left <= 0:
            self._left, self._pause = PRICE, PAUSE
