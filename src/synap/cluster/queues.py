"""The queue commands, but for waiting. What one turn asks of one queue goes as one call (`joining`)."""

from __future__ import annotations

import random
from typing import Any, Dict, List, Optional, Sequence, Tuple

import msgspec

from synap import commands as c
from synap.cluster.calls import Call, Refused
from synap.cluster.facility import Facility
from synap.cluster.joining import Asked, Joiner, function_of
from synap.cluster.link import Link
from synap.cluster.memory import Request
from synap.engine.deliveries import LETTER
from synap.engine.limits import check_name
from synap.engine.queues import check_headers, left_its_state, no_message, queue_full
from synap.engine.queuestore import SUFFIX, no_queue

PIECE, CUT = 500, 2
"""Dead letters that one call puts back, and what it answers where their bodies were too large together for that."""
PUBLISH = (b"qh", b"qb", b"qr", b"qd", b"qw", b"Q", b"QD")
CONSUME = (b"qh", b"qb", b"qr", b"ql", b"qw", b"Q", b"QD")
ACK = (b"qh", b"qb", b"ql")
NO_QUEUE = b"no_queue"
"""Why a message can't be acknowledged of which even the queue isn't there."""
STATES = {"ready": b"qr", "leased": b"ql", "delayed": b"qd"}

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder().decode


class Delivery:
    """A message as a function delivers it."""

    __slots__ = ("answer", "lease", "message_id", "queue")

    def __init__(self, queue: str, inc: bytes, state: Sequence[bytes], body: bytes) -> None:
        id, retries, lease, _, deadline = state
        self.queue = queue
        self.message_id: bytes = inc + b"-" + id
        self.lease: bytes = lease
        letter = b""
        start = 9
        if body[8:9] == b"L":
            start = 13 + int.from_bytes(body[9:13], "big")
            letter = body[13:start]
        value, headers = unpack(body[start:], letter)
        self.answer = c.MessageAnswer(
            self.message_id.decode(), value, int(id[-1:]), int(retries), headers, int(lease), int(deadline) / 1000
        )


def unpack(body: bytes, letter: bytes) -> Tuple[bytes, Dict[str, str]]:
    """Take a message's value and headers apart, those of a dead letter included."""
    headers, value = decode(body)
    headers = headers or {}
    if letter:
        reason, queue, tries, id, at = decode(letter)
        headers = {
            **headers,
            LETTER + "reason": reason,
            LETTER + "queue": queue,
            LETTER + "tries": str(int(tries)),
            LETTER + "message-id": id,
            LETTER + "time": str(int(at)),
        }
    return value, headers


def milliseconds(seconds: float) -> bytes:
    """Convert a time that must not be rounded to 0."""
    return b"%d" % max(1, round(seconds * 1000))


