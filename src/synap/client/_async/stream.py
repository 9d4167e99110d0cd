"""Event streams: `client.stream`."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional

from synap import commands as c
from synap.client._async.calls import AsyncCalls
from synap.client._async.subscription import RoomSubscription, Subscription
from synap.client.checks import callback as a_callback
from synap.client.checks import text, texts
from synap.results import HistoryResult, PublishEventResult, RoomStats, StreamEvent

__all__ = ["AsyncStreams"]


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

    async def subscribe(
        self,
        room: str,
        callback: Optional[Callable[[StreamEvent], Any]] = None,
        from_offset: Optional[int] = None,
        replay: bool = False,
    ) -> Subscription[StreamEvent]:
        """Have the events of a room handed to `callback`, or, without one, iterate over the result with `async for`.

        `from_offset` n begins there, -n at the last n events; `replay` alone at the oldest; neither, with what comes
        next. In order, without gap or repeat, also across a lost connection. A callback may be a coroutine function;
        one that raises is logged, reported to `on('error')` and called again for the next event. One that is slow falls
        behind and loses nothing but what the room's retention removes meanwhile.
        """
        a_callback(callback)
        subscription = RoomSubscription(self._calls, text("room", room), callback, from_offset, replay)
        await subscription.start()
        return subscription

    async def history(
        self, room: str, from_offset: Optional[int] = None, to_offset: Optional[int] = None, limit: int = 100
    ) -> HistoryResult:
        """Read events of a room, both ends inclusive, at most `limit` (1..10000); raises `RoomNotFoundError`."""
        payload = c.StreamHistory(text("room", room), from_offset, to_offset, limit)
        result: HistoryResult = await self._call(c.STREAM_HISTORY, payload)
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
