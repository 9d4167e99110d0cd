"""Pub/sub: who is there gets it, once."""

from __future__ import annotations

import asyncio
import itertools
import pickle
import time
from typing import Any, List, Tuple

import pytest

from synap import AsyncSynapClient, SynapError
from tests.helpers.patience import PATIENCE, in_time
from tests.helpers.seen import Seen

pytestmark = pytest.mark.without("crashing")  # pub/sub isn't kept

# pattern, topic, whether it matches. `*` is exactly one word, `#` any number of words, none included.
MATCHES: List[Tuple[str, str, bool]] = [
    ("a", "a", True),
    ("a", "b", False),
    ("a", "a.b", False),
    ("a.b", "a.b", True),
    ("a.b", "a", False),
    ("*", "a", True),
    ("*", "a.b", False),
    ("a.*", "a.b", True),
    ("a.*", "a", False),
    ("a.*", "a.b.c", False),
    ("*.b", "a.b", True),
    ("*.b", "b", False),
    ("a.*.c", "a.b.c", True),
    ("a.*.c", "a.c", False),
    ("a.*.c", "a.b.b.c", False),
    ("*.*", "a.b", True),
    ("*.*", "a", False),
    ("#", "a", True),
    ("#", "a.b.c", True),
    ("a.#", "a", True),
    ("a.#", "a.b", True),
    ("a.#", "a.b.c", True),
    ("a.#", "b", False),
    ("a.#", "ab", False),
    ("#.c", "c", True),
    ("#.c", "a.b.c", True),
    ("#.c", "a.c.b", False),
    ("a.#.c", "a.c", True),
    ("a.#.c", "a.b.c", True),
    ("a.#.c", "a.b.b.c", True),
    ("a.#.c", "a.b", False),
    ("a.#.c", "a.c.c.b", False),
    ("#.b.#", "b", True),
    ("#.b.#", "a.b.c", True),
    ("#.b.#", "a.c", False),
    ("*.#", "a", True),
    ("*.#", "a.b.c", True),
    ("#.*", "a", True),
    ("#.*", "a.b", True),
    ("*.#.*", "a", False),
    ("*.#.*", "a.b", True),
    ("*.#.*", "a.b.c", True),
    ("a.#.#", "a", True),
    ("#.#", "a", True),
    ("a.B", "a.b", False),
    ("ü.*", "ü.ö", True),
]


async def test_many_patterns_of_many_words_are_one_subscription(client: AsyncSynapClient, name: str) -> None:
    patterns = [".".join(["*", name, *["w"] * 40, str(number)]) for number in range(1500)]
    subscription = await client.pubsub.subscribe(patterns)
    topics = [".".join(["a", name, *["w"] * 40, str(number)]) for number in (0, 1499, 1500)]
    assert [(await client.pubsub.publish(topic, 1)).subscribers_matched for topic in topics] == [1, 1, 0]
    assert set(patterns) <= set(await client.pubsub.topics())
    await subscription.unsubscribe()
    assert [(await client.pubsub.publish(topic, 1)).subscribers_matched for topic in topics] == [0, 0, 0]


async def test_a_pattern_matches_by_words(client: AsyncSynapClient, name: str) -> None:
    for pattern, topic, matches in MATCHES:
        # Each case under a first word of its own, so that they don't meet each other.
        seen = Seen()
        subscription = await client.pubsub.subscribe([f"{name}.{pattern}", f"{name}-end"], seen)
        result = await client.pubsub.publish(f"{name}.{topic}", pattern)
        assert result.subscribers_matched == int(matches), (pattern, topic)
        await client.pubsub.publish(f"{name}-end", None)
        came = await seen.until((f"{name}-end", None))
        assert ((f"{name}.{topic}", pattern) in came) == matches, (pattern, topic)
        await subscription.unsubscribe()


@pytest.mark.parametrize("pattern", ["news*", "a.**", "a.#b", "*.b*.c", "##"])
async def test_a_wildcard_inside_a_word_is_refused_since_it_could_never_match(
    client: AsyncSynapClient, name: str, pattern: str
) -> None:
    for refused in (pattern, f"{name}.{pattern}"):
        with pytest.raises(SynapError, match="each of them \\*, # or text") as caught:
            await client.pubsub.subscribe([f"{name}.fine", refused])
        assert caught.value.code == "INVALID_PAYLOAD"
        with pytest.raises(SynapError):
            await client.pubsub.topics(refused)
        with pytest.raises(SynapError, match="free of the wildcards"):
            await client.pubsub.publish(refused, 1)
    assert await client.pubsub.topics(f"{name}.#") == []


