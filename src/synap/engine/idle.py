"""Queues and rooms that were made by use alone and hold nothing: they go once nobody has used them for a while.

A name that is looked at is looked at again that much later, and goes if nothing has happened to it in between; so it
goes after once or twice the time, and using it costs nothing more.
"""

from __future__ import annotations

from typing import List, Optional, Tuple, Union

from synap import commands as c
from synap.engine.deadlines import Deadlines
from synap.engine.priorities import Queue
from synap.engine.queuestore import QueueStore
from synap.engine.streams import Room, Streams

__all__ = ["Idle"]

Entry = Tuple[float, int, Union[Queue, Room], int]
"""When to look, a number of its own, at what, and how much it had been used then."""


class Idle:
    """Watches what was made by use. Does nothing without a limit."""

    def __init__(self, store: QueueStore, streams: Streams, age: Optional[float]) -> None:
        self.store = store
        self.streams = streams
        self.age = age
        self.looks: Deadlines[Entry] = Deadlines(lambda entry: self._may_go(entry[2]))
        self.count = 0
        if age is not None:
            store.made = []
            streams.made = []

    def _may_go(self, thing: Union[Queue, Room]) -> bool:
        """Say whether it is there, and was made by use alone."""
        if isinstance(thing, Queue):
            return thing.passing and self.store.queues.get(thing.name) is thing
        # Offsets must not begin anew, so a room stays once it has held an event.
        return thing.next == 0 and self.streams.by_name.get(thing.name) is thing

    def restored(self) -> None:
        """Watch what a restart found."""
        if self.store.made is not None and self.streams.made is not None:
            self.store.made = [queue for queue in self.store.queues.values() if queue.passing]
            self.streams.made = [room for room in self.streams.by_name.values() if not room.next]

    def next_deadline(self) -> Optional[float]:
        if self.age is None:
            return None
        if self.store.made or self.streams.made:
            return 0.0
        return self.looks.first()

    def advance(self, now: float, most: int) -> int:
        """Look at up to `most` that it is time for; returns how many."""
        if self.age is None:
            return 0
        made: List[Union[Queue, Room]] = [*(self.store.made or ()), *(self.streams.made or ())]
        if made:
            self.store.made, self.streams.made = [], []
            for thing in made:
                self._look_again(thing, now)
        for done in range(most):
            entry = self.looks.pop(now)
            if entry is None:
                return done
            thing, used = entry[2], entry[3]
            if isinstance(thing, Queue):
                if thing.depth or thing.waiters or thing.published + thing.consumed != used:
                    self._look_again(thing, now)
                else:
                    self.store.delete(thing)
            elif thing.subscriptions or thing.places:
                self._look_again(thing, now)
            else:
                self.streams.delete(c.StreamDelete(thing.name), now)
        return most

    def _look_again(self, thing: Union[Queue, Room], now: float) -> None:
        used = thing.published + thing.consumed if isinstance(thing, Queue) else 0
        self.count += 1
        self.looks.push((now + (self.age or 0.0), self.count, thing, used))
