"""Time that a test moves by hand."""

from __future__ import annotations

__all__ = ["TestClock"]


class TestClock:
    """A clock that stands still until it is told to move; calling it gives Unix seconds, as `time.time()` does."""

    __test__ = False  # pytest takes classes named Test… for tests
    __slots__ = ("now",)

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> float:
        """Let `seconds` (0 or more) pass and return the time it is then."""
        if seconds < 0:
            raise ValueError(f"time moves forward, got {seconds!r} seconds")
        self.now += seconds
        return self.now
