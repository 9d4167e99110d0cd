"""Topics: patterns, and at most one copy to whoever is there."""

from __future__ import annotations

import itertools
import random
from types import GeneratorType
from typing import Any, List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synap import commands as c
from synap.engine.callers import STEP
from synap.engine.trie import Trie
from tests.helpers.world import Client, World

X: Any = b"1"


def plainly(pattern: List[str], topic: List[str]) -> bool:
    """Match as the contract says it, without any cleverness."""
    if not pattern:
        return not topic
    if pattern[0] == "#":
        return any(plainly(pattern[1:], topic[skipped:]) for skipped in range(len(topic) + 1))
    return bool(topic) and pattern[0] in ("*", topic[0]) and plainly(pattern[1:], topic[1:])


WORDS = [list(words) for length in (1, 2, 3) for words in itertools.product("ab*#", repeat=length)]
TOPICS = [list(words) for length in (1, 2, 3, 4) for words in itertools.product("ab", repeat=length)]


def test_every_short_pattern_matches_what_it_should() -> None:
    trie: Trie[str] = Trie()
    for pattern in WORDS:
        trie.add(".".join(pattern), ".".join(pattern))
    for topic in TOPICS:
        found = trie.match(".".join(topic))
        assert len(found) == len(set(found))
        assert set(found) == {".".join(pattern) for pattern in WORDS if plainly(pattern, topic)}


@given(
    st.lists(st.lists(st.sampled_from("ab*#"), min_size=1, max_size=6), min_size=1, max_size=20),
    st.lists(st.sampled_from("abc"), min_size=1, max_size=8),
    st.data(),
)
def test_removed_patterns_no_longer_match_and_leave_nothing_behind(
    patterns: List[List[str]], topic: List[str], data: st.DataObject
) -> None:
    trie: Trie[str] = Trie()
    names = sorted({".".join(pattern) for pattern in patterns})
    for name in names:
        trie.add(name, name)
    gone = data.draw(st.sets(st.sampled_from(names)))
    for name in gone:
        trie.remove(name)
    kept = [name for name in names if name not in gone]
    expected = sorted(name for name in kept if plainly(name.split("."), topic))
    assert sorted(trie.match(".".join(topic))) == expected
    for name in kept:
        trie.remove(name)
    assert trie.root.empty


def test_a_trailing_number_sign_includes_no_word(world: World) -> None:
    world(c.PubSubSubscribe(["notifications.#"]))
    for topic in ("notifications", "notifications.email", "notifications.email.user"):
        assert world(c.PubSubPublish(topic, X)).subscribers_matched == 1
    assert world(c.PubSubPublish("notification", X)).subscribers_matched == 0


def test_overlapping_patterns_of_one_subscription_give_one_copy(world: World) -> None:
    client = Client()
    answer = world(c.PubSubSubscribe(["a.*", "a.b", "#", "a.*"]), client)
    assert answer.topics == ["a.*", "a.b", "#"]
    assert world(c.PubSubPublish("a.b", X)).subscribers_matched == 1
    assert len(client.pushed) == 1
    world(c.PubSubSubscribe(["a.b"]), client)
    assert world(c.PubSubPublish("a.b", X)).subscribers_matched == 2


def test_subscribers_get_the_same_object(world: World) -> None:
    one, two = Client(), Client()
    world(c.PubSubSubscribe(["a"]), one)
    world(c.PubSubSubscribe(["*"]), two)
    answer = world(c.PubSubPublish("a", X, {"by": "me"}))
    item = one.pushed[0][1]
    assert item is two.pushed[0][1]
    assert item == c.TopicMessage("a", X, {"by": "me"}, int(world.now), answer.message_id)


def test_a_slow_subscriber_is_told_and_dropped_and_nobody_else(world: World) -> None:
    slow, quick = Client(), Client()
    slow.room = 1
    subscription = world(c.PubSubSubscribe(["a", "b.*"]), slow).subscription_id
    world(c.PubSubSubscribe(["a"]), quick)
    for _ in range(3):
        world(c.PubSubPublish("a", X))
    assert slow.ends[subscription].code == "SLOW_CONSUMER"
    assert (len(slow.pushed), len(quick.pushed)) == (1, 3)
    assert world(c.PubSubTopics()).topics == ["a"]
    assert slow.subscriptions == {}


@pytest.mark.parametrize("topic", [".", "a.", ".a", "a..b", "é" * 129], ids=repr)
def test_empty_words_and_long_names_are_refused(world: World, topic: str) -> None:
    assert world.error(c.PubSubPublish(topic, X)).code == "INVALID_PAYLOAD"
    assert world.error(c.PubSubSubscribe(["fine", topic])).code == "INVALID_PAYLOAD"
    assert world(c.PubSubTopics()).topics == []


@pytest.mark.parametrize("topic", ["*", "a.#", "a.*.b"])
def test_wildcards_are_for_subscribing(world: World, topic: str) -> None:
    assert world.error(c.PubSubPublish(topic, X)).code == "INVALID_PAYLOAD"


