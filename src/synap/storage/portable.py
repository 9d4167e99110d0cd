"""Content as JSON lines, for moving it elsewhere: one object a line, written and read as a stream.

    {"type": "header", "format": 1, "exported": 1700000000.0}
    {"type": "key", "key": "user:1", "value": …, "expires": 1700003600.0}
    {"type": "queue", "queue": "tasks", "max_retries": 3, "ack_deadline": 30, "max_depth": 100000, "dead_letter": true}
    {"type": "message", "queue": "tasks", "message": …, "priority": 5, "headers": {…}, "retry_count": 1,
     "published": 1700000000.0, "due": 1700000060.0}           (`ready`: when its delay ended, where it had one)
    {"type": "room", "room": "chat", "oldest_offset": 0}
    {"type": "event", "room": "chat", "offset": 0, "event_type": "said", "data": …, "metadata": {…},
     "timestamp": 1700000000}
    {"type": "end", "lines": 1234}

Times are Unix seconds. What doesn't apply is left out (`expires` of a key that doesn't expire, `due` of a message
that is not delayed). A value that JSON can't hold (there are bytes in it) stands as base64 of its MessagePack under
`…_msgpack`, such as `value_msgpack`. Lines of a queue's messages are in the order in which they are next out within a
priority; a message that is leased is exported like one that waits, since a lease belongs to a consumer of the service
it was given by. The memory of answered requests stays where it is. An export without its last line was cut.
"""

from __future__ import annotations

import base64
import binascii
import math
import os
import time
from typing import Any, BinaryIO, Callable, Dict, Iterable, Iterator, List, Optional, Set, Tuple, Union

import msgspec
from typing_extensions import Annotated

from synap import commands as c
from synap.engine import records as r
from synap.engine.callers import run
from synap.engine.engine import Engine
from synap.engine.journal import Record
from synap.engine.limits import check_name
from synap.engine.priorities import TOTALS, Rules
from synap.engine.queuestore import SUFFIX, check_queue
from synap.errors import SynapError
from synap.storage.durable import random_ids, spacious_engine
from synap.storage.layout import DATABASE, no_data
from synap.storage.recovery import Progress, recover
from synap.storage.write_directory import new_directory, write_engine
from synap.wire import large, values

FORMAT = 1
Time = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
Figure = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
SETTINGS = Rules.__struct_fields__

_encode = msgspec.json.Encoder().encode


# ---------------------------------------------------------------------------------------------- out


def export_directory(
    directory: str, out: BinaryIO, *, progress: Optional[Progress] = None, now: Optional[float] = None
) -> int:
    """Write what a directory holds to `out`; returns the number of lines. A process may be using the directory.

    What is over by `now` (Unix seconds; the present) is left out.

    Raises `Damaged`, `Unusable`, before anything is written.
    """
    if not os.path.exists(os.path.join(directory, DATABASE)):
        raise no_data(directory)
    now = time.time() if now is None else now
    engine = spacious_engine()
    recover(directory, engine, now, progress=progress)
    count = 0
    for line in lines(engine, now):
        out.write(line)
        count += 1
    return count


def encode_line(document: Dict[str, Any]) -> bytes:
    """Write one line, its line break included."""
    return _encode(document) + b"\n"


def lines(engine: Engine, now: float) -> Iterator[bytes]:
    """Yield what an engine holds, line by line, each with its line break. The engine must not change meanwhile.

    `now` and all times in lines are those of the wall clock.
    """
    yield encode_line({"type": "header", "format": FORMAT, "exported": now})
    count = 0
    for shown in _documents(engine, now):
        count += 1
        yield encode_line(shown)
    yield encode_line({"type": "end", "lines": count})


def _documents(engine: Engine, shown: float) -> Iterator[Dict[str, Any]]:
    at = engine.timeline.at
    now = shown - engine.timeline.ahead
    queue: Dict[str, Any] = {}
    messages: List[Record] = []
    trimmed: Dict[str, Any] = {}
    for slice in engine.dump():
        for record in slice:
            kind = record[0]
            if kind == r.MESSAGE:
                messages.append(record)
                continue
            if messages and kind != r.LEASE:
                yield from _messages(messages, now, at)
                messages = []
            if kind == r.KEYS:
                for key, value in record[1].items():
                    due = record[2].get(key)
                    if due is None or due > now:
                        ends = _given(expires=due and at(due))
                        yield {"type": "key", "key": key, **shown_value("value", value), **ends}
            elif kind == r.QUEUE:
                _, name, _, *settings = record
                queue = {"type": "queue", "queue": name, **dict(zip(SETTINGS, settings))}
            elif kind == r.TOTALS:
                yield {**queue, "totals": dict(zip(TOTALS, record[5:]))}
            elif kind == r.ROOM:
                trimmed = {"type": "room", "room": record[1], "oldest_offset": 0}
            elif kind == r.TRIMMED:
                yield {**trimmed, "oldest_offset": record[2]}
            elif kind == r.NAME:
                yield {"type": "cursor", "room": record[1], "name": record[2], "offset": record[3] - 1}
            elif kind == r.EVENT:
                yield event_line(*record[1:])
    yield from _messages(messages, now, at)


