"""Whatever moves messages: waiting consumers, expired leases, ended delays, dead-lettering."""

from __future__ import annotations

from collections import deque
from typing import Deque, Dict, List, Optional, Sequence, Tuple, Union

from msgspec import structs

from synap import commands as c
from synap.engine.callers import WAITING, Caller, Number, Signal, Steps
from synap.engine.core import WORK, Core
from synap.engine.deadlines import Deadlines
from synap.engine.limits import ANSWER_BYTES
from synap.engine.priorities import Message, Queue
from synap.engine.queuestore import SUFFIX, QueueStore
from synap.engine.remembered import DeliveredTogether, Delivery
from synap.engine.replies import Replies
from synap.errors import SynapError
from synap.shapes import size_of

LETTER = "x-dead-letter-"
"""The prefix of the headers that are added to a dead letter."""

WAITER_COST, PLACE_COST = 1000, 120
"""Estimated bytes of a waiting request, and of its place in each queue but the first."""


def waiter_cost(queues: int) -> int:
    """Estimate the bytes of a request that waits on so many queues."""
    return WAITER_COST + PLACE_COST * (queues - 1)


def waits_already(number: Number) -> SynapError:
    """Build the error for a request with the number of one of the same caller that waits."""
    return SynapError("INVALID_REQUEST", f"request {number!r} waits already", {"request": number})


def sent_again(may_have_happened: bool = False) -> SynapError:
    """Build the error for a request that waits, and was sent again: a message can go to one caller only."""
    error = SynapError("INVALID_REQUEST", "the request was sent again on another connection")
    error.may_have_happened = may_have_happened
    return error


class Waiter:
    """A consume that waits: who asked, on which queues, until when, and the lease's length in seconds.

    `most`: how many messages it takes; None for a plain `consume`, which takes one.
    """

    __slots__ = ("caller", "deadline", "live", "most", "number", "queues", "seconds")

    def __init__(
        self,
        caller: Caller,
        number: Number,
        queues: Sequence[Queue],
        deadline: float,
        seconds: Optional[float],
        most: Optional[int],
    ) -> None:
        self.caller = caller
        self.number = number
        self.queues = queues
        self.deadline = deadline
        self.seconds = seconds
        self.most = most
        self.live = True


WaiterEntry = Tuple[float, int, Waiter]


