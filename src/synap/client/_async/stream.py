"""Event streams: `client.stream`."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Type, TypeVar, overload

from synap import commands as c
from synap.client._async.calls import AsyncCalls
from synap.client._async.room_subscription import RoomSubscription
from synap.client._async.subscription import Subscription
from synap.client.checks import check_callback, text, texts
from synap.results import Cursor, HistoryResult, PublishEventResult, RoomStats, StreamEvent
from synap.wire.typed import as_type, check_type

T = TypeVar("T")


class AsyncStreams:
    """Rooms: logs of events with offsets from 0, without gaps."""

    __slots__ = ("_call", "_calls")

    def __init__(self, calls: AsyncCalls) -> None:
        self._calls = calls
        self._call = calls.call

    async def publish(
        self, room: str, event_type: str, data: Any, metadata: Optional[Dict[str, str]] = None
    ) -> PublishEventResult:
        """Append an event to `room`; the first one makes the room.

        `event_type`: 1 to 256 bytes of UTF-8. `data`: anything JSON can hold. `metadata`: up to 128 strings named by
        strings. Raises `MEMORY_LIMIT` where the service is full.
        """
        payload = c.StreamPublish(text("room", room), text("event_type", event_type), data, texts("metadata", metadata))
        result: PublishEventResult = await self._call(c.STREAM_PUBLISH, payload)
        return result

    @overload
    async def subscribe(
        self,
        room: str,
        callback: Optional[Callable[[StreamEvent[T]], Any]] = ...,
        from_offset: Optional[int] = ...,
        replay: bool = ...,
        *,
        name: Optional[str] = ...,
        type: Type[T],
    ) -> Subscription[StreamEvent[T]]: ...

    @overload
    async def subscribe(
        self,
        room: str,
        callback: Optional[Callable[[StreamEvent], Any]] = ...,
        from_offset: Optional[int] = ...,
        replay: bool = ...,
        *,
        name: Optional[str] = ...,
        type: object = ...,
    ) -> Subscription[StreamEvent]: ...

    async def subscribe(
        self,
        room: str,
        callback: Optional[Callable[[StreamEvent], Any]] = None,
        from_offset: Optional[int] = None,
        replay: bool = False,
        *,
        name: Optional[str] = None,
        type: Any = None,
    ) -> Subscription[StreamEvent]:
        """Have the events of `room` handed to `callback`, or, without one, iterate over the result with `async for`.

        `from_offset` n begins there, -n at the last n events; `replay` alone at the oldest; neither, with what comes
        next. In order, without gap or repeat, also across a lost connection. A callback may be a coroutine function;
        one that raises is logged, reported to `on('error')` and called again for the next event. One that is slow falls
        behind and loses nothing but what the room's retention removes meanwhile.

        With a `name` it is durable: the service keeps how far the name has got, and without `from_offset` it continues
        there, the first time as `replay` says. An event is done when the callback has returned, or when the iterator is
        asked for the next one; that is committed within a second, and by `unsubscribe()`. So an event may come again
        after a crash, and none is left out; what retention removed before it was seen is reported to `on('error')` as
        `EventsLostError`. A newer subscriber of the same name ends this one with `SUPERSEDED`.

        With a `type` the data of events is checked and comes as an object of it. An event that doesn't fit is
        `WRONG_TYPE`, reported to `on('error')` or raised by the iterator, and the next one follows.

        A room that doesn't exist is made.
        """
        check_callback(callback)
        if type is not None:
            check_type(type)
        subscription = RoomSubscription(
            self._calls,
            text("room", room),
            callback,
            from_offset,
            replay,
            name if name is None else text("name", name),
            type,
        )
        await subscription.start()
        return subscription

    @overload
    async def history(
        self,
        room: str,
        from_offset: Optional[int] = ...,
        to_offset: Optional[int] = ...,
        limit: int = ...,
        *,
        type: Type[T],
    ) -> HistoryResult[T]: ...

    @overload
    async def history(
        self,
        room: str,
        from_offset: Optional[int] = ...,
        to_offset: Optional[int] = ...,
        limit: int = ...,
        *,
        type: object = ...,
    ) -> HistoryResult: ...

    async def history(
        self,
        room: str,
        from_offset: Optional[int] = None,
        to_offset: Optional[int] = None,
        limit: int = 100,
        *,
        type: Any = None,
    ) -> HistoryResult:
        """Read events of `room` from `from_offset` to `to_offset`, both inclusive, at most `limit` (1..10000).

        Offsets below 0 count from the end: -1 is the newest event. Left out, they are the oldest and the newest. A page
        ends earlier after 8 MiB of data and metadata, with one event at least: continue after its last one.

        With a `type` the data of each event is checked and comes as an object of it, else it is `WRONG_TYPE`. Raises
        `RoomNotFoundError`.
        """
        if type is not None:
            check_type(type)
        payload = c.StreamHistory(text("room", room), from_offset, to_offset, limit)
        result: HistoryResult = await self._call(c.STREAM_HISTORY, payload)
        if type is not None:
            for event in result.events:
                as_type(event, "data", type, room=room, offset=event.offset)
        return result

    async def commit(self, room: str, name: str, offset: int) -> None:
        """Note that the durable subscription `name` of `room` has done the events up to `offset` (-1: none).

        Subscriptions do this by themselves; it may also set a name back. Raises `RoomNotFoundError`, and
        `INVALID_PAYLOAD` for an offset that no event has had yet.
        """
        await self._call(c.STREAM_COMMIT, c.StreamCommit(text("room", room), text("name", name), offset))

    async def cursors(self, room: str) -> List[Cursor]:
        """List the durable subscriptions of `room`, with how far each has got. Raises `RoomNotFoundError`."""
        answer: c.CursorsAnswer = await self._call(c.STREAM_CURSORS, c.StreamCursors(text("room", room)))
        return answer.cursors

    async def forget(self, room: str, name: str) -> bool:
        """Forget the durable subscription `name` of `room`; returns whether there was one.

        Raises `RoomNotFoundError`.
        """
        answer: c.ForgottenAnswer = await self._call(
            c.STREAM_FORGET, c.StreamForget(text("room", room), text("name", name))
        )
        return answer.forgotten

    async def rooms(self) -> List[str]:
        """List the names of all rooms."""
        answer: c.RoomsAnswer = await self._call(c.STREAM_ROOMS, c.StreamRooms())
        return answer.rooms

    async def stats(self, room: str) -> RoomStats:
        """Read the figures of `room`. Raises `RoomNotFoundError`."""
        result: RoomStats = await self._call(c.STREAM_STATS, c.StreamStats(text("room", room)))
        return result

    async def delete(self, room: str) -> bool:
        """Delete `room` and its events, ending its subscriptions; returns True. Raises `RoomNotFoundError`.

        A room that is made again under its name begins at offset 0.
        """
        answer: c.RoomDeletedAnswer = await self._call(c.STREAM_DELETE, c.StreamDelete(text("room", room)))
        return answer.deleted
