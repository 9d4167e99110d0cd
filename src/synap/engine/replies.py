"""Remembers the answers to writes, so that a retried request is answered again and not executed twice.

Answers are kept by session and number of the request until the client confirms them, they are too old, or there are too
many. The answer to a consume is kept as a reference to its lease, and expires with it.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from itertools import takewhile
from operator import gt
from typing import Any, Container, Deque, Dict, Iterator, List, Optional, Tuple, Union

from synap import commands as c
from synap.engine import records as r
from synap.engine.callers import MISSING, Number, Signal
from synap.engine.core import Core
from synap.engine.journal import Record, paged
from synap.engine.queuestore import QueueStore
from synap.engine.remembered import (
    DELIVERY_COST,
    NUMBERS,
    OF_CONSUMES,
    Acked,
    DeliveredTogether,
    Delivery,
    Kept,
    StoredBatch,
    encode,
    items,
    pack,
    unpack,
    weigher,
)

Entry = Tuple[float, str, Number]
"""When an answer was kept, and its session and number."""

REPLY_COST = 300
"""Estimated bytes of a remembered answer beside its variable part."""
_REPORT_EVERY, _REPORT_BYTES = 256, 1 << 20
"""The budget is updated after so many answers, or so many bytes."""
_AT_ONCE = 4096
"""The most answers that are forgotten at once; where there are more, the next ones come with the next answer."""
_NEEDED = 64
"""The most answers that are still needed which are met while others are forgotten."""
_SWEPT_PER_ANSWER = 8
"""Entries that a sweep checks for each answer that is kept meanwhile."""


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

    def __init__(self, core: Core) -> None:
        self.journal, self.budget = core.journal, core.budget
        self.horizon, self.timeline = core.horizon, core.timeline
        limits = core.limits
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
        """Entries in order of time. Those of forgotten answers are stale: a sweep drops them a few at a time, once they
        may be many."""
        self.swept: Deque[Entry] = deque()
        """Entries that the current sweep has kept: older than those in `order`."""
        self._unswept = 0
        """Entries at the beginning of `order` that the current sweep has still to check."""
        self.last: Dict[Tuple[str, Number], Entry] = {}
        """Of a number that was used again: the entry of `order` or `swept` that its answer is forgotten with. Its other
        entries don't count. It leaves with that entry."""
        self._deduplicating = False
        """Whether the sweep makes the first entry of each answer that one, as there are too many."""
        self.waiting: Container[Tuple[Any, Number]] = ()
        """Sessions and numbers of the requests that wait."""
        self.count = 0
        self.bytes = 0
        self._sweep_at = 1024
        """Length of `order` beyond which a sweep begins."""
        self._planned = 0
        """Length of `order` when `bound` was set."""
        self.bound = 0
        """Length of `order` beyond which there is something to do: see `_maintain`."""
        self.bytes_bound = min(_REPORT_BYTES, self.most_bytes)
        """The same of `bytes`."""

    def keep(
        self, session: str, number: Number, given: Union[Kept, c.BatchAnswer], now: float, recorded: bool = False
    ) -> None:
        """Remember the answer to what was journaled last, and journal it unless a record contains it (`recorded`)."""
        entry = (now, session, number)
        kept = self.sessions.get(session)
        if kept is None:
            kept = self.sessions[session] = {}
        elif number in kept:
            kept = self._replace(entry, kept[number])
        of = type(given)
        answer: Kept = StoredBatch.of(given) if of is c.BatchAnswer else given  # type: ignore[arg-type, assignment]
        kept[number] = answer
        order = self.order
        order.append(entry)
        self.count += 1
        weigh = weigher(type(answer))
        if weigh is not None:
            self.bytes = size = self.bytes + weigh(answer)
            if size > self.bytes_bound:
                self._maintain()
        if len(order) > self.bound:
            self._maintain()
        journal = self.journal
        if journal.keep_undo:
            journal.undos.append((self.forget, (session, number)))
        if journal.keep_records and not recorded:
            if of in NUMBERS:
                kind, data = NUMBERS[of], encode(given.on_disk())  # type: ignore[union-attr]  # all of those are answers
            else:
                kind, data = pack(given)
            said = journal.said
            if said is not None and said[0] is session and said[1] is now:
                journal.records.append((r.REPLY_SAME, number, kind, data))
            else:
                journal.said = None  # see `KeyStore._put`
                journal.records.append((r.REPLY, session, number, now, kind, data))
                journal.said = session, now

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
            weigh = weigher(type(before))
            if weigh is not None:
                self.bytes += weigh(before)

    def recall(self, session: str, number: Number) -> Union[c.Answer, c.BatchAnswer, Signal]:
        """Return the remembered answer, or MISSING."""
        kept = self.sessions.get(session)
        answer: Any = None if kept is None else kept.get(number)
        if isinstance(answer, (*OF_CONSUMES, StoredBatch)):
            answer = answer.answer(self.timeline.ahead)
        return MISSING if answer is None else answer

    def deliveries(self, session: str, number: Number) -> List[Delivery]:
        """Return the leases that a request was answered with, as far as that is remembered."""
        answer = self.sessions.get(session, {}).get(number)
        if isinstance(answer, DeliveredTogether):
            return answer.deliveries
        return [answer] if isinstance(answer, Delivery) else []

    def acked(self, session: str, number: Number) -> bool:
        """Return whether a consume has acknowledged its messages already."""
        kept = self.sessions.get(session)
        if kept is None or number not in kept:
            return False
        answer = kept[number]
        return isinstance(answer, OF_CONSUMES) and answer.acked

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
            weigh = weigher(type(answer))
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
        weigh = weigher(type(answer))
        if weigh is not None:
            self.bytes -= weigh(answer)

    def _report(self) -> None:
        """Report the bytes in use to the budget."""
        size = self.count * REPLY_COST + self.bytes
        self.budget.set_aside(size - self.counted)
        self.counted = size
        self.bytes_bound = min(self.bytes + _REPORT_BYTES, self.most_bytes)

    def _maintain(self) -> None:
        """Do what `keep` need not do each time: forget what is too much, report to the budget, set the deadline."""
        self._shrink()
        self._report()
        due = self.next_deadline()
        if due is not None:
            self.horizon.note(due)
        self._plan()

    def _plan(self) -> None:
        """Set when `_maintain` is called next."""
        self._planned = length = len(self.order)
        self.bound = length + min(_REPORT_EVERY, max(self.limit - self.count, 0)) if length else 0

    def _shrink(self) -> None:
        if self._unswept:
            self._sweep(_SWEPT_PER_ANSWER * max(len(self.order) - self._planned, 1))
        elif len(self.order) > self._sweep_at:
            self._unswept = len(self.order)
        needed = 0
        for _ in range(_AT_ONCE):
            if needed > _NEEDED or (self.count <= self.limit and self.bytes <= self.most_bytes):
                break
            if not self.order and not self.swept:
                break
            needed += not self._forget_oldest()

    def _sweep(self, most: int) -> None:
        """Drop the entries without an answer among the next `most`."""
        order, keep, sessions, last = self.order, self.swept.append, self.sessions, self.last
        deduplicating = self._deduplicating
        some = min(most, self._unswept)
        for _ in range(some):
            entry = order.popleft()
            if entry[2] in sessions.get(entry[1], ()):
                if not last and not deduplicating:
                    keep(entry)
                    continue
                key = entry[1:]
                counts = last.setdefault(key, entry) if deduplicating else last.get(key, entry)
                if counts is entry:
                    keep(entry)
            elif last and last.get(entry[1:]) is entry:
                del last[entry[1:]]
        self._unswept -= some
        if not self._unswept:
            # Those that came meanwhile are an eighth at most of those that were checked.
            self.swept.extend(order)
            self.order, self.swept = self.swept, deque()
            # Many of one answer: its number was used again after it was forgotten.
            self._deduplicating = len(self.order) > 2 * self.count + 1024
            self._sweep_at = 0 if self._deduplicating else len(self.order) * 7 // 4 + 1024

    def _forget_oldest(self, now: Optional[float] = None) -> bool:
        """Forget the oldest answer, or drop an entry that doesn't count. `now`: because of its age.

        Returns False where it is needed still.
        """
        if self.swept:
            entry = self.swept.popleft()
        else:
            entry = self.order.popleft()
            self._unswept = max(self._unswept - 1, 0)
        _, session, number = entry
        if self.last:
            counts = self.last.get((session, number), entry)
            if counts is not entry:
                return True
            self.last.pop((session, number), None)
        if (session, number) in self.waiting and self.acked(session, number):
            # What it did must be known when it is sent again.
            self.renew(session, number, now or (self.order[-1][0] if self.order else entry[0]))
            return False
        self.forget(session, number)
        return True

    def renew(self, session: str, number: Number, now: float) -> None:
        """Remember from now on what a consume has acknowledged that was not answered, if it has."""
        if self.acked(session, number):
            self.last[session, number] = entry = (now, session, number)
            self.order.append(entry)

    # ------------------------------------------------------------------------------------------ time, restart

    def next_deadline(self) -> Optional[float]:
        oldest = self.swept or self.order
        return oldest[0][0] + self.age if oldest else None

    def advance(self, now: float, most: int) -> None:
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

    def restore(self, session: str, number: Number, time: float, kind: int, data: Any, queues: QueueStore) -> None:
        """Restore an answer from what `pack` made of it."""
        answer = unpack(kind, data, queues.queues)
        if answer is not None:
            self.keep(session, number, answer, time, recorded=True)

    def restore_lease(self, session: str, number: Number, time: float, delivery: Delivery, many: bool) -> None:
        """Restore the answer of a request from the record of its lease."""
        before = self.sessions.get(session, {}).get(number)
        delivery.acked = isinstance(before, OF_CONSUMES) and before.acked
        if not many:
            self.keep(session, number, delivery, time, recorded=True)
        elif not isinstance(before, DeliveredTogether):
            self.keep(session, number, DeliveredTogether([delivery], delivery.acked), time, recorded=True)
        elif delivery not in before.deliveries:
            before.deliveries.append(delivery)
            self.bytes += DELIVERY_COST

    def restored(self, now: float) -> None:
        # A snapshot and the log after it may both contain the same answer.
        last = self.last
        counting = [entry for entry in (*self.swept, *self.order) if last.get(entry[1:], entry) is entry]
        # A consume that has no answer may have waited until a moment ago.
        kept = self.sessions
        counting = [
            (now, *entry[1:]) if type(kept.get(entry[1], {}).get(entry[2])) is Acked else entry for entry in counting
        ]
        self.order = deque(sorted(counting, key=lambda entry: entry[0]))
        self.swept = deque()
        self.last = {}
        self._unswept = 0
        self._deduplicating = False
        self._plan()

    def dump(self, slice_size: int) -> Iterator[List[Record]]:
        return paged(self._all(), slice_size, slice_size)

    def _all(self) -> Iterator[Tuple[List[Record], int]]:
        for time, session, number in [*self.swept, *self.order]:
            answer = self.sessions.get(session, {}).get(number)
            if isinstance(answer, (Delivery, DeliveredTogether)) and answer.answer() is None:
                answer = Acked() if answer.acked else None  # all its leases have ended
            if answer is not None:
                yield [(r.REPLY, session, number, time, *pack(answer))], items(answer)
