"""Remembers the answers to writes, so that a retried request is answered again and not executed twice.

Answers are kept by session and number of the request until the client confirms them, they are too old, or there are too
many. The answer to a consume is kept as a reference to its lease, and expires with it.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from itertools import takewhile
from operator import gt
from typing import Any, Callable, Container, Deque, Dict, Iterator, List, Optional, Tuple, Type, Union

import msgspec
from msgspec import Struct

from synap import commands as c
from synap.engine import records as r
from synap.engine.callers import MISSING, Number, Signal
from synap.engine.deadlines import Horizon
from synap.engine.journal import Journal, Record
from synap.engine.limits import Budget, Limits
from synap.engine.priorities import Queue
from synap.engine.queuestore import QueueStore
from synap.shapes import estimator

__all__ = ["Delivery", "Replies"]


class Delivery(Struct, gc=False):
    """The answer to a `consume`, as a reference to the message and its lease."""

    queue: Queue
    message_id: str
    lease: int
    acked: bool = False
    """Whether the consume acknowledged a message in the same step."""

    def answer(self) -> Optional[c.MessageAnswer]:
        """Build the answer; None where the lease is over."""
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
            message.deadline,
        )


class DeliveredTogether(Struct):
    """The answer to a `consume_many`: its deliveries whose leases are not over."""

    deliveries: List[Delivery]
    acked: bool = False

    def answer(self) -> Optional[c.MessagesAnswer]:
        """Build the answer; None where every lease is over."""
        found = [(delivery, delivery.answer()) for delivery in self.deliveries]
        messages = [answer.of_queue(delivery.queue.name) for delivery, answer in found if answer is not None]
        return c.MessagesAnswer(messages) if messages else None


class Acked(Struct):
    """Marks a consume that has acknowledged its messages, and has no answer yet."""

    acked: bool = True

    def answer(self) -> None:
        """Return None: there is no answer yet."""


class StoredBatch(Struct, gc=False):
    """A batch's answer as a record holds it, encoded: decoding it is left for when it is asked for.

    A directory may hold hundreds of thousands of answers in batches, and a start would take as long for them as for as
    many keys.
    """

    outcomes: bytes
    count: int

    def answer(self) -> c.BatchAnswer:
        """Build the answer."""
        return c.BatchAnswer(list(map(_unpack_outcome, _decode(self.outcomes))))


Taken = (Delivery, DeliveredTogether, Acked)
Entry = Tuple[float, str, Number]
"""When an answer was kept, and its session and number."""
Kept = Union[c.Answer, c.BatchAnswer, Delivery, DeliveredTogether, Acked, StoredBatch]

DELIVERY, BATCH, DELIVERIES, ACKED, _BY_CODE = 0, 1, 100, 101, 1000
"""The kind of answer in a record: a `Delivery`, a batch's, `DeliveredTogether`, `Acked`, or `_BY_CODE` + a command's
code."""
_BATCHES = (c.BatchAnswer, StoredBatch)
FAILED = -1
"""The kind of an error, among a batch's answers."""
_OF_CONSUME = {Delivery: DELIVERY, DeliveredTogether: DELIVERIES, Acked: ACKED}

_BEFORE = (1, 2, 3, 4, 5, 7, 9, 10, 12, 20, 21, 22, 23, 26, 28, 29, 30, 40, 43, 44, 45, 46, 60, 63, 64)
"""Codes of the commands whose kinds of answers were numbered from 2 on in directories of version 0.1."""

REPLY_COST = 300
"""Estimated bytes of a remembered answer beside its variable part."""
_REPORT_EVERY, _REPORT_BYTES = 256, 1 << 20
"""The budget is updated after so many answers, or so many bytes."""
_AT_ONCE = 4096
"""The most answers that are forgotten at once; where there are more, the next ones come with the next answer."""
_SIFTED = 8
"""Keys that are sifted for each that comes meanwhile."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(List[Tuple[int, bytes]]).decode
_decode_error = msgspec.msgpack.Decoder(c.ErrorAnswer).decode
_NUMBERS: Dict[Type[Struct], int] = {}
"""The number on disk of each class of answer: that of the first command with it. All of them can be read."""
_DECODERS: Dict[int, Callable[[Any], Any]] = {}
"""What decodes an answer by its number on disk."""


def learn(command: c.Command) -> None:
    """Register the answers to a command. Raises `TypeError` where they can't be remembered."""
    if not issubclass(command.answer, c.Answer):
        raise TypeError(f"the answer to {command.name} can't be remembered: {command.answer.__name__} is no Answer")
    number = _BY_CODE + command.code
    _DECODERS[number] = msgspec.msgpack.Decoder(command.answer).decode
    _NUMBERS.setdefault(command.answer, number)


