"""Histograms of request durations by command and lane, sampled: one request in 64 of each command.

Measured from the execution of a request until its answer is handed to its connection: waiting for the disk counts,
waiting for a message and the network don't.
"""

from __future__ import annotations

from bisect import bisect_left
from time import perf_counter
from typing import Dict, List, Tuple

EVERY = 64
"""One request in so many of each command is timed; a power of two."""
BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets in seconds; one more bucket has no bound."""

Sample = Tuple[int, str, float]
"""(code of the command, lane, when it began)."""


class Timing:
    """The histograms of one host."""

    def __init__(self) -> None:
        self.counts: Dict[Tuple[int, str], List[int]] = {}
        """Requests in each bucket alone, by code of the command and lane."""
        self.seconds: Dict[Tuple[int, str], float] = {}
        """The sum of their durations."""

    def ended(self, samples: List[Sample]) -> None:
        """Record requests that were just answered."""
        now = perf_counter()
        for code, lane, began in samples:
            key = code, lane
            counts = self.counts.get(key)
            if counts is None:
                counts = self.counts[key] = [0] * (len(BOUNDS) + 1)
                self.seconds[key] = 0.0
            counts[bisect_left(BOUNDS, now - began)] += 1
            self.seconds[key] += now - began
