"""Subscriptions to rooms: continue at the right offset after a lost connection, a deleted room or a full mailbox."""

from __future__ import annotations

from typing import Any, Callable, Optional

from msgspec import Struct

from synap import commands as c
from synap.client._async.calls import AsyncCalls
from synap.client._async.commits import AsyncCommits
from synap.client._async.subscription import Subscription
from synap.errors import EventsLostError, RoomNotFoundError, SynapError
from synap.results import HistoryResult, StreamEvent
from synap.wire.typed import as_type


class RoomSubscription(Subscription[StreamEvent]):
    """A subscription to a room.

    A durable one commits its position: an event is processed when its callback has returned, or when the iterator is
    asked for the next one.
    """

    def __init__(
        self,
        calls: AsyncCalls,
        room: str,
        callback: Optional[Callable[[StreamEvent], Any]],
        from_offset: Optional[int],
        replay: bool,
        name: Optional[str] = None,
        type: Any = None,
    ) -> None:
        super().__init__(calls, c.STREAM_SUBSCRIBE, callback, f"subscription to room {room!r}")
        self._room = room
        self._type = type
        """The type that data of events is converted to; None: no conversion."""
        self._from_offset = from_offset
        self._replay = replay
        self._durable = name
        if name is not None:
            self._commits = AsyncCommits(calls, room, name)
        self._handed: Optional[int] = None
        """Offset of the event that the iterator returned last."""
        self._first: Optional[int] = None
        """Offset of the first event, where it arrived before the answer with the start offset."""
        self._next: Optional[int] = None
        """Offset of the next event, once it is known."""
        self._asked: Optional[int] = None
        """The offset that was last subscribed from."""
        self._log = ""
        """The common prefix of the ids of the room's events; a room that was made again has another."""

    @property
    def room(self) -> str:
        """The room."""
        return self._room

    def _request(self) -> Struct:
        if self._next is None:
            return c.StreamSubscribe(self._room, self._from_offset, self._replay, self._durable)
        self._asked = self._next
        return c.StreamSubscribe(self._room, self._next, False, self._durable)

    async def _check_log(self) -> None:
        """Check whether the room still has the same log of events.

        Nobody is told of a deletion while the connection is lost, or the mailbox full. A durable service can't lose a
        room: where the log differs, the room was deleted meanwhile, and subscribing has made another. A service in
        memory was restarted, and the new log is read from its beginning. Events lost in a crash (with `fsync` other
        than always) leave offsets that are used again.
        """
        start = self._asked
        if not start or (not self._log and start == self._from_offset):
            return  # nothing was received that could be lost, and the room may not have this offset yet
        try:
            page: HistoryResult = await self._calls.call(c.STREAM_HISTORY, c.StreamHistory(self._room, -1, limit=1))
            anew = page.newest_offset < 0 or bool(self._log and page.events and _log_of(page.events[0]) != self._log)
            deleted = anew and (await self._calls.health()).get("durable", True)
        except SynapError:  # the connection was lost again, or the room deleted just now: both are reported
            return
        if deleted:
            message = f"the room {self._room!r} was deleted while it was not subscribed to"
            self._end(RoomNotFoundError("ROOM_NOT_FOUND", message, {"room": self._room}))
        elif anew or page.newest_offset + 1 < start:
            self._next = page.oldest_offset if anew else page.newest_offset + 1
            self._log = "" if anew else self._log
            self._feed = None
            held, self._held = self._held, None
            await self._end_at_service(held)
            await self._subscribe()

    def _subscribed(self, answer: c.SubscribedToRoom) -> None:
        if self._next is None:
            self._next = answer.next_offset
        elif self._first is not None:
            self._check_gap(answer.next_offset, self._first)
        self._first = None

    def _check_gap(self, expected: Optional[int], offset: int) -> None:
        """Report events that were removed before a durable subscription has seen them."""
        if self._durable is not None and expected is not None and offset > expected:
            self._calls.handlers.report_aside(
                f"{self._name} lost events",
                EventsLostError(
                    "EVENTS_LOST",
                    f"events {expected} to {offset - 1} of room {self._room!r} were removed by its retention before "
                    f"{self._durable!r} had seen them",
                    {"room": self._room, "from": expected, "to": offset - 1},
                ),
            )

    def _arrived(self, item: StreamEvent) -> None:
        if self._next is None:
            self._first = item.offset
        elif item.offset > self._next:
            self._check_gap(self._next, item.offset)
        if self._next is not None and item.offset < self._next:
            return
        if self._asked is not None and self._log and _log_of(item) != self._log:
            return  # of another log: `_check_log` decides where to continue
        if self._mailbox.put(item):
            self._next = item.offset + 1
            self._log = self._log or _log_of(item)
        elif not self._over.is_set():
            self._next = item.offset
            self._pause()

    async def __anext__(self) -> StreamEvent:
        if self._commits is not None and self._handed is not None:
            self._commits.done(self._handed)
        event = await super().__anext__()
        self._handed = event.offset
        return self._typed(event)

    async def unsubscribe(self) -> None:
        """End the subscription. Undelivered items are dropped, and no callback begins afterwards.

        A durable one commits its position, including the event that its iterator returned last.
        """
        await self._stop(processed=True)

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self._stop(processed=kind is None)

    async def _stop(self, *, processed: bool) -> None:
        """End the subscription. `processed`: whether the event that the iterator returned last is."""
        self.end()
        try:
            if self._commits is not None:
                if processed and self._handed is not None:
                    self._commits.done(self._handed)
                await self._commits.close()
        finally:
            await self._leave()

    def _invoke(self, item: StreamEvent) -> Any:
        assert self._callback is not None
        return self._callback(self._typed(item))

    def _typed(self, event: StreamEvent) -> StreamEvent:
        """Convert the event's data to the requested type; raises `WRONG_TYPE`."""
        if self._type is not None:
            as_type(event, "data", self._type, room=self._room, offset=event.offset)
        return event


def _log_of(event: StreamEvent) -> str:
    return event.event_id.rpartition("-")[0]
