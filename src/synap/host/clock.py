"""A clock for durations: Unix time that runs by the monotonic clock, however the wall clock is set meanwhile."""

from __future__ import annotations

import time
from typing import Callable


class Clock:
    """Starts at the wall clock's Unix time, and runs by the monotonic clock from there.

    Waits, leases, delays, ttls and retention use it, so none of them ends early or late when the wall clock is set, or
    when the machine slept. `wall` is the wall clock, for timestamps.
    """

    __slots__ = ("_base", "_steady", "wall")

    def __init__(self, *, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self.wall = wall
        self._steady = steady
        self._base = wall() - steady()

    def now(self) -> float:
        """Return the time. A plain method takes half as long to call as an object with `__call__`."""
        return self._steady() + self._base

    __call__ = now

    def resume(self, ahead: float, latest: float) -> float:
        """Continue the time of an earlier process, in which the wall clock was `ahead` seconds ahead at its end.

        `latest` is the last time it recorded: this clock doesn't start before it. Returns the seconds that the wall
        clock has been set back meanwhile, as far as that can be seen.
        """
        now = self.wall() - ahead
        back = max(latest - now, 0.0)
        self._base = now + back - self._steady()
        return back
