"""All queues, and every change to one: made, journaled and undone here.

A message is ready, delayed or leased, or gone. Which change is made is decided in `queues` (commands) and `deliveries`
(waiters, time). Undoing never reuses a number that was given out.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Dict, Optional, Sequence, Tuple

from synap.commands import QueueConfig
from synap.engine import records as r
from synap.engine.callers import STEP
from synap.engine.core import Core
from synap.engine.deadlines import Deadlines
from synap.engine.limits import check_name
from synap.engine.priorities import (
    DELAYED,
    GONE,
    LEASED,
    MESSAGE_COST,
    READY,
    TOTALS,
    Contents,
    Message,
    Queue,
    Rules,
    taken_apart,
)
from synap.errors import QueueNotFoundError, SynapError

SUFFIX = ".dlq"
"""The suffix of a dead-letter queue's name."""

QUEUE_COST = 2000
"""Bytes that a queue is estimated to take beside its name and what is in it, once it has held a message."""

LAPSED = 10_000
"""Expired leases that are remembered, so that a late `ack` fails with the reason."""

LeaseEntry = Tuple[float, int, Queue, str]
DelayEntry = Tuple[float, int, int, Queue]


def _lease_holds(entry: LeaseEntry) -> bool:
    message = entry[2].leased.get(entry[3])
    return message is not None and message.lease == entry[1] and message.deadline == entry[0]


def _delay_holds(entry: DelayEntry) -> bool:
    message = entry[3].delayed.get(entry[2])
    return message is not None and message.deadline == entry[0]


def check_queue(name: str, dead_letter: bool) -> None:
    """Refuse a name that is too long for a queue, or for its dead-letter queue."""
    check_name("queue", name)
    if dead_letter:
        check_name(f"queue (unless dead_letter is false: {SUFFIX} must fit behind it)", name, 256 - len(SUFFIX))


def no_queue(name: str) -> QueueNotFoundError:
    """Build the error for a queue that isn't there."""
    return QueueNotFoundError("QUEUE_NOT_FOUND", f"there is no queue {name!r}", {"queue": name})


def new_rules(name: str, config: Optional[QueueConfig]) -> Rules:
    """Return the rules of a new queue; a dead-letter queue has no dead-letter queue of its own."""
    return Rules(dead_letter=not name.endswith(SUFFIX)).changed(config)


