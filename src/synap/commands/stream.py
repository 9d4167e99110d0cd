"""Event streams: payloads, answers and commands."""

from __future__ import annotations

from typing import Dict, List, Optional

from synap import results
from synap.commands.command import Command, Flag
from synap.commands.fields import (
    Answer,
    Headers,
    Limit,
    Name,
    Offset,
    Payload,
    SuccessAnswer,
    UnsubscribedAnswer,
    Value,
)


class StreamPublish(Payload):
    room: Name
    event_type: Name
    data: Value
    metadata: Optional[Headers] = None


class StreamSubscribe(Payload):
    room: Name
    from_offset: Optional[Offset] = None
    replay: bool = False
    name: Optional[Name] = None
    """Makes it durable: the service stores the position of this name, and the subscription continues there."""


class StreamCommit(Payload):
    room: Name
    name: Name
    offset: Offset
    """The offset of the last processed event; -1 for none."""


class StreamForget(Payload):
    room: Name
    name: Name


class StreamCursors(Payload):
    room: Name


class StreamUnsubscribe(Payload):
    subscription_id: int


class StreamHistory(Payload):
    room: Name
    from_offset: Optional[Offset] = None
    to_offset: Optional[Offset] = None
    limit: Limit = 100


class StreamRooms(Payload):
    pass


class StreamStats(Payload):
    room: Name


class StreamDelete(Payload):
    room: Name


class EventAnswer(Answer):
    """An event as it is pushed and listed."""

    event_id: str
    offset: int
    event_type: str
    data: bytes
    timestamp: int
    metadata: Dict[str, str]
    room: str


class PublishEventAnswer(Answer):
    event_id: str
    offset: int
    subscribers_notified: int


class SubscribedToRoom(Answer):
    """`next_offset` is the offset of the first event that will be pushed (history included).

    Of a durable subscription it is the position of its name; where retention has removed events from there on, the
    remaining ones are pushed.
    """

    subscription_id: int
    room: str
    next_offset: int


class CursorsAnswer(Answer):
    cursors: List[results.Cursor]


class ForgottenAnswer(Answer):
    forgotten: bool


class HistoryAnswer(Answer):
    events: List[EventAnswer]
    oldest_offset: int
    newest_offset: int


class RoomsAnswer(Answer):
    rooms: List[str]


class RoomStatsAnswer(Answer):
    room: str
    events: int
    oldest_offset: int
    newest_offset: int
    subscribers: int
    published_total: int


class RoomDeletedAnswer(Answer):
    deleted: bool


STREAM_PUBLISH = Command(
    40,
    "stream.publish",
    StreamPublish,
    PublishEventAnswer,
    "Append an event to a room.",
    Flag.WRITE,
    result=results.PublishEventResult,
)
STREAM_SUBSCRIBE = Command(
    41,
    "stream.subscribe",
    StreamSubscribe,
    SubscribedToRoom,
    "Have the events of a room pushed, history first where asked.",
    Flag.WRITE | Flag.SPARING | Flag.PUSHES,
)
STREAM_UNSUBSCRIBE = Command(
    42,
    "stream.unsubscribe",
    StreamUnsubscribe,
    UnsubscribedAnswer,
    "End a subscription to a room.",
    Flag.SESSION,
    ends=STREAM_SUBSCRIBE,
)
STREAM_HISTORY = Command(
    43, "stream.history", StreamHistory, HistoryAnswer, "Read events of a room.", result=results.HistoryResult
)
STREAM_ROOMS = Command(
    44, "stream.rooms", StreamRooms, RoomsAnswer, "List the names of all rooms.", Flag.STEPWISE | Flag.SHARING
)
STREAM_STATS = Command(
    45, "stream.stats", StreamStats, RoomStatsAnswer, "Read the figures of a room.", result=results.RoomStats
)
STREAM_DELETE = Command(
    46,
    "stream.delete",
    StreamDelete,
    RoomDeletedAnswer,
    "Delete a room and its events.",
    Flag.WRITE | Flag.SPARING,
    verb="manage",
)

STREAM_COMMIT = Command(
    47,
    "stream.commit",
    StreamCommit,
    SuccessAnswer,
    "Set the position of a durable subscription.",
    Flag.WRITE | Flag.SPARING,
)
STREAM_FORGET = Command(
    48, "stream.forget", StreamForget, ForgottenAnswer, "Forget a durable subscription.", Flag.WRITE | Flag.SPARING
)
STREAM_CURSORS = Command(
    49,
    "stream.cursors",
    StreamCursors,
    CursorsAnswer,
    "List the durable subscriptions of a room, with their positions.",
)
