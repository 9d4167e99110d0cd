"""Durable subscriptions: the position of each name in a room, and its current subscriber."""

from __future__ import annotations

from heapq import nsmallest
from typing import TYPE_CHECKING, Callable, Dict, List, Optional

from synap.engine import records as r
from synap.engine.core import Core
from synap.engine.limits import check_name
from synap.errors import SynapError, invalid
from synap.results import Cursor

if TYPE_CHECKING:
    from synap.engine.rooms import Room, RoomSubscription

NAME_COST = 200
"""Estimated bytes of a name beside its text."""


class Names:
    """The names of all rooms. A name's place is the offset of the first event that it has not processed."""

    def __init__(self, core: Core, drop: Callable[[RoomSubscription], None]) -> None:
        self.journal, self.budget, self.limits, self.effects = core.journal, core.budget, core.limits, core.effects
        self.drop = drop

    def enter(self, room: Room, name: str, first: int) -> int:
        """Return the place of a name; a new one starts at `first`, which is not beyond the room's next event."""
        place = room.places.get(name)
        if place is None:
            self.budget.check(self.check(room, room.name, name))
            self.put(room, name, first)
            place = first
        return place

    def check(self, room: Optional[Room], room_name: str, name: str) -> int:
        """Return the bytes that a name would take in a room, None for one to be made; raises where it can't have it."""
        known = {} if room is None else room.places
        if name in known:
            return 0
        check_name("name", name)
        if len(known) >= self.limits.names:
            raise too_many_names(room_name, len(known), self.limits.names)
        return NAME_COST + len(name)

    def take_over(self, subscription: RoomSubscription) -> None:
        """Make a subscription the one of its name; an earlier one ends with `SUPERSEDED`."""
        room, name = subscription.room, subscription.name
        older = room.followed_as.get(name)
        room.followed_as[name] = subscription
        if older is not None:
            self.drop(older)
            self.effects.do(older.caller.ended, older.id, superseded(room.name, name))

    def commit(self, room: Room, name: str, offset: int) -> None:
        """Record that a name has processed all events up to `offset`."""
        if not -1 <= offset < room.next:
            raise invalid("offset", f"that of an event of the room, -1 to {room.next - 1}", offset)
        self.enter(room, name, offset + 1)
        if room.places[name] != offset + 1:
            self.put(room, name, offset + 1)

    def forget(self, room: Room, name: str) -> bool:
        """Forget a name; returns whether it was known. Its subscription continues, no longer durable."""
        if name not in room.places:
            return False
        self.put(room, name, None)
        return True

    def listed(self, room: Room) -> List[Cursor]:
        """List the names in order, each with its cursor."""
        return [Cursor(name, place - 1, room.next - place) for name, place in sorted(room.places.items())]

    def lags(self, room: Room) -> Dict[str, int]:
        """Return the hundred names with the greatest lag, and that lag in events."""
        furthest = nsmallest(100, room.places.items(), key=lambda item: item[1])
        return {name: room.next - place for name, place in furthest}

    # ------------------------------------------------------------------------------------------ changing

    def put(self, room: Room, name: str, place: Optional[int]) -> None:
        """Set the place of a name; None forgets it."""
        journal = self.journal
        if journal.keep_undo:
            journal.undos.append((self._set, (room, name, room.places.get(name))))
        self._set(room, name, place)
        if journal.keep_records:
            journal.records.append((r.NAME, room.name, name, place))

    def _set(self, room: Room, name: str, place: Optional[int]) -> None:
        before = set_place(room.places, name, place)
        known = place is not None
        if known is not before:
            cost = NAME_COST + len(name)
            room.used += cost if known else -cost
            self.budget.used += cost if known else -cost


def set_place(places: Dict[str, int], name: str, place: Optional[int]) -> bool:
    """Set or remove a place; returns whether there was one."""
    before = name in places
    if place is not None:
        places[name] = place
    else:
        places.pop(name, None)
    return before


def superseded(room: str, name: str) -> SynapError:
    """Build the error for a subscription whose durable name another has taken over."""
    text = f"another subscriber took over {name!r} of the room {room!r}"
    return SynapError("SUPERSEDED", text, {"room": room, "name": name})


def too_many_names(room: str, known: int, limit: int) -> SynapError:
    """Build the error for a durable name that is one more than a room may have."""
    text = f"the room {room!r} knows {known} names, the most allowed; forget some"
    return SynapError("MEMORY_LIMIT", text, {"limit": limit})
