"""Rooms: logs of events, and their subscriptions.

A subscription is either up to date, and events are pushed to it as they are published, or it lags: history is still to
be sent, or its caller's buffer was full. `resume` then reads on from the log, so there is one copy of the events,
however many subscribers are behind.
"""

from __future__ import annotations

from collections import deque
from typing import Deque, Dict, Iterator, List, Optional, Tuple, Union

from synap import commands as c
from synap.engine import records as r
from synap.engine.callers import STEP, Caller, Steps, at_once, in_order
from synap.engine.core import WORK, Core
from synap.engine.deadlines import Deadlines
from synap.engine.journal import Record, paged
from synap.engine.limits import check_name, fitting
from synap.engine.names import NAME_COST, Names, set_place
from synap.engine.rooms import EVENT_COST, Room, RoomSubscription, event_cost, events_cost, taken_apart
from synap.errors import RoomNotFoundError, SynapError

ROOM_COST = 1100
"""Estimated bytes of a room beside its name and its events."""
SUBSCRIPTION_COST = 500
"""Estimated bytes of a subscription."""
EVENTS_AT_ONCE = 2_000
"""Events that are removed at once because they are too old."""

AgeEntry = Tuple[float, int, str, int]
"""(when an event is too old, incarnation of its room, name, its offset): the room isn't held, which may be gone by
then. So may the event, which was the oldest."""


