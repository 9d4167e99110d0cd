"""How long requests take: histograms by command and lane, of one request in 64 of each command.

Measured from when a request is executed to when its answer is handed to its connection: a disk that has to have it
first counts, a wait for a message doesn't, and neither does the network.
"""

from __future__ import annotations

from bisect import bisect_left
from time import perf_counter
from typing import Dict, List, Tuple

__all__ = ["BOUNDS", "EVERY", "Sample", "Timing"]

EVERY = 64
"""Of so many requests of a command, the first is timed; a power of two."""
BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds up to which each bucket counts; one more counts all."""

Sample = Tuple[int, str, float]
"""(code of the command, lane, when it began)."""


class Timing:
    """The histograms of one host."""

    def __init__(self) -> None:
        self.counts: Dict[Tuple[int, str], List[int]] = {}
        """Requests in each bucket alone, by code of the command and lane."""
        self.seconds: Dict[Tuple[int, str], float] = {}
        """What they took together."""

    def ended(self, samples: List[Sample]) -> None:
        """Count requests that were just answered."""
        now = perf_counter()
        for code, lane, began in samples:
            key = code, lane
            counts = self.counts.get(key)
            if counts is None:
                counts = self.counts[key] = [0] * (len(BOUNDS) + 1)
                self.seconds[key] = 0.0
            counts[bisect_left(BOUNDS, now - began)] += 1
            self.seconds[key] += now - began
