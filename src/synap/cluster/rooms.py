"""The event stream commands, and the subscriptions to rooms that are here.

A subscription either has got everything and is pushed events as they come, or it is read to from the room's log:
history is still to be sent, its caller had no room, or an event was missed. Events that come meanwhile are only noted,
by the highest offset, and read afterwards: answers and events come on two connections, in no order between them.
"""

from __future__ import annotations

import secrets
from typing import Any, Callable, Dict, List, Optional, Tuple

import msgspec

from synap import commands as c
from synap.cluster.calls import Call, Refused
from synap.cluster.channels import Channels
from synap.cluster.facility import Facility
from synap.cluster.link import Link
from synap.cluster.memory import Request
from synap.cluster.running import Running, begin_each
from synap.engine.callers import Caller
from synap.engine.limits import ANSWER_BYTES, Limits, check_name
from synap.engine.names import superseded, too_many_names
from synap.engine.streams import no_room, room_deleted, too_many
from synap.errors import EventsLostError, SynapError, invalid
from synap.results import Cursor

LEASE = 15_000
"""Milliseconds that a gateway's subscriptions count without a sign of life."""
PAGE = 256
PAGE_BYTES = 64 * 1024
"""Bytes of events that a subscription reads at once, but one event at least. What its caller refuses is read again: a
session of a gateway takes twice as much in a turn."""

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder().decode
_NOTHING: Dict[str, str] = {}


def events_lost(room: str, first: int, last: int) -> EventsLostError:
    """Build the error for events that a failover took."""
    text = f"the cluster lost events {first} to {last} of the room {room!r} in a failover; subscribe again to go on"
    return EventsLostError("EVENTS_LOST", text, {"room": room, "from": first, "to": last})


class RoomSubscription:
    """Who follows a room here, and the offset of the event that comes next."""

    __slots__ = ("answered", "caller", "early", "id", "inc", "lagging", "name", "next", "number", "reading", "room")

    def __init__(self, id: int, caller: Caller, room: Room, name: str) -> None:
        self.id = id
        self.caller = caller
        self.room = room
        self.name = name
        self.inc = b""
        """The room's inc that `next` counts under; none before it has joined."""
        self.number = 0
        """Of a durable name: a subscription with a greater one has taken it over."""
        self.next = 0
        self.lagging = True
        """Whether it waits for `resume`."""
        self.answered = False
        """Whether its caller has the answer."""
        self.early: List[bytes] = []
        """Messages about its end that came before its caller knew of it."""
        self.reading: Optional[Running] = None

    def named(self) -> List[str]:
        return [self.room.name]


class Room:
    """A room that is followed here."""

    __slots__ = ("inc", "name", "next", "partition", "subscriptions")

    def __init__(self, name: str, partition: int) -> None:
        self.name = name
        self.partition = partition
        self.inc = b""
        self.next = 0
        """The offset after the highest that is known here."""
        self.subscriptions: Dict[int, RoomSubscription] = {}


