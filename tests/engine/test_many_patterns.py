"""Subscriptions to many patterns of many words begin and end as a whole, and nobody waits for that."""

from __future__ import annotations

import itertools
import json
from types import GeneratorType
from typing import Any, Callable, Iterator, List

import pytest

from synap import commands as c
from synap.commands import COMMANDS
from synap.engine.callers import STEP, Steps, run
from synap.engine.engine import Engine, Limits
from synap.engine.topics import by_words
from synap.engine.trie import Trie
from synap.errors import PermissionDeniedError, SynapError
from synap.host import EngineHost, Output, Session
from synap.wire.codec import CODECS
from tests.helpers.world import Client, World

X: Any = b"1"
WORDS = 100
MANY = [".".join(["*", *["w"] * (WORDS - 2), str(number)]) for number in range(200)]
TOPIC = ".".join(["a", *["w"] * (WORDS - 2), "199"])


def matched(world: World, topic: str = TOPIC) -> int:
    return int(world(c.PubSubPublish(topic, X)).subscribers_matched)


def begin(world: World, client: Client, patterns: List[str] = MANY) -> Steps:
    steps = world.engine.execute(c.PubSubSubscribe(patterns), world.now, client)
    assert isinstance(steps, GeneratorType)
    return steps


def assert_nothing_is_left(world: World, aside: int) -> None:
    topics = world.engine.topics
    assert (topics.patterns, topics.subscriptions, topics.partial) == ({}, {}, 0)
    assert topics.trie.root.empty
    assert world.engine.budget.aside == aside


def test_steps_are_as_long_as_the_words_are_many() -> None:
    for times in (1, 3):
        words, parts = 0, 0
        for pattern, pause in by_words(MANY, times):
            if pause:
                assert words >= STEP
                words, parts = 0, parts + 1
            words += (pattern.count(".") + 1) * times
            assert words < STEP + WORDS * times
        assert parts > 10


def test_it_begins_as_a_whole_with_its_answer(world: World) -> None:
    client, other = Client(), Client()
    world(c.PubSubSubscribe([TOPIC]), other)
    steps = begin(world, client)
    for _ in steps:
        assert matched(world) == 1
        assert world(c.PubSubTopics()).topics == [TOPIC]
        assert world(c.PubSubStats()).subscriptions == 1
    assert not client.pushed
    assert matched(world) == 2
    assert world(c.PubSubTopics("a.#")).topics == [TOPIC]
    assert len(world(c.PubSubTopics()).topics) == len(MANY) + 1


def steps_there_are() -> int:
    return sum(1 for _ in begin(World(), Client()))


@pytest.mark.parametrize("way", ["leaves", "closed"])
@pytest.mark.parametrize("after", range(0, steps_there_are(), 7))
def test_one_that_ends_before_it_has_begun_leaves_nothing(world: World, after: int, way: str) -> None:
    client = Client()
    aside = world.engine.budget.aside
    steps = begin(world, client)
    for _ in range(after + 1):
        next(steps)
    if way == "leaves":
        world.engine.forget(client)
        with pytest.raises(SynapError, match="ended before it had begun"):
            run(steps)
    else:
        steps.close()
    assert client.subscriptions == {}
    assert matched(world) == 0
    assert_nothing_is_left(world, aside)


def test_the_last_pattern_is_refused_as_the_first_would_be(world: World) -> None:
    client = Client()
    aside = world.engine.budget.aside
    assert world.error(c.PubSubSubscribe([*MANY, "a..b"]), client).code == "INVALID_PAYLOAD"
    assert client.subscriptions == {}
    assert_nothing_is_left(world, aside)


def test_what_has_no_room_leaves_nothing() -> None:
    world = World(limits=Limits(memory=100_000))
    client = Client()
    aside = world.engine.budget.aside
    assert world.error(c.PubSubSubscribe(MANY), client).code == "MEMORY_LIMIT"
    assert client.subscriptions == {}
    assert_nothing_is_left(world, aside)


def test_those_about_to_begin_count_for_the_limit() -> None:
    world = World(limits=Limits(subscriptions=2))
    client = Client()
    both = [begin(world, client), begin(world, client)]
    for steps in both:
        next(steps)
    assert world.error(c.PubSubSubscribe(["a"]), client).code == "INVALID_REQUEST"
    for steps in both:
        run(steps)
    assert matched(world) == 2


def test_two_with_the_same_patterns_take_turns_with_one_that_leaves(world: World) -> None:
    first, second, leaving = Client(), Client(), Client()
    there = world(c.PubSubSubscribe(MANY), leaving)
    left: List[Steps] = []
    world.engine.leftovers.begun = lambda: None
    one, two = begin(world, first), begin(world, second)
    next(one)
    world(c.PubSubUnsubscribe(there.subscription_id), leaving)
    left = [one, two]
    turns = 0
    while left:
        for steps in list(left):
            turns += 1
            if next(steps, left) is left:
                left.remove(steps)
        world.engine.leftovers.work(lambda: True)
        assert matched(world) == 2 - len(left)
    while world.engine.leftovers.work(lambda: True):
        pass
    assert turns > 20
    assert matched(world) == 2
    assert world.engine.topics.partial == 0


