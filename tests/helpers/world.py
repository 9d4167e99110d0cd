"""An engine with a clock to turn, callers that write down what they are told, and a picture of all that is kept."""

from __future__ import annotations

import copy
import random
from types import GeneratorType
from typing import Any, Dict, List, Optional, Tuple, Type, TypeVar

import msgspec

from synap import commands as c
from synap.engine.callers import Caller, Number, run
from synap.engine.engine import MISSING, Engine, Limits
from synap.engine.journal import Journal, Record
from synap.engine.keystore import KEY_COST, TTL_COST
from synap.engine.names import NAME_COST
from synap.engine.priorities import GONE, LEASED, READY, Queue
from synap.engine.queuestore import QUEUE_COST
from synap.engine.rooms import event_cost
from synap.engine.streams import ROOM_COST
from synap.errors import SynapError

A = TypeVar("A")


class Client(Caller):
    """Writes down what it is told; takes `room` more pushes (None: any number)."""

    def __init__(self, session: str = "") -> None:
        super().__init__(session)
        self.answers: Dict[Number, Any] = {}
        self.errors: Dict[Number, SynapError] = {}
        self.pushed: List[Tuple[int, Any]] = []
        self.ends: Dict[int, SynapError] = {}
        self.room: Optional[int] = None

    def answer(self, number: Number, answer: Any) -> None:
        self.answers[number] = answer

    def refuse(self, number: Number, error: SynapError) -> None:
        self.errors[number] = error

    def push(self, subscription_id: int, item: Any) -> bool:
        if self.room is not None:
            if not self.room:
                return False
            self.room -= 1
        self.pushed.append((subscription_id, item))
        return True

    def ended(self, subscription_id: int, error: SynapError) -> None:
        self.ends[subscription_id] = error

    @property
    def offsets(self) -> List[int]:
        return [item.offset for _, item in self.pushed]


