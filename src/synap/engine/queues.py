"""The queue commands."""

from __future__ import annotations

from heapq import nsmallest
from typing import Any, Callable, Collection, Dict, List, Optional, Sequence, Tuple, Union

from synap import commands as c
from synap.commands import CLIENT_PREFIX
from synap.engine.callers import STEP, Caller, Number, Signal, Steps, at_once, in_order
from synap.engine.deliveries import LETTER, Deliveries, waiter_cost
from synap.engine.limits import fitting
from synap.engine.priorities import EXAMINED, MESSAGE_COST, READY, Message, Queue, headers_cost
from synap.engine.queuestore import SUFFIX, QueueStore
from synap.engine.remembered import Acked
from synap.errors import MessageNotFoundError, QueueNotFoundError, SynapError, invalid

_WHY = {
    "lease_needed": "another client holds it; give the lease it came with, as lease=message.lease",
    "held_by_another": "its ack_deadline passed, and another consumer holds it by now",
    "lease_over": "its ack_deadline passed, or it was given back",
    "settled": "it was settled (acknowledged, given back, purged), or there was never such a message",
}
"""Explanations of why a caller doesn't hold a message's lease, by the word for it in `details.reason`."""


def no_message(queue: str, message_id: str, reason: str) -> MessageNotFoundError:
    """Build the error for a message whose lease the caller doesn't hold; `reason` is one of `_WHY`."""
    return MessageNotFoundError(
        "MESSAGE_NOT_FOUND",
        f"this consumer holds no lease on message {message_id!r} of {queue!r}: {_WHY[reason]}",
        {"queue": queue, "message_id": message_id, "reason": reason},
    )


def left_its_state(queue: str, message_id: Optional[str], state: str) -> MessageNotFoundError:
    """Build the error for a page of `peek` that should begin behind a message which isn't in that state any more."""
    return MessageNotFoundError(
        "MESSAGE_NOT_FOUND",
        f"message {message_id!r} is not {state} in {queue!r} any more; begin with the first page again",
        {"queue": queue, "message_id": message_id},
    )


def queue_full(queue: str, most: int) -> SynapError:
    """Build the error for a queue that holds as many messages as its `max_depth`, which is `most`, or more."""
    return SynapError(
        "QUEUE_FULL",
        f"the queue {queue!r} is full: its max_depth is {most}; consume some or raise max_depth",
        {"queue": queue, "max_depth": most},
    )


def acked_twice() -> SynapError:
    """Build the error for a consume that acknowledges a message twice."""
    return SynapError("INVALID_PAYLOAD", "ack names a message twice", {"field": "ack"})


