"""The answers that are remembered: their form in memory and in records, and what they weigh."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Tuple, Type, Union

import msgspec
from msgspec import Struct

from synap import commands as c
from synap.engine.priorities import Queue
from synap.shapes import estimator


class Delivery(Struct, gc=False):
    """The answer to a `consume`, as a reference to the message and its lease."""

    queue: Queue
    message_id: str
    lease: int
    acked: bool = False
    """Whether the consume acknowledged a message in the same step."""

    def answer(self, ahead: float = 0) -> Optional[c.MessageAnswer]:
        """Build the answer; None where the lease is over. `ahead`: as in `Timeline`."""
        message = self.queue.leased.get(self.message_id)
        if message is None or message.lease != self.lease:
            return None
        return c.MessageAnswer(
            self.message_id,
            message.value,
            message.priority,
            message.retry_count,
            message.headers or {},
            message.lease,
            message.deadline + ahead,
        )


DELIVERY_COST = 160
"""Estimated bytes of each of several deliveries that were answered together."""


class DeliveredTogether(Struct):
    """The answer to a `consume_many`: its deliveries whose leases are not over."""

    deliveries: List[Delivery]
    acked: bool = False

    def answer(self, ahead: float = 0) -> Optional[c.MessagesAnswer]:
        """Build the answer; None where every lease is over."""
        found = [(delivery, delivery.answer(ahead)) for delivery in self.deliveries]
        messages = [answer.of_queue(delivery.queue.name) for delivery, answer in found if answer is not None]
        return c.MessagesAnswer(messages) if messages else None


class Acked(Struct):
    """Marks a consume that has acknowledged its messages, and has no answer yet."""

    acked: bool = True

    def answer(self, ahead: float = 0) -> None:
        """Return None: there is no answer yet."""


class StoredBatch(Struct, gc=False):
    """A batch's answer, encoded: decoding it is left for when it is asked for.

    Batches of ten thousand would be millions of objects, which take long to be freed; and a directory may hold as
    many, which would take long to be made at the start.
    """

    outcomes: bytes
    count: int

    @classmethod
    def of(cls, answer: c.BatchAnswer) -> StoredBatch:
        """Encode an answer."""
        results = answer.results
        outcomes = [(NUMBERS[type(o.payload)], o.payload) if o.error is None else (FAILED, o.error) for o in results]
        return cls(encode(outcomes), len(outcomes))

    def answer(self, ahead: float = 0) -> c.BatchAnswer:
        """Build the answer."""
        return c.BatchAnswer(list(map(_unpack_outcome, _decode(self.outcomes))))


OF_CONSUMES = (Delivery, DeliveredTogether, Acked)
"""The classes of what is remembered of a `consume` or `consume_many`."""
Kept = Union[c.Answer, Delivery, DeliveredTogether, Acked, StoredBatch]

DELIVERY, BATCH, DELIVERIES, ACKED, _BY_CODE = 0, 1, 100, 101, 1000
"""The kind of answer in a record: a `Delivery`, a batch's, `DeliveredTogether`, `Acked`, or `_BY_CODE` + a command's
code."""
FAILED = -1
"""The kind of an error, among a batch's answers."""

_BEFORE = (1, 2, 3, 4, 5, 7, 9, 10, 12, 20, 21, 22, 23, 26, 28, 29, 30, 40, 43, 44, 45, 46, 60, 63, 64)
"""Codes of the commands whose kinds of answers were numbered from 2 on in directories of version 0.1."""

encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(List[Tuple[int, msgspec.Raw]]).decode
_decode_error = msgspec.msgpack.Decoder(c.ErrorAnswer).decode
NUMBERS: Dict[Type[Struct], int] = {}
"""The number on disk of each class of answer: that of the first command with it. All of them can be read."""
_DECODERS: Dict[int, Callable[[Any], Any]] = {}
"""What decodes an answer by its number on disk."""