def _messages(messages: List[Record], now: float, at: Callable[[float], float]) -> Iterator[Dict[str, Any]]:
    for record in sorted(messages, key=lambda m: m[3]):
        _, name, _, _, priority, value, headers, published, retry_count, due, *ready = record
        shown = message_line(name, value, priority, headers, retry_count, at(published))
        yield {**shown, **_given(due=at(due) if due > now else None, ready=at(ready[0]) if ready else None)}


def message_line(
    queue: str, value: bytes, priority: int, headers: Optional[Dict[str, str]], retry_count: int, published: float
) -> Dict[str, Any]:
    """Build the line of a message, but for when it is due."""
    shown = {"type": "message", "queue": queue, **shown_value("message", value), "priority": priority}
    return {**shown, **_given(headers=headers), "retry_count": retry_count, "published": published}


def event_line(
    room: str, offset: int, event_type: str, data: bytes, metadata: Optional[Dict[str, str]], timestamp: int
) -> Dict[str, Any]:
    """Build the line of an event."""
    event = {"type": "event", "room": room, "offset": offset, "event_type": event_type}
    return {**event, **shown_value("data", data), **_given(metadata=metadata), "timestamp": timestamp}


def _given(**fields: Any) -> Dict[str, Any]:
    return {name: value for name, value in fields.items() if value}


def shown_value(name: str, value: bytes) -> Dict[str, Any]:
    """Return a stored value as a line shows it: as JSON, or in base64 where it has bytes in it."""
    content = values.read(value)
    if value[0] >= 0x80 and _has_bytes(content):
        return {f"{name}_msgpack": base64.b64encode(value).decode("ascii")}
    return {name: content}


def _has_bytes(content: Any) -> bool:
    if isinstance(content, dict):
        return any(_has_bytes(item) for item in content.values())
    if isinstance(content, list):
        return any(_has_bytes(item) for item in content)
    return isinstance(content, bytes)


# ---------------------------------------------------------------------------------------------- in


class Broken(SynapError):
    """Raised for a line that can't be imported; `details['line']` counts from 1."""


def _broken(number: int, why: str) -> Broken:
    return Broken("INVALID_PAYLOAD", f"line {number}: {why}", {"line": number})


class _Line(msgspec.Struct, tag_field="type"):
    """Base of all lines. Fields that aren't known are ignored, so that an older version reads what it can."""


class HeaderLine(_Line, tag="header"):
    format: int


class EndLine(_Line, tag="end"):
    lines: int


class KeyLine(_Line, tag="key"):
    key: c.Key
    value: msgspec.Raw = msgspec.Raw()
    value_msgpack: Optional[str] = None
    expires: Optional[Time] = None


class QueueLine(_Line, tag="queue"):
    queue: c.Name
    max_retries: c.Retries = 3
    ack_deadline: c.AckDeadline = 30
    max_depth: c.Depth = 100_000
    dead_letter: bool = True
    retry_delay: c.Delay = 0
    retry_backoff: c.Backoff = 2
    retry_max_delay: c.Delay = 3600
    totals: Dict[str, Figure] = {}


class MessageLine(_Line, tag="message"):
    queue: c.Name
    message: msgspec.Raw = msgspec.Raw()
    message_msgpack: Optional[str] = None
    priority: c.Priority = 5
    headers: Optional[c.MessageHeaders] = None
    retry_count: Figure = 0
    published: Time = 0.0
    due: Time = 0.0
    ready: Time = 0.0


class RoomLine(_Line, tag="room"):
    room: c.Name
    oldest_offset: Figure = 0


class EventLine(_Line, tag="event"):
    room: c.Name
    offset: Figure
    event_type: c.Name
    timestamp: Annotated[int, msgspec.Meta(ge=0, le=10**12)]
    data: msgspec.Raw = msgspec.Raw()
    data_msgpack: Optional[str] = None
    metadata: Optional[c.Headers] = None


