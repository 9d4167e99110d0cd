"""Looking for an answer instead of sleeping: when a call that is alone does it, and when not.

Waking a core that went to sleep takes longer than a fast answer does. So after a lone request the sync client tries to
read for a while, and the async client lets its event loop poll its sockets. Where answers take longer than that (a
far-away service, a busy machine), looking is in vain, so it is given up for the next calls. So it is where more threads
want to run than there are CPUs: an answer may still come in time then, but who looks takes the CPU from who has work.
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
LOOKS = 128
"""Looks after which it is seen again whether the machine is crowded."""
LOAD = "/proc/loadavg"
"""Where Linux says how many threads want to run: the number before the slash (proc_loadavg(5))."""


def pays() -> bool:
    """Return whether looking can be worth it: not where the service needs the one CPU that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) > 1
    return (os.cpu_count() or 1) > 1


def crowded() -> bool:
    """Return whether more threads want to run now than the machine has CPUs; False where the system doesn't say."""
    try:
        with open(LOAD, "rb", buffering=0) as load:
            running = int(load.read(64).split(b"/", 1)[0].rsplit(None, 1)[-1])
    except (OSError, ValueError, IndexError):
        return False
    return running > (os.cpu_count() or 1)


class Luck:
    """Decides by what looking brought, and by how crowded the machine is, whether the next lone call does it."""

    __slots__ = ("_left", "_looks", "_pause")

    def __init__(self) -> None:
        self._left = RESERVE
        self._looks = 0
        self._pause = 0

    def worth(self) -> bool:
        """Return whether to look for the answer of the call that is made now."""
        if self._pause:
            self._pause -= 1
            return False
        if self._looks:
            self._looks -= 1
            return True
        if crowded():
            self._pause = PAUSE - 1
            return False
        self._looks = LOOKS - 1
        return True

    def found(self) -> None:
        """Take note of an answer that came in time."""
        if self._left < RESERVE:
            self._left += 1

    def missed(self) -> None:
        """Take note of a look in vain."""
        self._left -= PRICE
        if self._left <= 0:
            self._left, self._pause = PRICE, PAUSE
            self._looks = 0
