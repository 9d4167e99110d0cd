"""What is over is gone for everybody at once, and is taken apart a little at a time; what comes back is whole."""

from __future__ import annotations

import gc
import itertools
from typing import Any, Callable, Dict, List

import pytest
from msgspec import Raw

from synap import commands as c
from synap.engine.callers import STEP, WAITING, Caller, run
from synap.engine.core import WORK
from synap.engine.engine import Engine
from synap.engine.journal import Journal
from synap.engine.limits import Limits
from synap.engine.trie import Trie
from synap.errors import SynapError
from synap.host import EngineHost
from synap.host.log import Batch, Log

MANY = 20 * STEP


class Somebody(Caller):
    def __init__(self, session: str = "") -> None:
        super().__init__(session)
        self.answered: List[Any] = []
        self.refused: List[Any] = []

    def answer(self, number: Any, answer: Any) -> None:
        self.answered.append(number)

    def refuse(self, number: Any, error: SynapError) -> None:
        self.refused.append(number)

    def try_push(self, subscription_id: int, item: Any) -> bool:
        return True

    def ended(self, subscription_id: int, error: SynapError) -> None:
        raise AssertionError(error)


class Follower(Somebody):
    over = 0

    def ended(self, subscription_id: int, error: SynapError) -> None:
        self.over += 1


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


