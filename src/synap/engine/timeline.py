"""Maps the engine's time to wall time.

The engine's time starts as Unix time and runs by the monotonic clock. Timestamps that users see are wall time; the two
diverge when the wall clock is set, or when the machine sleeps. Each such change is recorded as a *step*: from this time
on, the wall clock is that far ahead. Steps are on disk, so that a restart continues with the same time.
"""

from __future__ import annotations

from typing import Callable, List, Optional, Tuple

Step = Tuple[float, float]
"""(engine's time, seconds that the wall clock is ahead from then on)."""

NOTICED = 0.5
"""Seconds that the wall clock has to jump to count as a step."""
LOOK = 0.05
"""Seconds after which the wall clock is looked at again: in each turn it would cost a lone read several percent."""
NOTED = 1.0
"""Seconds after which the time is noted again."""
KEPT = 100
"""Steps kept; of more, the oldest are forgotten."""


class Timeline:
    """The steps, and the wall clock. Without a clock, wall time is the engine's time."""

    __slots__ = ("_at", "again", "ahead", "latest", "steps", "unrecorded", "wall")

    def __init__(self) -> None:
        self.wall: Optional[Callable[[], float]] = None
        self.steps: List[Step] = []
        self._at = -1.0
        """The time at which the wall clock was read last: once a turn, which has one time."""
        self.again = 0.0
        """When to look at the wall clock again, though nothing is written."""
        self.ahead = 0.0
        self.latest = 0.0
        """The latest time found in records; while they are made, to a second."""
        self.unrecorded: List[Step] = []
        """Steps that are not journaled yet."""

    def add(self, begin: float, ahead: float) -> None:
        """Add a step, which may be known already."""
        last = self.steps[-1][0] if self.steps else 0.0
        if begin < last:
            return
        if begin == last:
            self.steps.pop()
        self.steps.append((begin, ahead))
        del self.steps[:-KEPT]
        self.ahead = ahead

    def unrecord(self, steps: List[Step]) -> None:
        """Undo that steps were journaled: they happened all the same, and are journaled with the next change."""
        self.unrecorded[:0] = steps

    def look(self, now: float) -> float:
        """Add a step where the wall clock has jumped by `now`, which is returned."""
        self.again = now + LOOK
        if self.wall is not None:
            ahead = self.wall() - now
            if not -NOTICED <= ahead - self.ahead <= NOTICED:
                self.add(now, ahead)
                self.unrecorded.append((now, ahead))
        return now

    def shown(self, now: float) -> float:
        """Return the wall time of `now`."""
        if now != self._at:
            self._at = now
            self.look(now)
        return now + self.ahead

    def at(self, time: float) -> float:
        """Convert a time of the engine to wall time."""
        for begin, ahead in reversed(self.steps):
            if time >= begin:
                return time + ahead
        return time

    def time(self, shown: float) -> float:
        """Convert wall time to the engine's time; the last one, where the clock was set back."""
        for begin, ahead in reversed(self.steps):
            if shown - ahead > begin - 1:  # timestamps are whole seconds
                return shown - ahead
        return shown
