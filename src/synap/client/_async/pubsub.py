"""Pub/sub: `client.pubsub`."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional

from synap import commands as c
from synap.client._async.calls import AsyncCalls
from synap.client._async.subscription import Subscription
from synap.client._async.topic_subscription import TopicSubscription
from synap.client.checks import check_callback, text, texts
from synap.errors import invalid
from synap.results import PublishResult, PubSubStats, TopicMessage


class AsyncPubSub:
    """Messages by topic, delivered to current subscribers."""

    __slots__ = ("_call", "_calls")

    def __init__(self, calls: AsyncCalls) -> None:
        self._calls = calls
        self._call = calls.call

    async def publish(self, topic: str, message: Any, metadata: Optional[Dict[str, str]] = None) -> PublishResult:
        """Deliver `message` to the current subscribers of `topic`; it is not stored.

        `topic`: words between dots, 1 to 256 bytes, without wildcards. `metadata`: up to 128 strings named by strings.
        The result's `subscribers_matched` counts subscriptions. It isn't sent again where it may have gone out.
        """
        payload = c.PubSubPublish(text("topic", topic), message, texts("metadata", metadata))
        result: PublishResult = await self._call(c.PUBSUB_PUBLISH, payload)
        return result

    async def subscribe(
        self, topics: List[str], callback: Optional[Callable[..., Any]] = None, *, with_metadata: bool = False
    ) -> Subscription[TopicMessage]:
        """Have messages of `topics` handed to `callback(topic, message)`, or iterate over the result with `async for`.

        An item of the iterator is a `TopicMessage`: the tuple `(topic, message)`, whose attributes are `message_id`,
        `metadata` and `timestamp`. `with_metadata` has the callback called with `(topic, message, metadata)`.

        In a topic `*` stands for exactly one word, `#` for any number of words. At most once: what is published while
        the connection is lost is missed. A callback may be a coroutine function; one that raises is logged, reported to
        `on('error')` and called again for the next message. One so slow that the client's `buffer` is full ends the
        subscription with `SLOW_CONSUMER`, reported to `on('error')` and raised by the iterator.
        """
        check_callback(callback)
        if isinstance(topics, str) or not isinstance(topics, (list, tuple, set, frozenset)):
            raise invalid("topics", "a list of strings", topics)
        wanted = [text("topic", topic) for topic in topics]
        subscription = TopicSubscription(self._calls, wanted, callback, with_metadata)
        await subscription.start()
        return subscription

    async def topics(self, pattern: Optional[str] = None) -> List[str]:
        """List the patterns that are subscribed, all of them or those that `pattern` matches."""
        if pattern is not None:
            pattern = text("pattern", pattern)
        answer: c.TopicsAnswer = await self._call(c.PUBSUB_TOPICS, c.PubSubTopics(pattern))
        return answer.topics

    async def stats(self) -> PubSubStats:
        """Read the figures of pub/sub."""
        result: PubSubStats = await self._call(c.PUBSUB_STATS, c.PubSubStats())
        return result
