"""What is over is gone for everybody at once, and is taken apart a little at a time; what comes back is whole."""

from __future__ import annotations

import itertools
from typing import Any, Callable, List

import pytest
from msgspec import Raw

from synap import commands as c
from synap.engine.callers import STEP, Caller, run
from synap.engine.engine import Engine
from synap.engine.journal import Journal
from synap.errors import SynapError
from synap.host import EngineHost
from synap.host.log import Batch, Log

MANY = 20 * STEP


class Somebody(Caller):
    def try_push(self, subscription_id: int, item: Any) -> bool:
        return True

    def ended(self, subscription_id: int, error: SynapError) -> None:
        raise AssertionError(error)


def engine(*, keep_undo: bool = False) -> Engine:
    return Engine(ids=itertools.count(1).__next__, journal=Journal(keep_undo=keep_undo))


class Later:
    """Notes that there is something to do, and does it when it is told."""

    def __init__(self, of: Engine) -> None:
        self.leftovers = of.leftovers
        self.leftovers.begun = self._begun
        self.asked = 0

    def _begun(self) -> None:
        self.asked += 1

    def a_step(self) -> bool:
        return self.leftovers.work(lambda: True)

    def all(self) -> int:
        steps = 1
        while self.a_step():
            steps += 1
        return steps


def filled(of: Engine) -> None:
    """A queue with messages that are ready, delayed, leased, and back from a lease."""
    who = Somebody()
    of.execute(c.QueueCreate("q", c.QueueConfig(max_depth=10 * MANY)), 0.0, who)
    for number in range(MANY):
        of.execute(
            c.QueuePublish("q", Raw(b"%d" % number), priority=number % 10, delay=10.0 * (number % 3 == 0)), 0.0, who
        )
    for number in range(MANY // 3):
        taken: Any = of.execute(c.QueueConsume("q"), 0.0, who)
        if number % 2:
            of.execute(c.QueueNack("q", taken.message_id), 0.0, who)


def depth(of: Engine) -> int:
    stats: Any = of.execute(c.QueueStats("q"), 0.0, Somebody())
    return int(stats.depth + stats.pending + stats.delayed)


@pytest.mark.parametrize("command", [c.QueuePurge("q"), c.QueueDelete("q")])
def test_messages_are_gone_at_once_and_let_go_in_steps(command: Any) -> None:
    one = engine()
    later = Later(one)
    filled(one)
    used = one.budget.used
    one.execute(command, 0.0, Somebody())
    assert one.budget.used < used / 100
    if isinstance(command, c.QueuePurge):
        assert depth(one) == 0
    assert later.asked == 1
    assert later.all() >= MANY // STEP
    filled(one)
    assert depth(one) == MANY


@pytest.mark.parametrize("command", [c.QueuePurge("q"), c.QueueDelete("q")])
def test_what_is_undone_is_whole_again(command: Any) -> None:
    one = engine(keep_undo=True)
    later = Later(one)
    filled(one)
    one.collect()
    used = one.budget.used
    one.execute(command, 0.0, Somebody())
    one.journal.cut_back(0, 0)
    later.all()
    assert depth(one) == MANY
    assert one.budget.used == used
    assert not later.asked


def test_events_are_gone_at_once_and_let_go_in_steps_and_whole_again_where_that_is_undone() -> None:
    one = engine(keep_undo=True)
    later = Later(one)
    for number in range(MANY):
        one.execute(c.StreamPublish("r", "e", Raw(b"%d" % number)), 0.0, Somebody())
    one.collect()
    used = one.budget.used
    one.execute(c.StreamDelete("r"), 0.0, Somebody())
    assert not one.streams.by_name
    one.journal.cut_back(0, 0)
    later.all()
    assert one.budget.used == used
    history: Any = one.execute(c.StreamHistory("r", from_offset=0, limit=1), 0.0, Somebody())
    assert [event.offset for event in history.events] == [0]
    assert not later.asked
    one.execute(c.StreamDelete("r"), 0.0, Somebody())
    _, undos = one.collect()
    assert not later.asked
    one.leftovers.committed(undos)
    assert later.all() >= MANY // STEP


def test_an_atomic_batch_that_fails_leaves_messages_whole() -> None:
    one = engine()
    later = Later(one)
    filled(one)
    one.execute_atomic([c.QueuePurge("q"), c.KvIncr("a", 2**63)], 0.0, Somebody())
    later.all()
    assert depth(one) == MANY
    one.execute_atomic([c.QueuePurge("q"), c.KvIncr("a")], 0.0, Somebody())
    assert later.all() >= MANY // STEP
    assert depth(one) == 0


class Disk(Log):
    """A log that reports when it is told."""

    def __init__(self) -> None:
        self.batches: List[Batch] = []

    def submit(self, batch: Batch, alone: bool) -> bool:
        self.batches.append(batch)
        return False


@pytest.mark.parametrize("writes", [True, False], ids=["written", "refused"])
def test_messages_are_let_go_once_the_disk_has_the_purge(writes: bool) -> None:
    soon: List[Callable[[], None]] = []
    disk = Disk()
    one = engine()
    host = EngineHost(one, log=disk, clock=lambda: 0.0, soon=soon.append)
    filled(one)
    host.end_turn()
    one.execute(c.QueuePurge("q"), 0.0, Somebody())
    host.end_turn()
    assert not soon
    first, second = disk.batches
    if writes:
        host.committed(first)
        assert not soon
        host.committed(second)
        while soon:
            soon.pop()()
        assert depth(one) == 0
        assert not one.leftovers.work(lambda: True)
    else:
        host.committed(first)
        host.failed(SynapError("SERVICE_UNAVAILABLE", "the disk is full"))
        assert not soon
        assert depth(one) == MANY


def test_a_subscriber_is_gone_at_once_and_its_patterns_in_steps() -> None:
    one = engine()
    later = Later(one)
    gone, stays = Somebody(), Somebody()
    made: Any = one.execute(c.PubSubSubscribe([f"a{number}.*" for number in range(8000)]), 0.0, gone)
    run(made)
    one.execute(c.PubSubSubscribe(["a1.*", "a7999.*"]), 0.0, stays)
    one.forget(gone)

    def heard(topic: str) -> int:
        answer: Any = one.execute(c.PubSubPublish(topic, Raw(b"1")), 0.0, Somebody())
        return int(answer.subscribers_matched)

    def patterns() -> List[str]:
        answer: Any = one.execute(c.PubSubTopics(), 0.0, Somebody())
        return list(answer.topics)

    assert [heard(topic) for topic in ("a1.x", "a2.x", "a7999.x")] == [1, 0, 1]
    assert patterns() == ["a1.*", "a7999.*"]
    later.a_step()
    assert [heard(topic) for topic in ("a1.x", "a2.x", "a7999.x")] == [1, 0, 1]
    back: Any = one.execute(c.PubSubSubscribe(["a5.*", "a7998.*"]), 0.0, gone)
    assert later.all() >= 8000 // STEP - 1
    assert [heard(topic) for topic in ("a1.x", "a5.x", "a7998.x")] == [1, 1, 1]
    one.unsubscribe(gone, back.subscription_id)
    one.forget(stays)
    assert not one.topics.patterns
    assert not one.topics.trie.match("a1.x")
