"""The table of commands: each once, with its payload, its answer and all that is known about it.

Dispatch in the engine, validation at the door, encoding, the memory of answered requests, estimates of sizes, what a
batch may hold, `/openapi.json`, the native lane's command numbers and the reference page all follow from here. To add
a command: its entry (with a payload class and an answer class, or an existing one), one method in the engine, one in
the client, and nothing else.

A *payload* is a `msgspec.Struct`; decoding it from the wire checks types, ranges and unknown fields. `Rule` texts on
the types are what an error message says would be right. Fields of type `Value` hold what a user stores. Inside a
client they are the user's object; from the wire inwards they are `bytes` as described in `synap.wire.values`.
"""

from __future__ import annotations

from typing import Any, Dict, List, Literal, Mapping, Optional, Tuple, Type, Union

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from typing_extensions import Annotated, TypeAlias

from synap import results
from synap.errors import UNCERTAIN, SynapError
from synap.shapes import numbers_check, value_fields

__all__ = ["BY_CODE", "BY_PAYLOAD", "COMMANDS", "Answer", "Command", "Flag", "Payload", "Shape"]

# ---------------------------------------------------------------------------------------------- field types

Value: TypeAlias = msgspec.Raw
"""What a user stores: encoded on the wire, `bytes` in the engine, the user's object in a client."""

Key = Annotated[str, Meta(min_length=1, max_length=1024, description="a string of 1 to 1,024 bytes of UTF-8")]
Name = Annotated[str, Meta(min_length=1, max_length=256, description="a string of 1 to 256 bytes of UTF-8")]
Topic = Annotated[
    str, Meta(min_length=1, max_length=256, description="1 to 256 bytes of words between dots, none of them empty")
]
Text = Annotated[str, Meta(max_length=1024, description="a string of at most 1,024 characters")]
Ttl = Annotated[int, Meta(ge=1, le=10**10, description="whole seconds, 1 or more and at most 10,000,000,000")]
Amount = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1, description="a whole number of 64 bits")]
Count = Annotated[int, Meta(ge=1, le=10_000, description="1..10000")]
Priority = Annotated[int, Meta(ge=0, le=9, description="0..9")]
Wait = Annotated[float, Meta(ge=0, le=3600, description="0..3600 seconds")]
Delay = Annotated[float, Meta(ge=0, le=31_536_000, description="0..31536000 seconds")]
AckDeadline = Annotated[float, Meta(gt=0, le=86_400, description="more than 0 and at most 86400 seconds")]
Retries = Annotated[int, Meta(ge=0, le=1_000_000, description="0..1000000")]
Depth = Annotated[int, Meta(ge=1, le=100_000_000, description="1..100000000")]
Offset = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1, description="a whole number of 64 bits")]
Limit = Annotated[int, Meta(ge=1, le=10_000, description="1..10000")]
State = Literal["ready", "leased", "delayed"]
PeekLimit = Annotated[int, Meta(ge=1, le=1_000, description="1..1000")]
Most = Annotated[int, Meta(ge=1, le=1_000, description="1..1000")]
QueueNames = Annotated[List[Name], Meta(min_length=1, max_length=100, description="1 to 100 names of queues")]
Backoff = Annotated[float, Meta(ge=1, le=100, description="1..100")]
MessageIds = Annotated[List[Text], Meta(min_length=1, max_length=1_000, description="1 to 1,000 ids of messages")]
Redrive = Annotated[int, Meta(ge=1, description="1 or more")]
ClientNumber = Annotated[int, Meta(ge=1, le=2**63 - 1, description="the id of a connection")]
Headers = Annotated[Dict[str, str], Meta(max_length=128, description="at most 128 strings named by strings")]
MAX_HEADERS = 128
"""Headers of one message, those not counted that a dead letter gets."""
MessageHeaders = Annotated[
    Dict[str, str],
    Meta(max_length=MAX_HEADERS + 5, description="at most 128 strings named by strings (x-dead-letter-… not counted)"),
]
Keys = Annotated[List[Key], Meta(min_length=1, max_length=100_000, description="1 to 100,000 keys")]
Topics = Annotated[List[Topic], Meta(min_length=1, max_length=10_000, description="1 to 10,000 topics")]