class Streams:
    """The event stream facility: one method per command, named as it is."""

    def __init__(self, core: Core) -> None:
        self.journal, self.budget, self.limits, self.effects = core.journal, core.budget, core.limits, core.effects
        self.ids, self.leftovers, self.horizon, self.timeline = core.ids, core.leftovers, core.horizon, core.timeline
        self.next_subscription = core.next_subscription
        self.by_name: Dict[str, Room] = {}
        self.names = Names(core, self.drop)
        self.made: Optional[Dict[Room, None]] = None
        """Rooms that `idle` is still to watch: new, or brought back by an undo. None where unused rooms are kept."""
        self._deleted: Deque[Room] = deque()
        """Rooms whose subscriptions are being ended."""
        self.ages: Deadlines[AgeEntry] = Deadlines(self._age_holds, core.horizon)

    # ------------------------------------------------------------------------------------------ commands

    def publish(self, p: c.StreamPublish, now: float) -> c.PublishEventAnswer:
        data: bytes = p.data
        cost = event_cost(data, p.metadata) if p.metadata else EVENT_COST + len(data)
        if not p.event_type.isascii():
            check_name("event_type", p.event_type)
        room = self.by_name.get(p.room)
        if room is None:
            room = self._make(p.room, beside=cost)
        elif self.budget.used + cost > self.budget.limit:
            self.budget.make_room(cost)
        event = room.append(p.event_type, data, p.metadata, int(self.timeline.shown(now)), cost)
        self.budget.used += cost
        journal = self.journal
        if journal.keep_undo:
            journal.undos.append((self._unpublish, (room,)))
        if journal.keep_records:
            record = (r.EVENT, room.name, event.offset, p.event_type, data, p.metadata or None, event.timestamp)
            journal.records.append(record)
        if len(room.events) - room.first > self.limits.room_events:
            self._trim(room, 1)
        if room.due is None:
            self._watch(room)
        if room.subscriptions:
            if self.effects.held is None:
                self._push(room, event)
            else:
                self.effects.do(self._push, room, event, to=len(room.subscriptions))
        return c.PublishEventAnswer(event.event_id, event.offset, len(room.subscriptions))

    def subscribe(self, p: c.StreamSubscribe, now: float, caller: Caller) -> c.SubscribedToRoom:
        """Subscribe. History is pushed later: the host calls `Engine.resume` once the answer is sent."""
        if len(caller.subscriptions) >= self.limits.subscriptions:
            raise too_many(self.limits.subscriptions)
        room = self.by_name.get(p.room)
        cost = SUBSCRIPTION_COST
        if p.name is not None:
            cost += self.names.check(room, p.room, p.name)
        if room is None:
            room = self._make(p.room, beside=cost)
        else:
            self.budget.check(cost)
        if p.from_offset is not None:
            start = max(room.absolute(p.from_offset), room.oldest)
        else:
            start = room.oldest if p.replay else room.next
        if p.name is not None:
            place = self.names.enter(room, p.name, min(start, room.next))
            start = start if p.from_offset is not None else place
        next = max(start, room.oldest)
        self.budget.set_aside(SUBSCRIPTION_COST)
        subscription = RoomSubscription(self.next_subscription(), caller, room, next, p.name or "")
        room.subscriptions[subscription.id] = caller.subscriptions[subscription.id] = subscription
        if p.name is not None:
            self.names.take_over(subscription)
        return c.SubscribedToRoom(subscription.id, room.name, start)

    def commit(self, p: c.StreamCommit, now: float) -> c.SuccessAnswer:
        self.names.commit(self._find(p.room), p.name, p.offset)
        return c.SuccessAnswer()

    def forget(self, p: c.StreamForget, now: float) -> c.ForgottenAnswer:
        return c.ForgottenAnswer(self.names.forget(self._find(p.room), p.name))

    def cursors(self, p: c.StreamCursors, now: float) -> c.CursorsAnswer:
        return c.CursorsAnswer(self.names.listed(self._find(p.room)))

    def unsubscribe(self, p: c.StreamUnsubscribe, now: float, caller: Caller) -> c.UnsubscribedAnswer:
        subscription = caller.subscriptions.get(p.subscription_id)
        if not isinstance(subscription, RoomSubscription):
            return c.UnsubscribedAnswer(False)
        self.drop(subscription)
        return c.UnsubscribedAnswer(True)

    def history(self, p: c.StreamHistory, now: float) -> c.HistoryAnswer:
        """Read a page of events. Negative offsets count from the end: -1 is the newest event.

        A page ends early where its events are large; it holds at least one, where there is any.
        """
        room = self._find(p.room)
        start = room.oldest if p.from_offset is None else max(room.absolute(p.from_offset), room.oldest)
        stop = room.next
        if p.to_offset is not None:
            stop = min(stop, (p.to_offset if p.to_offset >= 0 else room.next + p.to_offset) + 1)
        stop = min(stop, start + p.limit)
        events = room.events[start - room.base : stop - room.base] if start < stop else []
        return c.HistoryAnswer(fitting(events), room.oldest, room.next - 1)

    def rooms(self, p: c.StreamRooms, now: float) -> Union[c.RoomsAnswer, Steps]:
        return at_once(self._rooms(), len(self.by_name))

    def _rooms(self) -> Steps:
        return c.RoomsAnswer((yield from in_order(self.by_name)))

    def stats(self, p: c.StreamStats, now: float) -> c.RoomStatsAnswer:
        room = self._find(p.room)
        subscribers = len(room.subscriptions)
        return c.RoomStatsAnswer(room.name, room.next - room.oldest, room.oldest, room.next - 1, subscribers, room.next)

    def delete(self, p: c.StreamDelete, now: float) -> c.RoomDeletedAnswer:
        room = self._find(p.room)
        del self.by_name[room.name]
        self.budget.used -= ROOM_COST + len(room.name) + room.used
        if self.journal.keep_undo:
            self.journal.undos.append((self._undelete, (room, dict(room.subscriptions))))
        if self.journal.keep_records:
            self.journal.records.append((r.ROOM_GONE, room.name))
        if room.subscriptions:
            self.effects.do(self._end, room, to=len(room.subscriptions))
        if len(room.events) > STEP:
            self.effects.do(self.leftovers.hold, room, taken_apart(room.events))
        return c.RoomDeletedAnswer(True)

    # ------------------------------------------------------------------------------------------ rooms

    def _find(self, name: str) -> Room:
        room = self.by_name.get(name)
        if room is None:
            raise no_room(name)
        return room

    def _make(self, name: str, *, beside: int) -> Room:
        """Make a room, or raise where it can't be made or not with `beside` more bytes held."""
        check_name("room", name)
        if len(self.by_name) >= self.limits.rooms:
            raise SynapError("MEMORY_LIMIT", f"there are {len(self.by_name)} rooms already, the most allowed")
        cost = ROOM_COST + len(name)
        self.budget.check(cost + beside)
        room = Room(name, self.ids())
        if self.journal.keep_records:
            self.journal.records.append((r.ROOM, name, room.incarnation))
        if self.journal.keep_undo:
            self.journal.undos.append((self._unmake, (room,)))
        self.budget.used += cost
        self.by_name[name] = room
        self._watch_idle(room)
        return room

    def _watch_idle(self, room: Room) -> None:
        """Have `idle` check a room that may be removed, since it is new or was restored by an undo."""
        if self.made is not None and not room.next:
            self.made[room] = None
            self.horizon.note(0.0)

    def _unmake(self, room: Room) -> None:
        for subscription in list(room.subscriptions.values()):
            self.drop(subscription)
        if self.by_name.get(room.name) is room:
            del self.by_name[room.name]
            self.budget.used -= ROOM_COST + len(room.name)

    def _undelete(self, room: Room, subscriptions: Dict[int, RoomSubscription]) -> None:
        self.leftovers.came_back(room)
        self.by_name[room.name] = room
        self.budget.used += ROOM_COST + len(room.name) + room.used
        room.subscriptions = subscriptions
        for subscription in subscriptions.values():
            if subscription.id not in subscription.caller.subscriptions:
                self.budget.set_aside(SUBSCRIPTION_COST)
            subscription.caller.subscriptions[subscription.id] = subscription
            if subscription.name:
                room.followed_as[subscription.name] = subscription
        self._watch(room, again=True)
        self._watch_idle(room)

    def _unpublish(self, room: Room) -> None:
        event = room.events.pop()
        cost = event_cost(event.data, event.metadata)
        room.used -= cost
        self.budget.used -= cost
        for subscription in room.subscriptions.values():
            if subscription.next == event.offset + 1:
                subscription.next = event.offset
        if room.first == len(room.events):
            room.due = None
        self._watch_idle(room)

    def _trim(self, room: Room, count: int) -> None:
        used = room.used
        gone = room.trim(count)
        self.budget.used -= used - room.used
        if self.journal.keep_undo:
            self.journal.undos.append((self._untrim, (room, gone)))

    def _untrim(self, room: Room, events: List[c.EventAnswer]) -> None:
        room.untrim(events)
        self.budget.used += events_cost(events)
        self._watch(room, again=True)

    # ------------------------------------------------------------------------------------------ subscribers

    def _push(self, room: Room, event: c.EventAnswer) -> None:
        offset = event.offset
        for subscription in list(room.subscriptions.values()):
            if subscription.next == offset and not subscription.lagging:
                if subscription.caller.try_push(subscription.id, event):
                    subscription.next = offset + 1
                else:
                    subscription.lagging = True

    def resume(self, subscription: RoomSubscription) -> bool:
        """Push from the log until its end, or until the caller is full; returns whether all was pushed."""
        room, caller = subscription.room, subscription.caller
        while True:
            start = max(subscription.next, room.oldest)
            events = room.events[start - room.base : start - room.base + 256]
            for event in events:
                if not caller.try_push(subscription.id, event):
                    subscription.lagging = True
                    return False
                subscription.next = event.offset + 1
            if not events:
                subscription.lagging = False
                return True

    def drop(self, subscription: RoomSubscription) -> None:
        """End a subscription; its durable name stays."""
        followed_as, name = subscription.room.followed_as, subscription.name
        if name and followed_as.get(name) is subscription:
            del followed_as[name]
        subscription.room.subscriptions.pop(subscription.id, None)
        if subscription.caller.subscriptions.pop(subscription.id, None) is not None:
            self.budget.set_aside(-SUBSCRIPTION_COST)

    def _end(self, room: Room) -> None:
        """End all subscriptions to a room, which was deleted: the most of many in `advance`."""
        self._deleted.append(room)
        self._end_some(WORK)
        if self._deleted:
            self.horizon.note(0.0)

    def _end_some(self, most: int) -> None:
        """End up to `most` subscriptions whose room was deleted, and was not brought back by an undo."""
        while self._deleted and most:
            room = self._deleted[0]
            if not room.subscriptions or self.by_name.get(room.name) is room:
                self._deleted.popleft()
                continue
            most -= 1
            subscription = next(iter(room.subscriptions.values()))
            self.drop(subscription)
            subscription.caller.ended(subscription.id, room_deleted(room.name))

    # ------------------------------------------------------------------------------------------ time

    def _age_holds(self, entry: AgeEntry) -> bool:
        room = self.by_name.get(entry[2])
        return room is not None and room.due == entry[0] and room.incarnation == entry[1]

    def _watch(self, room: Room, *, again: bool = False) -> None:
        """Schedule the retention of the room's oldest event; `again`: as an undo, where it may still be scheduled."""
        room.due = None
        if room.first < len(room.events):
            room.due = self.timeline.time(room.events[room.first].timestamp) + self.limits.room_age
            (self.ages.push_again if again else self.ages.push)((room.due, room.incarnation, room.name, room.oldest))

    def next_deadline(self) -> Optional[float]:
        return 0.0 if self._deleted else self.ages.first()

    def advance(self, now: float, most: int) -> None:
        """Remove events that are too old, in up to `most` rooms. Of very many, some are left for the next call."""
        self._end_some(most)
        left = EVENTS_AT_ONCE
        for _ in range(most):
            entry = self.ages.pop(now) if left else None
            if entry is None:
                return
            room = self.by_name[entry[2]]
            if room.oldest == entry[3]:  # else newer ones have taken its place
                end = room.first + 1  # though its timestamp alone may not tell: a clock set back shows it twice
                last = min(len(room.events), room.first + left)
                before = now - self.limits.room_age
                while end < last and self.timeline.time(room.events[end].timestamp) <= before:
                    end += 1
                left -= end - room.first
                self._trim(room, end - room.first)
                if self.journal.keep_records:
                    self.journal.records.append((r.TRIMMED, room.name, room.oldest))
            self._watch(room)

    # ------------------------------------------------------------------------------------------ restart

    def restore(self, record: Record) -> None:
        kind, name = record[0], record[1]
        room = self.by_name.get(name)
        if kind == r.ROOM:
            if room is None or room.incarnation != record[2]:
                self.by_name[name] = Room(name, record[2])
        elif room is None:
            return
        elif kind == r.EVENT:
            _, _, offset, event_type, data, metadata, timestamp = record
            if offset > room.next:
                room.skip_to(offset)
            if offset == room.next:
                room.append(event_type, data, metadata, timestamp, event_cost(data, metadata))
                if len(room.events) - room.first > self.limits.room_events:
                    room.trim(1)
        elif kind == r.ROOM_GONE:
            del self.by_name[name]
        elif kind == r.NAME:
            set_place(room.places, record[2], record[3])
        elif record[2] >= room.next:
            room.skip_to(record[2])
        elif record[2] > room.oldest:
            room.trim(record[2] - room.oldest)

    def restored(self) -> None:
        for room in self.by_name.values():
            room.used += sum(NAME_COST + len(name) for name in room.places)
            self.budget.used += ROOM_COST + len(room.name) + room.used
            self._watch(room)

    def dump(self, slice_size: int, slice_bytes: int) -> Iterator[List[Record]]:
        return paged(self._all(), slice_size, slice_bytes)

    def _all(self) -> Iterator[Tuple[List[Record], int]]:
        for room in list(self.by_name.values()):
            if self.by_name.get(room.name) is not room:
                continue
            places: List[Record] = [(r.NAME, room.name, name, place) for name, place in room.places.items()]
            yield [(r.ROOM, room.name, room.incarnation), (r.TRIMMED, room.name, room.oldest), *places], 0
            offset, end = room.oldest, room.next  # what is published meanwhile is in the journal
            while self.by_name.get(room.name) is room:
                offset = max(offset, room.oldest)
                if offset >= end:
                    break
                event = room.events[offset - room.base]
                content = (event.event_type, event.data, event.metadata or None, event.timestamp)
                yield [(r.EVENT, room.name, offset, *content)], len(event.data)
                offset += 1


def no_room(name: str) -> RoomNotFoundError:
    """Build the error for a room that isn't there."""
    return RoomNotFoundError("ROOM_NOT_FOUND", f"there is no room {name!r}", {"room": name})


def room_deleted(name: str) -> RoomNotFoundError:
    """Build the error for the subscribers of a room that was deleted."""
    return RoomNotFoundError("ROOM_NOT_FOUND", f"the room {name!r} was deleted", {"room": name})


def too_many(limit: int) -> SynapError:
    """Build the error for a caller with too many subscriptions."""
    return SynapError("INVALID_REQUEST", f"one connection may have at most {limit} subscriptions", {"limit": limit})