async def test_patterns_that_begin_with_a_wildcard_match(client: AsyncSynapClient, name: str) -> None:
    for pattern in (f"#.{name}", f"*.{name}", f"#.{name}.#", f"*.*.{name}"):
        seen = Seen()
        subscription = await client.pubsub.subscribe([pattern], seen)
        first = {"*": "a.", "#": "a.b."}[pattern[0]] if pattern != f"*.*.{name}" else "a.b."
        assert (await client.pubsub.publish(f"{first}{name}", 1)).subscribers_matched == 1
        assert await seen.first(1) == [(f"{first}{name}", 1)]
        await subscription.unsubscribe()


async def test_a_message_reaches_every_subscription_that_matches(
    client: AsyncSynapClient, other: AsyncSynapClient, name: str
) -> None:
    seen = [Seen(), Seen(), Seen()]
    await client.pubsub.subscribe([f"{name}.*"], seen[0])
    await client.pubsub.subscribe([f"{name}.a"], seen[1])
    await other.pubsub.subscribe([f"{name}.#"], seen[2])
    result = await other.pubsub.publish(f"{name}.a", {"n": 1})
    assert result.subscribers_matched == 3
    assert (result.topic, bool(result.message_id)) == (f"{name}.a", True)
    for one in seen:
        assert await one.first(1) == [(f"{name}.a", {"n": 1})]


async def test_overlapping_patterns_of_one_subscription_give_one_copy(client: AsyncSynapClient, name: str) -> None:
    seen = Seen()
    await client.pubsub.subscribe([f"{name}.a", f"{name}.*", f"{name}.#", f"{name}.a"], seen)
    assert (await client.pubsub.publish(f"{name}.a", "once")).subscribers_matched == 1
    await client.pubsub.publish(f"{name}", "end")
    assert await seen.until((name, "end")) == [(f"{name}.a", "once"), (name, "end")]


async def test_messages_come_in_the_order_they_were_published(client: AsyncSynapClient, name: str) -> None:
    seen = Seen()
    await client.pubsub.subscribe([name], seen)
    for number in range(100):
        await client.pubsub.publish(name, number)
    assert [message for _, message in await seen.first(100)] == list(range(100))


async def test_topics_that_many_patterns_are_looked_at_for_come_in_order_too(
    client: AsyncSynapClient, other: AsyncSynapClient, name: str
) -> None:
    seen = Seen()
    costly = [f"{name}.#.{'.'.join(words)}.b" for words in itertools.product("a*", repeat=9)]
    await other.pubsub.subscribe([f"{name}.#", *costly], seen)
    sent = [(f"{name}.{'a.' * 20}b" if number % 2 else f"{name}.c", number) for number in range(6)]
    for topic, number in sent:
        assert (await client.pubsub.publish(topic, number)).subscribers_matched == 1
    assert await seen.first(6) == sent


async def test_who_is_not_there_misses_it(client: AsyncSynapClient, name: str) -> None:
    assert (await client.pubsub.publish(name, "missed")).subscribers_matched == 0
    seen = Seen()
    await client.pubsub.subscribe([name], seen)
    await client.pubsub.publish(name, "there")
    assert await seen.first(1) == [(name, "there")]


async def test_after_unsubscribe_nothing_more_comes(client: AsyncSynapClient, name: str) -> None:
    ends, stays = Seen(), Seen()
    subscription = await client.pubsub.subscribe([name], ends)
    await client.pubsub.subscribe([name], stays)
    await subscription.unsubscribe()
    assert (await client.pubsub.publish(name, 1)).subscribers_matched == 1
    await stays.first(1)
    assert ends.items == []
    await subscription.unsubscribe()


async def test_a_closed_client_is_no_subscriber_any_more(
    client: AsyncSynapClient, other: AsyncSynapClient, name: str
) -> None:
    await other.pubsub.subscribe([name], print)
    assert (await client.pubsub.publish(name, 1)).subscribers_matched == 1
    await other.close()
    for _ in range(2_000):
        if (await client.pubsub.publish(name, 2)).subscribers_matched == 0:
            return
        await asyncio.sleep(0.005)
    raise AssertionError("the closed client is still subscribed")


