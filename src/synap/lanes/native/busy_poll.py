"""Busy polling: poll for the answer to a lone request instead of sleeping, where that is worth the CPU time.

Waking a core that went to sleep takes longer than a fast answer does. So after a lone request the sync client tries to
read for a while, and the async client lets its event loop poll its sockets. It is given up for the next calls where
answers take longer than that (a far-away service), and where more threads are runnable than there are CPUs: polling
then takes the CPU from threads that have work.
"""

from __future__ import annotations

from synap.lanes.native.cpus import overcommitted

POLL_TIME = 60e-6
"""Seconds that an event loop polls after a lone request, unless the caller says how long."""
POLLS = 40
"""Polls of a thread for an answer, in place of that time: reading a clock takes as long as a poll."""
BUDGET = 16
MISS_COST = 4
"""A miss outweighs so many hits: polling is given up where more than one poll in five misses."""
PAUSE = 256
"""Once polling is given up, lone calls until it is tried again."""
RECHECK = 128
"""Polls after which the number of runnable threads is read again."""


class BusyPoll:
    """Decides for each lone call whether to poll, by how earlier polls went and how loaded the machine is."""

    __slots__ = ("_budget", "_paused", "_unchecked", "polls", "seconds")

    def __init__(self, spin: float = True) -> None:
        self.seconds = POLL_TIME if spin is True else spin
        self.polls = max(round(POLLS * self.seconds / POLL_TIME), 1)
        self._budget = BUDGET
        self._paused = 0
        """Lone calls left without polling."""
        self._unchecked = 0
        """Polls left until the load is read again."""

    def allowed(self) -> bool:
        """Return whether to poll for the answer of the call that is made now."""
        if self._paused:
            self._paused -= 1
            return False
        if self._unchecked:
            self._unchecked -= 1
            return True
        if overcommitted():
            self._paused = PAUSE - 1
            return False
        self._unchecked = RECHECK - 1
        return True

    def hit(self) -> None:
        """Count an answer that came while polling."""
        if self._budget < BUDGET:
            self._budget += 1

    def miss(self) -> None:
        """Count a poll that ended without an answer."""
        self._budget -= MISS_COST
        if self._budget <= 0:
            self._budget, self._paused, self._unchecked = MISS_COST, PAUSE, 0