@pytest.mark.parametrize("pattern", ["lang.c#", "news*", "a.**", "#a"])
def test_a_wildcard_is_a_word_of_its_own(world: World, pattern: str) -> None:
    assert world.error(c.PubSubSubscribe(["fine", pattern])).code == "INVALID_PAYLOAD"
    assert world.error(c.PubSubPublish(pattern, X)).code == "INVALID_PAYLOAD"
    assert world(c.PubSubTopics()).topics == []


def test_topics_lists_what_is_subscribed(world: World) -> None:
    client = Client()
    world(c.PubSubSubscribe(["news.sport", "news.*", "weather"]), client)
    assert world(c.PubSubTopics()).topics == ["news.*", "news.sport", "weather"]
    assert world(c.PubSubTopics("news.#")).topics == ["news.*", "news.sport"]
    assert world(c.PubSubTopics("*")).topics == ["weather"]
    world.engine.forget(client)
    assert world(c.PubSubTopics()).topics == []


def test_stats_count_subscriptions_patterns_and_messages(world: World) -> None:
    subscription = world(c.PubSubSubscribe(["a", "b"])).subscription_id
    world(c.PubSubSubscribe(["a"]))
    world(c.PubSubPublish("a", X))
    world(c.PubSubPublish("nobody", X))
    assert world(c.PubSubStats()) == c.PubSubStatsAnswer(2, 2, 2, 2)
    assert world(c.PubSubUnsubscribe(subscription)).unsubscribed
    assert world(c.PubSubStats()) == c.PubSubStatsAnswer(1, 1, 2, 2)


def test_runs_of_wildcards_match_what_they_say() -> None:
    trie: Trie[str] = Trie()
    runs = [list(run) for length in (1, 2, 3, 4) for run in itertools.product("*#", repeat=length)]
    patterns = [[*before, *run, *after] for run in runs for before in ([], ["a"]) for after in ([], ["b"])]
    for pattern in patterns:
        trie.add(".".join(pattern), ".".join(pattern))
    for length in (1, 2, 3, 5):
        for topic in itertools.product("ab", repeat=length):
            found = trie.match(".".join(topic))
            assert sorted(found) == sorted(".".join(pattern) for pattern in patterns if plainly(pattern, list(topic)))


def nodes_of(trie: Trie[Any]) -> int:
    nodes, todo = 0, [trie.root]
    while todo:
        node = todo.pop()
        nodes += 1
        todo += [one for one in (*node.exact.values(), node.single, node.any_number) if one is not None]
    return nodes


def drawn(count: int, *words: str) -> str:
    return ".".join(DRAWN.choice(words) for _ in range(count))


DRAWN = random.Random(7)
COSTLY = {
    "one number sign": [f"#.{drawn(60, 'a', '*')}.b" for _ in range(200)],
    "two number signs": [f"#.a.#.{drawn(40, 'a', 'a.*')}.{number}.b" for number in range(200)],
    "sixty number signs": [".#.".join(DRAWN.choice("a*") for _ in range(60)) + ".b" for _ in range(200)],
    "no number sign": [f"{drawn(127, 'a', '*')}.b" for _ in range(200)],
    "a fork at each word": [".".join(word) for word in itertools.product("a*#", repeat=6)],
}


@pytest.mark.parametrize("patterns", COSTLY.values(), ids=COSTLY)
def test_a_topic_visits_no_node_twice(patterns: List[str]) -> None:
    """A thousand patterns of one `#` made one topic take five seconds: each of them at each word of the topic."""
    trie: Trie[str] = Trie()
    for pattern in patterns:
        trie.add(pattern, pattern)
    found = trie.search(".".join("a" * 128))
    nodes = nodes_of(trie)
    assert nodes > STEP
    steps = sum(1 for _ in found) if isinstance(found, GeneratorType) else 0
    assert steps <= 2 * nodes / STEP  # a node, and its one child that is looked at


@pytest.mark.parametrize("pattern", ["{}", "a.{}", "#.{}", "a.{}.*", "a.#.{}.#", "*.*.{}"])
def test_many_words_at_one_place_are_not_looked_at_one_by_one(pattern: str) -> None:
    trie: Trie[str] = Trie()
    for number in range(10 * STEP):
        trie.add(pattern.format(number), str(number))
    for topic in (pattern.format(77).replace("*", "a").replace("#", "a.b.c"), "a.b.c.d", "a"):
        assert trie.search(topic) == (["77"] if "77" in topic else [])


LONG = st.lists(st.sampled_from(["a", "b", "ab", "*", "#", "#"]), min_size=1, max_size=10)


@given(
    st.lists(LONG, max_size=12),
    st.lists(LONG, max_size=4),
    st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=9),
)
def test_patterns_of_many_number_signs_match_what_they_say_each_once(
    patterns: List[List[str]], gone: List[List[str]], topic: List[str]
) -> None:
    trie: Trie[str] = Trie()
    names = {".".join(pattern) for pattern in patterns}
    removed = {".".join(pattern) for pattern in gone}
    for name in sorted(names | removed):
        trie.add(name, name)
    for name in removed:
        trie.remove(name)
    kept = names - removed
    assert sorted(trie.match(".".join(topic))) == sorted(one for one in kept if plainly(one.split("."), topic))
    for name in kept:
        trie.remove(name)
    assert trie.root.empty
