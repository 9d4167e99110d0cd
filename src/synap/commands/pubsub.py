"""Pub/sub: payloads, answers and commands."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from msgspec import Struct

from synap import results
from synap.commands.command import Command, Flag
from synap.commands.fields import Answer, Headers, Payload, Topic, Topics, UnsubscribedAnswer, Value


class PubSubPublish(Payload):
    topic: Topic
    message: Value
    metadata: Optional[Headers] = None


class PubSubSubscribe(Payload):
    topics: Topics


class PubSubUnsubscribe(Payload):
    subscription_id: int


class PubSubTopics(Payload):
    pattern: Optional[Topic] = None


class PubSubStats(Payload):
    pass


class TopicMessage(Answer):
    """A message as it is pushed to the subscribers of a topic."""

    topic: str
    message: bytes
    metadata: Dict[str, str]
    timestamp: int
    message_id: str


class TopicMessageResult(Struct):
    """`TopicMessage` as a client reads it."""

    topic: str
    message: Any
    metadata: Dict[str, str]
    timestamp: int
    message_id: str = ""


class TopicPublishAnswer(Answer):
    message_id: str
    topic: str
    subscribers_matched: int


class SubscribedToTopics(Answer):
    subscription_id: int
    topics: List[str]


class TopicsAnswer(Answer):
    topics: List[str]


class PubSubStatsAnswer(Answer):
    subscriptions: int
    patterns: int
    published_total: int
    delivered_total: int


PUBSUB_PUBLISH = Command(
    60,
    "pubsub.publish",
    PubSubPublish,
    TopicPublishAnswer,
    "Deliver a message to the current subscribers.",
    Flag.EFFECT | Flag.SHARING,
    result=results.PublishResult,
)
PUBSUB_SUBSCRIBE = Command(
    61,
    "pubsub.subscribe",
    PubSubSubscribe,
    SubscribedToTopics,
    "Have messages pushed by topic.",
    Flag.PUSHES | Flag.SHARING,
)
PUBSUB_UNSUBSCRIBE = Command(
    62,
    "pubsub.unsubscribe",
    PubSubUnsubscribe,
    UnsubscribedAnswer,
    "End a subscription to topics.",
    Flag.SESSION,
    ends=PUBSUB_SUBSCRIBE,
)
PUBSUB_TOPICS = Command(
    63,
    "pubsub.topics",
    PubSubTopics,
    TopicsAnswer,
    "List subscribed patterns, all or those a pattern matches.",
    Flag.SHARING,
)
PUBSUB_STATS = Command(
    64, "pubsub.stats", PubSubStats, PubSubStatsAnswer, "Read the figures of pub/sub.", result=results.PubSubStats
)