class Queues(Facility):
    """The queue facility without `consume`, which is in `waiting`: one method per command, named as it is."""

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._publishes = Joiner(link, c.QUEUE_PUBLISH, function_of(link, "syn_q_publish", PUBLISH))
        self._acks = Joiner(link, c.QUEUE_ACK, function_of(link, "syn_q_ack", ACK))
        self.joiners: List[Joiner] = [self._publishes, self._acks]

    # ------------------------------------------------------------------------------------------ queues

    async def create(self, p: c.QueueCreate, request: Request) -> c.CreatedAnswer:
        """Make a queue; of one that is there, change what is given."""
        check_name("queue", p.queue)
        inc = b"%016x" % random.getrandbits(64)
        (made,) = await self._whole(request, "syn_q_create", p.queue, inc, *rules(p.config))
        return c.CreatedAnswer(True, bool(made))

    async def delete(self, p: c.QueueDelete, request: Request) -> c.QueueDeletedAnswer:
        await self._whole(request, "syn_q_delete", p.queue)
        return c.QueueDeletedAnswer(True)

    async def purge(self, p: c.QueuePurge, request: Request) -> c.PurgedAnswer:
        (purged,) = await self._whole(request, "syn_q_purge", p.queue)
        return c.PurgedAnswer(purged)

    async def list(self, p: c.QueueList, request: Request) -> c.QueuesAnswer:
        return c.QueuesAnswer(await self.names("queue.list", b"Q"))

    async def stats(self, p: c.QueueStats, request: Request) -> c.QueueStatsAnswer:
        queue = p.queue
        if queue.endswith(SUFFIX):
            self.settle(queue[: -len(SUFFIX)])
        try:
            got = await self.tend("syn_q_stats", queue)
        except Refused:
            raise no_queue(queue) from None
        got[-1] = None if got[-1] < 0 else got[-1] / 1000
        return c.QueueStatsAnswer(*got)

    def settle(self, queue: str) -> Call:
        """Process what is due in a queue."""
        return self.tend("syn_q_settle", queue)

    def _settle_before(self, *queues: str) -> None:
        """Have what is due in queues processed before what is asked of them next; not in an atomic batch."""
        for queue in () if self.link.recording else queues:
            self.settle(queue)

    async def peek(self, p: c.QueuePeek, request: Request) -> c.PeekAnswer:
        """List messages without leasing them."""
        self._settle_before(*([p.queue[: -len(SUFFIX)]] if p.queue.endswith(SUFFIX) else ()), p.queue)
        partition = self.places.partition(p.queue)
        keys = self.places.queue(partition, (b"qh", b"qb", STATES[p.state]), p.queue)
        after = b"" if p.after is None else id_text(p.after)
        ready = p.state == "ready"
        arguments = (p.queue.encode(), after, b"%d" % p.limit, b"1" if ready else b"")
        try:
            inc, more, *found = await self.read(partition, "syn_q_peek", keys, arguments)
        except Refused as refused:
            if refused.code != "MESSAGE_NOT_FOUND":
                raise no_queue(p.queue) from None
            raise left_its_state(p.queue, p.after, p.state) from None
        messages = []
        for id, body, letter, retries, due, published in found:
            value, headers = unpack(body, letter)
            messages.append(
                c.PeekedMessage(
                    (inc + b"-" + id).decode(),
                    value,
                    int(id[-1:]),
                    retries,
                    headers,
                    int(published) / 1000,
                    None if ready else float(due) / 1000,
                )
            )
        return c.PeekAnswer(messages, bool(more))

    # ------------------------------------------------------------------------------------------ messages

    def publish(self, p: c.QueuePublish, request: Request) -> Asked:
        check_name("queue", p.queue)
        if p.headers:
            check_headers(p.headers)
        body = encode((p.headers or None, p.message))
        delay = b"%d" % round(p.delay * 1000) if p.delay else b"0"
        return self._publishes.ask(p.queue, Publishing(request, (b"%d" % p.priority, delay, body), p))

    def ack(self, p: c.QueueAck, request: Request) -> Asked:
        own = (p.message_id.encode(), lease_text(p.lease), request.kin)
        return self._acks.ask(p.queue, Acknowledging(request, own, p))

    async def nack(self, p: c.QueueNack, request: Request) -> c.NackAnswer:
        arguments = (
            p.message_id.encode(),
            lease_text(p.lease),
            request.kin,
            b"1" if p.requeue else b"0",
            milliseconds(p.delay) if p.delay else b"",
        )
        (action,) = await self._whole(request, "syn_q_nack", p.queue, *arguments)
        return c.NackAnswer(True, action.decode())

    async def extend(self, p: c.QueueExtend, request: Request) -> c.SuccessAnswer:
        arguments = (p.message_id.encode(), lease_text(p.lease), request.kin, milliseconds(p.ack_deadline))
        await self._whole(request, "syn_q_extend", p.queue, *arguments)
        return c.SuccessAnswer()

    async def redrive(self, p: c.QueueRedrive, request: Request) -> c.RedrivenAnswer:
        self._settle_before(p.queue, p.queue + SUFFIX)
        left = 10**9 if p.limit is None else p.limit
        named = None if p.message_ids is None else [text.encode() for text in dict.fromkeys(p.message_ids)]
        total = number = 0
        while left:
            most = left if self.link.recording else min(left, PIECE)
            part = request if number == 0 else request.piece(number)
            some: List[bytes] = []
            if named is not None:
                piece = len(named) if self.link.recording else PIECE
                some, named = named[:piece], named[piece:]
                if not some:
                    break
            try:
                count, more = await self._whole(part, "syn_q_redrive", p.queue, b"%d" % most, *some)
            except Refused:
                if total:
                    break
                raise
            total += count
            left -= count
            number += 1
            if more == CUT and named is not None:
                named = some + named  # those that are back already are passed over
            if not more and not named:
                break
        return c.RedrivenAnswer(total)

    def _whole(self, request: Request, function: str, queue: str, *arguments: Any) -> Call:
        """Call a function that takes all keys of a queue and its dead letters."""
        partition = self.places.partition(queue)
        keys = self.places.whole_queue(partition, queue)
        return self.write(request, partition, function, keys, (queue.encode(), *arguments))

    def give_back(self, delivery: Delivery) -> None:
        """Put a message back that nobody received; this try does not count."""
        self.tend("syn_q_return", delivery.queue, delivery.message_id, delivery.lease)

    def tend(self, function: str, queue: str, *arguments: Any) -> Call:
        """Call a function that takes all keys of a queue and its dead letters, and may be executed twice."""
        return self._whole(Request(b"", b"", b"", b""), function, queue, *arguments)