class Queues:
    """The queue facility: one method per command, named as it is.

    A queue without dead letters (`dead_letter` false) requeues a message however often; only a `nack` with `requeue`
    false drops it there (`action` is 'dropped').
    """

    def __init__(self, store: QueueStore, deliveries: Deliveries) -> None:
        self.store = store
        self.deliveries = deliveries
        self.budget = store.budget
        self.queues = store.queues

    # ------------------------------------------------------------------------------------------ queues

    def create(self, p: c.QueueCreate, now: float) -> c.CreatedAnswer:
        queue = self.queues.get(p.queue)
        if queue is None:
            self.store.check((p.queue,), p.config)
            self.store.make(p.queue, p.config)
            return c.CreatedAnswer(True, True)
        rules = queue.config.changed(p.config)
        if queue.config != rules or queue.implicit:
            self.store.configure(queue, rules)
        return c.CreatedAnswer(True, False)

    def delete(self, p: c.QueueDelete, now: float) -> c.QueueDeletedAnswer:
        queue = self.store.find(p.queue)
        self.store.delete(queue)
        if queue.waiters:
            gone = QueueNotFoundError("QUEUE_NOT_FOUND", f"the queue {p.queue!r} was deleted", {"queue": p.queue})
            self.deliveries.effects.do(self.deliveries.refuse, queue, gone, to=self.deliveries.consumers(queue))
        return c.QueueDeletedAnswer(True)

    def purge(self, p: c.QueuePurge, now: float) -> c.PurgedAnswer:
        queue = self.store.find(p.queue)
        purged = queue.depth
        if purged:
            self.store.purge(queue)
        return c.PurgedAnswer(purged)

    def list(self, p: c.QueueList, now: float) -> Union[c.QueuesAnswer, Steps]:
        return at_once(self._list(), len(self.queues))

    def _list(self) -> Steps:
        return c.QueuesAnswer((yield from in_order(self.queues)))

    def stats(self, p: c.QueueStats, now: float) -> c.QueueStatsAnswer:
        """`consumers` counts waiting ones; the age is that of the oldest ready message, without its delay."""
        queue = self.store.find(p.queue)
        oldest = queue.oldest()
        return c.QueueStatsAnswer(
            queue.ready,
            len(queue.leased),
            len(queue.delayed),
            self.deliveries.consumers(queue),
            queue.published,
            queue.consumed,
            queue.acked,
            queue.nacked,
            queue.dead_lettered,
            queue.dropped,
            None if oldest is None else oldest.age(now),
        )

    def peek(self, p: c.QueuePeek, now: float) -> Union[c.PeekAnswer, Steps]:
        """List messages without leasing them: ready ones next out first, others by when they are due.

        A page ends early where its messages are large; it holds at least one, where there is any.
        """
        queue = self.store.find(p.queue)
        return at_once(self._peek(queue, p), queue.depth)

    def _peek(self, queue: Queue, p: c.QueuePeek) -> Steps:
        number = None if p.after is None else _number(queue, p.after)
        if p.state == "ready":
            after = None if number is None else (yield from queue.find_ready(number))
            for _ in range(0, queue.returned, EXAMINED):
                yield  # all at once, but it counts as so many steps
            found = queue.page(after, p.limit + 1) if number is None or after is not None else None
        else:
            held: Collection[Message] = queue.leased.values() if p.state == "leased" else queue.delayed.values()
            found = yield from _due_next(held, number, p.limit + 1)
        if found is None:
            raise left_its_state(p.queue, p.after, p.state)
        at = self.deliveries.timeline.at
        page = fitting([_peeked(queue, m, at) for m in found[: p.limit]])
        return c.PeekAnswer(page, len(found) > len(page))

    # ------------------------------------------------------------------------------------------ messages in and out

    def publish(self, p: c.QueuePublish, now: float) -> c.PublishAnswer:
        value: Any = p.message
        budget = self.budget
        growth = len(value) + MESSAGE_COST
        if p.headers:
            growth += headers_cost(p.headers)
            check_headers(p.headers)
        store = self.store
        queue = self.queues.get(p.queue)
        if queue is None:
            store.check((p.queue,), beside=growth)
            queue = store.make(p.queue)
        elif queue.ready + len(queue.leased) + len(queue.delayed) >= queue.config.max_depth:
            raise queue_full(queue.name, queue.config.max_depth)
        elif budget.used + growth > budget.limit:
            budget.make_room(growth)
        priority = p.priority
        due = now + p.delay if p.delay else 0.0
        message = store.add(queue, value, priority, p.headers or None, now, due, growth)
        position = queue.position(priority)
        if due:
            position += 1
        elif queue.waiters:
            self.deliveries.arrived(queue, now)
        return c.PublishAnswer(f"{queue.prefix}{message.number:x}", position)

    def consume(self, p: c.QueueConsume, now: float, caller: Caller, number: Number) -> Union[c.Answer, Signal, None]:
        acks = p.ack is not None
        if acks:
            self._ack_before(p, now, caller, number)
        queue = self.queues.get(p.queue)
        if queue is None:
            self._check_new((p.queue,), (), p.timeout > 0, caller, number)
            queue = self.store.make(p.queue)
        if queue.ready:
            return self.deliveries.lease(queue, now, p.ack_deadline, caller.session, number, acks)
        if p.timeout <= 0:
            return None
        return self.deliveries.wait((queue,), p.timeout, p.ack_deadline, now, caller, number, checked=acks)

    def _ack_before(self, p: c.QueueConsume, now: float, caller: Caller, number: Number) -> None:
        """Acknowledge the message that a consume names, unless this request did so before."""
        session = caller.session
        text: Any = p.ack
        try:
            queue, message = self._held(p.queue, text, p.ack_lease, now, caller)
        except SynapError:
            if session and self.deliveries.replies.acked(session, number):
                return
            raise
        if p.timeout > 0 and not queue.ready:
            self.deliveries.check_number(caller, number)
            self.deliveries.check_waiting(queue)
        self.store.finish(queue, text, message, "acked")
        if session and (not queue.ready or self.store.journal.keep_records):
            self.deliveries.replies.keep(session, number, Acked(), now)  # else its answer implies that, at once

    def consume_many(
        self, p: c.QueueConsumeMany, now: float, caller: Caller, number: Number
    ) -> Union[c.Answer, Signal]:
        """Lease from several queues, in the order they are named; waits only where all are empty."""
        names = list(dict.fromkeys(p.queues))
        acked = self._to_ack(p.ack, now, caller, number) if p.ack else []
        known = [queue for queue in map(self.queues.get, names) if queue is not None]
        waits = p.timeout > 0 and not any(queue.ready for queue in known)
        if len(known) < len(names):
            self._check_new([name for name in names if name not in self.queues], known, waits, caller, number)
        queues = [self.queues.get(name) or self.store.make(name) for name in names]
        if acked:
            if waits:
                self.deliveries.check_number(caller, number)
                self.deliveries.check_waiting(*queues)
            self._ack_all(acked, now, caller, number)
        if not waits:
            return self.deliveries.lease_many(queues, now, p.ack_deadline, caller.session, number, p.max)
        checked = bool(p.ack)
        return self.deliveries.wait(queues, p.timeout, p.ack_deadline, now, caller, number, p.max, checked=checked)

    def _check_new(
        self, names: Sequence[str], known: Sequence[Queue], waits: bool, caller: Caller, number: Number
    ) -> None:
        """Raise what a consume would be refused with once it had made queues with these names."""
        if waits:
            self.deliveries.check_number(caller, number)
            self.deliveries.check_crowd(*known)
        self.store.check(names, beside=waiter_cost(len(names) + len(known)) if waits else 0)

    def _to_ack(
        self, messages: Sequence[c.Held], now: float, caller: Caller, number: Number
    ) -> List[Tuple[Queue, Message, str]]:
        """Find the messages that a consume acknowledges, or raise; none where this request did so before."""
        if caller.session and self.deliveries.replies.acked(caller.session, number):
            return []
        found = [(*self._held(one.queue, one.message_id, one.lease, now, caller), one.message_id) for one in messages]
        if len({id(message) for _, message, _ in found}) < len(found):
            raise acked_twice()
        return found

    def _ack_all(self, found: List[Tuple[Queue, Message, str]], now: float, caller: Caller, number: Number) -> None:
        """Acknowledge the messages of a consume, now that nothing can refuse it any more."""
        for queue, message, text in found:
            self.store.finish(queue, text, message, "acked")
        if found and caller.session:
            self.deliveries.replies.keep(caller.session, number, Acked(), now)

    # ------------------------------------------------------------------------------------------ leases

    def _held(self, name: str, text: str, lease: Optional[int], now: float, caller: Caller) -> Tuple[Queue, Message]:
        """Find the message that the caller holds the lease of.

        The lease's number proves it; 0 stands for the current lease, for people at a command line. Without a number,
        any caller may settle the message, unless both it and the holder have sessions and these are of two clients.
        """
        queue = self.queues.get(name)
        if queue is None:
            queue = self.store.find(name)
        message = queue.leased.get(text)
        if message is not None and message.deadline > now:
            if lease is not None:
                if lease == message.lease or not lease:
                    return queue, message
            elif (
                not message.holder
                or not caller.session
                or message.holder[:CLIENT_PREFIX] == caller.session[:CLIENT_PREFIX]
            ):
                return queue, message
        raise _not_held(queue, text, message, lease, now, self.store.lapsed)

    def ack(self, p: c.QueueAck, now: float, caller: Caller) -> c.SuccessAnswer:
        queue, message = self._held(p.queue, p.message_id, p.lease, now, caller)
        self.store.finish(queue, p.message_id, message, "acked")
        return c.SuccessAnswer()

    def nack(self, p: c.QueueNack, now: float, caller: Caller) -> c.NackAnswer:
        queue, message = self._held(p.queue, p.message_id, p.lease, now, caller)
        self.store.count(queue, "nacked")
        if p.requeue:
            given_up = self.deliveries.give_up(queue, p.message_id, message, "max_retries", now, p.delay)
            return c.NackAnswer(True, given_up)
        if queue.config.dead_letter:
            self.deliveries.bury(queue, p.message_id, message, "rejected", now)
            return c.NackAnswer(True, "dead_lettered")
        self.store.finish(queue, p.message_id, message, "dropped")
        return c.NackAnswer(True, "dropped")

    def extend(self, p: c.QueueExtend, now: float, caller: Caller) -> c.SuccessAnswer:
        queue, message = self._held(p.queue, p.message_id, p.lease, now, caller)
        self.store.extend(queue, p.message_id, message, now + p.ack_deadline, now)
        return c.SuccessAnswer()

    def redrive(self, p: c.QueueRedrive, now: float) -> Union[c.RedrivenAnswer, Steps]:
        """Move dead letters back to their queue, next out first, up to `limit` or until the queue is full.

        A named letter that isn't ready any more is skipped. Raises `QUEUE_FULL` where there is room for none.
        """
        queue = self.store.find(p.queue)
        letters = self.queues.get(p.queue + SUFFIX)
        if letters is None or not letters.ready:
            return c.RedrivenAnswer(0)
        room = queue.config.max_depth - queue.depth
        if room <= 0:
            raise queue_full(queue.name, queue.config.max_depth)
        most = room if p.limit is None else min(room, p.limit)
        return at_once(self._redrive(queue, letters, p, most, now), letters.ready)

    def _redrive(self, queue: Queue, letters: Queue, p: c.QueueRedrive, most: int, now: float) -> Steps:
        chosen: List[Optional[Message]]
        chosen = [None] * letters.ready if p.message_ids is None else (yield from _named(letters, p.message_ids))
        chosen = chosen[:most]
        redriven = 0
        for done, one in enumerate(chosen):
            if not done % STEP:
                self.deliveries.arrived(queue, now)  # as many at a time may wait for them
                yield
            if not letters.ready if one is None else one.state != READY:
                continue  # it was leased between two steps
            letter = self.store.withdraw(letters, one)
            redriven += 1
            headers = {name: text for name, text in (letter.headers or {}).items() if not name.startswith(LETTER)}
            self.store.add(queue, letter.value, letter.priority, headers or None, now)
        self.deliveries.arrived(queue, now)
        return c.RedrivenAnswer(redriven)