@pytest.mark.parametrize("pattern", ["#.199", "#.w.#.w.#.w.#.199"])
def test_no_step_of_a_listing_takes_long(world: World, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world(c.PubSubSubscribe(MANY), Client())
    words = 0
    match = Trie.match

    def counted(trie: Any, topic: str) -> List[Any]:
        nonlocal words
        words += (topic.count(".") + 1) * (pattern.count(".") + 1)
        return match(trie, topic)

    monkeypatch.setattr(Trie, "match", counted)
    steps: Any = world.engine.execute(c.PubSubTopics(pattern), world.now, Client())
    longest = 0
    answer: Any = None
    while answer is None:
        words = 0
        try:
            next(steps)
        except StopIteration as done:
            answer = done.value
        longest = max(longest, words)
    assert answer.topics == MANY[-1:]
    assert 0 < longest < STEP + WORDS * (pattern.count(".") + 1)


# ---------------------------------------------------------------------------------------------- the host


class Caller(Session):
    """Writes down what it is told; `may` and `there` say what it may, and whether it is there."""

    def __init__(self, host: EngineHost) -> None:
        super().__init__(host, CODECS["json"])
        self.told: List[Any] = []
        self.may = self.there = True

    def check(self, command: c.Command, payload: Any) -> None:
        if not self.may:
            raise PermissionDeniedError("FORBIDDEN", "not any more")

    def wanted(self) -> bool:
        return self.there

    def deliver(self, output: List[Output]) -> None:
        self.told += [content for _, _, content, _ in output]

    def has_room(self) -> bool:
        return True


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineHost]:
    monkeypatch.setattr("synap.host.jobs.SLICE", 0.0)
    monkeypatch.setattr("synap.host.jobs.SHORT", 0.0)
    numbers = iter(range(10**9))
    yield EngineHost(Engine(ids=lambda: next(numbers)), soon=LATER.append)
    LATER.clear()


LATER: List[Callable[[], None]] = []
ASKED = json.dumps({"topics": MANY}).encode()


def all_of_it() -> int:
    turns = 0
    while LATER:
        LATER.pop(0)()
        turns += 1
    return turns


def test_others_are_served_meanwhile(host: EngineHost) -> None:
    caller, other = Caller(host), Caller(host)
    host.execute(caller, 1, COMMANDS["pubsub.subscribe"], ASKED)
    host.end_turn()
    host.execute(other, 1, COMMANDS["kv.exists"], b'{"key":"k"}')
    host.end_turn()
    assert (len(other.told), len(caller.told)) == (1, 0)
    assert all_of_it() > 0
    (made,) = caller.told
    assert made.topics == MANY
    host.execute(other, 2, COMMANDS["pubsub.publish"], json.dumps({"topic": TOPIC, "message": 1}).encode())
    host.end_turn()
    assert other.told[1].subscribers_matched == 1
    assert len(caller.told) == 2


def test_others_are_served_while_patterns_are_listed(host: EngineHost) -> None:
    caller, other = Caller(host), Caller(host)
    host.execute(caller, 1, COMMANDS["pubsub.subscribe"], ASKED)
    all_of_it()
    host.execute(caller, 2, COMMANDS["pubsub.topics"], b'{"pattern":"#.w.#.w.#.199"}')
    host.end_turn()
    host.execute(other, 1, COMMANDS["kv.exists"], b'{"key":"k"}')
    host.end_turn()
    assert (len(other.told), len(caller.told)) == (1, 1)
    all_of_it()
    assert caller.told[1].topics == MANY[-1:]


def test_rights_that_were_taken_away_meanwhile_are_missing(host: EngineHost) -> None:
    caller = Caller(host)
    host.execute(caller, 1, COMMANDS["pubsub.subscribe"], ASKED)
    host.end_turn()
    caller.may = False
    all_of_it()
    (refused,) = caller.told
    assert refused.code == "FORBIDDEN"
    assert not caller.subscriptions
    assert not host.engine.topics.patterns


def test_a_caller_who_left_before_its_turn_gets_none(host: EngineHost) -> None:
    first, caller = Caller(host), Caller(host)
    host.execute(first, 1, COMMANDS["pubsub.subscribe"], ASKED)
    host.execute(caller, 1, COMMANDS["pubsub.subscribe"], ASKED)
    host.end_turn()
    caller.there = False
    host.leave(caller)
    all_of_it()
    assert (len(first.told), caller.told) == (1, [])
    assert not caller.subscriptions
    assert len(host.engine.topics.subscriptions) == 1


