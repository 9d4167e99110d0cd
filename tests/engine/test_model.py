"""The engine against a model of a few lines.

Whatever is done in whatever order, both agree; what was not committed can be taken back, and what was
survives a restart.
"""

from __future__ import annotations

import copy
import random
from typing import Any, Dict, Iterator, List, Optional, Tuple

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, rule

from synap import commands as c
from synap.engine.engine import Limits
from synap.engine.journal import Journal, Record, Undo
from tests.helpers.world import Client, World, dumped, picture, replay

ROOM_EVENTS = 6


def data_of(value: int) -> Any:
    return b"%d" % value


class Model:
    """What the contract says, in the plainest way."""

    def __init__(self) -> None:
        self.values: Dict[str, int] = {}
        self.expires: Dict[str, float] = {}
        self.queues: Dict[str, List[Dict[str, Any]]] = {}
        self.rooms: Dict[str, List[int]] = {}
        self.place = 0
        self.ids: Dict[str, int] = {}

    def expire(self, now: float) -> None:
        for key in [key for key, due in self.expires.items() if due <= now]:
            del self.values[key], self.expires[key]

    def set(self, key: str, value: int, due: Optional[float]) -> None:
        self.values[key] = value
        self.expires.pop(key, None)
        if due is not None:
            self.expires[key] = due

    def publish(self, queue: str, value: int, priority: int, due: float = 0.0, died: bool = False) -> int:
        self.place += 1
        message: Dict[str, Any] = {"value": value, "priority": priority, "place": self.place, "retries": 0}
        message.update(lease=None, due=due, died=died)
        messages = self.queues.setdefault(queue, [])
        messages.append(message)
        return 1 + sum(1 for m in messages[:-1] if m["priority"] >= priority and m["lease"] is None and not m["due"])

    def next(self, queue: str) -> Optional[Dict[str, Any]]:
        ready = [m for m in self.queues.get(queue, []) if m["lease"] is None and not m["due"]]
        return min(ready, key=lambda m: (-m["priority"], m["place"])) if ready else None

    def give_up(self, queue: str, message: Dict[str, Any], most: int = 1) -> None:
        message["lease"] = None
        if message["retries"] < most or queue.endswith(".dlq"):
            message["retries"] += 1
        else:
            self.queues[queue].remove(message)
            self.publish(queue + ".dlq", message["value"], message["priority"], died=True)

    def advance(self, now: float) -> None:
        self.expire(now)
        due: List[Tuple[float, int, str, Dict[str, Any]]] = []
        for name, messages in self.queues.items():
            for message in messages:
                time = message["lease"][1] if message["lease"] else message["due"]
                if time and time <= now:
                    due.append((time, 0 if message["lease"] else 1, name, message))
        for _, kind, name, message in sorted(due, key=lambda entry: (entry[0], entry[1], self.order(entry))):
            if kind == 0:
                self.give_up(name, message, 3 if name.endswith(".dlq") else 1)
            else:
                self.place += 1
                message.update(due=0.0, place=self.place)

    def order(self, entry: Tuple[float, int, str, Dict[str, Any]]) -> Any:
        message = entry[3]
        return message["lease"][0] if message["lease"] else (self.ids[entry[2]], message["number"])


