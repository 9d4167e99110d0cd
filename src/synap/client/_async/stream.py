"""Event streams: `client.stream`."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Type, TypeVar, overload

from synap import commands as c
from synap.client._async.calls import AsyncCalls
from synap.client._async.subscription import RoomSubscription, Subscription
from synap.client.checks import callback as a_callback
from synap.client.checks import text, texts
from synap.results import HistoryResult, PublishEventResult, RoomStats, StreamEvent
from synap.wire.typed import as_type, check_type

__all__ = ["AsyncStreams"]

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
        """Append an event; the first one makes the room."""
        payload = c.StreamPublish(text("room", room), text("event_type", event_type), data, texts("metadata", metadata))
        result: PublishEventResult = await self._call(c.STREAM_PUBLISH, payload)
        return result

    @overload
    async def subscribe(
        self,
        room: str,
        callback: Optional[Callable[[StreamEvent], Any]] = ...,
        from_offset: Optional[int] = ...,
        replay: bool = ...,
    ) -> Subscription[StreamEvent]: ...

    @overload
    async def subscribe(
        self,
        room: str,
        callback: Optional[Callable[[StreamEvent[T]], Any]] = ...,
        from_offset: Optional[int] = ...,
        replay: bool = ...,
        *,
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
        type: object,
    ) -> Subscription[StreamEvent]: ...

    async def subscribe(
        self,
        room: str,
        callback: Optional[Callable[[StreamEvent], Any]] = None,
        from_offset: Optional[int] = None,
        replay: bool = False,
        *,
        type: Any = None,
    ) -> Subscription[StreamEvent]:
        """Have the events of a room handed to `callback`, or, without one, iterate over the result with `async for`.

        `from_offset` n begins there, -n at the last n events; `replay` alone at the oldest; neither, with what comes
        next. In order, without gap or repeat, also across a lost connection. A callback may be a coroutine function;
        one that raises is logged, reported to `on('error')` and called again for the next event. One that is slow falls
        behind and loses nothing but what the room's retention removes meanwhile.

        With a `type` the data of events is checked and comes as an object of it. An event that doesn't fit is
        `WRONG_TYPE`, reported to `on('error')` or raised by the iterator, and the next one follows.
        """
        a_callback(callback)
        if type is not None:
            check_type(type)
        subscription = RoomSubscription(self._calls, text("room", room), callback, from_offset, replay, type)
        await subscription.start()
        return subscription

    @overload
    async def history(
        self, room: str, from_offset: Optional[int] = ..., to_offset: Optional[int] = ..., limit: int = ...
    ) -> HistoryResult: ...

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
        type: object,
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
        """Read events of a room, both ends inclusive, at most `limit` (1..10000); raises `RoomNotFoundError`.

        A page ends earlier after 8 MiB of data, with one event at least: go on behind its last one.

        With a `type` the data of each event is checked and comes as an object of it, else it is `WRONG_TYPE`.
        """
        if type is not None:
            check_type(type)
        payload = c.StreamHistory(text("room", room), from_offset, to_offset, limit)
        result: HistoryResult = await self._call(c.STREAM_HISTORY, payload)
        if type is not None:
            for event in result.events:
                as_type(event, "data", type, room=room, offset=event.offset)
        return result

    async def rooms(self) -> List[str]:
        """List the names of all rooms."""
        answer: c.RoomsAnswer = await self._call(c.STREAM_ROOMS, c.StreamRooms())
        return answer.rooms

    async def stats(self, room: str) -> RoomStats:
        """Read the figures of a room; raises `RoomNotFoundError`."""
        result: RoomStats = await self._call(c.STREAM_STATS, c.StreamStats(text("room", room)))
        return result

    async def delete(self, room: str) -> bool:
        """Delete a room and its events, ending its subscriptions; returns whether there was one."""
        answer: c.RoomDeletedAnswer = await self._call(c.STREAM_DELETE, c.StreamDelete(text("room", room)))
        return answer.deleted
