"""A room, the log of events that it is, and a subscription to it."""

from __future__ import annotations

from typing import Dict, List, Optional

from synap import commands as c
from synap.engine.callers import STEP, Caller, Steps
from synap.engine.priorities import headers_cost

EVENT_COST = 450
"""Estimated bytes of an event beside its data."""

_NOTHING: Dict[str, str] = {}


class RoomSubscription:
    """A subscription to a room, and the offset of its next event."""

    __slots__ = ("caller", "id", "lagging", "name", "next", "room")

    def __init__(self, id: int, caller: Caller, room: Room, next: int, name: str = "") -> None:
        self.id = id
        self.caller = caller
        self.room = room
        self.next = next
        self.lagging = next < room.next
        self.name = name
        """Its durable name; empty for one that is not durable."""

    def named(self) -> List[str]:
        """Return what it is subscribed to, for people."""
        return [self.room.name]


class Room:
    """A log of events: `events[first:]`. Those before are removed in bulk. `base` is the offset of `events[0]`."""

    __slots__ = (
        "base", "due", "events", "first", "followed_as", "idle_check", "incarnation", "name", "places", "prefix",
        "subscriptions", "used",
    )  # fmt: skip

    def __init__(self, name: str, incarnation: int) -> None:
        self.name = name
        self.incarnation = incarnation
        self.prefix = f"{incarnation:x}-"
        self.events: List[c.EventAnswer] = []
        self.places: Dict[str, int] = {}
        """For each durable name, the offset of the first event it has not processed."""
        self.followed_as: Dict[str, RoomSubscription] = {}
        """The current subscription of each durable name."""
        self.base = 0
        self.first = 0
        self.used = 0
        self.due: Optional[float] = None
        """When its oldest event is too old."""
        self.idle_check = 0
        """The number of the only entry of `idle` that counts."""
        self.subscriptions: Dict[int, RoomSubscription] = {}

    @property
    def oldest(self) -> int:
        return self.base + self.first

    @property
    def next(self) -> int:
        return self.base + len(self.events)

    def absolute(self, offset: int) -> int:
        """Resolve an offset that may count from the end."""
        return offset if offset >= 0 else max(self.next + offset, 0)

    def append(
        self, event_type: str, data: bytes, metadata: Optional[Dict[str, str]], timestamp: int, cost: int
    ) -> c.EventAnswer:
        """Add an event, which takes `cost` bytes as `event_cost` estimates them."""
        offset = self.base + len(self.events)
        event = c.EventAnswer(
            f"{self.prefix}{offset:x}", offset, event_type, data, timestamp, metadata or _NOTHING, self.name
        )
        self.events.append(event)
        self.used += cost
        return event

    def trim(self, count: int) -> List[c.EventAnswer]:
        """Remove the oldest `count` events, and return them."""
        first = self.first
        gone = self.events[first : first + count]
        self.first = first + len(gone)
        self.used -= events_cost(gone)
        if self.first > len(self.events) >> 3:
            del self.events[: self.first]
            self.base += self.first
            self.first = 0
        return gone

    def untrim(self, events: List[c.EventAnswer]) -> None:
        """Undo `trim`."""
        if self.first < len(events):  # they were removed in bulk; more may come back, and each time takes long
            spare = len(events) + (len(self.events) >> 3)
            self.events[:0] = events[:1] * spare
            self.base -= spare
            self.first += spare
        self.first -= len(events)
        self.events[self.first : self.first + len(events)] = events
        self.used += events_cost(events)

    def skip_to(self, offset: int) -> None:
        """Drop all events, and give the next one this offset."""
        self.events, self.base, self.first, self.used = [], offset, 0, 0


def event_cost(data: bytes, metadata: Optional[Dict[str, str]]) -> int:
    """Estimate the bytes that an event takes."""
    return EVENT_COST + len(data) + (headers_cost(metadata) if metadata else 0)


def events_cost(events: List[c.EventAnswer]) -> int:
    """Estimate the bytes that events take."""
    return sum([event_cost(event.data, event.metadata) for event in events])


def taken_apart(events: List[c.EventAnswer]) -> Steps:
    """Free the events of a deleted room in steps: a hundred thousand take long to be freed at once."""
    while events:
        del events[-STEP:]
        yield