for _command in sorted(c.COMMANDS.values(), key=lambda command: command.code):
    if _command.batchable or (_command.writes and not _command.leases and not _command.pushes):
        learn(_command)
for _number, _code in enumerate(_BEFORE, 2):
    _DECODERS[_number] = _DECODERS[_BY_CODE + _code]
_PLAIN = {kind: number for kind, number in _NUMBERS.items() if kind is not c.BatchAnswer and kind not in _OF_CONSUME}
"""Of those, the ones that are stored as they are encoded."""
_SetAnswer = c.SetAnswer


def _number_of(answer: Kept) -> int:
    kind = type(answer)
    return BATCH if kind in _BATCHES else _OF_CONSUME[kind] if kind in _OF_CONSUME else _NUMBERS[kind]


def _pack(answer: Kept) -> Any:
    """Convert an answer to plain data for a record."""
    if isinstance(answer, Delivery):
        return [answer.queue.name, answer.message_id, answer.lease, answer.acked]
    if isinstance(answer, DeliveredTogether):
        return [[_pack(delivery) for delivery in answer.deliveries], answer.acked]
    if isinstance(answer, Acked):
        return []
    if isinstance(answer, StoredBatch):
        return _decode(answer.outcomes)
    if isinstance(answer, c.BatchAnswer):
        return [
            [_NUMBERS[type(outcome.payload)], _encode(outcome.payload.on_disk())]
            if outcome.error is None
            else [FAILED, _encode(outcome.error)]
            for outcome in answer.results
        ]
    return _encode(answer.on_disk())


def _stored_batch(outcomes: List[Any]) -> StoredBatch:
    """Keep a batch's answer as it was read. Raises `KeyError` for a kind of answer that isn't known."""
    for kind in {kind for kind, _ in outcomes}:
        if kind != FAILED:
            _DECODERS[kind]
    return StoredBatch(_encode(outcomes), len(outcomes))


def _unpack_outcome(outcome: Tuple[int, bytes]) -> c.BatchOutcome:
    kind, packed = outcome
    if kind == FAILED:
        return c.BatchOutcome("error", None, _decode_error(packed))
    return c.BatchOutcome("success", _DECODERS[kind](packed))


def _weigh_batch(batch: Any) -> int:
    answers = [outcome.payload for outcome in batch.results]
    return 200 * len(answers) + sum([_WEIGHTS[type(answer)](answer) for answer in answers if type(answer) in _WEIGHTS])


_WEIGHTS: Dict[type, Callable[[Any], int]] = {}
"""Estimators of the variable bytes of an answer, by its class."""
for _command in c.COMMANDS.values():
    _weight = estimator(_command.answer, 0)
    if _weight is not None:
        _WEIGHTS[_command.answer] = _weight
_WEIGHTS.update({c.BatchAnswer: _weigh_batch, StoredBatch: lambda batch: 200 * batch.count + len(batch.outcomes)})


def part(number: Number, place: int) -> str:
    """Return the key under which one slice's part of a long batch's answer is remembered."""
    return f"{number}+{place}"


def _is_below(number: Number, below: int) -> bool:
    """Return whether a request is numbered below; texts have no order, except for keys that `part` made."""
    if isinstance(number, int):
        return number < below
    text, plus, _ = number.partition("+")
    return bool(plus) and text.isdecimal() and text.isascii() and int(text) < below


