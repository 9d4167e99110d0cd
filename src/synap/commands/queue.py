"""Acknowledged queues: payloads, answers and commands."""

from __future__ import annotations

from typing import Dict, List, Optional, Union

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from typing_extensions import Annotated

from synap import results
from synap.commands.command import Command, Flag
from synap.commands.fields import (
    AckDeadline,
    Answer,
    Backoff,
    Delay,
    Depth,
    MessageHeaders,
    MessageIds,
    MessageLimit,
    Name,
    Payload,
    Priority,
    QueueNames,
    Redrive,
    Retries,
    State,
    SuccessAnswer,
    Text,
    Value,
    Wait,
)


class QueueConfig(Payload):
    """The fields of a queue's configuration to set; others keep their values, or are defaults in a new queue."""

    max_retries: Union[Retries, UnsetType] = UNSET
    """Default 3."""
    ack_deadline: Union[AckDeadline, UnsetType] = UNSET
    """Default 30 seconds."""
    max_depth: Union[Depth, UnsetType] = UNSET
    """Default 100,000 messages."""
    dead_letter: Union[bool, UnsetType] = UNSET
    """Default true, and false for a dead-letter queue."""
    retry_delay: Union[Delay, UnsetType] = UNSET
    """Seconds before the first retry of a message; default 0."""
    retry_backoff: Union[Backoff, UnsetType] = UNSET
    """The factor of the delay for each further retry; default 2."""
    retry_max_delay: Union[Delay, UnsetType] = UNSET
    """The longest delay in seconds; default 3600."""


class QueueCreate(Payload):
    queue: Name
    config: QueueConfig = msgspec.field(default_factory=QueueConfig)


class QueueDelete(Payload):
    queue: Name


class QueuePurge(Payload):
    queue: Name


class QueuePublish(Payload):
    queue: Name
    message: Value
    priority: Priority = 5
    headers: Optional[MessageHeaders] = None
    delay: Delay = 0


class QueuePeek(Payload):
    queue: Name
    state: State = "ready"
    after: Optional[Text] = None
    """The id of the last message of the previous page."""
    limit: MessageLimit = 100


class QueueConsume(Payload):
    queue: Name
    timeout: Wait = 0
    ack_deadline: Optional[AckDeadline] = None
    """Seconds the lease lasts; the queue's own `ack_deadline` where it is left out."""
    ack: Optional[Text] = None
    """The id of a leased message of the same queue, which is acknowledged in the same step."""
    ack_lease: Optional[int] = None


class Held(Payload):
    """A leased message, as `consume_many` acknowledges it."""

    queue: Name
    message_id: Text
    lease: Optional[int] = None


HeldMessages = Annotated[List[Held], Meta(max_length=1_000, description="at most 1,000 messages")]


class QueueConsumeMany(Payload):
    queues: QueueNames
    max: MessageLimit = 10
    timeout: Wait = 0
    ack_deadline: Optional[AckDeadline] = None
    ack: Optional[HeldMessages] = None
    """Messages that are acknowledged in the same step: all of them, or none and nothing is leased."""


class QueueAck(Payload):
    queue: Name
    message_id: Text
    lease: Optional[int] = None
    """The lease that came with the message; 0 for the current one, of any holder. Left out, the caller's session
    has to hold the message, where both have one."""


class QueueNack(Payload):
    queue: Name
    message_id: Text
    requeue: bool = True
    lease: Optional[int] = None
    delay: Delay = 0
    """Seconds before it is ready again; 0: by the queue's `retry_delay`."""


class QueueExtend(Payload):
    queue: Name
    message_id: Text
    ack_deadline: AckDeadline
    lease: Optional[int] = None


class QueueRedrive(Payload):
    queue: Name
    limit: Optional[Redrive] = None
    message_ids: Optional[MessageIds] = None
    """Ids of the dead letters to put back, as in the dead-letter queue; left out: all of them."""


class QueueStats(Payload):
    queue: Name


class QueueList(Payload):
    pass


class CreatedAnswer(Answer):
    success: bool
    created: bool


class QueueDeletedAnswer(Answer):
    deleted: bool


class PurgedAnswer(Answer):
    purged: int


class PublishAnswer(Answer):
    message_id: str
    position: int


class MessageAnswer(Answer):
    message_id: str
    message: bytes
    priority: int
    retry_count: int
    headers: Dict[str, str]
    lease: int
    deadline: float

    def of_queue(self, queue: str) -> LeasedAnswer:
        """Return the same message with the name of its queue."""
        fields = (self.message_id, self.message, self.priority, self.retry_count, self.headers)
        return LeasedAnswer(*fields, self.lease, self.deadline, queue)