# ------------------------------------------------------------------------------------------- publishing

COSTLY = [f"#.{number:011b}".replace("0", ".a").replace("1", ".*").replace("..", ".") + ".b" for number in range(2_000)]
A_TOPIC = ".".join("a" * 100)
B_TOPIC = f"{A_TOPIC}.b"


def publish(world: World, topic: str, client: Client) -> Any:
    return world.engine.execute(c.PubSubPublish(topic, X), world.now, client)


@pytest.mark.parametrize(("topic", "copies"), [(A_TOPIC, 0), (B_TOPIC, 1)])
def test_a_topic_that_reaches_many_nodes_is_published_in_steps(world: World, topic: str, copies: int) -> None:
    listening, publisher = Client(), Client()
    world(c.PubSubSubscribe(COSTLY), listening)
    steps = publish(world, topic, publisher)
    assert isinstance(steps, GeneratorType)
    for _ in range(3):
        next(steps)
        assert not listening.pushed
    assert run(steps).subscribers_matched == len(listening.pushed) == copies


def test_who_is_there_all_the_while_gets_it_and_who_has_left_does_not(world: World) -> None:
    stays, leaves, comes = Client(), Client(), Client()
    world(c.PubSubSubscribe([*COSTLY, "a.#"]), stays)
    there = [world(c.PubSubSubscribe(patterns), leaves) for patterns in ([*COSTLY, "#.b"], ["#"], [B_TOPIC])]
    steps = publish(world, B_TOPIC, stays)
    next(steps)
    beginning = begin(world, comes, ["a.#", *COSTLY])
    while len(world.engine.topics.patterns["a.#"]) == 1:
        next(beginning)
    for subscription in there:
        world(c.PubSubUnsubscribe(subscription.subscription_id), leaves)
    assert run(steps).subscribers_matched == 1
    assert (len(stays.pushed), leaves.pushed, comes.pushed) == (1, [], [])


def test_many_who_match_by_many_patterns_are_put_together_in_steps(world: World) -> None:
    clients = [Client() for _ in range(20)]
    for client in clients:
        world(c.PubSubSubscribe([f"a.{'.'.join(words)}" for words in itertools.product("a*", repeat=6)]), client)
    steps = publish(world, "a.a.a.a.a.a.a", Client())
    assert isinstance(steps, GeneratorType)
    assert sum(1 for _ in steps) >= 64 * 20 // (2 * STEP)
    assert [len(client.pushed) for client in clients] == [1] * 20


def test_an_atomic_batch_goes_over_so_many_nodes_at_most(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    listening, publisher = Client(), Client()
    world(c.PubSubSubscribe(COSTLY), listening)
    batch = [c.PubSubPublish(B_TOPIC, X), c.PubSubPublish(B_TOPIC, X)]
    done = world.engine.execute_atomic(batch, world.now, publisher)
    assert [outcome.status for outcome in done.results] == ["success"] * 2
    assert len(listening.pushed) == 2
    monkeypatch.setattr("synap.engine.engine.MOST_STEPS", 10)
    refused = world.engine.execute_atomic(batch, world.now, publisher)
    assert refused.results[0].error is not None
    assert refused.results[0].error.code == "PAYLOAD_TOO_LARGE"
    assert len(listening.pushed) == 2


def test_others_are_served_while_a_topic_is_looked_for(host: EngineHost) -> None:
    caller, other = Caller(host), Caller(host)
    host.execute(caller, 1, COMMANDS["pubsub.subscribe"], json.dumps({"topics": COSTLY}).encode())
    all_of_it()
    host.execute(other, 1, COMMANDS["pubsub.publish"], json.dumps({"topic": B_TOPIC, "message": 1}).encode())
    host.end_turn()
    assert host.working_for(other)
    host.execute(caller, 2, COMMANDS["kv.exists"], b'{"key":"k"}')
    host.end_turn()
    assert (len(caller.told), other.told) == (2, [])
    all_of_it()
    assert other.told[0].subscribers_matched == 1
    assert caller.told[2].topic == B_TOPIC


class Limited:
    """A permit that shows lists of names only, as the server's do."""

    readable = ()

    def check(self, command: c.Command, payload: Any) -> None:
        pass

    def show(self, answer: Any) -> Steps:
        raise AssertionError(answer)
        yield

    visible = show


def test_an_answer_without_names_is_not_looked_through_for_them(host: EngineHost) -> None:
    caller, other = Caller(host), Caller(host)
    host.execute(caller, 1, COMMANDS["pubsub.subscribe"], json.dumps({"topics": COSTLY}).encode())
    all_of_it()
    permit: Any = Limited()
    other.permit = permit
    host.execute(other, 1, COMMANDS["pubsub.publish"], json.dumps({"topic": B_TOPIC, "message": 1}).encode())
    all_of_it()
    assert other.told[0].subscribers_matched == 1
