"""Time that a test moves by hand."""

from __future__ import annotations

import weakref
from typing import Any, Callable, List

__all__ = ["TestClock"]


class TestClock:
    """A clock that stands still until it is advanced; calling it returns Unix seconds, as `time.time()` does.

    A client of an engine in this process takes it (`AsyncSynapClient(url="memory://", clock=clock)`), and so does a
    worker. What is due then, leases, ttls, delays and waits, has happened when `advance` returns.
    """

    __test__ = False  # pytest takes classes named Test… for tests
    __slots__ = ("_ahead", "_watchers", "now")

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now
        self._ahead = 0.0
        self._watchers: List[weakref.WeakMethod[Any]] = []

    def __call__(self) -> float:
        return self.now

    def wall(self) -> float:
        """Return the time that people are shown."""
        return self.now + self._ahead

    def set_wall(self, seconds: float) -> None:
        """Set the wall clock by `seconds`, ahead or back; no time passes."""
        self._ahead += seconds

    def advance(self, seconds: float) -> float:
        """Let `seconds` (0 or more) pass and return the time it is then."""
        if seconds < 0:
            raise ValueError(f"time moves forward, got {seconds!r} seconds")
        self.now += seconds
        for watcher in list(self._watchers):
            moved = watcher()
            if moved is None:
                self._watchers.remove(watcher)
            else:
                moved()
        return self.now

    def watch(self, moved: Callable[[], None]) -> None:
        """Call `moved`, a method, whenever the clock is moved, for as long as its object lives."""
        self._watchers.append(weakref.WeakMethod(moved))