class Both:
    """Runs both, commits from time to time, and now and then takes back, restarts or dumps in the middle of it all."""

    def __init__(self) -> None:
        self.random = random.Random()
        self.world = World(durable=True, limits=Limits(room_events=ROOM_EVENTS, reply_age=1e9))
        self.model = Model()
        self.client = Client("me")
        self.number = 0
        self.log: List[Record] = []
        self.undos: List[Undo] = []
        self.safe = (copy.deepcopy(self.model), picture(self.world.engine))
        self.dump: Optional[Iterator[List[Record]]] = None
        self.snapshot: List[Record] = []
        self.since: List[Record] = []
        for queue in ("q", "r"):
            self.run(c.QueueCreate(queue, c.QueueConfig(max_retries=1)))
            self.model.queues[queue] = []
        self.commit()

    def pick(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def run(self, payload: Any) -> Any:
        self.number += 1
        return self.world(payload, self.client, self.number)

    # ---- keys

    def set(self) -> None:
        key = self.pick("a", "b", "ab", "c")
        value = self.pick(*range(-5, 6))
        ttl = self.pick(None, *range(1, 20))
        before = self.model.values.get(key)
        answer = self.run(c.KvSet(key, data_of(value), ttl))
        assert answer.previous == (None if before is None else b"%d" % before)
        self.model.set(key, value, None if ttl is None else self.world.now + ttl)

    def set_if(self) -> None:
        key = self.pick("a", "b", "ab", "c")
        value = self.pick(*range(-5, 6))
        new = self.pick(True, False)
        answer = self.run(c.KvSet(key, data_of(value), nx=new, xx=not new))
        assert answer.success == ((key in self.model.values) != new)
        if answer.success:
            self.model.set(key, value, None)

    def delete(self) -> None:
        keys = [self.pick("a", "b", "ab", "c") for _ in range(2)]
        assert self.run(c.KvDel(keys)).deleted == len(set(keys) & set(self.model.values))
        for key in keys:
            self.model.values.pop(key, None)
            self.model.expires.pop(key, None)

    def incr(self) -> None:
        key = self.pick("a", "b", "ab", "c")
        amount = self.pick(*range(-5, 6))
        value = self.model.values.get(key, 0) + amount
        assert self.run(c.KvIncr(key, amount)).value == value
        self.model.values[key] = value

    def change_expiry(self) -> None:
        key = self.pick("a", "b", "ab", "c")
        ttl = self.pick(None, *range(1, 20))
        payload = c.KvPersist(key) if ttl is None else c.KvExpire(key, ttl)
        if key not in self.model.values:
            assert self.world.error(payload).code == "KEY_NOT_FOUND"
            return
        self.run(payload)
        self.model.set(key, self.model.values[key], None if ttl is None else self.world.now + ttl)

    def scan(self) -> None:
        prefix = self.pick("", "a", "ab")
        count = self.pick(1, 2, 3)
        keys: List[str] = []
        cursor = None
        while True:
            page = self.run(c.KvScan(prefix, cursor, count))
            keys += page.keys
            cursor = page.cursor
            if not page.has_more:
                break
            assert len(page.keys) == count
        assert keys == sorted(key for key in self.model.values if key.startswith(prefix))

    # ---- queues

    def publish(self) -> None:
        queue = self.pick("q", "r")
        value = self.pick(*range(-5, 6))
        priority = self.pick(4, 5, 6)
        delay = self.pick(0, 0, 0, 2, 7)
        answer = self.run(c.QueuePublish(queue, data_of(value), priority, None, delay))
        position = self.model.publish(queue, value, priority, self.world.now + delay if delay else 0.0)
        assert answer.position == position
        message = self.model.queues[queue][-1]
        message["number"] = int(answer.message_id.split("-")[1], 16)

    def consume(self) -> None:
        queue = self.pick("q", "r")
        dead = self.pick(False, False, True)
        seconds = self.pick(*range(1, 20))
        queue += ".dlq" if dead else ""
        answer = self.run(c.QueueConsume(queue, ack_deadline=seconds))
        message = self.model.next(queue)
        if message is None:
            assert answer is None
            self.model.queues.setdefault(queue, [])
            return
        found = (int(answer.message), answer.priority, answer.retry_count)
        assert found == (message["value"], message["priority"], message["retries"])
        assert bool(answer.headers) == message["died"]
        message["lease"] = (answer.lease, answer.deadline, answer.message_id)

    def a_lease(self) -> Tuple[str, Dict[str, Any], Tuple[int, float, str]]:
        leased = [(name, m) for name, messages in self.model.queues.items() for m in messages if m["lease"]]
        name, message = self.pick(*leased)
        return name, message, message["lease"]

    @property
    def something_is_leased(self) -> bool:
        return any(message["lease"] for messages in self.model.queues.values() for message in messages)

    def ack(self) -> None:
        if not self.something_is_leased:
            return
        name, message, (lease, _, text) = self.a_lease()
        assert self.world.error(c.QueueAck(name, text, lease + 1000)).code == "MESSAGE_NOT_FOUND"
        assert self.world.error(c.QueueAck(name, text), Client("another")).code == "MESSAGE_NOT_FOUND"
        self.run(c.QueueAck(name, text, lease))
        self.model.queues[name].remove(message)

    def nack(self) -> None:
        if not self.something_is_leased:
            return
        requeue = self.pick(True, True, False)
        name, message, (_, _, text) = self.a_lease()
        action = self.run(c.QueueNack(name, text, requeue)).action
        if name.endswith(".dlq"):
            if requeue:
                assert action == "requeued"
                self.model.give_up(name, message, 3)
            else:
                assert action == "dropped"
                self.model.queues[name].remove(message)
            return
        assert action == ("requeued" if requeue and message["retries"] < 1 else "dead_lettered")
        self.model.give_up(name, message, 1 if requeue else -1)

    def extend(self) -> None:
        if not self.something_is_leased:
            return
        seconds = self.pick(*range(1, 20))
        name, message, (lease, _, text) = self.a_lease()
        self.run(c.QueueExtend(name, text, seconds))
        message["lease"] = (lease, self.world.now + seconds, text)

    def redrive(self) -> None:
        queue = self.pick("q", "r")
        limit = self.pick(None, 1, 2)
        count = 0
        while limit is None or count < limit:
            letter = self.model.next(queue + ".dlq")
            if letter is None:
                break
            self.model.queues[queue + ".dlq"].remove(letter)
            self.model.publish(queue, letter["value"], letter["priority"])
            count += 1
        assert self.run(c.QueueRedrive(queue, limit)).redriven == count

    def purge(self) -> None:
        queue = self.pick("q", "r")
        assert self.run(c.QueuePurge(queue)).purged == len(self.model.queues[queue])
        self.model.queues[queue] = []

    def delete_and_make_again(self) -> None:
        queue = self.pick("q", "r")
        self.run(c.QueueDelete(queue))
        self.run(c.QueueCreate(queue, c.QueueConfig(max_retries=1)))
        self.model.queues[queue] = []

    # ---- rooms

    def event(self) -> None:
        room = self.pick("x", "y")
        value = self.pick(*range(-5, 6))
        events = self.model.rooms.setdefault(room, [])
        answer = self.run(c.StreamPublish(room, "t", data_of(value)))
        assert answer.offset == len(events)
        events.append(value)

    def delete_room(self) -> None:
        room = self.pick("x", "y")
        if self.model.rooms.pop(room, None) is None:
            assert self.world.error(c.StreamDelete(room)).code == "ROOM_NOT_FOUND"
        else:
            self.run(c.StreamDelete(room))

    # ---- batches

    def an_atomic_batch_that_fails(self) -> None:
        key = self.pick("a", "b", "ab", "c")
        queue = self.pick("q", "r")
        room = self.pick("x", "y")
        value = self.pick(*range(-5, 6))
        data = data_of(value)
        before = picture(self.world.engine)
        results = self.world.batch(
            c.KvSet(key, data, ttl=3),
            c.KvIncr("n"),
            c.KvDel([key, "a"]),
            c.QueuePublish(queue, data),
            c.QueuePurge(queue),
            c.QueuePublish(queue, data, delay=5),
            c.QueueRedrive(queue),
            c.QueueDelete(queue),
            c.QueuePublish("new", data),
            c.StreamPublish(room, "t", data),
            c.StreamPublish("new", "t", data),
            c.StreamDelete(room),
            c.KvTtl("nothing there"),
            c.KvSet(key, data),
            atomic=True,
            caller=self.client,
            number=self.number + 1,
        )
        assert results == ["BATCH_ABORTED"] * 12 + ["KEY_NOT_FOUND", "BATCH_ABORTED"]
        assert picture(self.world.engine) == before

    def an_atomic_batch_that_holds(self) -> None:
        key = self.pick("a", "b", "ab", "c")
        value = self.pick(*range(-5, 6))
        room = self.pick("x", "y")
        self.number += 1
        data = data_of(value)
        items = (c.KvSet(key, data), c.KvIncr(key, 1), c.StreamPublish(room, "t", data))
        results = self.world.batch(*items, atomic=True, caller=self.client, number=self.number)
        assert results[1].value == value + 1
        self.model.set(key, value + 1, None)
        self.model.rooms.setdefault(room, []).append(value)

    # ---- time, commits, restarts

    def pass_time(self) -> None:
        self.happen(self.pick(*range(10)))

    def happen(self, seconds: int) -> None:
        self.model.ids = {name: queue.incarnation for name, queue in self.world.engine.store.queues.items()}
        for name, messages in self.model.queues.items():
            numbers = {m.sequence: m.number for m in self.world.engine.store.queues[name].delayed.values()}
            assert len(numbers) <= len(messages)
        until = self.world.now + seconds
        while True:
            due = self.world.engine.next_deadline()
            if due is None or due > until:
                break
            self.world.now = max(due, self.world.now)
            self.world.engine.advance(self.world.now)
            self.model.advance(self.world.now)
        self.world.now = until

    def commit(self) -> None:
        records, self.undos = self.world.engine.collect()
        self.undos = []
        self.log += records
        self.since += records
        self.safe = (copy.deepcopy(self.model), picture(self.world.engine))

    def commit_now(self) -> None:
        self.commit()

    def the_disk_refuses(self) -> None:
        _, undos = self.world.engine.collect()
        Journal.roll_back(undos)
        model, before = self.safe
        assert picture(self.world.engine) == before
        self.model = copy.deepcopy(model)
        self.dump = None
        self.happen(0)  # what was taken back may be due again

    def restart_from_the_log(self) -> None:
        self.commit()
        before = self.safe[1]
        self.world.restart(self.log)
        assert picture(self.world.engine) == before
        self.dump = None

    def begin_a_snapshot(self) -> None:
        size = self.pick(1, 2, 4)
        self.commit()
        self.dump = self.world.engine.dump(size)
        self.snapshot, self.since = [], []

    def go_on_with_the_snapshot(self) -> None:
        if self.dump is None:
            return
        page = next(self.dump, None)
        if page is not None:
            self.snapshot += page
            return
        self.commit()
        self.dump = None
        twin = replay(self.world.fresh(), self.snapshot + self.since, self.world.now)
        assert picture(twin) == self.safe[1]
        again = replay(self.world.fresh(), self.snapshot + self.since + self.since, self.world.now)
        assert picture(again) == self.safe[1]

    def restart_from_a_snapshot(self) -> None:
        self.commit()
        self.log = dumped(self.world.engine)
        self.world.restart(self.log)
        assert picture(self.world.engine) == self.safe[1]
        self.dump = None

    # ---- what always holds

    def both_agree(self) -> None:
        now = self.world.now
        self.model.expire(now)
        engine = self.world.engine
        for key in ("a", "b", "ab", "c"):
            answer = engine.execute(c.KvGet(key), now, self.client)
            assert isinstance(answer, c.GetAnswer)
            value = self.model.values.get(key)
            assert answer.value == (None if value is None else data_of(value))
            due = self.model.expires.get(key)
            assert answer.ttl == (None if due is None else due - now)
        for name, messages in self.model.queues.items():
            stats = self.world.stats(name)
            leased = sum(message["lease"] is not None for message in messages)
            delayed = sum(bool(message["due"]) for message in messages)
            assert (stats.depth, stats.pending, stats.delayed) == (len(messages) - leased - delayed, leased, delayed)
        for name, events in self.model.rooms.items():
            history = self.world.get(c.HistoryAnswer, c.StreamHistory(name))
            assert [int(event.data) for event in history.events] == events[-ROOM_EVENTS:]
            assert history.newest_offset == len(events) - 1

    def drain(self) -> None:
        """Empty every queue: all that should be there is, in order."""
        picture(self.world.engine)
        for name in list(self.model.queues):
            while True:
                message = self.model.next(name)
                answer = self.run(c.QueueConsume(name, ack_deadline=1000))
                if message is None:
                    assert answer is None
                    break
                assert int(answer.message) == message["value"]
                self.model.queues[name].remove(message)


ACTIONS = [
    *["set", "set_if", "delete", "incr", "change_expiry", "scan"],
    *["publish"] * 8,
    *["consume"] * 6,
    *["ack", "nack", "nack", "extend", "redrive", "purge", "delete_and_make_again"],
    *["event"] * 4,
    *["delete_room", "an_atomic_batch_that_fails", "an_atomic_batch_that_holds"],
    *["pass_time"] * 4,
    *["commit", "the_disk_refuses", "the_disk_refuses", "restart_from_the_log", "restart_from_a_snapshot"],
    *["begin_a_snapshot", *["go_on_with_the_snapshot"] * 4],
]


class EngineAndModel(RuleBasedStateMachine):
    """Lets Hypothesis choose, and find the shortest way to a difference."""

    def __init__(self) -> None:
        super().__init__()
        self.both = Both()

    @rule(action=st.sampled_from(ACTIONS), seed=st.integers(0, 1000))
    def act(self, action: str, seed: int) -> None:
        self.both.random.seed(seed)
        getattr(self.both, action)()
        self.both.both_agree()

    def teardown(self) -> None:
        self.both.drain()


TestEngineAndModel = EngineAndModel.TestCase
TestEngineAndModel.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


@pytest.mark.parametrize("seed", range(8))
def test_long_runs_agree_with_the_model(seed: int) -> None:
    both = Both()
    both.random.seed(seed)
    for _ in range(1500):
        getattr(both, both.random.choice(ACTIONS))()
        both.both_agree()
    both.drain()