class Deliveries:
    """The waiting consumers, and the deadlines of leases, delays and waits."""

    def __init__(self, core: Core, store: QueueStore, replies: Replies) -> None:
        self.effects, self.limits, self.timeline = core.effects, core.limits, core.timeline
        self.leftovers, self.horizon = core.leftovers, core.horizon
        self.store = store
        self.replies = replies
        self.waiting: Dict[Tuple[Union[Caller, str], Number], Waiter] = {}
        """Waiters by session (or caller, where it has none) and number of the request."""
        replies.waiting = self.waiting
        self._leaving = 0
        """Waiters that wait no longer, and are still among those of some queues."""
        self._deleted: Deque[Tuple[Queue, SynapError]] = deque()
        """Queues whose waiters are being refused, and what with."""
        self.timeouts: Deadlines[WaiterEntry] = Deadlines(lambda entry: entry[2].live, core.horizon)
        self.arrivals = 0
        self.latest = 0.0
        """The last time that was passed in, for `cancel` without one."""

    # ------------------------------------------------------------------------------------------ consumers

    def lease(
        self, queue: Queue, now: float, seconds: Optional[float], holder: str, number: Number, acked: bool
    ) -> c.MessageAnswer:
        """Lease the next message and build the answer to a request, which may have `acked` another in the same step."""
        self.latest = now
        if seconds is None:
            seconds = queue.config.ack_deadline
        text, m = self.store.lease(queue, now, seconds, holder, number)
        if holder:
            self.replies.keep(holder, number, Delivery(queue, text, m.lease, acked), now, True)
        ends = m.deadline + self.timeline.ahead
        return c.MessageAnswer(text, m.value, m.priority, m.retry_count, m.headers or {}, m.lease, ends)

    def lease_many(
        self, queues: Sequence[Queue], now: float, seconds: Optional[float], holder: str, number: Number, most: int
    ) -> c.MessagesAnswer:
        """Lease up to `most` messages, emptying one queue before the next; fewer where one answer can't hold them."""
        self.latest = now
        left = ANSWER_BYTES
        deliveries: List[Delivery] = []
        for queue in queues:
            lasts = queue.config.ack_deadline if seconds is None else seconds
            for _ in range(min(queue.ready, most - len(deliveries))):
                left -= size_of(queue.first())
                if left < 0 and deliveries:
                    break  # and so in all queues behind it
                text, m = self.store.lease(queue, now, lasts, holder, number, True)
                deliveries.append(Delivery(queue, text, m.lease))
        together = DeliveredTogether(deliveries, self.replies.acked(holder, number))
        if holder and deliveries:
            self.replies.keep(holder, number, together, now, recorded=True)
        return together.answer(self.timeline.ahead) or c.MessagesAnswer([])

    def wait(
        self,
        queues: Sequence[Queue],
        timeout: float,
        seconds: Optional[float],
        now: float,
        caller: Caller,
        number: Number,
        most: Optional[int] = None,
        *,
        checked: bool,
    ) -> Signal:
        """Register a consumer that waits; `checked`: there is room for it, and it has acknowledged messages.

        The same request on an older connection of the session is refused: it was sent again, and waits here now.
        """
        self.latest = now
        key = (caller.session or caller, number)
        self.check_number(caller, number)
        earlier = self.waiting.get(key)
        if earlier is not None:
            self._dismiss(earlier)
            earlier.caller.refuse(number, sent_again(self.replies.acked(caller.session, number)))
        if not checked:
            self.check_waiting(*queues)
        self.store.budget.set_aside(waiter_cost(len(queues)))
        waiter = Waiter(caller, number, queues, now + timeout, seconds, most)
        self.waiting[key] = waiter
        caller.waiting.add(number)
        for queue in queues:
            queue.waiters[waiter] = None
        self.arrivals += 1
        self.timeouts.push((waiter.deadline, self.arrivals, waiter))
        return WAITING

    def check_number(self, caller: Caller, number: Number) -> None:
        """Raise where a request of the caller with this number waits."""
        earlier = self.waiting.get((caller.session or caller, number))
        if earlier is not None and earlier.caller is caller:
            raise waits_already(number)

    def check_waiting(self, *queues: Queue) -> None:
        """Raise where a queue has as many waiting consumers as allowed, or memory is full."""
        self.check_crowd(*queues)
        self.store.budget.check(waiter_cost(len(queues)))

    def check_crowd(self, *queues: Queue) -> None:
        """Raise where a queue has as many waiting consumers as allowed."""
        for queue in queues:
            if len(queue.waiters) >= self.limits.waiting and (count := self.consumers(queue)) >= self.limits.waiting:
                raise SynapError(
                    "SERVICE_UNAVAILABLE",
                    f"{count} consumers wait on {queue.name!r} already, the most allowed",
                    {"queue": queue.name, "retry_after": 1},
                )

    def consumers(self, queue: Queue) -> int:
        """Count the consumers that wait on a queue."""
        return sum([waiter.live for waiter in queue.waiters]) if self._leaving else len(queue.waiters)

    def arrived(self, queue: Queue, now: float) -> None:
        """Serve the waiting consumers of a queue that may have a ready message now."""
        if queue.waiters:
            self.effects.do(self._serve, queue, now)

    def _serve(self, queue: Queue, now: float) -> None:
        while queue.ready and queue.waiters:
            waiter, _ = queue.waiters.popitem(last=False)
            if not waiter.live:
                continue
            self._dismiss(waiter)
            caller, number = waiter.caller, waiter.number
            answer: c.Answer
            if waiter.most is None:
                acked = self.replies.acked(caller.session, number)
                answer = self.lease(queue, now, waiter.seconds, caller.session, number, acked)
            else:
                answer = self.lease_many([queue], now, waiter.seconds, caller.session, number, waiter.most)
            caller.answer(number, answer)

    def _dismiss(self, waiter: Waiter) -> None:
        waiter.live = False
        if len(waiter.queues) == 1:
            waiter.queues[0].waiters.pop(waiter, None)
        else:
            self._leaving += 1
            self.leftovers.free(self._leave(waiter), len(waiter.queues))
        waiter.caller.waiting.discard(waiter.number)
        if self.waiting.pop((waiter.caller.session or waiter.caller, waiter.number), None) is not None:
            self.store.budget.set_aside(-waiter_cost(len(waiter.queues)))

    def _leave(self, waiter: Waiter) -> Steps:
        for queue in waiter.queues:
            queue.waiters.pop(waiter, None)
        self._leaving -= 1
        yield

    def cancel(self, caller: Caller, number: Number, now: Optional[float]) -> None:
        """Drop a waiting consume, or, where it was answered already, put its messages back."""
        waiter = self.waiting.get((caller.session or caller, number))
        if waiter is not None:
            self._drop(waiter, now)
            return
        deliveries = self.replies.deliveries(caller.session, number) if caller.session else []
        if deliveries and not self.replies.acked(caller.session, number):
            self.replies.forget(caller.session, number)
        for queue, text, lease, _ in map(structs.astuple, deliveries):
            message = queue.leased.get(text)
            if message is not None and message.lease == lease:
                self.store.give_back(queue, text, message, 0)
                self.arrived(queue, self.latest if now is None else now)

    def _drop(self, waiter: Waiter, now: Optional[float] = None) -> None:
        """Drop a waiting consume without a message; what it has acknowledged is remembered from now on."""
        self._dismiss(waiter)
        self.replies.renew(waiter.caller.session, waiter.number, self.latest if now is None else now)

    def forget(self, caller: Caller, now: Optional[float]) -> None:
        """Drop all waiting consumes of a caller."""
        for number in list(caller.waiting):
            waiter = self.waiting.get((caller.session or caller, number))
            if waiter is not None and waiter.caller is caller:
                self._drop(waiter, now)
        caller.waiting.clear()

    def refuse(self, queue: Queue, error: SynapError) -> None:
        """Answer all consumers that wait on a queue, which was deleted: the most of many in `advance`."""
        self._deleted.append((queue, error))
        self._refuse(WORK)
        if self._deleted:
            self.horizon.note(0.0)

    def _refuse(self, most: int) -> None:
        """Refuse up to `most` consumers whose queue was deleted, and was not brought back by an undo."""
        while self._deleted and most:
            queue, error = self._deleted[0]
            if not queue.waiters or self.store.queues.get(queue.name) is queue:
                self._deleted.popleft()
                continue
            most -= 1
            waiter, _ = queue.waiters.popitem(last=False)
            if waiter.live:
                self._drop(waiter)
                waiter.caller.refuse(waiter.number, error)

    def release(self, error: Optional[SynapError]) -> None:
        """Answer every waiting consume: as if its time were up, or with an error."""
        for waiter in list(self.waiting.values()):
            self._drop(waiter)
            if error is None:
                waiter.caller.answer(waiter.number, _nothing(waiter))
            else:
                waiter.caller.refuse(waiter.number, error)

    # ------------------------------------------------------------------------------------------ giving up

    def give_up(self, queue: Queue, text: str, message: Message, reason: str, now: float, delay: float = 0.0) -> str:
        """End a lease that was not acknowledged; returns 'requeued' or 'dead_lettered'.

        After `max_retries` retries the message becomes a dead letter; in a queue without dead letters it is requeued
        however often. It is delayed by `delay` seconds, or where that is 0, by the queue's own backoff.
        """
        config = queue.config
        if config.dead_letter and message.retry_count >= config.max_retries:
            self.bury(queue, text, message, reason, now)
            return "dead_lettered"
        delay = delay or config.delay(message.retry_count + 1)
        self.store.give_back(queue, text, message, 1, now + delay if delay else 0.0)
        if not delay:
            self.arrived(queue, now)
        return "requeued"

    def bury(self, queue: Queue, text: str, message: Message, reason: str, now: float) -> None:
        """Move a leased message to the dead-letter queue, which discards its oldest when it is full.

        Headers are added: `reason` ('rejected' for a `nack` with `requeue` false, 'max_retries' for one too many,
        'ack_deadline' where the last lease expired), `queue`, `tries`, `message-id` and `time` (Unix seconds).
        """
        store = self.store
        name = queue.name + SUFFIX
        letters = store.queues.get(name) or store.make(name)
        store.finish(queue, text, message, "dead_lettered")
        if letters.depth >= letters.config.max_depth:
            store.drop_oldest(letters)
        headers = dict(message.headers or {})
        headers[LETTER + "reason"] = reason
        headers[LETTER + "queue"] = queue.name
        headers[LETTER + "tries"] = str(message.retry_count + 1)
        headers[LETTER + "message-id"] = text
        headers[LETTER + "time"] = str(int(self.timeline.shown(now)))
        store.add(letters, message.value, message.priority, headers, now)
        self.arrived(letters, now)

    # ------------------------------------------------------------------------------------------ time

    def next_deadline(self) -> Optional[float]:
        if self._deleted:
            return 0.0
        times = (self.store.leases.first(), self.store.delays.first(), self.timeouts.first())
        return min((time for time in times if time is not None), default=None)

    def advance(self, now: float, most: int) -> None:
        """End up to `most` leases, delays and waits that are due, in order of time."""
        self.latest = now
        self._refuse(most)
        ends = (self._end_lease, self._end_delay, self._end_wait)
        for _ in range(most):
            times = (self.store.leases.first(), self.store.delays.first(), self.timeouts.first())
            due = [(time, which) for which, time in enumerate(times) if time is not None and time <= now]
            if not due:
                return
            ends[min(due)[1]](now)

    def _end_lease(self, now: float) -> None:
        entry = self.store.leases.pop(now)
        if entry is not None:
            _, _, queue, text = entry
            self.store.note_lapsed(text)
            self.give_up(queue, text, queue.leased[text], "ack_deadline", now)

    def _end_delay(self, now: float) -> None:
        entry = self.store.delays.pop(now)
        if entry is not None:
            _, _, number, queue = entry
            self.store.end_delay(queue, queue.delayed[number])
            self.arrived(queue, now)

    def _end_wait(self, now: float) -> None:
        entry = self.timeouts.pop(now)
        if entry is not None:
            self._drop(entry[2], now)
            entry[2].caller.answer(entry[2].number, _nothing(entry[2]))


def _nothing(waiter: Waiter) -> Optional[c.MessagesAnswer]:
    """Build the answer to a consume that timed out."""
    return None if waiter.most is None else c.MessagesAnswer([])
