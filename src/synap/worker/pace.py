"""How many messages a worker leases ahead of its free places, by how long its handlers take."""

from __future__ import annotations

from typing import Collection, Dict, Mapping, Optional

from synap.worker.handlers import Handler

PREFETCH_SECONDS = 0.1
"""Seconds of work to prefetch, so that a handler needn't wait a round trip for its next message."""
MAX_PREFETCH = 500
"""The most messages that are prefetched."""


class Pace:
    """Moving averages of how long the handlers of each queue take.

    Nobody knows which queue the next messages will be from, so all count as those of the slowest one, and nothing is
    prefetched while one is unknown: messages that take long are left for other workers. The queue of a periodic job
    (`jobs`) holds one message at most, so each counts as a place that is taken. `lease` is in seconds.
    """

    def __init__(self, handlers: Mapping[str, Handler], jobs: Collection[str], concurrency: int, lease: float) -> None:
        self._averages: Dict[str, Optional[float]] = {queue: None for queue in handlers if queue not in jobs}
        """By queue: seconds that a handler takes."""
        places = concurrency - (len(handlers) - len(self._averages))
        self._work = max(0, places) * min(PREFETCH_SECONDS, lease / 4)
        """Seconds of work to prefetch, of all places together; a moment that is far shorter than a lease."""
        if any(handlers[queue].retries == 0 for queue in self._averages):
            self._work = 0.0  # a message has one try, and would lose it where the worker stops before its turn

    def took(self, queue: str, seconds: float) -> None:
        """Note how long a handler took."""
        if queue in self._averages:
            average = self._averages[queue]
            self._averages[queue] = seconds if average is None else average + (seconds - average) / 16

    def reserve(self) -> int:
        """Return how many messages to prefetch."""
        slowest = 0.0
        for average in self._averages.values():
            if average is None:
                return 0
            slowest = max(slowest, average)
        return min(MAX_PREFETCH, int(self._work / max(slowest, 1e-6)))
