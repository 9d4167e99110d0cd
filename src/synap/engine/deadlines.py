"""A heap of deadlines whose entries may become stale (lazy deletion), and the horizon at which a host has to wake."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import inf
from typing import Any, Callable, Generic, List, Optional, Tuple, TypeVar

Entry = TypeVar("Entry", bound=Tuple[Any, ...])

SWEPT_AT_ONCE = 4096
"""Entries up to which a sweep checks all of them at once; one of more goes on with each entry that is pushed."""
SWEPT_PER_PUSH = 8
"""Entries that it checks then."""


class Horizon:
    """The time until which an engine has nothing to do. Whatever gets an earlier deadline moves it.

    So a host need not ask for the next deadline after each turn. It may wake too early, where what was due is gone.
    """

    __slots__ = ("at", "moved")

    def __init__(self) -> None:
        self.at = inf
        self.moved = True
        """Whether it may have come closer since the host asked."""

    def note(self, time: float) -> None:
        """Move it to `time` if that is earlier."""
        if time < self.at:
            self.at = time
            self.moved = True


class Deadlines(Generic[Entry]):
    """Entries in order of their first field, the time.

    Nothing is removed from the middle: `holds` tells whether an entry is still valid. Stale ones are dropped when they
    come to the front, or by a sweep over all entries, once they may be the larger part. Fields after the time must be
    comparable or unique. An entry should hold no data alive: a stale one may stay for as long as it was to last.
    """

    __slots__ = ("bound", "deduplicating", "entries", "holds", "horizon", "repeated", "unswept")

    def __init__(self, holds: Callable[[Entry], bool], horizon: Optional[Horizon] = None) -> None:
        self.entries: List[Entry] = []
        self.unswept: List[Entry] = []
        """Those that the current sweep has not checked: a heap too, and it stays one when its last entry is taken."""
        self.holds = holds
        self.horizon = Horizon() if horizon is None else horizon
        self.bound = 1024
        self.repeated = self.deduplicating = False
        """Whether entries may be there more than once, and whether the current sweep drops those that are."""

    def push(self, entry: Entry) -> None:
        horizon = self.horizon
        if entry[0] < horizon.at:
            horizon.note(entry[0])
        heappush(self.entries, entry)
        if len(self.entries) > self.bound:
            self._sweep()

    def push_again(self, entry: Entry) -> None:
        """Enter what is valid again, and may still be there: an undo doesn't know whether it was dropped meanwhile."""
        self.repeated = True
        self.push(entry)

    def _sweep(self) -> None:
        entries, rest, holds = self.entries, self.unswept, self.holds
        if not rest:
            if len(entries) <= SWEPT_AT_ONCE:
                valid = filter(holds, entries)
                self.rebuild(dict.fromkeys(valid) if self.repeated else valid)
                return
            self.entries, self.unswept = rest, entries
            self.bound = 0  # the sweep goes on with each push from now on
            self.deduplicating, self.repeated = self.repeated, False
            entries, rest = rest, entries
        for _ in range(min(SWEPT_PER_PUSH, len(rest))):
            entry = heappop(rest) if self.deduplicating else rest.pop()  # in order, equal ones follow each other
            if holds(entry) and not (self.deduplicating and rest and rest[0] == entry):
                heappush(entries, entry)
        if not rest:
            self.bound = 2 * len(entries) + 1024

    def rebuild(self, entries: Any) -> None:
        """Replace all entries."""
        self.entries = list(entries)
        self.unswept = []
        self.repeated = False
        heapify(self.entries)
        self.bound = 2 * len(self.entries) + 1024

    def _front(self) -> Optional[List[Entry]]:
        """Drop what is stale at the front; returns the heap that has the earliest entry, None where there is none."""
        holds = self.holds
        found: Optional[List[Entry]] = None
        for heap in (self.entries, self.unswept):
            while heap:
                if holds(heap[0]):
                    if found is None or heap[0] < found[0]:
                        found = heap
                    break
                heappop(heap)
        return found

    def first(self) -> Optional[float]:
        """Return the earliest time; None where there is none."""
        front = self._front()
        return None if front is None else front[0][0]

    def pop(self, now: float) -> Optional[Entry]:
        """Remove and return the earliest entry, if it is due by `now`."""
        front = self._front()
        return heappop(front) if front is not None and front[0][0] <= now else None
