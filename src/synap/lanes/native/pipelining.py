"""Pipelining: how many requests of one turn are written before the turn ends.

A service that has the first ones works on them while further ones are made, so writing early has both sides busy. It
costs where each read costs the service something that those it came with would have shared: a service that syncs
syncs for each, one that waits for the CPU is woken for each. Both show in the time that answers take to come once a
turn has ended, which is next to nothing where the service kept up with the turn.
"""

from __future__ import annotations

import sys

from synap.lanes.native.cpus import has_cpus, overcommitted

MOST = 25
"""The most requests that are written at once while fewer than eight times as many are in flight."""
FEWEST = 4
"""Fewer requests than this are not written before the end of a turn while answers are slow."""
QUICK = 150e-6
"""Seconds from the end of a turn to the next answers up to which these are quick."""
STEADY = 16
"""Quick answers, less `SLOW_COST` for each slow one, from which on answers are taken for quick."""
SLOW_COST = 2
RECHECK = 1024
"""Answers after which the number of runnable threads is read again. Where it is too high, so many count as slow."""


class Pipelining:
    """Decides for one connection how many requests are written at once, by how quick answers are.

    A quarter of those in flight where answers are quick, else half of them; at most `MOST`, but at least an eighth.
    """

    __slots__ = ("_quick", "_unchecked")

    def __init__(self) -> None:
        self._quick = 0 if has_cpus() else -sys.maxsize
        self._unchecked = STEADY - 1
        """Answers left until the load is read."""

    def size(self, in_flight: int) -> int:
        """Return how many requests to write at once while so many are in flight; none: the next come in one burst."""
        if not in_flight:
            return MOST
        if self._quick >= STEADY:
            return max(min(in_flight >> 2, MOST), in_flight >> 3, 1)
        return max(min(in_flight >> 1, MOST), in_flight >> 3, FEWEST)

    def answered(self, seconds: float) -> None:
        """Take note of answers that came so many seconds after a turn had ended."""
        if seconds > QUICK:
            if self._quick > 0:
                self._quick -= SLOW_COST
        elif self._quick < 2 * STEADY:
            self._quick += 1
        if self._unchecked:
            self._unchecked -= 1
        else:
            self._unchecked = RECHECK - 1
            if overcommitted():
                self._quick = min(self._quick, -RECHECK)