def test_subscriptions_of_one_caller_are_gone_together_and_let_go_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    one = engine()
    later = Later(one)
    gone = Somebody()
    words = 100
    for number in range(MANY // words):
        made: Any = one.execute(c.PubSubSubscribe([".".join([f"a{number}", *["*"] * (words - 1)])]), 0.0, gone)
        assert made.subscription_id in gone.subscriptions
    let_go = 0
    remove = Trie.remove

    def counted(trie: Any, pattern: str) -> None:
        nonlocal let_go
        let_go += words
        remove(trie, pattern)

    monkeypatch.setattr(Trie, "remove", counted)
    one.forget(gone)
    stats: Any = one.execute(c.PubSubStats(), 0.0, Somebody())
    topics: Any = one.execute(c.PubSubTopics(), 0.0, Somebody())
    heard: Any = one.execute(c.PubSubPublish(".".join(["a99"] * words), Raw(b"1")), 0.0, Somebody())
    assert (stats.subscriptions, list(topics.topics), heard.subscribers_matched) == (0, [], 0)
    more, longest = True, let_go
    while more:
        let_go = 0
        more = later.a_step()
        longest = max(longest, let_go)
    assert longest <= STEP
    assert not one.topics.patterns
    assert one.topics.partial == 0


def places(of: Engine) -> int:
    """How many places waiters have, dead ones included."""
    return sum(len(queue.waiters) for queue in of.store.queues.values())


def waiting(of: Engine, who: Caller, *, many: int = MANY, queues: int = 100) -> List[str]:
    """Have a caller wait many times on the same queues."""
    names = [f"q{number}" for number in range(queues)]
    for number in range(many // queues):
        assert of.execute(c.QueueConsumeMany(names, timeout=60.0), 0.0, who, number) is WAITING
    return names


def test_a_caller_that_waited_often_is_gone_at_once_and_its_places_in_steps() -> None:
    one = Engine(ids=itertools.count(1).__next__, limits=Limits(waiting=MANY // 100))
    later = Later(one)
    used, gone, stays = one.budget.total, Somebody(), Somebody()
    names = waiting(one, gone)
    with pytest.raises(SynapError, match=f"{MANY // 100} consumers wait"):
        one.execute(c.QueueConsume("q0", timeout=60.0), 0.0, stays)
    one.forget(gone)
    assert MANY - STEP <= places(one) < MANY
    for name in names:  # nobody counts those that are gone
        stats: Any = one.execute(c.QueueStats(name), 0.0, Somebody())
        assert stats.consumers == 0
    figures = one.stats()
    assert [row["consumers"] for row in figures["queues"].values()] == [0] * len(names)
    assert (figures["waiting"], list(one.waits())) == (0, [])
    assert one.budget.total - used < len(names) * 2_100, "what queues take"
    assert one.execute(c.QueueConsume("q0", timeout=60.0), 0.0, stays, 1) is WAITING
    for name in ("q0", "q1"):  # none of them gets a message
        one.execute(c.QueuePublish(name, Raw(b"1")), 0.0, Somebody())
    assert stays.answered == [1]
    taken: Any = one.execute(c.QueueConsume("q1"), 0.0, stays, 2)
    assert bytes(taken.message) == b"1"
    more = True
    while more:
        before = places(one)
        more = later.a_step()
        assert before - places(one) <= STEP
    assert places(one) == 0
    assert one.execute(c.QueueConsume("q0", timeout=60.0), 0.0, stays, 3) is WAITING
    stats = one.execute(c.QueueStats("q0"), 0.0, Somebody())
    assert stats.consumers == 1


def test_a_message_for_each_of_those_who_wait_on_many_queues_lets_go_few_places_at_once() -> None:
    one = engine()
    later = Later(one)
    who = Somebody()
    waiting(one, who)
    for _ in range(MANY // 100):
        one.execute(c.QueuePublish("q0", Raw(b"1")), 0.0, Somebody())
    assert who.answered == list(range(MANY // 100))
    assert places(one) >= MANY - STEP - MANY // 100
    later.all()
    assert places(one) == 0


@pytest.mark.parametrize("atomic", [False, True], ids=["alone", "atomic"])
def test_those_who_wait_on_a_deleted_queue_are_refused_a_few_at_a_time(atomic: bool) -> None:
    one = engine(keep_undo=True)
    later = Later(one)
    who, late = Somebody(), Somebody()
    waiting(one, who, many=MANY // 10, queues=1)
    delete: List[Any] = [c.QueueDelete("q0"), c.QueueCreate("q0")]
    if atomic:
        one.execute_atomic(delete, 0.0, Somebody())
    else:
        for command in delete:
            one.execute(command, 0.0, Somebody())
    assert one.execute(c.QueueConsume("q0", timeout=60.0), 0.0, late) is WAITING
    assert len(who.refused) == WORK
    before = 0
    while one.next_deadline() == 0.0:
        assert one.horizon.at == 0.0
        assert before < len(who.refused) <= before + WORK
        before = len(who.refused)
        one.advance(0.0)
    assert who.refused == list(range(MANY // 10))
    assert (late.refused, len(one.deliveries.waiting)) == ([], 1)
    later.all()


def test_those_who_wait_on_a_queue_whose_deletion_is_undone_wait_on() -> None:
    one = engine(keep_undo=True)
    who = Somebody()
    waiting(one, who, many=MANY // 10, queues=1)
    one.collect()
    one.execute(c.QueueDelete("q0"), 0.0, Somebody())
    refused = len(who.refused)
    one.journal.cut_back(0, 0)
    one.advance(0.0)
    assert len(who.refused) == refused
    assert one.next_deadline() == 60.0
    one.execute(c.QueuePublish("q0", Raw(b"1")), 0.0, Somebody())
    assert who.answered == [refused]


def test_subscriptions_to_a_deleted_room_end_a_few_at_a_time_and_none_once_that_is_undone() -> None:
    one = engine(keep_undo=True)
    followers = [Follower() for _ in range(MANY // 10)]
    for follower in followers:
        one.execute(c.StreamSubscribe("r"), 0.0, follower)
    one.collect()
    one.execute(c.StreamDelete("r"), 0.0, Somebody())
    ended = sum(follower.over for follower in followers)
    assert ended == WORK
    one.journal.cut_back(0, 0)
    one.advance(0.0)
    assert one.next_deadline() is None
    assert sum(follower.over for follower in followers) == ended
    answer: Any = one.execute(c.StreamPublish("r", "e", Raw(b"1")), 0.0, Somebody())
    assert answer.subscribers_notified == len(followers)
    for follower in followers:
        follower.over = 0
    one.execute(c.StreamDelete("r"), 0.0, Somebody())
    one.execute(c.StreamPublish("r", "e", Raw(b"1")), 0.0, Somebody())
    before = 0
    while one.next_deadline() == 0.0:
        ended = sum(follower.over for follower in followers)
        assert before < ended <= before + WORK
        before = ended
        one.advance(0.0)
    assert {follower.over for follower in followers} == {1}
    assert not any(follower.subscriptions for follower in followers)


def reachable(thing: object) -> int:
    """Count the objects that a thing holds."""
    seen: Dict[int, object] = {}
    left = [thing]
    while left:
        one = left.pop()
        if id(one) not in seen and not isinstance(one, type):
            seen[id(one)] = one
            left += gc.get_referents(one)
    return len(seen)


def test_the_answer_of_a_batch_is_one_object_however_many_outcomes_it_has() -> None:
    one = engine()
    who = Somebody("s" * 32)
    answer = one.execute_atomic([*(c.KvSet(f"k{number}", Raw(b"1")) for number in range(STEP))], 0.0, who, 1)
    held = reachable(one.replies.sessions)
    assert held < 20, "each would take its time when the answer is forgotten"
    assert one.recall(who.session, 1) == answer
    assert reachable(one.replies.sessions) == held