def learn(command: c.Command) -> None:
    """Register the answers to a command. Raises `TypeError` where they can't be remembered."""
    if not issubclass(command.answer, c.Answer):
        raise TypeError(f"the answer to {command.name} can't be remembered: {command.answer.__name__} is no Answer")
    number = _BY_CODE + command.code
    _DECODERS[number] = msgspec.msgpack.Decoder(command.answer).decode
    NUMBERS.setdefault(command.answer, number)


for _command in sorted(c.COMMANDS.values(), key=lambda command: command.code):
    if _command.batchable or (_command.writes and not _command.leases and not _command.pushes):
        learn(_command)
for _number, _code in enumerate(_BEFORE, 2):
    _DECODERS[_number] = _DECODERS[_BY_CODE + _code]


def pack(answer: Union[Kept, c.BatchAnswer]) -> Tuple[int, Any]:
    """Convert an answer for a record: its kind, and plain data."""
    if isinstance(answer, Delivery):
        return DELIVERY, [answer.queue.name, answer.message_id, answer.lease, answer.acked]
    if isinstance(answer, DeliveredTogether):
        return DELIVERIES, [[pack(delivery)[1] for delivery in answer.deliveries], answer.acked]
    if isinstance(answer, Acked):
        return ACKED, []
    if isinstance(answer, StoredBatch):
        answer = answer.answer()
    if isinstance(answer, c.BatchAnswer):
        return BATCH, [
            [NUMBERS[type(outcome.payload)], encode(outcome.payload.on_disk())]
            if outcome.error is None
            else [FAILED, encode(outcome.error)]
            for outcome in answer.results
        ]
    return NUMBERS[type(answer)], encode(answer.on_disk())


def unpack(kind: int, data: Any, queues: Dict[str, Queue]) -> Optional[Kept]:
    """Convert what `pack` returned to an answer; None where nothing of it is left.

    Raises `KeyError` for an unknown kind.
    """
    if kind == ACKED:
        return Acked()
    if kind == BATCH:
        return _stored_batch(data)
    if kind not in (DELIVERY, DELIVERIES):
        answer: c.Answer = _DECODERS[kind](data)
        return answer
    packed, acked = ([data], data[3:] == [True]) if kind == DELIVERY else data
    found = [Delivery(queues[name], *rest) for name, *rest in packed if name in queues]
    if found:
        return found[0] if kind == DELIVERY else DeliveredTogether(found, acked)
    return Acked() if acked else None  # the queue of what it delivered is gone


def _stored_batch(outcomes: List[Any]) -> StoredBatch:
    """Keep a batch's answer as it was read. Raises `KeyError` for a kind of answer that isn't known."""
    for kind in {kind for kind, _ in outcomes}:
        if kind != FAILED:
            _DECODERS[kind]
    return StoredBatch(encode([(kind, msgspec.Raw(packed)) for kind, packed in outcomes]), len(outcomes))


def _unpack_outcome(outcome: Tuple[int, msgspec.Raw]) -> c.BatchOutcome:
    kind, packed = outcome
    if kind == FAILED:
        return c.BatchOutcome("error", None, _decode_error(packed))
    return c.BatchOutcome("success", _DECODERS[kind](packed))


_WEIGHTS: Dict[type, Callable[[Any], int]] = {}
"""Estimators of the variable bytes of an answer, by its class."""
for _command in c.COMMANDS.values():
    _weight = estimator(_command.answer, 0)
    if _weight is not None:
        _WEIGHTS[_command.answer] = _weight
_WEIGHTS.update(
    {
        DeliveredTogether: lambda together: DELIVERY_COST * len(together.deliveries),
        StoredBatch: lambda batch: 200 * batch.count + len(batch.outcomes),
    }
)
weigher = _WEIGHTS.get
"""The estimator for a class of answers. A method of a name that is imported would be looked up anew in each call."""


def items(answer: Kept) -> int:
    """Return how many answers it is: one, or those of a batch."""
    return answer.count if isinstance(answer, StoredBatch) else 1