MAX_BATCH = 100_000
"""Commands in one batch."""


class Payload(Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """Base of all payloads."""


class Answer(Struct, gc=False):
    """Base of all answers as the engine gives them; values in them are `bytes`."""

    def on_disk(self) -> Answer:
        """Return what is kept of it on disk, to answer a request that is sent again after a restart."""
        return self


# ---------------------------------------------------------------------------------------------- key-value


class KvSet(Payload):
    key: Key
    value: Value
    ttl: Optional[Ttl] = None
    nx: bool = False
    xx: bool = False
    if_value: Union[Value, UnsetType] = UNSET
    """Store only where the key holds this very value: the same bytes, once written in the format it is stored in."""
    keep_ttl: bool = False


class KvGet(Payload):
    key: Key


class KvDel(Payload):
    keys: Keys
    if_value: Union[Value, UnsetType] = UNSET
    """With one key: delete it only where it holds this very value."""


class KvExists(Payload):
    key: Key


class KvIncr(Payload):
    key: Key
    amount: Amount = 1


class KvDecr(Payload):
    key: Key
    amount: Amount = 1


class KvExpire(Payload):
    key: Key
    ttl: Ttl
    if_value: Union[Value, UnsetType] = UNSET


class KvClear(Payload):
    prefix: Text
    """What the keys begin with; '' for all keys."""


class KvPersist(Payload):
    key: Key


class KvTtl(Payload):
    key: Key


class KvScan(Payload):
    prefix: Optional[Text] = None
    cursor: Optional[str] = None
    count: Count = 100


class Pair(Payload):
    key: Key
    value: Value
    ttl: Optional[Ttl] = None


Pairs = Annotated[List[Pair], Meta(min_length=1, max_length=100_000, description="1 to 100,000 pairs")]


class KvMSet(Payload):
    pairs: Pairs


class KvMGet(Payload):
    keys: Keys


class SetAnswer(Answer, omit_defaults=True):
    success: bool
    key: str
    previous: Optional[bytes] = None

    def on_disk(self) -> Answer:
        """Leave `previous` out: the log has it already, and every overwritten value would be written twice."""
        return self if self.previous is None else SetAnswer(self.success, self.key)


class GetAnswer(Answer):
    found: bool
    value: Optional[bytes] = None
    ttl: Optional[int] = None


class DeletedAnswer(Answer):
    deleted: int


class ExistsAnswer(Answer):
    exists: bool


class NumberAnswer(Answer):
    value: int


class SuccessAnswer(Answer):
    success: bool = True


class TtlAnswer(Answer):
    ttl: Optional[int]


class ScanAnswer(Answer):
    keys: List[str]
    cursor: Optional[str]
    has_more: bool


class MGetAnswer(Answer):
    values: List[GetAnswer]


class MGetResult(Struct):
    values: List[results.GetResult]


# ---------------------------------------------------------------------------------------------- queue


class QueueConfig(Payload):
    """What is given of a queue's configuration; the rest stays as it is, and begins with the defaults."""

    max_retries: Union[Retries, UnsetType] = UNSET
    """Default 3."""
    ack_deadline: Union[AckDeadline, UnsetType] = UNSET
    """Default 30 seconds."""
    max_depth: Union[Depth, UnsetType] = UNSET
    """Default 100,000 messages."""
    dead_letter: Union[bool, UnsetType] = UNSET
    """Default true, and false for a dead-letter queue."""
    retry_delay: Union[Delay, UnsetType] = UNSET
    """Seconds before a message can be taken again after its first try; default 0."""
    retry_backoff: Union[Backoff, UnsetType] = UNSET
    """What the delay is multiplied by with each further try; default 2."""
    retry_max_delay: Union[Delay, UnsetType] = UNSET
    """Seconds that the delay is at most; default 3600."""


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
    """The id of the message that the last page ended with."""
    limit: PeekLimit = 100


class QueueConsume(Payload):
    queue: Name
    timeout: Wait = 0
    ack_deadline: Optional[AckDeadline] = None
    """Seconds the lease lasts; the queue's own `ack_deadline` where it is left out."""
    ack: Optional[Text] = None
    """The id of a message of the same queue, to be acknowledged in the same step."""
    ack_lease: Optional[int] = None


class Held(Payload):
    """A leased message, as `consume_many` acknowledges it."""

    queue: Name
    message_id: Text
    lease: Optional[int] = None


HeldMessages = Annotated[List[Held], Meta(max_length=1_000, description="at most 1,000 messages")]


class QueueConsumeMany(Payload):
    queues: QueueNames
    max: Most = 10
    timeout: Wait = 0
    ack_deadline: Optional[AckDeadline] = None
    ack: Optional[HeldMessages] = None
    """Messages to be acknowledged in the same step: all of them, or none and nothing is taken."""


class QueueAck(Payload):
    queue: Name
    message_id: Text
    lease: Optional[int] = None
    """The lease that came with the message; 0 for the current one, whoever holds it. Left out, the caller's session
    has to hold the message, where both have one."""


class QueueNack(Payload):
    queue: Name
    message_id: Text
    requeue: bool = True
    lease: Optional[int] = None
    delay: Delay = 0
    """Seconds before it can be taken again; 0 is what the queue's `retry_delay` says."""


class QueueExtend(Payload):
    queue: Name
    message_id: Text
    ack_deadline: AckDeadline
    lease: Optional[int] = None


class QueueRedrive(Payload):
    queue: Name
    limit: Optional[Redrive] = None
    message_ids: Optional[MessageIds] = None
    """The dead letters to put back, by the ids they have in the dead-letter queue; all of them where it is left out."""


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
        """Return the same message beside the name of its queue."""
        fields = (self.message_id, self.message, self.priority, self.retry_count, self.headers)
        return LeasedAnswer(*fields, self.lease, self.deadline, queue)


class LeasedAnswer(Answer):
    """A leased message beside others: as `MessageAnswer`, and of which queue."""

    message_id: str
    message: bytes
    priority: int
    retry_count: int
    headers: Dict[str, str]
    lease: int
    deadline: float
    queue: str


class MessagesAnswer(Answer):
    messages: List[LeasedAnswer]


class PeekedMessage(Answer):
    """A message that is looked at: `due` is when its delay or its lease ends, null where it is ready."""

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


# ---------------------------------------------------------------------------------------------- event stream


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
    """Makes it durable: the service remembers how far this name has got, and goes on there."""


class StreamCommit(Payload):
    room: Name
    name: Name
    offset: Offset
    """That of the last event that is done; -1 for none."""


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

    Of a durable subscription it is the place of its name; where retention has removed events from there on, those that
    are left are pushed.
    """

    subscription_id: int
    room: str
    next_offset: int


class CursorAnswer(Answer):
    """How far a name has got: the offset of the last event it has done, and how many events come after that."""

    name: str
    offset: int
    lag: int


class CursorsAnswer(Answer):
    cursors: List[CursorAnswer]


class CursorsResult(Struct):
    """`CursorsAnswer` as a client reads it."""

    cursors: List[results.Cursor]


class ForgottenAnswer(Answer):
    forgotten: bool


class UnsubscribedAnswer(Answer):
    unsubscribed: bool


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


# ---------------------------------------------------------------------------------------------- pub/sub


class PubSubPublish(Payload):
    topic: Topic
    message: Value
    metadata: Optional[Headers] = None


class PubSubSubscribe(Payload):
    topics: Topics


class PubSubUnsubscribe(Payload):
    subscription_id: int


class PubSubTopics(Payload):
    pattern: Optional[Topic] = None


class PubSubStats(Payload):
    pass


class TopicMessage(Answer):
    """A message as it is pushed to the subscribers of a topic."""

    topic: str
    message: bytes
    metadata: Dict[str, str]
    timestamp: int
    message_id: str


class TopicMessageResult(Struct):
    """`TopicMessage` as a client reads it."""

    topic: str
    message: Any
    metadata: Dict[str, str]
    timestamp: int
    message_id: str = ""


class TopicPublishAnswer(Answer):
    message_id: str
    topic: str
    subscribers_matched: int


class SubscribedToTopics(Answer):
    subscription_id: int
    topics: List[str]


class TopicsAnswer(Answer):
    topics: List[str]


class PubSubStatsAnswer(Answer):
    subscriptions: int
    patterns: int
    published_total: int
    delivered_total: int


Item = Union[EventAnswer, TopicMessage]
"""What is pushed to a subscriber."""
ITEMS: Tuple[Type[Answer], ...] = (EventAnswer, TopicMessage)


# ---------------------------------------------------------------------------------------------- admin, batch


class AdminStats(Payload):
    pass


class AdminConfig(Payload):
    pass


class AdminHealth(Payload):
    pass


class AdminShutdown(Payload):
    pass


class AdminWatch(Payload):
    enabled: bool = True


class AdminClients(Payload):
    after: Optional[ClientNumber] = None
    limit: Limit = 1000
    disconnect: Optional[ClientNumber] = None


class SubscribedToFigures(Answer):
    """`subscription_id` is what the figures are pushed with, as messages of the topic `admin.watch`."""

    subscription_id: int
    watching: bool


class ClientFigures(Answer):
    """A connection: `waits` are the queues it waits for, `subscriptions` rooms and patterns, `unsent` bytes that its
    peer has not taken yet; `you` marks the one that asked.
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
    you: bool


class ClientsResult(Struct):
    """`ClientsAnswer` as a client reads it."""

    clients: List[results.ClientInfo]
    total: int
    has_more: bool
    disconnected: Optional[bool] = None


class ClientsAnswer(Answer):
    """`disconnected` says whether the connection that was to be disconnected was there; null where none was to be."""

    clients: List[ClientFigures]
    total: int
    has_more: bool
    disconnected: Optional[bool] = None


class Figures(Answer):
    """Free-form figures by name: numbers, texts, or further figures."""

    figures: Dict[str, Any]


class BatchItem(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One command of a batch; its payload is decoded once the command is known.

    `number` makes it a request of its own in the caller's session, answered again where it was answered before. Where
    one item has it, all must, and the batch can't be atomic.
    """

    command: str
    payload: msgspec.Raw = msgspec.Raw(b"")
    number: Optional[Annotated[int, Meta(ge=1, description="a whole number, 1 or more")]] = None


BatchItems = Annotated[List[BatchItem], Meta(max_length=MAX_BATCH, description="at most 100,000 commands")]


class BatchRequest(Payload):
    commands: BatchItems
    atomic: bool = False


class ErrorAnswer(Struct):
    """The error envelope."""

    code: str
    message: str
    details: Dict[str, Any] = {}

    @classmethod
    def of(cls, error: SynapError) -> ErrorAnswer:
        """Write an error down; where its request may have taken effect all the same, `details` says so."""
        details = {**error.details, UNCERTAIN: True} if error.may_have_happened else error.details
        return cls(error.code, error.message, details)


class BatchOutcome(Struct, omit_defaults=True):
    """One command's outcome in a batch: `payload` where `status` is 'success', else `error`."""

    status: str
    payload: Any = None
    error: Optional[ErrorAnswer] = None


class BatchAnswer(Struct):
    results: List[BatchOutcome]


class BatchResults(Struct):
    """`BatchAnswer` as a client reads it."""

    results: List[results.BatchResult]


# ---------------------------------------------------------------------------------------------- the table


class Flag:
    """What is to be known about a command beside its payload and answer. Integers: enum members cost to combine."""

    READ = 0
    WRITE = 1
    """Changes what is kept: goes to the journal, and is remembered so that a retry takes effect once."""
    WAITS = 2
    """May be answered later; refused in a batch."""
    PUSHES = 4
    """Makes a subscription on the caller's connection; refused in a batch and where nothing can be pushed."""
    SESSION = 8
    """Belongs to the caller's connection (unsubscribe)."""
    ADMIN = 16
    """Needs an admin key where authentication is on; answered by the host, not by the engine."""
    HOLDER = 32
    """Settles a lease, so that the engine must know who asks."""
    LEASES = 128
    """Leases messages, which go back where the caller is gone before it has them."""
    EFFECT = 64
    """Has an effect that isn't kept, so doing it twice differs from doing it once."""


class Shape:
    """How the engine's method for a command is called. From `WRITE` on its answer is remembered."""

    READ, SUBSCRIBE, WAIT, WRITE, SETTLE = range(5)
    # (payload, now), (payload, now, caller), (payload, now, caller, number), (payload, now), (payload, now, caller)


_NAMING = ("key", "keys", "pairs", "queue", "queues", "room", "topic", "topics", "prefix")
"""Fields that name what a request is about."""


class Command:
    """One entry of the table: all that is known about a command.

    Told:
      `code`      its number on the native lane and on disk, never reused
      `name`      as users write it: the facility and what it does
      `payload`   what it takes
      `answer`    what the engine gives (None beside it where `nullable`)
      `doc`       what it does, for `/openapi.json` and the reference page
      `flags`     see `Flag`
      `result`    what a client decodes the answer as
      `ends`      for a command that ends subscriptions: the one that makes them
      `verb`      what a key needs a grant for: read, write, consume or manage; empty for what is the caller's own.
                  Where it isn't told, the flags say it

    Derived:
      `group`, `method`    the facility, and the name of its method in the engine
      `shape`              how that method is called, see `Shape`
      `value_fields`       the fields of the payload that hold stored values, see `synap.shapes`
      `numbers_check`      what says whether all its numbers are finite, where it has any
      `writes`, `waits`, `pushes`, `admin`   the flags, one by one
      `leases`             whether its answer leases messages, which a caller that is gone must give back
      `settles`            whether it settles a lease
      `has_effects`        whether doing it twice differs from doing it once
      `bundle`             whether it is a batch, whose commands are looked at one by one
      `hosted`             whether the host does it, not the engine alone
      `batchable`          whether a batch may hold it
      `remembered`         whether its answer is remembered, on its own or in that of a batch
      `ended_by`           for a command that makes subscriptions: the one that ends them
      `name_field`         the field of the payload that names what it is about, see `names`
      `by_prefix`          whether that is all names with a prefix
      `audited`            whether the audit log tells of it
    """

    __slots__ = (
        "admin",
        "answer",
        "audited",
        "batchable",
        "bundle",
        "by_prefix",
        "code",
        "doc",
        "ended_by",
        "ends",
        "flags",
        "group",
        "has_effects",
        "hosted",
        "leases",
        "method",
        "name",
        "name_field",
        "nullable",
        "numbers_check",
        "payload",
        "pushes",
        "remembered",
        "result",
        "settles",
        "shape",
        "value_fields",
        "verb",
        "waits",
        "writes",
    )

    def __init__(
        self,
        code: int,
        name: str,
        payload: Type[Struct],
        answer: Type[Struct],
        doc: str,
        flags: int = Flag.READ,
        *,
        result: Optional[Any] = None,
        nullable: bool = False,
        ends: Optional[Command] = None,
        bundle: bool = False,
        verb: Optional[str] = None,
    ) -> None:
        self.code = code
        self.name = name
        self.payload = payload
        self.answer = answer
        self.doc = doc
        self.flags = flags
        self.result: Any = answer if result is None else result
        self.nullable = nullable
        self.bundle = bundle
        self.ends = ends
        self.ended_by: Optional[Command] = None
        if ends is not None:
            ends.ended_by = self
        self.group, _, action = name.partition(".")
        self.method = "delete" if action == "del" else action  # `del` is a word of Python's
        self.value_fields = () if bundle else value_fields(payload)  # items of a batch are looked at one by one
        self.numbers_check = None if bundle else numbers_check(payload)
        self.writes = bool(flags & Flag.WRITE)
        self.waits = bool(flags & Flag.WAITS)
        self.pushes = bool(flags & Flag.PUSHES)
        self.admin = bool(flags & Flag.ADMIN)
        self.settles = bool(flags & Flag.HOLDER)
        self.leases = bool(flags & Flag.LEASES)
        self.has_effects = bool(flags & (Flag.WRITE | Flag.EFFECT))
        self.hosted = self.admin or bundle
        self.batchable = not bundle and not flags & (Flag.WAITS | Flag.PUSHES | Flag.SESSION | Flag.ADMIN)
        self.remembered = self.batchable or bundle
        if verb is not None:
            self.verb = verb
        elif self.admin:
            self.verb = "admin"
        elif bundle or flags & Flag.SESSION:
            self.verb = ""
        elif self.leases or self.settles:
            self.verb = "consume"
        else:
            self.verb = "write" if self.has_effects and not self.pushes else "read"
        # What lists by a prefix is allowed, and shows what the key may see.
        self.name_field = next((field for field in _NAMING if field in payload.__struct_fields__), "")
        self.by_prefix = self.name_field == "prefix" and self.has_effects
        self.audited = self.verb in ("admin", "manage")
        if self.waits:
            self.shape = Shape.WAIT
        elif flags & (Flag.PUSHES | Flag.SESSION):
            self.shape = Shape.SUBSCRIBE
        elif self.writes:
            self.shape = Shape.SETTLE if self.settles else Shape.WRITE
        else:
            self.shape = Shape.READ

    def names(self, payload: Any) -> Optional[List[str]]:
        """Return the names of keys, queues, rooms or topics that a request is about; None where it lists."""
        field = self.name_field
        if not field or (field == "prefix" and not self.by_prefix):
            return None
        named = getattr(payload, field)
        if isinstance(named, str):
            return [named]
        if named is None:
            return [""] if self.by_prefix else None
        names = [one if isinstance(one, str) else one.key for one in named]
        held = getattr(payload, "ack", None) if field == "queues" else None
        return names + [one.queue for one in held or ()]

    def __repr__(self) -> str:
        return f"<Command {self.name}>"


_W = Flag.WRITE
_SETTLES = Flag.WRITE | Flag.HOLDER
r = results

KV_SET = Command(1, "kv.set", KvSet, SetAnswer, "Store a value under a key.", _W, result=r.SetResult)
KV_GET = Command(2, "kv.get", KvGet, GetAnswer, "Read the value of a key.", result=r.GetResult)
KV_DEL = Command(3, "kv.del", KvDel, DeletedAnswer, "Delete keys; answers how many there were.", _W)
KV_EXISTS = Command(4, "kv.exists", KvExists, ExistsAnswer, "Say whether a key exists.")
KV_INCR = Command(5, "kv.incr", KvIncr, NumberAnswer, "Add to the integer under a key, which starts at 0.", _W)
KV_DECR = Command(6, "kv.decr", KvDecr, NumberAnswer, "Subtract from the integer under a key, which starts at 0.", _W)
KV_EXPIRE = Command(7, "kv.expire", KvExpire, SuccessAnswer, "Let a key expire after `ttl` seconds.", _W)
KV_PERSIST = Command(8, "kv.persist", KvPersist, SuccessAnswer, "Let a key no longer expire.", _W)
KV_TTL = Command(9, "kv.ttl", KvTtl, TtlAnswer, "Read the seconds a key has left, null where it does not expire.")
KV_SCAN = Command(
    10, "kv.scan", KvScan, ScanAnswer, "List keys page by page, each key that stays exactly once.", result=r.ScanResult
)
KV_MSET = Command(11, "kv.mset", KvMSet, SuccessAnswer, "Store several pairs, all of them or none.", _W)
KV_MGET = Command(12, "kv.mget", KvMGet, MGetAnswer, "Read several keys.", result=MGetResult)
KV_CLEAR = Command(
    13,
    "kv.clear",
    KvClear,
    DeletedAnswer,
    "Delete all keys with a prefix, in slices; answers how many there were.",
    _W | Flag.WAITS,
    verb="manage",
)

QUEUE_CREATE = Command(
    20, "queue.create", QueueCreate, CreatedAnswer, "Make a queue, or set its configuration.", _W, verb="manage"
)
QUEUE_DELETE = Command(
    21, "queue.delete", QueueDelete, QueueDeletedAnswer, "Delete a queue and what is in it.", _W, verb="manage"
)
QUEUE_PURGE = Command(22, "queue.purge", QueuePurge, PurgedAnswer, "Drop all messages of a queue.", _W, verb="manage")
QUEUE_PUBLISH = Command(
    23,
    "queue.publish",
    QueuePublish,
    PublishAnswer,
    "Add a message to a queue.",
    _W,
    result=r.PublishResult,
)
QUEUE_CONSUME = Command(
    24,
    "queue.consume",
    QueueConsume,
    MessageAnswer,
    "Lease the next message, waiting up to `timeout` seconds for one.",
    _W | Flag.WAITS | Flag.LEASES,
    result=Optional[r.QueueMessage],
    nullable=True,
)
QUEUE_ACK = Command(
    25, "queue.ack", QueueAck, SuccessAnswer, "Acknowledge a leased message: it is done.", _W | Flag.HOLDER
)
QUEUE_NACK = Command(
    26, "queue.nack", QueueNack, NackAnswer, "Give a leased message back, or up.", _SETTLES, result=r.NackResult
)
QUEUE_EXTEND = Command(
    27, "queue.extend", QueueExtend, SuccessAnswer, "Let a lease end `ack_deadline` from now.", _W | Flag.HOLDER
)
QUEUE_REDRIVE = Command(
    28, "queue.redrive", QueueRedrive, RedrivenAnswer, "Put dead letters back in their queue.", _W, verb="manage"
)
QUEUE_STATS = Command(
    29, "queue.stats", QueueStats, QueueStatsAnswer, "Read the figures of a queue.", result=r.QueueStats
)
QUEUE_PEEK = Command(31, "queue.peek", QueuePeek, PeekAnswer, "Look at messages; changes nothing.", result=r.PeekResult)
QUEUE_CONSUME_MANY = Command(
    32,
    "queue.consume_many",
    QueueConsumeMany,
    MessagesAnswer,
    "Lease up to `max` messages from the first queue that has some, waiting up to `timeout` seconds.",
    _W | Flag.WAITS | Flag.LEASES,
    result=ConsumedMany,
)
QUEUE_LIST = Command(30, "queue.list", QueueList, QueuesAnswer, "List the names of all queues.")

STREAM_PUBLISH = Command(
    40,
    "stream.publish",
    StreamPublish,
    PublishEventAnswer,
    "Append an event to a room.",
    _W,
    result=r.PublishEventResult,
)
STREAM_SUBSCRIBE = Command(
    41,
    "stream.subscribe",
    StreamSubscribe,
    SubscribedToRoom,
    "Have the events of a room pushed, history first where asked.",
    _W | Flag.PUSHES,
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
    43, "stream.history", StreamHistory, HistoryAnswer, "Read events of a room.", result=r.HistoryResult
)
STREAM_ROOMS = Command(44, "stream.rooms", StreamRooms, RoomsAnswer, "List the names of all rooms.")
STREAM_STATS = Command(
    45, "stream.stats", StreamStats, RoomStatsAnswer, "Read the figures of a room.", result=r.RoomStats
)
STREAM_DELETE = Command(
    46, "stream.delete", StreamDelete, RoomDeletedAnswer, "Delete a room and its events.", _W, verb="manage"
)

STREAM_COMMIT = Command(
    47, "stream.commit", StreamCommit, SuccessAnswer, "Note how far a durable subscription has got.", _W
)
STREAM_FORGET = Command(48, "stream.forget", StreamForget, ForgottenAnswer, "Forget a durable subscription.", _W)
STREAM_CURSORS = Command(
    49,
    "stream.cursors",
    StreamCursors,
    CursorsAnswer,
    "List the durable subscriptions of a room, with how far they have got.",
    result=CursorsResult,
)

PUBSUB_PUBLISH = Command(
    60,
    "pubsub.publish",
    PubSubPublish,
    TopicPublishAnswer,
    "Hand a message to whoever is subscribed now.",
    Flag.EFFECT,
    result=r.PublishResult,
)
PUBSUB_SUBSCRIBE = Command(
    61, "pubsub.subscribe", PubSubSubscribe, SubscribedToTopics, "Have messages pushed by topic.", Flag.PUSHES
)
PUBSUB_UNSUBSCRIBE = Command(
    62,
    "pubsub.unsubscribe",
    PubSubUnsubscribe,
    UnsubscribedAnswer,
    "End a subscription to topics.",
    Flag.SESSION,
    ends=PUBSUB_SUBSCRIBE,
)
PUBSUB_TOPICS = Command(
    63, "pubsub.topics", PubSubTopics, TopicsAnswer, "List subscribed patterns, all or those a pattern matches."
)
PUBSUB_STATS = Command(
    64, "pubsub.stats", PubSubStats, PubSubStatsAnswer, "Read the figures of pub/sub.", result=r.PubSubStats
)

ADMIN_STATS = Command(
    80, "admin.stats", AdminStats, Figures, "Read the service's figures.", Flag.ADMIN, result=Dict[str, Any]
)
ADMIN_CONFIG = Command(
    81,
    "admin.config",
    AdminConfig,
    Figures,
    "Read the configuration, secrets left out.",
    Flag.ADMIN,
    result=Dict[str, Any],
)
ADMIN_HEALTH = Command(
    82, "admin.health", AdminHealth, Figures, "Read the state of the service.", Flag.ADMIN, result=Dict[str, Any]
)
ADMIN_SHUTDOWN = Command(
    83, "admin.shutdown", AdminShutdown, SuccessAnswer, "Drain and stop the service.", Flag.ADMIN | Flag.EFFECT
)
ADMIN_WATCH = Command(
    84,
    "admin.watch",
    AdminWatch,
    SubscribedToFigures,
    "Have the service's figures pushed once a second, or no longer.",
    Flag.ADMIN | Flag.PUSHES,
)
ADMIN_CLIENTS = Command(
    85,
    "admin.clients",
    AdminClients,
    ClientsAnswer,
    "List the connections, or disconnect one.",
    Flag.ADMIN,
    result=ClientsResult,
)

BATCH = Command(
    100, "batch", BatchRequest, BatchAnswer, "Run several commands, in order.", _W, result=BatchResults, bundle=True
)
"""Not in `COMMANDS`: a request of its own kind, numbered here for the native lane."""
READ_BATCH = Command(
    BATCH.code, "batch", BatchRequest, BatchAnswer, "Run several that only read.", result=BatchResults, bundle=True
)
"""What a client knows a batch as that changes nothing, however often it is sent. The same to a service."""

COMMANDS: Mapping[str, Command] = {
    command.name: command for command in list(vars().values()) if isinstance(command, Command) and not command.bundle
}
BY_CODE: Mapping[int, Command] = {command.code: command for command in (*COMMANDS.values(), BATCH)}
BY_PAYLOAD: Mapping[Type[Struct], Command] = {command.payload: command for command in (*COMMANDS.values(), BATCH)}