class CursorLine(_Line, tag="cursor"):
    """How far a durable subscription has got: the offset of the last event it has done."""

    room: c.Name
    name: c.Name
    offset: Annotated[int, msgspec.Meta(ge=-1, le=2**53)]


Line = Union[KeyLine, QueueLine, MessageLine, RoomLine, EventLine, CursorLine]

_decode = msgspec.json.Decoder(Union[HeaderLine, EndLine, Line]).decode
_cut_out = msgspec.msgpack.Decoder(msgspec.Raw).decode


class _Context:
    """The queues and rooms of the lines so far, and the limits that a service has."""

    def __init__(self) -> None:
        self.queues: Set[str] = set()
        self.rooms: Dict[str, int] = {}
        """The offset that comes next in each room."""

    def check(self, line: Line) -> None:
        """Refuse a line that no service would have taken, or that would undo an earlier one. Raises `SynapError`."""
        if isinstance(line, KeyLine):
            check_name("key", line.key, 1024)
        elif isinstance(line, QueueLine):
            check_queue(line.queue, line.dead_letter)
            if line.queue in self.queues:
                raise SynapError("INVALID_PAYLOAD", f"the queue {line.queue!r} has lines already")
            self.queues.add(line.queue)
        elif isinstance(line, MessageLine):
            check_name("queue", line.queue)
            self.queues.add(line.queue)
        elif isinstance(line, RoomLine):
            check_name("room", line.room)
            if line.room in self.rooms:
                raise SynapError("INVALID_PAYLOAD", f"the room {line.room!r} has lines already")
            self.rooms[line.room] = line.oldest_offset
        elif isinstance(line, CursorLine):
            check_name("name", line.name)
            if line.room not in self.rooms:
                raise SynapError("INVALID_PAYLOAD", f"there is no line of the room {line.room!r} before this one")
        else:
            check_name("room", line.room)
            check_name("event_type", line.event_type)
            expected = self.rooms.get(line.room, line.offset)
            if line.offset != expected:
                raise SynapError("INVALID_PAYLOAD", f"offset must be {expected}, the next one, got {line.offset}")
            self.rooms[line.room] = line.offset + 1


def parse(source: Iterable[bytes]) -> Iterator[Tuple[Line, bytes]]:
    """Read an export; yields its lines, each with its stored value (empty where it has none).

    Raises `INVALID_PAYLOAD` with the number of a line that isn't one of an export, and for an export that was cut.
    """
    context = _Context()
    number = seen = 0
    ended = False
    for number, text in enumerate(source, 1):
        if not text.strip():
            continue
        if ended:
            raise _broken(number, "there is something behind the end")
        try:
            line = _decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            hint = "; it is compressed: gunzip it first" if text.startswith(b"\x1f\x8b") else ""
            raise _broken(number, f"not a line of an export: {error}{hint}") from None
        if isinstance(line, HeaderLine) is not (seen == 0):
            raise _broken(number, "an export has its header in the first line and nowhere else")
        if isinstance(line, HeaderLine):
            if line.format > FORMAT:
                raise _broken(number, f"made by a newer version (format {line.format}, this one knows {FORMAT})")
        elif isinstance(line, EndLine):
            if line.lines != seen - 1:
                raise _broken(number, f"{line.lines} lines were exported and {seen - 1} came: some are missing")
            ended = True
        else:
            try:
                context.check(line)
            except SynapError as error:
                raise _broken(number, error.message) from None
            yield line, _value(number, line)
        seen += 1
    if not ended:
        raise _broken(number + 1, "the export ends without its last line: it was cut")


def _value(number: int, line: Line) -> bytes:
    if isinstance(line, KeyLine):
        name, raw, packed = "value", line.value, line.value_msgpack
    elif isinstance(line, MessageLine):
        name, raw, packed = "message", line.message, line.message_msgpack
    elif isinstance(line, EventLine):
        name, raw, packed = "data", line.data, line.data_msgpack
    else:
        return b""
    if packed is None and not bytes(raw):
        raise _broken(number, f"{name} is missing")
    try:
        if packed is None:
            return values.from_json(raw)
        data = base64.b64decode(packed, validate=True)
        if len(data) < large.LARGE:
            return values.from_msgpack(data)
        taken: bytes = run(large.take(_cut_out(data), "msgpack"))
        return taken
    except (binascii.Error, msgspec.DecodeError, SynapError) as error:
        raise _broken(number, f"{name} can't be read: {error}") from None