class Rooms(Facility):
    """The event stream facility: one method per command, named as it is."""

    def __init__(
        self, link: Link, channels: Channels, gateway: bytes, limits: Limits, next_subscription: Callable[[], int]
    ) -> None:
        super().__init__(link)
        self.channels = channels
        self.gateway = gateway
        self.limits = limits
        self.next_subscription = next_subscription
        self.followed: Dict[str, Room] = {}

    # ------------------------------------------------------------------------------------------ commands

    async def publish(self, p: c.StreamPublish, request: Request) -> c.PublishEventAnswer:
        check_name("room", p.room)
        check_name("event_type", p.event_type)
        arguments = (
            secrets.token_hex(8).encode(),
            b"%d" % self.limits.room_events,
            b"%d" % (self.limits.room_age * 1000),
            encode((p.event_type, p.data, p.metadata or None)),
        )
        inc, offset, _, notified = await self._write(request, "syn_s_publish", p.room, *arguments)
        return c.PublishEventAnswer(f"{inc.decode()}-{offset:x}", offset, notified)

    async def history(self, p: c.StreamHistory, request: Request) -> c.HistoryAnswer:
        first = b"" if p.from_offset is None else b"%d" % p.from_offset
        last = b"" if p.to_offset is None else b"%d" % p.to_offset
        inc, oldest, next, events, _ = await self._history(p.room, first, last, p.limit)
        return c.HistoryAnswer([_event(p.room, inc, entry) for entry in events], oldest, next - 1)

    async def _history(
        self, room: str, first: bytes, last: bytes, limit: int, most: int = ANSWER_BYTES, known: bytes = b""
    ) -> Any:
        partition = self.places.partition(room)
        _, head, events, _ = self.places.room(partition, room)
        try:
            return await self.read(
                partition, "syn_s_history", (head, events), (first, last, b"%d" % limit, b"%d" % most, known)
            )
        except Refused:
            raise no_room(room) from None

    async def rooms(self, p: c.StreamRooms, request: Request) -> c.RoomsAnswer:
        return c.RoomsAnswer(await self.names("stream.rooms", b"R"))

    async def stats(self, p: c.StreamStats, request: Request) -> c.RoomStatsAnswer:
        partition = self.places.partition(p.room)
        _, oldest, next, subscribers = await self.read(
            partition, "syn_s_stats", self.places.room(partition, p.room)[1:]
        )
        return c.RoomStatsAnswer(p.room, next - oldest, oldest, next - 1, subscribers, next)

    async def delete(self, p: c.StreamDelete, request: Request) -> c.RoomDeletedAnswer:
        await self._write(request, "syn_s_delete", p.room)
        return c.RoomDeletedAnswer(True)

    def _write(self, request: Request, function: str, room: str, *arguments: bytes) -> Call:
        """Call a function that changes a room; what it answers is remembered under the request."""
        partition = self.places.partition(room)
        return self.write(request, partition, function, self.places.room(partition, room), (room.encode(), *arguments))

    # ------------------------------------------------------------------------------------------ subscriptions

    async def subscribe(self, p: c.StreamSubscribe, caller: Caller) -> c.SubscribedToRoom:
        """The first event comes once the host calls `resume`."""
        check_name("room", p.room)
        if len(caller.subscriptions) >= self.limits.subscriptions:
            raise too_many(self.limits.subscriptions)
        name = p.name or ""
        if name:
            check_name("name", name)
        first = (b"oldest" if p.replay else b"next") if p.from_offset is None else b"%d" % p.from_offset
        room = self.followed.get(p.room)
        if room is None:
            room = self.followed[p.room] = Room(p.room, self.places.partition(p.room))
        subscription = RoomSubscription(self.next_subscription(), caller, room, name)
        room.subscriptions[subscription.id] = subscription
        try:
            await self.channels.listen(room.partition, self.places.room(room.partition, room.name)[3])
            inc, oldest, next, cursor, number = await self._join(room, name, first)
            subscription.inc = inc
        except Refused as refused:
            raise too_many_names(p.room, int(refused.text), self.limits.names) from None
        finally:
            if not subscription.inc:
                self.drop(subscription)
        self._note_newest(room, inc, next)
        subscription.number = int(number)
        if p.from_offset is not None:
            start = max(p.from_offset if p.from_offset >= 0 else max(next + p.from_offset, 0), oldest)
        elif cursor != b"":
            start = int(cursor)
        else:
            start = oldest if p.replay else next
        subscription.next = max(start, oldest)
        caller.subscriptions[subscription.id] = subscription
        return c.SubscribedToRoom(subscription.id, p.room, start)

    def _join(self, room: Room, name: str, first: bytes) -> Call:
        """Tell the room how many follow it here, and take a name over; makes the room where it isn't there."""
        most = b"%d" % self.limits.names
        arguments = (secrets.token_hex(8).encode(), *self._following(room), name.encode(), first, most)
        return self._change(room, "syn_s_join", *arguments)

    def _following(self, room: Room) -> Tuple[bytes, ...]:
        return self.gateway, b"%d" % len(room.subscriptions), b"%d" % LEASE

    def _change(self, room: Room, function: str, *arguments: bytes) -> Call:
        keys = (self.places.memory(room.partition, b""), *self.places.room(room.partition, room.name))
        return self.link.call(room.partition, function, keys, (b"", b"", room.name.encode(), *arguments))

    async def unsubscribe(self, p: c.StreamUnsubscribe, caller: Caller) -> c.UnsubscribedAnswer:
        subscription = caller.subscriptions.get(p.subscription_id)
        if not isinstance(subscription, RoomSubscription):
            return c.UnsubscribedAnswer(False)
        left = self.drop(subscription)
        if left is not None:
            await left
        return c.UnsubscribedAnswer(True)

    def drop(self, subscription: RoomSubscription) -> Optional[Call]:
        """End a subscription; returns the call that informs its room, None where it had ended."""
        room = subscription.room
        subscription.caller.subscriptions.pop(subscription.id, None)
        if room.subscriptions.pop(subscription.id, None) is None:
            return None
        if subscription.reading is not None:
            subscription.reading.cancel()
            subscription.reading = None
        if not room.subscriptions and self.followed.get(room.name) is room:
            del self.followed[room.name]
            self.channels.quit(self.places.room(room.partition, room.name)[3])
        return self._change(room, "syn_s_leave", *self._following(room))

    def _end(self, subscription: RoomSubscription, error: SynapError) -> None:
        self.drop(subscription)
        subscription.caller.ended(subscription.id, error)

    # ------------------------------------------------------------------------------------------ events

    def resume(self, subscription: RoomSubscription) -> bool:
        """Begin to push from the room's log, up to its end or until the caller is full. Always returns True."""
        subscription.lagging = False
        if not subscription.answered:
            subscription.answered = True
            for message in subscription.early:
                self._end_of(subscription, message)
        self._read(subscription)
        return True

    def _read(self, subscription: RoomSubscription) -> None:
        if (
            subscription.reading is None
            and not subscription.lagging
            and subscription.id in subscription.room.subscriptions
        ):
            subscription.reading = running = Running(self._read_on(subscription))

            def done() -> None:
                if subscription.reading is running:
                    subscription.reading = None
                if running.error is not None:
                    if isinstance(running.error, SynapError):
                        self._end(subscription, running.error)
                    else:
                        raise running.error

            running.start().when_done(done)

    async def _read_on(self, subscription: RoomSubscription) -> None:
        room = subscription.room
        while True:
            first, known = b"%d" % subscription.next, (room.inc, room.next)
            inc, oldest, next, events, kept = await self._history(
                room.name, first, b"", PAGE, PAGE_BYTES, subscription.inc
            )
            if inc == known[0] and next < known[1]:  # a failover took the last ones back, and nothing came since
                room.next = next
            self._note_newest(room, inc, next)
            if kept == -1:  # and made again
                raise room_deleted(room.name)
            kept = next if kept == b"" else kept
            if kept < subscription.next:
                raise events_lost(room.name, kept, subscription.next - 1)
            subscription.inc = inc
            subscription.next = max(subscription.next, oldest)  # what retention has removed is skipped
            for entry in events:
                event = _event(room.name, inc, entry)
                if not subscription.caller.push(subscription.id, event):
                    subscription.lagging = True
                    return
                subscription.next = event.offset + 1
            if subscription.next >= room.next and subscription.inc == room.inc:
                return

    def _note_newest(self, room: Room, inc: bytes, next: int) -> None:
        """Note a room's newest event. Where another node has the room now, events may be lost, so its log is read."""
        if room.inc == inc:
            room.next = max(room.next, next)
            return
        room.inc = inc
        room.next = next
        for subscription in list(room.subscriptions.values()):
            if subscription.inc not in (b"", inc):
                self._read(subscription)

    def received(self, name: str, message: bytes) -> None:
        """Process a message of a room's channel."""
        room = self.followed.get(name)
        if room is None:
            return
        if message.startswith((b"gone ", b"over ")):
            for subscription in list(room.subscriptions.values()):
                if subscription.answered:
                    self._end_of(subscription, message)
                else:
                    subscription.early.append(message)
            return
        inc, number, seconds, packed = message.split(b" ", 3)
        offset = int(number)
        self._note_newest(room, inc, offset + 1)
        event = None
        for subscription in list(room.subscriptions.values()):
            if subscription.lagging or subscription.reading is not None or subscription.inc != inc:
                continue
            if subscription.next == offset:
                event = event or _make_event(name, inc, offset, int(seconds), packed)
                if subscription.caller.push(subscription.id, event):
                    subscription.next = offset + 1
                else:
                    subscription.lagging = True
            elif subscription.next < offset:
                self._read(subscription)

    def _end_of(self, subscription: RoomSubscription, message: bytes) -> None:
        """End a subscription where a message means that: it may have been sent before the subscription began."""
        room = subscription.room
        if message.startswith(b"gone "):
            if message[5:] == subscription.inc:
                self._end(subscription, room_deleted(room.name))
            return
        _, number, name = message.split(b" ", 2)
        if subscription.name.encode() == name and int(number) > subscription.number:
            self._end(subscription, superseded(room.name, subscription.name))

    def look_again(self, names: List[str]) -> None:
        """Renew what rooms know of this gateway, and find out what was missed, in slices."""
        Running(begin_each(lambda name: Running(self._look_again(name)).start(), names, self.link.soon)).start()

    async def _look_again(self, name: str) -> None:
        room = self.followed.get(name)
        if room is None:
            return
        joined = [subscription for subscription in room.subscriptions.values() if subscription.answered]
        named = [subscription for subscription in joined if subscription.name]
        names = [subscription.name.encode() for subscription in named]
        try:
            inc, next, *numbers = await self._change(room, "syn_s_alive", *self._following(room), *names)
        except Refused:
            for subscription in joined:
                if subscription.id in room.subscriptions:
                    self._end(subscription, room_deleted(room.name))
            return
        except SynapError:
            return
        for subscription, number in zip(named, numbers):
            if subscription.id in room.subscriptions:
                self._end_of(subscription, b"over %s %s" % (number, subscription.name.encode()))
        self._note_newest(room, inc, next)
        for subscription in list(room.subscriptions.values()):
            if subscription.next != next:  # behind, or ahead of a node that lacks what others had
                self._read(subscription)

    # ------------------------------------------------------------------------------------------ durable names

    async def commit(self, p: c.StreamCommit, request: Request) -> c.SuccessAnswer:
        """Record that a name has processed all events up to an offset."""
        check_name("name", p.name)
        most = b"%d" % self.limits.names
        try:
            await self._write(request, "syn_s_commit", p.room, p.name.encode(), b"%d" % p.offset, most)
        except Refused as refused:
            if refused.code == "NAMES":
                raise too_many_names(p.room, int(refused.text), self.limits.names) from None
            if refused.code != "INVALID_PAYLOAD":
                raise
            raise invalid("offset", f"that of an event of the room, -1 to {refused.text}", p.offset) from None
        return c.SuccessAnswer()

    async def forget(self, p: c.StreamForget, request: Request) -> c.ForgottenAnswer:
        """Forget a name; its subscription continues, no longer durable."""
        (known,) = await self._write(request, "syn_s_forget", p.room, p.name.encode())
        return c.ForgottenAnswer(bool(known))

    async def cursors(self, p: c.StreamCursors, request: Request) -> c.CursorsAnswer:
        """List the names of a room, each with its cursor."""
        partition = self.places.partition(p.room)
        next, *found = await self.read(partition, "syn_s_cursors", self.places.room(partition, p.room)[1:2])
        names = sorted(zip((name.decode() for name in found[::2]), map(int, found[1::2])))
        return c.CursorsAnswer([Cursor(name, place - 1, next - place) for name, place in names])


def _event(room: str, inc: bytes, entry: Any) -> c.EventAnswer:
    id, (_, seconds, _, packed) = entry
    return _make_event(room, inc, int(id.split(b"-")[0]) - 1, int(seconds), packed)


def _make_event(room: str, inc: bytes, offset: int, seconds: int, packed: bytes) -> c.EventAnswer:
    event_type, data, metadata = decode(packed)
    return c.EventAnswer(f"{inc.decode()}-{offset:x}", offset, event_type, data, seconds, metadata or _NOTHING, room)
