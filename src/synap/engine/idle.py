"""Removes queues and rooms that were made by their first use, are empty, and have not been used for a while.

Each is checked once per `age` seconds and removed if it was not used since the last check: after once or twice that
time. So using a queue costs nothing extra.
"""

from __future__ import annotations

from typing import List, Optional, Tuple, Union

from synap import commands as c
from synap.engine.core import Core
from synap.engine.deadlines import Deadlines
from synap.engine.priorities import Queue
from synap.engine.queuestore import QueueStore
from synap.engine.rooms import Room
from synap.engine.streams import Streams

Entry = Tuple[float, int, bool, str, int]
"""(when to check, a unique number, whether it is a queue, its name, how much it had been used at the last check).

It counts while the queue or room of that name has its number: the newest entry only, however often an undo brings
something back.
"""


class Idle:
    """Checks queues and rooms that were made by their first use. Without an `age` it does nothing."""

    def __init__(self, core: Core, store: QueueStore, streams: Streams) -> None:
        self.age = age = core.limits.idle
        self.store = store
        self.streams = streams
        self.checks: Deadlines[Entry] = Deadlines(lambda entry: self._find(entry) is not None, core.horizon)
        self.count = 0
        if age is not None:
            store.made, streams.made = {}, {}

    def _find(self, entry: Entry) -> Union[Queue, Room, None]:
        """Return the queue or room of an entry that counts: one that was made by its first use, and may go."""
        _, number, is_queue, name, _ = entry
        if is_queue:
            queue = self.store.queues.get(name)
            return queue if queue is not None and queue.idle_check == number and queue.implicit else None
        room = self.streams.by_name.get(name)
        # A room that has held an event stays: its offsets must not start again at 0.
        return room if room is not None and room.idle_check == number and not room.next else None

    def restored(self) -> None:
        """Watch what was restored."""
        if self.store.made is not None and self.streams.made is not None:
            self.store.made = {queue: None for queue in self.store.queues.values() if queue.implicit}
            self.streams.made = {room: None for room in self.streams.by_name.values() if not room.next}

    def next_deadline(self) -> Optional[float]:
        if self.age is None:
            return None
        if self.store.made or self.streams.made:
            return 0.0
        return self.checks.first()

    def advance(self, now: float, most: int) -> None:
        """Check up to `most` that are due."""
        if self.age is None:
            return
        made: List[Union[Queue, Room]] = [*(self.store.made or ()), *(self.streams.made or ())]
        if made:
            self.store.made, self.streams.made = {}, {}
            for thing in made:
                self._check_again(thing, now)
        for _ in range(most):
            entry = self.checks.pop(now)
            if entry is None:
                return
            found = self._find(entry)
            if isinstance(found, Queue):
                if found.depth or found.waiters or found.published + found.consumed != entry[4]:
                    self._check_again(found, now)
                else:
                    self.store.delete(found)
            elif found is not None:
                if found.subscriptions or found.places:
                    self._check_again(found, now)
                else:
                    self.streams.delete(c.StreamDelete(found.name), now)

    def _check_again(self, thing: Union[Queue, Room], now: float) -> None:
        used = thing.published + thing.consumed if isinstance(thing, Queue) else 0
        self.count += 1
        thing.idle_check = self.count
        self.checks.push((now + (self.age or 0.0), self.count, isinstance(thing, Queue), thing.name, used))
