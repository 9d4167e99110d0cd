"""The time by which durations run: it goes on evenly, however the wall clock is set meanwhile."""

from __future__ import annotations

import time
from typing import Callable

__all__ = ["Clock"]


class Clock:
    """Unix seconds as the wall clock showed them when this was made, and going on by the monotonic clock from there.

    Waits, leases, delays, ttls and retention are compared with it, so none of them ends early or hangs when the wall
    clock is set, or when the machine slept. `wall` is what people are shown.
    """

    __slots__ = ("_base", "_steady", "wall")

    def __init__(self, *, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self.wall = wall
        self._steady = steady
        self._base = wall() - steady()

    def __call__(self) -> float:
        return self._steady() + self._base

    def resume(self, ahead: float, latest: float) -> float:
        """Go on with the time of an earlier process, whose wall clock was `ahead` of it at last.

        `latest` is a time that it has seen: this clock doesn't begin before it. Returns the seconds that the wall clock
        has been set back meanwhile, as far as that shows.
        """
        now = self.wall() - ahead
        back = max(latest - now, 0.0)
        self._base = now + back - self._steady()
        return back
