"""A heap of deadlines whose entries may become stale (lazy deletion)."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Any, Callable, Generic, List, Optional, Tuple, TypeVar

__all__ = ["Deadlines"]

Entry = TypeVar("Entry", bound=Tuple[Any, ...])


class Deadlines(Generic[Entry]):
    """Entries in order of their first field, the time.

    Nothing is removed from the middle: `holds` tells whether an entry is still valid. Stale ones are dropped when they
    come to the front, or all at once when they may be the larger part. Fields after the
    time must be comparable or unique.
    """

    __slots__ = ("bound", "entries", "holds")

    def __init__(self, holds: Callable[[Entry], bool]) -> None:
        self.entries: List[Entry] = []
        self.holds = holds
        self.bound = 1024

    def push(self, entry: Entry) -> None:
        heappush(self.entries, entry)
        if len(self.entries) > self.bound:
            self.rebuild(filter(self.holds, self.entries))

    def rebuild(self, entries: Any) -> None:
        """Replace all entries."""
        self.entries = list(entries)
        heapify(self.entries)
        self.bound = 2 * len(self.entries) + 1024

    def first(self) -> Optional[float]:
        """Return the earliest time; None where there is none."""
        entries = self.entries
        while entries:
            if self.holds(entries[0]):
                time: float = entries[0][0]
                return time
            heappop(entries)
        return None

    def pop(self, now: float) -> Optional[Entry]:
        """Remove and return the earliest entry, if it is due by `now`."""
        entries = self.entries
        while entries and entries[0][0] <= now:
            entry = heappop(entries)
            if self.holds(entry):
                return entry
        return None
