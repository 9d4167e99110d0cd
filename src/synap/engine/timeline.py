"""How the wall clock was set while the engine's own time went on.

The engine's time is Unix time as it was when a service began, and goes on evenly. What people see (timestamps) is wall
time; the two part when the wall clock is set, or when the machine sleeps. Each time that is noticed it is noted as a
*step*: from this time on, the wall clock is so far ahead. Steps are on disk, so that a restart goes on with the same
time.
"""

from __future__ import annotations

from typing import Callable, List, Optional, Tuple

__all__ = ["Step", "Timeline"]

Step = Tuple[float, float]
"""(engine's time, seconds that the wall clock is ahead from then on)."""

NOTICED = 0.5
"""Seconds that the wall clock has to move to count as set."""
KEPT = 100
"""Steps kept; of more, the oldest are forgotten."""


class Timeline:
    """The steps, and the wall clock where there is one. Without, the engine's time is what is shown."""

    __slots__ = ("ahead", "latest", "steps", "unrecorded", "wall")

    def __init__(self) -> None:
        self.wall: Optional[Callable[[], float]] = None
        self.steps: List[Step] = []
        self.ahead = 0.0
        self.latest = 0.0
        """The latest time that records told of."""
        self.unrecorded: List[Step] = []
        """Steps that no record tells of yet."""

    def add(self, begin: float, ahead: float) -> None:
        """Take note of a step, which may be known already."""
        last = self.steps[-1][0] if self.steps else 0.0
        if begin < last:
            return
        if begin == last:
            self.steps.pop()
        self.steps.append((begin, ahead))
        del self.steps[:-KEPT]
        self.ahead = ahead

    def shown(self, now: float) -> float:
        """Return the wall clock's time, and note a step, if there is one."""
        if self.wall is not None:
            ahead = self.wall() - now
            if not -NOTICED <= ahead - self.ahead <= NOTICED:
                self.add(now, ahead)
                self.unrecorded.append((now, ahead))
        return now + self.ahead

    def at(self, time: float) -> float:
        """Return what the wall clock showed, or will show, at a time of the engine."""
        for begin, ahead in reversed(self.steps):
            if time >= begin:
                return time + ahead
        return time

    def time(self, shown: float) -> float:
        """Return the engine's time when the wall clock showed this; the last one, where it was set back."""
        for begin, ahead in reversed(self.steps):
            if shown - ahead > begin - 1:  # timestamps are whole seconds
                return shown - ahead
        return shown
