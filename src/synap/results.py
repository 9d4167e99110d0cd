"""The results of calls. Times are Unix seconds, durations seconds.

The order of fields is fixed; new ones are added at the end, with defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, Generic, List, Optional, Tuple

from typing_extensions import TypeVar

__all__: Tuple[str, ...] = (
    "BatchResult",
    "ClientInfo",
    "Cursor",
    "GetResult",
    "HistoryResult",
    "NackResult",
    "PeekResult",
    "PeekedMessage",
    "PubSubStats",
    "PublishEventResult",
    "PublishResult",
    "QueueMessage",
    "QueueStats",
    "RoomStats",
    "ScanResult",
    "SetResult",
    "StreamEvent",
    "TopicMessage",
)


T = TypeVar("T", default=Any)
"""The type of a value: any JSON value, or the `type=` of the call."""


@dataclass
class SetResult:
    """Answer to `kv.set`: whether `key` was stored; `success` is False where `nx`, `xx` or `if_value` did not hold.

    It is true where `success` is. `previous` is the value before, None without one or beyond 64 KiB.
    """

    success: bool
    key: str = ""
    previous: Optional[Any] = None

    def __bool__(self) -> bool:
        return self.success


@dataclass
class GetResult(Generic[T]):
    """Answer to `kv.get`: `value` (None where not `found`), and `ttl`, the seconds until the key expires.

    `ttl` is rounded up to whole seconds, None for a key that does not expire. The result is true where `found` is,
    whatever the value.
    """

    found: bool
    value: Optional[T] = None
    ttl: Optional[int] = None

    def __bool__(self) -> bool:
        return self.found


@dataclass
class ScanResult:
    """One page of `kv.scan`: `keys` in order; pass `cursor` to the next call while `has_more`."""

    keys: List[str]
    cursor: Optional[str] = None
    has_more: bool = False


@dataclass
class PublishResult:
    """Answer to `queue.publish` (`message_id`, `position`) and `pubsub.publish` (`message_id`, `topic`, the rest).

    `position` counts from 1, which is next out; `subscribers_matched` counts subscriptions.
    """

    message_id: str
    position: int = 0
    topic: str = ""
    subscribers_matched: int = 0


class MessageId(str):
    """The id of a leased message: a string with the number of its lease.

    With it `ack`, `nack` and `extend` act on that lease, and not on a later one of the same message. A plain string
    with the same text, as other programs have it, names the message only: it is refused where another client holds it.
    """

    lease: Optional[int]

    def __new__(cls, text: str, lease: Optional[int] = None) -> MessageId:
        self = super().__new__(cls, text)
        self.lease = lease
        return self

    def __getnewargs__(self) -> Any:
        return str(self), self.lease


_plain = str.__new__


def leased_id(text: str, lease: Optional[int]) -> MessageId:
    """Make the id of a leased message: as `MessageId` does, in a third of the time."""
    self = _plain(MessageId, text)
    self.lease = lease
    return self


@dataclass
class QueueMessage(Generic[T]):
    """A leased `message` of a `queue`: `lease` numbers the lease, `deadline` is when it ends (Unix seconds).

    `message_id` is what `ack`, `nack` and `extend` take. `priority` (0..9) and `headers` are the publisher's.
    `retry_count` is 0 at the first delivery.
    """

    message_id: str
    message: T
    priority: int
    retry_count: int
    headers: Dict[str, str]
    lease: int = 0
    deadline: float = 0.0
    queue: str = ""


@dataclass
class PeekedMessage:
    """A `message` as `queue.peek` lists it: `published` and `due` are Unix seconds.

    `due` is when its lease or its delay ends, None for one that is ready. `message_id` (of no lease),
    `priority` (0..9), `retry_count` and `headers` are as in `QueueMessage`.
    """

    message_id: str
    message: Any
    priority: int
    retry_count: int
    headers: Dict[str, str]
    published: float
    due: Optional[float] = None


@dataclass
class PeekResult:
    """One page of `queue.peek`: `messages` in order.

    Pass the last `message_id` as `after` to the next call while `has_more`.
    """

    messages: List[PeekedMessage]
    has_more: bool = False


@dataclass
class NackResult:
    """Answer to `queue.nack`: `action` is 'requeued', 'dead_lettered', or 'dropped' (a queue without dead letters).

    `success` is always true: a message that isn't leased raises instead.
    """

    success: bool
    action: str

    def __bool__(self) -> bool:
        return self.success


@dataclass
class QueueStats:
    """Figures of one queue, in messages: `depth` ready now, `pending` leased, `delayed` held back.

    `consumers` counts those that wait for a message now. The totals are since the queue was made: `published_total`,
    `consumed_total` (leases), `acked_total`, `nacked_total`, `dead_lettered_total`, and `dropped_total`, messages that
    were discarded: the oldest of a full dead-letter queue, and rejected ones of a queue without dead letters.
    `oldest_message_age_secs` is the age in seconds of the oldest ready message, None without one.
    """

    depth: int
    pending: int
    delayed: int
    consumers: int
    published_total: int
    consumed_total: int
    acked_total: int
    nacked_total: int
    dead_lettered_total: int
    oldest_message_age_secs: Optional[float] = None
    dropped_total: int = 0


@dataclass
class StreamEvent(Generic[T]):
    """One event of a `room`.

    `event_id` is unique, `offset` its place in the room from 0; `timestamp` is when it was published (Unix seconds);
    `event_type`, `data` and `metadata` are the publisher's.
    """

    event_id: str
    offset: int
    event_type: str
    data: T
    timestamp: int
    metadata: Dict[str, str] = field(default_factory=dict)
    room: str = ""


class TopicMessage(Tuple[str, Any]):
    """A message of a topic from an iterator: the tuple `(topic, message)`, with further attributes.

    `message_id` is the publisher's `PublishResult.message_id`, `metadata` its metadata, `timestamp` Unix seconds.
    """

    message_id: str
    metadata: Dict[str, str]
    timestamp: int

    def __new__(
        cls,
        topic: str,
        message: Any,
        message_id: str = "",
        metadata: Optional[Dict[str, str]] = None,
        timestamp: int = 0,
    ) -> TopicMessage:
        self = super().__new__(cls, (topic, message))
        self.message_id = message_id
        self.metadata = {} if metadata is None else metadata
        self.timestamp = timestamp
        return self

    @property
    def topic(self) -> str:
        """The topic it was published to, which a pattern of the subscription matched."""
        topic: str = self[0]
        return topic

    @property
    def message(self) -> Any:
        """The published value."""
        return self[1]

    def __getnewargs__(self) -> Any:
        return self[0], self[1], self.message_id, self.metadata, self.timestamp


@dataclass
class PublishEventResult:
    """Answer to `stream.publish`: the event's `event_id` and `offset`.

    `subscribers_notified` counts the subscriptions it was pushed to.
    """

    event_id: str
    offset: int
    subscribers_notified: int


@dataclass
class HistoryResult(Generic[T]):
    """Answer to `stream.history`: `events` in order, and the `oldest_offset` and `newest_offset` that the room holds.

    In a room without events `oldest_offset` is one past `newest_offset`.
    """

    events: List[StreamEvent[T]]
    oldest_offset: int
    newest_offset: int


@dataclass
class Cursor:
    """The position of the durable subscription `name` in a room.

    `offset` is that of the last processed event, -1 before the first; `lag` counts the events after it.
    """

    name: str
    offset: int
    lag: int


@dataclass
class RoomStats:
    """Figures of one `room`: `events` kept, from `oldest_offset` to `newest_offset`, and `subscribers` connected now.

    Without events `oldest_offset` is one past `newest_offset`. `published_total` counts all since the room was made.
    """

    room: str
    events: int
    oldest_offset: int
    newest_offset: int
    subscribers: int
    published_total: int


@dataclass
class PubSubStats:
    """Figures of pub/sub: `subscriptions` now, and the distinct `patterns` they have.

    `published_total` counts messages, `delivered_total` deliveries to subscriptions, both since the service started.
    """

    subscriptions: int
    patterns: int
    published_total: int
    delivered_total: int


@dataclass
class ClientInfo:
    """A connection to the service.

    `id` numbers it; `lane` is its transport, `address` its peer, `key` the name of its API key, `session` its
    client's id, `format` that of its values, `since` when it was opened (Unix seconds). `waits` are the queues on which
    it waits for a message, `subscriptions` its rooms and patterns, `unsent` the bytes in its send buffer. `you` marks
    the connection that asked.
    """

    id: int
    lane: str
    address: str
    key: str
    session: str
    format: str
    since: float
    waits: List[str]
    subscriptions: List[str]
    unsent: int
    you: bool = False


@dataclass
class BatchResult:
    """One command's outcome in a batch: `status` is 'success' with `payload`, or 'error' with `error`.

    `error` holds `code`, `message` and `details`.
    """

    status: str
    payload: Optional[Any] = None
    error: Optional[Dict[str, Any]] = None