def check_headers(headers: Dict[str, str]) -> None:
    """Refuse too many headers; those that are added to a dead letter don't count."""
    if len(headers) > c.MAX_HEADERS and (own := sum(not name.startswith(LETTER) for name in headers)) > c.MAX_HEADERS:
        raise invalid("headers", f"at most {c.MAX_HEADERS} strings named by strings ({LETTER}… not counted)", own)


def _number(queue: Queue, text: str) -> Optional[int]:
    """Parse the number of a message from its id; -1 where it isn't one of this queue."""
    head, _, digits = text.rpartition("-")
    try:
        return int(digits, 16) if f"{head}-" == queue.prefix and len(digits) <= 16 else -1
    except ValueError:
        return -1


def _named(letters: Queue, ids: Sequence[str]) -> Steps:
    """Find the ready letters with these ids, next out first: one pass over all is cheaper than one for each id."""
    wanted = {_number(letters, text) for text in ids}
    found: Dict[int, Message] = {}
    every = letters.listing()
    for at in range(0, len(every), STEP):
        found.update((m.number, m) for m in every[at : at + STEP] if m.state == READY and m.number in wanted)
        yield
    return [*sorted(found.values(), key=lambda m: (-m.priority, m.sequence))]


def _due_next(held: Collection[Message], number: Optional[int], count: int) -> Steps:
    """Return the `count` messages due next, after the one with `number`; None where that one isn't among them."""

    def due(message: Message) -> Tuple[float, int]:
        return message.deadline, message.number

    every = list(held)
    place: Optional[Tuple[float, int]] = None
    if number is not None:
        for at in range(0, len(every), STEP):
            place = next((due(m) for m in every[at : at + STEP] if m.number == number), None)
            if place is not None:
                break
            yield
        if place is None:
            return None
    found: List[Message] = []
    for at in range(0, len(every), STEP):
        found += [m for m in every[at : at + STEP] if place is None or due(m) > place]
        found = nsmallest(count, found, key=due)
        yield
    return found


def _peeked(queue: Queue, m: Message, at: Callable[[float], float]) -> c.PeekedMessage:
    due = at(m.deadline) if m.state else None
    text = f"{queue.prefix}{m.number:x}"
    return c.PeekedMessage(text, m.value, m.priority, m.retry_count, m.headers or {}, at(m.published), due)


def _not_held(
    queue: Queue,
    text: str,
    message: Optional[Message],
    lease: Optional[int],
    now: float,
    lapsed: Collection[str],
) -> SynapError:
    """Build the error for a lease that the caller does not hold, with the reason as far as it is known."""
    if message is not None and message.deadline > now and lease is None:
        reason = "lease_needed"
    elif message is not None and message.deadline > now:
        reason = "held_by_another"
    elif message is not None or text in lapsed or queue.delayed.get(_number(queue, text) or -1) is not None:
        reason = "lease_over"
    else:
        reason = "settled"
    return no_message(queue.name, text, reason)
