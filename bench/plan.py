"""What a workload is given, and what it may give back.

A workload is a generator: it yields a `Case` to be measured, a `Finding` it measured itself, or a `Curve`. What it
started through `Plan.servers` is stopped when it ends.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import Any, Callable, Coroutine, Iterator, List, Optional, Tuple, TypeVar, Union

from bench.measure import Case
from bench.peers import Servers

__all__ = [
    "SECONDARY",
    "THREADS",
    "WIDTHS",
    "Curve",
    "Finding",
    "Plan",
    "Workload",
    "run",
    "threads_title",
    "width_title",
]

T = TypeVar("T")

WIDTHS = (1, 10, 100, 1000)
"""Calls under way at once, of the async clients."""
THREADS = (1, 8)
"""Threads that call, of the blocking ones."""
SECONDARY = 3
"""Rounds at the most of cases that no aim rests on, so that a run with all of them ends in time."""


@dataclass
class Finding:
    """One figure that is no rate: `value` in `unit`, the best peer's beside it where there is one."""

    key: str
    title: str
    value: float
    unit: str
    peer: Optional[str] = None
    peer_value: Optional[float] = None


@dataclass
class Curve:
    """How a cost grows: `points` of (how many, operations a second), and the server's seconds for one there."""

    key: str
    title: str
    points: List[Tuple[int, float]] = field(default_factory=list)
    server_cpu: List[float] = field(default_factory=list)

    @property
    def kept(self) -> float:
        """The rate with the most, of the rate with the fewest: 1 where more costs nothing."""
        return self.points[-1][1] / self.points[0][1]

    @property
    def dearer(self) -> float:
        """The server's time with the most over that with the fewest; noise moves it less. NaN where it isn't known."""
        first = self.server_cpu[0] if self.server_cpu else 0.0
        return self.server_cpu[-1] / first if first else math.nan


@dataclass
class Plan:
    """How much to do: `share` scales what is loaded beforehand (1.0: as published), `seconds` how long a run is."""

    servers: Servers
    rounds: int = 5
    seconds: float = 1.0
    share: float = 1.0
    uvloop: bool = False

    def many(self, number: int, least: int = 10) -> int:
        """Scale a number of keys, messages, connections."""
        return max(least, int(number * self.share))

    def steps(self, *numbers: int) -> List[int]:
        """Return those sizes of a growth curve that aren't beyond what is loaded at this scale."""
        return [number for number in numbers if number <= numbers[-1] * self.share] or [numbers[0]]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in a fresh event loop of the kind asked for."""
        return run(work, uvloop=self.uvloop)


def width_title(width: int) -> str:
    """Say how many calls are under way, for a title."""
    return "one by one" if width == 1 else f"{width} under way"


def threads_title(threads: int) -> str:
    """Say how many threads call, for a title."""
    return "one by one" if threads == 1 else f"{threads} threads"


Workload = Callable[[Plan], Iterator[Union[Case, Finding, Curve]]]


def run(work: Coroutine[Any, Any, T], *, uvloop: bool) -> T:
    """Run a coroutine in a fresh event loop: asyncio's own, or uvloop's."""
    if not uvloop:
        return asyncio.run(work)
    import uvloop as fast

    return fast.run(work)
