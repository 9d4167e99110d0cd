"""Restore queues from records, and dump them as records."""

from __future__ import annotations

from typing import Iterator, List, Tuple

from synap.engine import records as r
from synap.engine.journal import Record, paged
from synap.engine.priorities import DELAYED, GONE, LEASED, READY, TOTALS, Message, Queue, Rules
from synap.engine.queuestore import QUEUE_COST, QueueStore


def restore(store: QueueStore, record: Record) -> None:
    """Apply one record. What it names may be gone, or exist already: records are outcomes, not steps."""
    kind, name = record[0], record[1]
    queue = store.queues.get(name)
    if kind == r.QUEUE:
        incarnation, config = record[2], Rules(*record[3:])
        if queue is None or queue.incarnation != incarnation:
            store.queues[name] = Queue(name, incarnation, config)
        else:
            queue.config = config
            queue.implicit = False
    elif queue is None:
        return
    elif kind == r.IMPLICIT:
        queue.implicit = True
    elif kind == r.MESSAGE:
        _, _, number, sequence, priority, value, headers, published, retry_count, due, *optional = record
        state = DELAYED if due else READY
        restored = Message(number, sequence, priority, value, headers, published, retry_count, state, due)
        if optional:
            restored.ready_since = optional[0]
        queue.messages[number] = restored
        queue.next_number = max(queue.next_number, number + 1)
        queue.next_sequence = max(queue.next_sequence, sequence + 1)
    elif kind == r.TOTALS:
        _, _, number, sequence, lease, *totals = record
        queue.next_number = max(queue.next_number, number)
        queue.next_sequence = max(queue.next_sequence, sequence)
        store.next_lease = max(store.next_lease, lease)
        for total, figure in zip(TOTALS, totals):
            setattr(queue, total, figure)
    elif kind == r.QUEUE_GONE:
        del store.queues[name]
    elif kind == r.QUEUE_PURGED:
        queue.messages = {number: message for number, message in queue.messages.items() if number >= record[2]}
    elif kind == r.GONE:
        queue.messages.pop(record[2], None)
    else:
        message = queue.messages.get(record[2])
        if message is not None:
            _restore_state(store, queue, message, record)


def _restore_state(store: QueueStore, queue: Queue, message: Message, record: Record) -> None:
    if record[0] == r.LEASE:
        lease, deadline, holder = record[3:6]
        message.state = LEASED
        message.lease = lease
        message.deadline = deadline
        message.holder = holder
        store.next_lease = max(store.next_lease, lease + 1)
    else:
        sequence, retry_count = record[3:5]
        if message.state == DELAYED and not message.retry_count:
            message.ready_since = message.ready_since or message.deadline
        message.state = READY
        if record[0] == r.DELAYED:
            message.state = DELAYED
            message.deadline = record[5]
        message.sequence = sequence
        message.retry_count = retry_count
        queue.next_sequence = max(queue.next_sequence, sequence + 1)


def restored(store: QueueStore) -> None:
    """Build each queue's order, leases and delays, once all records are applied."""
    leases: List[Tuple[float, int, Queue, str]] = []
    delays: List[Tuple[float, int, int, Queue]] = []
    for queue in store.queues.values():
        messages, queue.messages = queue.messages, {}
        for message in sorted(messages.values(), key=lambda message: message.sequence):
            queue.used += message.cost()
            if message.state == READY:
                queue.enter(message)
            elif message.state == LEASED:
                text = f"{queue.prefix}{message.number:x}"
                queue.leased[text] = message
                leases.append((message.deadline, message.lease, queue, text))
            else:
                queue.delayed[message.number] = message
                delays.append((message.deadline, queue.incarnation, message.number, queue))
        store.budget.used += QUEUE_COST + len(queue.name) + queue.used
    store.leases.rebuild(leases)
    store.delays.rebuild(delays)


def dump(store: QueueStore, slice_size: int, slice_bytes: int) -> Iterator[List[Record]]:
    """Yield queues and messages in slices; what changes between two slices is in the journal."""
    return paged(_all(store), slice_size, slice_bytes)


def _all(store: QueueStore) -> Iterator[Tuple[List[Record], int]]:
    for queue in list(store.queues.values()):
        if store.queues.get(queue.name) is not queue:
            continue
        implicit: List[Record] = [(r.IMPLICIT, queue.name)] if queue.implicit else []
        yield [store.describe(queue), store.totals(queue), *implicit], 0
        for message in queue.listing():
            if message.state == GONE:
                continue
            if store.queues.get(queue.name) is not queue:
                break
            records = [_message(queue, message)]
            if message.state == LEASED:
                lease = (message.lease, message.deadline, message.holder, None, 0.0)
                records.append((r.LEASE, queue.name, message.number, *lease))
            yield records, len(message.value)


def _message(queue: Queue, m: Message) -> Record:
    due = m.deadline if m.state == DELAYED else 0.0
    place = (m.number, m.sequence, m.priority)
    record = (r.MESSAGE, queue.name, *place, m.value, m.headers, m.published, m.retry_count, due)
    return (*record, m.ready_since) if m.ready_since else record