class Replies:
    """Answers by session and number. Where there are too many, the oldest are forgotten first."""

    def __init__(self, journal: Journal, limits: Limits, budget: Budget, horizon: Horizon) -> None:
        self.horizon = horizon
        self.journal = journal
        self.budget = budget
        self.limit = limits.replies
        self.age = limits.reply_age
        self.most_bytes = limits.reply_bytes
        if limits.memory is not None:  # an eighth of it at most for each of the two
            self.limit = max(min(self.limit, limits.memory // 8 // REPLY_COST), 1)
            self.most_bytes = min(self.most_bytes, limits.memory // 8)
        self.counted = 0
        """Bytes reported to the budget, which is updated now and then, not for each answer."""
        self.sessions: Dict[str, Dict[Number, Kept]] = {}
        self.order: Deque[Entry] = deque()
        """Keys in order of time; some may have been forgotten. They are sifted a few at a time where those may be many.
        """
        self.sifted: Deque[Entry] = deque()
        """While they are sifted: older keys than those, which have been."""
        self._unsifted = 0
        """How many of `order` are still to be sifted, from its beginning."""
        self.last: Dict[Tuple[str, Number], Entry] = {}
        """Of a number that was used again: the entry of `order` or `sifted` that its answer ends with. Others don't
        count. It leaves with that entry."""
        self._collecting = False
        """Whether the first entry of each answer that is sifted becomes that one, as there are too many."""
        self.waiting: Container[Tuple[Any, Number]] = ()
        """Sessions and numbers of the requests that wait."""
        self.count = 0
        self.bytes = 0
        self._stale = 1024
        """Keys beyond which they are sifted."""
        self._planned = 0
        """Length of `order` when `bound` was set."""
        self.bound = 0
        """Length of `order` beyond which there is something to do: see `_look`."""
        self.bytes_bound = min(_REPORT_BYTES, self.most_bytes)
        """The same of `bytes`."""

    def keep(self, session: str, number: Number, answer: Kept, now: float, recorded: bool = False) -> None:
        """Remember the answer to what was journaled last, and journal it unless a record contains it (`recorded`)."""
        entry = (now, session, number)
        kept = self.sessions.get(session)
        if kept is None:
            kept = self.sessions[session] = {}
        elif number in kept:
            kept = self._replace(entry, kept[number])
        kept[number] = answer
        order = self.order
        order.append(entry)
        self.count += 1
        weigh = _WEIGHTS.get(type(answer))
        if weigh is not None:
            self.bytes = size = self.bytes + weigh(answer)
            if size > self.bytes_bound:
                self._look()
        if len(order) > self.bound:
            self._look()
        journal = self.journal
        if journal.keep_undo:
            journal.undos.append((self.forget, (session, number)))
        if journal.keep_records and not recorded:
            records = journal.records
            kind = type(answer)
            if kind is _SetAnswer and answer.success:  # type: ignore[union-attr]  # see the line before
                _, key, value, due = records[-1]  # the change that it tells of is the last one
                records[-1] = (r.KEY_SET, key, value, due, session, number, now)
            elif kind in _PLAIN:
                data = _encode(answer.on_disk())  # type: ignore[union-attr]  # all of those are answers
                records.append((r.REPLY, session, number, now, _PLAIN[kind], data))
            else:
                records.append((r.REPLY, session, number, now, _number_of(answer), _pack(answer)))

    def _replace(self, entry: Entry, before: Kept) -> Dict[Number, Kept]:
        """Make way for the answer of a number that is used again; returns the session's answers."""
        _, session, number = entry
        self.forget(session, number)
        self.last[session, number] = entry
        if self.journal.keep_undo:
            self.journal.undos.append((self._put_back, (session, number, before)))
        return self.sessions.setdefault(session, {})

    def _put_back(self, session: str, number: Number, before: Kept) -> None:
        """Undo `_replace`, once the new answer was forgotten."""
        if (session, number) in self.last:  # else there are too many, and this was one of the oldest
            self.sessions.setdefault(session, {})[number] = before
            self.count += 1
            weigh = _WEIGHTS.get(type(before))
            if weigh is not None:
                self.bytes += weigh(before)

    def recall(self, session: str, number: Number) -> Union[c.Answer, c.BatchAnswer, Signal]:
        """Return the remembered answer, or MISSING."""
        kept = self.sessions.get(session)
        answer = None if kept is None else kept.get(number)
        if isinstance(answer, (*Taken, StoredBatch)):
            answer = answer.answer()
        return MISSING if answer is None else answer

    def deliveries(self, session: str, number: Number) -> List[Delivery]:
        """Return the leases that a request was answered with, as far as that is remembered."""
        answer = self.sessions.get(session, {}).get(number)
        return (
            answer.deliveries
            if isinstance(answer, DeliveredTogether)
            else [answer]
            if isinstance(answer, Delivery)
            else []
        )

    def acked(self, session: str, number: Number) -> bool:
        """Return whether a consume has acknowledged its messages already."""
        kept = self.sessions.get(session)
        if kept is None or number not in kept:
            return False
        answer = kept[number]
        return isinstance(answer, Taken) and answer.acked

    def confirm(self, session: str, below: int) -> None:
        """Forget the answers to the requests numbered below."""
        kept = self.sessions.get(session)
        if kept is None:
            return
        try:
            confirmed = list(takewhile(partial(gt, below), kept))
        except TypeError:  # some are texts, which have no order
            confirmed = list(takewhile(lambda number: _is_below(number, below), kept))
        self.count -= len(confirmed)
        for answer in map(kept.pop, confirmed):
            weigh = _WEIGHTS.get(type(answer))
            if weigh is not None:
                self.bytes -= weigh(answer)
        if not kept:
            del self.sessions[session]

    def forget(self, session: str, number: Number) -> None:
        """Forget one answer, if it is there."""
        kept = self.sessions.get(session)
        if kept is None:
            return
        answer = kept.pop(number, None)
        if answer is None:
            return
        if not kept:
            del self.sessions[session]
        self.count -= 1
        weigh = _WEIGHTS.get(type(answer))
        if weigh is not None:
            self.bytes -= weigh(answer)

    def _report(self) -> None:
        """Report the bytes in use to the budget."""
        size = self.count * REPLY_COST + self.bytes
        self.budget.set_aside(size - self.counted)
        self.counted = size
        self.bytes_bound = min(self.bytes + _REPORT_BYTES, self.most_bytes)

    def _look(self) -> None:
        """Do what `keep` need not do each time: forget what is too much, report to the budget, set the deadline."""
        self._shrink()
        self._report()
        due = self.next_deadline()
        if due is not None:
            self.horizon.note(due)
        self._plan()

    def _plan(self) -> None:
        """Set when `_look` is called next."""
        self._planned = length = len(self.order)
        self.bound = length + min(_REPORT_EVERY, max(self.limit - self.count, 0)) if length else 0

    def _shrink(self) -> None:
        if self._unsifted:
            self._sift(_SIFTED * max(len(self.order) - self._planned, 1))
        elif len(self.order) > self._stale:
            self._unsifted = len(self.order)
        for _ in range(_AT_ONCE):
            if self.count <= self.limit and self.bytes <= self.most_bytes:
                break
            if not self.order and not self.sifted:
                break
            self._forget_oldest()

    def _sift(self, most: int) -> None:
        """Drop the entries without an answer among the next `most` that are to be sifted."""
        order, keep, sessions, last = self.order, self.sifted.append, self.sessions, self.last
        collecting = self._collecting
        some = min(most, self._unsifted)
        for _ in range(some):
            entry = order.popleft()
            if entry[2] in sessions.get(entry[1], ()):
                if not last and not collecting:
                    keep(entry)
                    continue
                key = entry[1:]
                counts = last.setdefault(key, entry) if collecting else last.get(key, entry)
                if counts is entry:
                    keep(entry)
            elif last and last.get(entry[1:]) is entry:
                del last[entry[1:]]
        self._unsifted -= some
        if not self._unsifted:
            # Those that came meanwhile are an eighth at most of those that were sifted.
            self.sifted.extend(order)
            self.order, self.sifted = self.sifted, deque()
            # Many of one answer: its number was used again after it was forgotten.
            self._collecting = len(self.order) > 2 * self.count + 1024
            self._stale = 0 if self._collecting else len(self.order) * 7 // 4 + 1024

    def _forget_oldest(self, now: Optional[float] = None) -> None:
        """Forget the oldest answer, or drop an entry that doesn't count. `now`: because of its age."""
        if self.sifted:
            entry = self.sifted.popleft()
        else:
            entry = self.order.popleft()
            self._unsifted = max(self._unsifted - 1, 0)
        _, session, number = entry
        if self.last:
            counts = self.last.get((session, number), entry)
            if counts is not entry:
                return
            self.last.pop((session, number), None)
        if now is not None and (session, number) in self.waiting and self.acked(session, number):
            self.forget(session, number)
            self.keep(session, number, Acked(), now)  # what it did must be known when it is sent again
        else:
            self.forget(session, number)

    # ------------------------------------------------------------------------------------------ time, restart

    def next_deadline(self) -> Optional[float]:
        oldest = self.sifted or self.order
        return oldest[0][0] + self.age if oldest else None

    def advance(self, now: float, most: int) -> int:
        done = 0
        while done < most:
            due = self.next_deadline()
            if due is None or due > now:
                break
            self._forget_oldest(now)
            done += 1
        if done:
            self._report()
            self._plan()
        return done

    def restore(self, record: Record, queues: QueueStore) -> None:
        _, session, number, time, kind, data = record
        if kind in (DELIVERY, DELIVERIES):
            packed, acked = ([data], False) if kind == DELIVERY else data
            found = [delivery for delivery in (_delivery(one, queues) for one in packed) if delivery is not None]
            if found:
                answer: Kept = found[0] if kind == DELIVERY else DeliveredTogether(found, acked)
                self.keep(session, number, answer, time, recorded=True)
            elif acked or (kind == DELIVERY and data[3:] == [True]):  # the queue of what it delivered is gone
                self.keep(session, number, Acked(), time, recorded=True)
        elif kind == ACKED:
            self.keep(session, number, Acked(), time, recorded=True)
        else:
            kept = _stored_batch(data) if kind == BATCH else _DECODERS[kind](data)
            self.keep(session, number, kept, time, recorded=True)

    def restore_lease(self, session: str, number: Number, time: float, delivery: Delivery, many: bool) -> None:
        """Restore the answer of a request from the record of its lease."""
        before = self.sessions.get(session, {}).get(number)
        delivery.acked = isinstance(before, Taken) and before.acked
        if not many:
            self.keep(session, number, delivery, time, recorded=True)
        elif not isinstance(before, DeliveredTogether):
            self.keep(session, number, DeliveredTogether([delivery], delivery.acked), time, recorded=True)
        elif delivery not in before.deliveries:
            before.deliveries.append(delivery)

    def restored(self) -> None:
        # A snapshot and the log after it may both contain the same answer.
        last = self.last
        counting = [entry for entry in (*self.sifted, *self.order) if last.get(entry[1:], entry) is entry]
        self.order = deque(sorted(counting, key=lambda entry: entry[0]))
        self.sifted = deque()
        self.last = {}
        self._unsifted = 0
        self._collecting = False
        self._plan()

    def dump(self, slice_size: int) -> Iterator[List[Record]]:
        page: List[Record] = []
        size = 0
        for time, session, number in [*self.sifted, *self.order]:
            answer = self.sessions.get(session, {}).get(number)
            if isinstance(answer, (Delivery, DeliveredTogether)) and answer.answer() is None:
                answer = Acked() if answer.acked else None  # all its leases have ended
            if answer is not None:
                page.append((r.REPLY, session, number, time, _number_of(answer), _pack(answer)))
                size += _items(answer)
                if size >= slice_size:
                    yield page
                    page = []
                    size = 0
        if page:
            yield page


def _delivery(packed: Any, queues: QueueStore) -> Optional[Delivery]:
    queue = queues.queues.get(packed[0])
    return None if queue is None else Delivery(queue, *packed[1:])


def _items(answer: Kept) -> int:
    if isinstance(answer, StoredBatch):
        return answer.count
    return len(answer.results) if isinstance(answer, c.BatchAnswer) else 1