class LeasedAnswer(MessageAnswer):
    """A leased message of `consume_many`."""

    queue: str


class MessagesAnswer(Answer):
    messages: List[LeasedAnswer]


class PeekedMessage(Answer):
    """A message as `peek` lists it: `due` is when its delay or its lease ends, null where it is ready."""

    message_id: str
    message: bytes
    priority: int
    retry_count: int
    headers: Dict[str, str]
    published: float
    due: Optional[float]


class PeekAnswer(Answer):
    messages: List[PeekedMessage]
    has_more: bool


class NackAnswer(Answer):
    success: bool
    action: str


class RedrivenAnswer(Answer):
    redriven: int


class QueueStatsAnswer(Answer):
    depth: int
    pending: int
    delayed: int
    consumers: int
    published_total: int
    consumed_total: int
    acked_total: int
    nacked_total: int
    dead_lettered_total: int
    dropped_total: int
    oldest_message_age_secs: Optional[float]


class ConsumedMany(Struct):
    """`MessagesAnswer` as a client reads it."""

    messages: List[results.QueueMessage]


class QueuesAnswer(Answer):
    queues: List[str]


QUEUE_CREATE = Command(
    20, "queue.create", QueueCreate, CreatedAnswer, "Make a queue, or set its configuration.", Flag.WRITE, verb="manage"
)
QUEUE_DELETE = Command(
    21,
    "queue.delete",
    QueueDelete,
    QueueDeletedAnswer,
    "Delete a queue and what is in it.",
    Flag.WRITE | Flag.SPARING,
    verb="manage",
)
QUEUE_PURGE = Command(
    22,
    "queue.purge",
    QueuePurge,
    PurgedAnswer,
    "Drop all messages of a queue.",
    Flag.WRITE | Flag.SPARING,
    verb="manage",
)
QUEUE_PUBLISH = Command(
    23,
    "queue.publish",
    QueuePublish,
    PublishAnswer,
    "Add a message to a queue.",
    Flag.WRITE,
    result=results.PublishResult,
)
QUEUE_CONSUME = Command(
    24,
    "queue.consume",
    QueueConsume,
    MessageAnswer,
    "Lease the next message, waiting up to `timeout` seconds for one.",
    Flag.WRITE | Flag.SPARING | Flag.WAITS | Flag.LEASES,
    result=Optional[results.QueueMessage],
    nullable=True,
)
QUEUE_ACK = Command(
    25,
    "queue.ack",
    QueueAck,
    SuccessAnswer,
    "Acknowledge a leased message: it is done.",
    Flag.WRITE | Flag.SPARING | Flag.SETTLES,
)
QUEUE_NACK = Command(
    26,
    "queue.nack",
    QueueNack,
    NackAnswer,
    "Give a leased message back, or up.",
    Flag.WRITE | Flag.SPARING | Flag.SETTLES,
    result=results.NackResult,
)
QUEUE_EXTEND = Command(
    27,
    "queue.extend",
    QueueExtend,
    SuccessAnswer,
    "Let a lease end `ack_deadline` from now.",
    Flag.WRITE | Flag.SPARING | Flag.SETTLES,
)
QUEUE_REDRIVE = Command(
    28,
    "queue.redrive",
    QueueRedrive,
    RedrivenAnswer,
    "Put dead letters back in their queue.",
    Flag.WRITE | Flag.STEPWISE,
    verb="manage",
)
QUEUE_STATS = Command(
    29, "queue.stats", QueueStats, QueueStatsAnswer, "Read the figures of a queue.", result=results.QueueStats
)
QUEUE_PEEK = Command(
    31, "queue.peek", QueuePeek, PeekAnswer, "Look at messages; changes nothing.", result=results.PeekResult
)
QUEUE_CONSUME_MANY = Command(
    32,
    "queue.consume_many",
    QueueConsumeMany,
    MessagesAnswer,
    "Lease up to `max` messages from the first queue that has some, waiting up to `timeout` seconds.",
    Flag.WRITE | Flag.SPARING | Flag.WAITS | Flag.LEASES,
    result=ConsumedMany,
)
QUEUE_LIST = Command(
    30, "queue.list", QueueList, QueuesAnswer, "List the names of all queues.", Flag.STEPWISE | Flag.SHARING
)