class QueueStore:
    """All queues by name, and the deadlines of the leases and delays in them."""

    def __init__(self, core: Core) -> None:
        self.journal, self.budget, self.limits, self.effects = core.journal, core.budget, core.limits, core.effects
        self.ids, self.leftovers, self.horizon = core.ids, core.leftovers, core.horizon
        self.queues: Dict[str, Queue] = {}
        self.leases: Deadlines[LeaseEntry] = Deadlines(_lease_holds, core.horizon)
        self.delays: Deadlines[DelayEntry] = Deadlines(_delay_holds, core.horizon)
        self.next_lease = 1
        self.made: Optional[Dict[Queue, None]] = None
        """Queues that `idle` is still to watch: made by their first use, or brought back by an undo. None where unused
        queues are kept.
        """
        self.lapsed: OrderedDict[str, None] = OrderedDict()
        """Ids of messages whose lease expired, the last `LAPSED` of them."""
        self.touched: Dict[str, Queue] = {}
        """Queues whose totals changed since `collect`."""

    # ------------------------------------------------------------------------------------------ queues

    def find(self, name: str) -> Queue:
        """Return a queue; raises `QueueNotFoundError`."""
        queue = self.queues.get(name)
        if queue is None:
            raise no_queue(name)
        return queue

    def check(self, names: Sequence[str], config: Optional[QueueConfig] = None, *, beside: int = 0) -> None:
        """Raise where queues with these names can't be made, or not with `beside` more bytes held."""
        for name in names:
            check_queue(name, new_rules(name, config).dead_letter)
        if len(self.queues) + len(names) > self.limits.queues:
            raise SynapError("MEMORY_LIMIT", f"there are {len(self.queues)} queues already, the most allowed")
        self.budget.check(sum(QUEUE_COST + len(name) for name in names) + beside)

    def make(self, name: str, config: Optional[QueueConfig] = None) -> Queue:
        """Make a queue; `check` says whether it may be. Without a `config` it has the defaults."""
        queue = Queue(name, self.ids(), new_rules(name, config))
        queue.implicit = config is None
        if self.journal.keep_records:
            self.journal.records.append(self.describe(queue))
            if queue.implicit:
                self.journal.records.append((r.IMPLICIT, name))
        if self.journal.keep_undo:
            self.journal.undos.append((self._unmake, (queue,)))
        self.budget.used += QUEUE_COST + len(name)
        self.queues[name] = queue
        self._watch_idle(queue)
        return queue

    def _watch_idle(self, queue: Queue) -> None:
        """Have `idle` check a queue that may be removed, since it is new or was restored by an undo."""
        if self.made is not None and queue.implicit:
            self.made[queue] = None
            self.horizon.note(0.0)

    def _unmake(self, queue: Queue) -> None:
        if self.queues.get(queue.name) is queue:
            del self.queues[queue.name]
            self.budget.used -= QUEUE_COST + len(queue.name)

    def configure(self, queue: Queue, config: Rules) -> None:
        check_queue(queue.name, config.dead_letter)
        if self.journal.keep_undo:
            self.journal.undos.append((self._unconfigure, (queue, queue.config, queue.implicit)))
        queue.config = config
        queue.implicit = False
        if self.journal.keep_records:
            self.journal.records.append(self.describe(queue))

    def _unconfigure(self, queue: Queue, config: Rules, implicit: bool) -> None:
        queue.config = config
        queue.implicit = implicit
        self._watch_idle(queue)

    def describe(self, queue: Queue) -> Tuple[Any, ...]:
        config = queue.config
        rules = (float(config.ack_deadline), config.max_depth, config.dead_letter)
        retries = (float(config.retry_delay), float(config.retry_backoff), float(config.retry_max_delay))
        return (r.QUEUE, queue.name, queue.incarnation, config.max_retries, *rules, *retries)

    def clear(self, queue: Queue) -> None:
        """Drop all messages of a queue."""
        contents = queue.contents()
        if self.journal.keep_undo:
            self.journal.undos.append((self._refill, (queue, contents)))
        if queue.depth > STEP:
            self.effects.do(self.leftovers.hold, contents, taken_apart(contents))
        self.budget.used -= queue.used
        queue.set_contents(([None] * 10, 0, 0, {}, {}, 0))

    def purge(self, queue: Queue) -> None:
        self.clear(queue)
        if self.journal.keep_records:
            self.journal.records.append((r.QUEUE_PURGED, queue.name, queue.next_number))

    def delete(self, queue: Queue) -> None:
        self.clear(queue)
        if self.journal.keep_undo:
            self.journal.undos.append((self._undelete, (queue,)))
        del self.queues[queue.name]
        self.budget.used -= QUEUE_COST + len(queue.name)
        if self.journal.keep_records:
            self.journal.records.append((r.QUEUE_GONE, queue.name))

    def _undelete(self, queue: Queue) -> None:
        self.queues[queue.name] = queue
        self.budget.used += QUEUE_COST + len(queue.name)
        self._watch_idle(queue)

    def _refill(self, queue: Queue, contents: Contents) -> None:
        self.leftovers.came_back(contents)
        queue.set_contents(contents)
        self.budget.used += queue.used
        for text, message in queue.leased.items():
            self.leases.push_again((message.deadline, message.lease, queue, text))
        for number, message in queue.delayed.items():
            self.delays.push_again((message.deadline, queue.incarnation, number, queue))

    def count(self, queue: Queue, total: str) -> None:
        """Add one to a total of the queue."""
        setattr(queue, total, getattr(queue, total) + 1)
        journal = self.journal
        if journal.keep_undo:
            journal.undos.append((self._uncount, (queue, total)))
        if journal.keep_records:
            self.touched[queue.name] = queue

    @staticmethod
    def _uncount(queue: Queue, total: str) -> None:
        setattr(queue, total, getattr(queue, total) - 1)

    def totals(self, queue: Queue) -> Tuple[Any, ...]:
        figures = [getattr(queue, total) for total in TOTALS]
        return (r.TOTALS, queue.name, queue.next_number, queue.next_sequence, self.next_lease, *figures)

    def collect(self) -> None:
        """Record the totals of the queues that changed."""
        if self.touched:
            queues = self.queues
            self.journal.records.extend(
                self.totals(queue) for name, queue in self.touched.items() if queues.get(name) is queue
            )
            self.touched = {}

    # ------------------------------------------------------------------------------------------ messages

    def add(
        self,
        queue: Queue,
        value: bytes,
        priority: int,
        headers: Optional[Dict[str, str]],
        now: float,
        due: float = 0.0,
        cost: int = 0,
    ) -> Message:
        """Add a new message: ready, or delayed until `due`. `cost`: its `Message.cost`, where that is known."""
        number = queue.next_number
        queue.next_number = number + 1
        sequence = queue.next_sequence
        message = Message(number, sequence, priority, value, headers, now)
        if due:
            message.state = DELAYED
            message.deadline = due
            queue.delayed[number] = message
            self.delays.push((due, queue.incarnation, number, queue))
        else:
            queue.next_sequence = sequence + 1
            queue.enter(message)
        queue.published += 1
        cost = cost or message.cost()
        queue.used += cost
        self.budget.used += cost
        journal = self.journal
        if journal.keep_undo:
            journal.undos.append((self._unadd, (queue, message)))
        if journal.keep_records:
            journal.records.append((r.MESSAGE, queue.name, number, sequence, priority, value, headers, now, 0, due))
            self.touched[queue.name] = queue
        return message

    def _unadd(self, queue: Queue, message: Message) -> None:
        if message.state == DELAYED:
            del queue.delayed[message.number]
            message.state = GONE
        else:
            queue.withdraw(message, GONE)
        queue.published -= 1
        self._charge(queue, -message.cost())

    def end_delay(self, queue: Queue, message: Message) -> None:
        """Make a delayed message ready: a new one goes to the end, one that was leased before back to its place."""
        if self.journal.keep_undo:
            self.journal.undos.append((self._undelay, (queue, message, message.sequence, message.ready_since)))
        del queue.delayed[message.number]
        message.state = READY
        if message.retry_count:
            queue.put_back(message)
        else:
            message.ready_since = message.ready_since or message.deadline
            message.sequence = queue.next_sequence
            queue.next_sequence += 1
            queue.enter(message)
        if self.journal.keep_records:
            self.journal.records.append((r.READY, queue.name, message.number, message.sequence, message.retry_count))
            self.touched[queue.name] = queue

    def _undelay(self, queue: Queue, message: Message, sequence: int, ready_since: float) -> None:
        queue.withdraw(message, DELAYED)
        message.sequence = sequence
        message.ready_since = ready_since
        queue.delayed[message.number] = message
        self.delays.push_again((message.deadline, queue.incarnation, message.number, queue))

    def drop_oldest(self, queue: Queue) -> None:
        """Discard the oldest ready message, if there is one."""
        message = queue.oldest()
        if message is not None:
            self.withdraw(queue, message)
            self.count(queue, "dropped")

    def withdraw(self, queue: Queue, message: Optional[Message] = None) -> Message:
        """Remove a ready message: `message`, or the next one out."""
        if message is None:
            message = queue.take()
            message.state = GONE
        else:
            queue.withdraw(message, GONE)
        self._release(queue, message)
        if self.journal.keep_undo:
            self.journal.undos.append((self._unwithdraw, (queue, message)))
        return message

    def _unwithdraw(self, queue: Queue, message: Message) -> None:
        message.state = READY
        queue.put_back(message)
        self._charge(queue, message.cost())

    def _charge(self, queue: Queue, cost: int) -> None:
        """Count the bytes of a message that came back (below 0: that is gone again)."""
        queue.used += cost
        self.budget.used += cost

    def _release(self, queue: Queue, message: Message) -> None:
        """Count and record that a message is gone."""
        # Most have no headers, and are spared the call.
        cost = MESSAGE_COST + len(message.value) if message.headers is None else message.cost()
        queue.used -= cost
        self.budget.used -= cost
        if self.journal.keep_records:
            self.journal.records.append((r.GONE, queue.name, message.number))
            self.touched[queue.name] = queue

    # ------------------------------------------------------------------------------------------ leases

    def note_lapsed(self, text: str) -> None:
        """Remember that the lease of a message expired."""
        self.lapsed[text] = None
        if len(self.lapsed) > LAPSED:
            self.lapsed.popitem(last=False)

    def lease(
        self, queue: Queue, now: float, seconds: float, holder: str, number: Any, many: bool = False
    ) -> Tuple[str, Message]:
        """Lease the next ready message; `number` is the holder's request, under which the answer is remembered.

        `many` says that the request may lease several.
        """
        message = queue.take()
        text = f"{queue.prefix}{message.number:x}"
        lease = self.next_lease
        self.next_lease = lease + 1
        deadline = now + seconds
        journal = self.journal
        if journal.keep_undo:
            earlier = (message.lease, message.deadline, message.holder)
            journal.undos.append((self._unlease, (queue, text, message, *earlier)))
        message.state = LEASED
        message.lease = lease
        message.deadline = deadline
        message.holder = holder
        queue.leased[text] = message
        queue.consumed += 1
        self.leases.push((deadline, lease, queue, text))
        if journal.keep_records:
            asked = number if holder else None
            record = (r.LEASE, queue.name, message.number, lease, deadline, holder, asked, now)
            journal.records.append((*record, True) if many else record)
            self.touched[queue.name] = queue
        return text, message

    def _unlease(self, queue: Queue, text: str, message: Message, lease: int, deadline: float, holder: str) -> None:
        del queue.leased[text]
        message.state = READY
        message.lease, message.deadline, message.holder = lease, deadline, holder
        queue.consumed -= 1
        queue.put_back(message)

    def extend(self, queue: Queue, text: str, message: Message, deadline: float, now: float) -> None:
        """Set a new deadline for a lease."""
        if self.journal.keep_undo:
            self.journal.undos.append((self._unextend, (queue, text, message, message.deadline)))
        message.deadline = deadline
        self.leases.push((deadline, message.lease, queue, text))
        if self.journal.keep_records:
            lease = (message.lease, deadline, message.holder, None, now)
            self.journal.records.append((r.LEASE, queue.name, message.number, *lease))

    def _unextend(self, queue: Queue, text: str, message: Message, deadline: float) -> None:
        message.deadline = deadline
        self.leases.push_again((deadline, message.lease, queue, text))

    def give_back(self, queue: Queue, text: str, message: Message, retries: int, due: float = 0.0) -> None:
        """End a lease: the message is ready again at its old place, or delayed until `due` first.

        `retries` is added to its `retry_count`.
        """
        del queue.leased[text]
        if self.journal.keep_undo:
            self.journal.undos.append((self._ungive_back, (queue, text, message, retries, message.deadline)))
        message.retry_count += retries
        place = (message.number, message.sequence, message.retry_count)
        if due:
            message.state = DELAYED
            message.deadline = due
            queue.delayed[message.number] = message
            self.delays.push((due, queue.incarnation, message.number, queue))
            record: Tuple[Any, ...] = (r.DELAYED, queue.name, *place, due)
        else:
            message.state = READY
            queue.put_back(message)
            record = (r.READY, queue.name, *place)
        if self.journal.keep_records:
            self.journal.records.append(record)

    def _ungive_back(self, queue: Queue, text: str, message: Message, retries: int, deadline: float) -> None:
        if message.state == DELAYED:
            del queue.delayed[message.number]
            message.state = LEASED
        else:
            queue.withdraw(message, LEASED)
        message.deadline = deadline
        message.retry_count -= retries
        queue.leased[text] = message
        self.leases.push_again((message.deadline, message.lease, queue, text))

    def finish(self, queue: Queue, text: str, message: Message, total: str) -> None:
        """End a lease by removing the message, and add one to a total of the queue."""
        del queue.leased[text]
        message.state = GONE
        setattr(queue, total, getattr(queue, total) + 1)
        self._release(queue, message)
        if self.journal.keep_undo:
            self.journal.undos.append((self._unfinish, (queue, text, message, total)))

    def _unfinish(self, queue: Queue, text: str, message: Message, total: str) -> None:
        self._uncount(queue, total)
        message.state = LEASED
        queue.leased[text] = message
        self._charge(queue, message.cost())
        self.leases.push_again((message.deadline, message.lease, queue, text))