class Publishing(Asked):
    """A publish."""

    __slots__ = ("_payload",)

    def __init__(self, request: Request, own: Sequence[bytes], payload: c.QueuePublish) -> None:
        super().__init__(request, own, len(own[2]))
        self._payload = payload

    def take(self, answer: Any) -> c.PublishAnswer:
        if answer[:1] == b"F":
            raise queue_full(self._payload.queue, int(answer[1:]))
        inc, id, position = answer[1:].decode().split(" ")
        return c.PublishAnswer(f"{inc}-{id}", int(position))


class Acknowledging(Asked):
    """An acknowledgement."""

    __slots__ = ("_payload",)

    def __init__(self, request: Request, own: Sequence[bytes], payload: c.QueueAck) -> None:
        super().__init__(request, own, len(own[0]))
        self._payload = payload

    def take(self, answer: Any) -> c.SuccessAnswer:
        payload = self._payload
        if answer == NO_QUEUE:
            raise no_queue(payload.queue)
        if answer != 1:
            raise no_message(payload.queue, payload.message_id, answer.decode())
        return c.SuccessAnswer()


def id_text(id: str) -> bytes:
    """Convert a message's id. An empty one, which would mean that none is given, becomes one that no message has."""
    return id.encode() or b"-"


def lease_text(lease: Optional[int]) -> bytes:
    """Convert a lease's number; empty where none was given."""
    return b"" if lease is None else b"%d" % lease


def rules(config: Any) -> List[bytes]:
    """Return the rules that a configuration sets, by their short names, and their values."""
    found: List[bytes] = []
    for name, field, write in _RULES:
        value = getattr(config, name, None)
        if value is not None and value is not msgspec.UNSET:
            found += (field, write(value))
    return found


_RULES: Tuple[Tuple[str, bytes, Any], ...] = (
    ("max_retries", b"mr", lambda value: b"%d" % value),
    ("ack_deadline", b"ad", milliseconds),
    ("max_depth", b"md", lambda value: b"%d" % value),
    ("dead_letter", b"dl", lambda value: b"1" if value else b"0"),
    ("retry_delay", b"rd", lambda value: b"%d" % round(value * 1000)),
    ("retry_backoff", b"rb", lambda value: repr(float(value)).encode()),
    ("retry_max_delay", b"rm", lambda value: b"%d" % round(value * 1000)),
)