class World:
    """One engine and the time it is told."""

    def __init__(self, *, durable: bool = False, limits: Optional[Limits] = None, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.now = 1_000_000.0
        self.durable = durable
        self.limits = limits
        self.engine = self.fresh()
        self.client = Client()

    def fresh(self) -> Engine:
        journal = Journal(keep_records=self.durable, keep_undo=self.durable)
        return Engine(ids=lambda: self.random.getrandbits(64), limits=self.limits, journal=journal)

    def __call__(self, payload: Any, caller: Optional[Caller] = None, number: Number = 0) -> Any:
        answer = self.engine.execute(payload, self.now, caller or self.client, number)
        return run(answer) if isinstance(answer, GeneratorType) else answer

    def get(self, kind: Type[A], payload: Any, caller: Optional[Caller] = None, number: Number = 0) -> A:
        """Execute, and know what kind of answer comes."""
        answer = self(payload, caller, number)
        assert isinstance(answer, kind), answer
        return answer

    def batch(self, *items: Any, atomic: bool = False, caller: Optional[Caller] = None, number: int = 0) -> List[Any]:
        caller = caller or self.client
        if atomic:
            results = self.engine.execute_atomic(list(items), self.now, caller, number).results
        else:
            results = [self._outcome(item, caller) for item in items]
            if caller.session and any(c.BY_PAYLOAD[type(item)].writes for item in items):
                self.engine.replies.keep(caller.session, number, c.BatchAnswer(results), self.now)
        return [outcome.payload if outcome.error is None else outcome.error.code for outcome in results]

    def _outcome(self, item: Any, caller: Caller) -> c.BatchOutcome:
        """Do one command of a batch that isn't atomic, as a host does."""
        try:
            return c.BatchOutcome("success", self.engine.execute_item(item, self.now, caller))
        except SynapError as error:
            return c.BatchOutcome("error", None, c.ErrorAnswer.of(error))

    def due(self) -> Optional[float]:
        """Return the next deadline. What a host looks at instead never says later than that."""
        at = self.engine.horizon.at
        due = self.engine.next_deadline()
        assert due is None or at <= due, f"due at {due}, and a host would not look before {at}"
        return due

    def sleep(self, seconds: float) -> None:
        """Let time pass, with everything happening when it is due."""
        until = self.now + seconds
        still = 0
        while True:
            due = self.due()
            if due is None or due > until:
                break
            still = still + 1 if due <= self.now else 0
            assert still < 100_000, "what is due is never done"
            self.now = max(self.now, due)
            self.engine.advance(self.now)
        self.now = until

    def consume(self, queue: str = "q", **options: Any) -> c.MessageAnswer:
        return self.get(c.MessageAnswer, c.QueueConsume(queue, **options))

    def drain(self, queue: str = "q") -> List[bytes]:
        """Consume and acknowledge until nothing is left."""
        values: List[bytes] = []
        while True:
            message = self(c.QueueConsume(queue))
            if message is None:
                return values
            self(c.QueueAck(queue, message.message_id, message.lease))
            values.append(message.message)

    def error(self, payload: Any, caller: Optional[Caller] = None) -> SynapError:
        """Execute what must be refused."""
        try:
            answer = self(payload, caller)
        except SynapError as error:
            return error
        raise AssertionError(f"not refused: {answer}")

    def stats(self, queue: str = "q") -> c.QueueStatsAnswer:
        return self.get(c.QueueStatsAnswer, c.QueueStats(queue))

    def restart(self, records: List[Record]) -> None:
        """Go on with an engine that was told these records."""
        self.engine = replay(self.fresh(), records, self.now)


def replay(engine: Engine, records: List[Record], now: float) -> Engine:
    engine.restore_all([through_disk(record) for record in records])
    engine.restored(now)
    while (engine.next_deadline() or now + 1) <= now:
        engine.advance(now)
    engine.collect()
    return engine


def through_disk(record: Record) -> Record:
    return tuple(msgspec.msgpack.decode(msgspec.msgpack.encode(record)))


def dumped(engine: Engine, slice_size: int = 1000) -> List[Record]:
    return [record for page in engine.dump(slice_size) for record in page]


def ready_order(queue: Queue) -> List[int]:
    """Number the ready messages of a queue in the order they would leave."""
    twin = Queue(queue.name, queue.incarnation, queue.config)
    twin.set_contents(copy.deepcopy(queue.contents()))
    order = []
    while twin.ready:
        message = twin.take()
        assert message.state == READY
        message.state = LEASED
        order.append(message.number)
    return order


def on_disk(answer: Any) -> Any:
    """Give what a restart leaves of a remembered answer."""
    if isinstance(answer, c.BatchAnswer):
        return [outcome if outcome.error else on_disk(outcome.payload) for outcome in answer.results]
    return answer.on_disk()


def picture(engine: Engine) -> Dict[str, Any]:
    """Describe all that is kept, and check what is derived against it."""
    keys = engine.keys
    assert list(keys.ordered) == sorted(keys.values)
    assert set(keys.expires) <= set(keys.values)
    used = TTL_COST * len(keys.expires) + sum(KEY_COST + len(key) + len(value) for key, value in keys.values.items())
    queues = {}
    for name, queue in engine.store.queues.items():
        messages = list({m.number: m for m in queue.listing() if m.state != GONE}.values())
        cost = sum(message.cost() for message in messages)
        assert cost == queue.used
        used += QUEUE_COST + len(name) + cost
        order = ready_order(queue)
        assert len(messages) == queue.depth == len(order) + len(queue.leased) + len(queue.delayed)
        totals = (queue.published, queue.consumed, queue.acked, queue.nacked, queue.dead_lettered, queue.dropped)
        queues[name] = {
            "config": msgspec.structs.astuple(queue.config),
            "totals": totals,
            "ready": order,
            "messages": {
                m.number: (
                    m.priority,
                    m.value,
                    m.headers,
                    m.published,
                    m.retry_count,
                    m.state,
                    (m.lease, m.deadline, m.holder) if m.state == LEASED else m.deadline if m.state else None,
                )
                for m in messages
            },
        }
    rooms = {}
    for name, room in engine.streams.by_name.items():
        events = room.events[room.first :]
        assert [event.offset for event in events] == list(range(room.oldest, room.next))
        cost = sum(event_cost(event.data, event.metadata) for event in events) + sum(
            NAME_COST + len(name) for name in room.places
        )
        assert cost == room.used
        used += ROOM_COST + len(name) + cost
        rooms[name] = (room.oldest, room.next, events, dict(room.places))
    assert used == engine.budget.used
    numbers = [(session, number) for session, kept in engine.replies.sessions.items() for number in kept]
    assert engine.replies.count == len(numbers)
    replies = {key: on_disk(engine.recall(*key)) for key in numbers if engine.recall(*key) is not MISSING}
    kept = {"keys": dict(keys.values), "expires": dict(keys.expires)}
    return {**kept, "queues": queues, "rooms": rooms, "replies": replies}