def import_directory(source: Iterable[bytes], directory: str, *, now: Optional[float] = None) -> int:
    """Make a new directory of exported lines; returns their number.

    Offsets of events, retry counts and times are as they were. Raises `INVALID_PAYLOAD` for a line that can't be
    read, `Unusable` where the directory can't be made; then nothing in it counts as a database.
    """
    with new_directory(directory):
        engine = spacious_engine()
        count = 0

        def counted() -> Iterator[Tuple[Line, bytes]]:
            nonlocal count
            for item in parse(source):
                count += 1
                yield item

        for record in _records(counted(), random_ids()):
            engine.restore(record)
        engine.restored(time.time() if now is None else now)
        write_engine(directory, engine)
        return count


def _records(lines: Iterable[Tuple[Line, bytes]], ids: Callable[[], int]) -> Iterator[Record]:
    numbers: Dict[str, int] = {}
    rooms: Set[str] = set()

    def queue(line: QueueLine) -> Iterator[Record]:
        numbers[line.queue] = 0
        yield (r.QUEUE, line.queue, ids(), *(getattr(line, name) for name in SETTINGS))
        yield (r.TOTALS, line.queue, 1, 1, 1, *(line.totals.get(name, 0) for name in TOTALS))

    for line, value in lines:
        if isinstance(line, KeyLine):
            yield (r.KEY, line.key, value, line.expires)
        elif isinstance(line, QueueLine):
            yield from queue(line)
        elif isinstance(line, MessageLine):
            if line.queue not in numbers:  # made by hand: publishing makes a queue
                yield from queue(QueueLine(line.queue, dead_letter=not line.queue.endswith(SUFFIX)))
            number = numbers[line.queue] = numbers[line.queue] + 1
            rest = (line.headers, line.published, line.retry_count, line.due)
            record = (r.MESSAGE, line.queue, number, number, line.priority, value, *rest)
            yield (*record, line.ready) if line.ready else record
        elif isinstance(line, RoomLine):
            rooms.add(line.room)
            yield (r.ROOM, line.room, ids())
            yield (r.TRIMMED, line.room, line.oldest_offset)
        elif isinstance(line, CursorLine):
            yield (r.NAME, line.room, line.name, line.offset + 1)
        else:
            if line.room not in rooms:
                rooms.add(line.room)
                yield (r.ROOM, line.room, ids())
            yield (r.EVENT, line.room, line.offset, line.event_type, value, line.metadata, line.timestamp)


def as_commands(lines: Iterable[Tuple[Line, bytes]], now: float) -> Iterator[Tuple[str, Dict[str, Any]]]:
    """Convert what `parse` yields to commands and payloads for a running service.

    A service gives its own ids, offsets and times, and retry counts begin anew; durable subscriptions begin anew too.
    Keys whose time is over are left out. A queue that holds more than its `max_depth`, which was lowered after that,
    has a higher one until all its messages are in it.
    """
    queue = QueueLine("")
    held = 0

    def settled() -> Iterator[Tuple[str, Dict[str, Any]]]:
        if held > queue.max_depth:
            yield "queue.create", {"queue": queue.queue, "config": {"max_depth": queue.max_depth}}

    for line, value in lines:
        if isinstance(line, KeyLine):
            if line.expires is None or line.expires > now:
                ttl = None if line.expires is None else math.ceil(line.expires - now)
                yield "kv.set", {"key": line.key, "value": values.read(value), **_given(ttl=ttl)}
        elif isinstance(line, QueueLine):
            yield from settled()
            queue, held = line, 0
            yield "queue.create", {"queue": line.queue, "config": {name: getattr(line, name) for name in SETTINGS}}
        elif isinstance(line, MessageLine):
            held += line.queue == queue.queue
            if held == queue.max_depth + 1:
                yield "queue.create", {"queue": queue.queue, "config": {"max_depth": c.MOST_DEPTH}}
            payload = {"queue": line.queue, "message": values.read(value), "priority": line.priority}
            yield "queue.publish", {**payload, **_given(headers=line.headers, delay=max(line.due - now, 0.0))}
        elif isinstance(line, EventLine):
            payload = {"room": line.room, "event_type": line.event_type, "data": values.read(value)}
            yield "stream.publish", {**payload, **_given(metadata=line.metadata)}
    yield from settled()
