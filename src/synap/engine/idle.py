"""Removes queues and rooms that were made by their first use, hold nothing, and have not been used for a while.

Each is checked once per `age` seconds and removed if nothing has happened to it since the last check: after once or
twice that time. So using a queue costs nothing extra.
"""

from __future__ import annotations

from typing import List, Optional, Tuple, Union

from synap import commands as c
from synap.engine.deadlines import Deadlines, Horizon
from synap.engine.priorities import Queue
from synap.engine.queuestore import QueueStore
from synap.engine.streams import Room, Streams

__all__ = ["Idle"]

Entry = Tuple[float, int, Union[Queue, Room], int]
"""(when to check, a unique number, the queue or room, how much it had been used at the last check)."""


class Idle:
    """Checks what was made by its first use. Without an `age` it does nothing."""

    def __init__(self, store: QueueStore, streams: Streams, age: Optional[float], horizon: Horizon) -> None:
        self.store = store
        self.streams = streams
        self.age = age
        self.checks: Deadlines[Entry] = Deadlines(lambda entry: self._may_go(entry[2]), horizon)
        self.count = 0
        if age is not None:
            store.made = []
            streams.made = []

    def _may_go(self, thing: Union[Queue, Room]) -> bool:
        """Return whether it exists and was made by its first use."""
        if isinstance(thing, Queue):
            return thing.implicit and self.store.queues.get(thing.name) is thing
        # A room that has held an event stays: its offsets must not start again at 0.
        return thing.next == 0 and self.streams.by_name.get(thing.name) is thing

    def restored(self) -> None:
        """Watch what was restored."""
        if self.store.made is not None and self.streams.made is not None:
            self.store.made = [queue for queue in self.store.queues.values() if queue.implicit]
            self.streams.made = [room for room in self.streams.by_name.values() if not room.next]

    def next_deadline(self) -> Optional[float]:
        if self.age is None:
            return None
        if self.store.made or self.streams.made:
            return 0.0
        return self.checks.first()

    def advance(self, now: float, most: int) -> int:
        """Check up to `most` that are due; returns how many."""
        if self.age is None:
            return 0
        made: List[Union[Queue, Room]] = [*(self.store.made or ()), *(self.streams.made or ())]
        if made:
            self.store.made, self.streams.made = [], []
            for thing in made:
                self._check_again(thing, now)
        for done in range(most):
            entry = self.checks.pop(now)
            if entry is None:
                return done
            thing, used = entry[2], entry[3]
            if isinstance(thing, Queue):
                if thing.depth or thing.waiters or thing.published + thing.consumed != used:
                    self._check_again(thing, now)
                else:
                    self.store.delete(thing)
            elif thing.subscriptions or thing.places:
                self._check_again(thing, now)
            else:
                self.streams.delete(c.StreamDelete(thing.name), now)
        return most

    def _check_again(self, thing: Union[Queue, Room], now: float) -> None:
        used = thing.published + thing.consumed if isinstance(thing, Queue) else 0
        self.count += 1
        self.checks.push((now + (self.age or 0.0), self.count, thing, used))