async def test_a_subscription_can_be_iterated(client: AsyncSynapClient, name: str) -> None:
    subscription = await client.pubsub.subscribe([f"{name}.*"])
    for number in range(3):
        await client.pubsub.publish(f"{name}.{number}", number, metadata={"n": str(number)})
    received: List[Any] = []

    async def receive() -> None:
        async for item in in_time(subscription):
            received.append(item)
            if len(received) == 3:
                return

    await asyncio.wait_for(receive(), PATIENCE)
    assert received == [(f"{name}.{number}", number) for number in range(3)]


@pytest.mark.parametrize("topic", ["", ".", "a.", ".a", "a..b", "t" * 257], ids=lambda topic: topic[:8] or "empty")
async def test_a_topic_without_words_is_refused(client: AsyncSynapClient, topic: str) -> None:
    for call in (client.pubsub.publish(topic, 1), client.pubsub.subscribe([topic], print)):
        with pytest.raises(SynapError) as caught:
            await call
        assert caught.value.code == "INVALID_PAYLOAD"
        assert "topic" in caught.value.message


@pytest.mark.parametrize("topic", ["a.*", "#", "*.b"])
async def test_publishing_to_a_pattern_is_refused(client: AsyncSynapClient, topic: str) -> None:
    with pytest.raises(SynapError) as caught:
        await client.pubsub.publish(topic, 1)
    assert caught.value.code == "INVALID_PAYLOAD"


@pytest.mark.parametrize("topics", [[], "notifications", [1]], ids=repr)
async def test_topics_must_be_a_list_of_some(client: AsyncSynapClient, topics: Any) -> None:
    with pytest.raises(SynapError) as caught:
        await client.pubsub.subscribe(topics, print)
    assert caught.value.code == "INVALID_PAYLOAD"
    assert "topic" in caught.value.message


async def test_subscribed_patterns_are_listed(client: AsyncSynapClient, name: str) -> None:
    subscription = await client.pubsub.subscribe([f"{name}.a", f"{name}.*.b"], print)
    mine = {topic for topic in await client.pubsub.topics() if topic.startswith(name)}
    assert mine == {f"{name}.a", f"{name}.*.b"}
    assert await client.pubsub.topics(f"{name}.a") == [f"{name}.a"]
    assert f"{name}.a" in await client.pubsub.topics(f"{name}.#")
    await subscription.unsubscribe()
    assert not {topic for topic in await client.pubsub.topics() if topic.startswith(name)}


async def test_stats_count_subscriptions_and_messages(client: AsyncSynapClient, name: str) -> None:
    before = await client.pubsub.stats()
    await client.pubsub.subscribe([f"{name}.a", f"{name}.b"], print)
    await client.pubsub.publish(f"{name}.a", 1)
    await client.pubsub.publish(f"{name}.none", 1)
    after = await client.pubsub.stats()
    assert after.subscriptions >= 1
    assert after.patterns >= 2
    assert after.published_total >= before.published_total + 2
    assert after.delivered_total >= before.delivered_total + 1


async def test_an_item_of_an_iterator_is_a_pair_that_knows_what_came_with_it(
    client: AsyncSynapClient, name: str
) -> None:
    subscription = await client.pubsub.subscribe([f"{name}.*"])
    before = int(time.time()) - 1
    published = await client.pubsub.publish(f"{name}.a", {"n": 1}, metadata={"from": "a test"})
    async for item in in_time(subscription):
        topic, message = item
        assert (topic, message) == (item.topic, item.message) == (f"{name}.a", {"n": 1})
        assert item.metadata == {"from": "a test"}
        assert item.message_id == published.message_id
        assert before <= item.timestamp <= time.time() + 1
        assert isinstance(item, tuple)
        assert pickle.loads(pickle.dumps(item)).metadata == item.metadata
        break
    await subscription.unsubscribe()


async def test_a_callback_gets_the_metadata_where_it_wants_them(client: AsyncSynapClient, name: str) -> None:
    seen, bare = Seen(), Seen()
    await client.pubsub.subscribe([name], seen, with_metadata=True)
    await client.pubsub.subscribe([name], bare)
    await client.pubsub.publish(name, 1, metadata={"from": "a test"})
    await client.pubsub.publish(name, 2)
    assert await seen.first(2) == [(name, 1, {"from": "a test"}), (name, 2, {})]
    assert await bare.first(2) == [(name, 1), (name, 2)]
