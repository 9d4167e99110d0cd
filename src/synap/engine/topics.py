"""Topics: patterns in a trie, and messages to whoever is subscribed now. Nothing of it is kept.

A pattern is words between dots; a word that is `*` stands for exactly one word, one that is `#` for any number, none
included. Matching a topic walks the trie with the set of nodes that the words so far can have reached, so it costs
what matches, not what is subscribed. Patterns without either are found in a dict.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Optional, Set

from synap import commands as c
from synap.engine.callers import Caller, Effects
from synap.engine.limits import Limits, check_name
from synap.engine.streams import too_many
from synap.errors import SynapError, invalid

__all__ = ["TopicSubscription", "Topics", "Trie", "matches"]


class TopicSubscription:
    """Who listens, and to what."""

    __slots__ = ("caller", "id", "patterns")

    def __init__(self, id: int, caller: Caller, patterns: List[str]) -> None:
        self.id = id
        self.caller = caller
        self.patterns = patterns


Listeners = Dict[int, TopicSubscription]


class _Node:
    __slots__ = ("any_number", "exact", "listeners", "repeats", "single")

    def __init__(self, repeats: bool = False) -> None:
        self.exact: Dict[str, _Node] = {}
        self.single: Optional[_Node] = None
        self.any_number: Optional[_Node] = None
        self.listeners: Optional[Listeners] = None
        self.repeats = repeats
        """Whether this node is reached by `#`, and so stays reached by any further word."""

    def child(self, word: str) -> Optional[_Node]:
        if word == "*":
            return self.single
        return self.any_number if word == "#" else self.exact.get(word)

    def add(self, word: str) -> _Node:
        child = self.child(word)
        if child is None:
            child = _Node(word == "#")
            if word == "*":
                self.single = child
            elif word == "#":
                self.any_number = child
            else:
                self.exact[word] = child
        return child

    def remove(self, word: str) -> None:
        if word == "*":
            self.single = None
        elif word == "#":
            self.any_number = None
        else:
            del self.exact[word]

    @property
    def empty(self) -> bool:
        return not (self.exact or self.single or self.any_number or self.listeners)


class Trie:
    """Patterns with wildcards, and the listeners of each."""

    def __init__(self) -> None:
        self.root = _Node()

    def add(self, pattern: str, listeners: Listeners) -> None:
        node = self.root
        for word in pattern.split("."):
            node = node.add(word)
        node.listeners = listeners

    def remove(self, pattern: str) -> None:
        words = pattern.split(".")
        path = [self.root]
        for word in words:
            child = path[-1].child(word)
            if child is None:
                return
            path.append(child)
        path[-1].listeners = None
        while words and path[-1].empty:
            path.pop()
            path[-1].remove(words.pop())

    def match(self, topic: str) -> List[Listeners]:
        """List the listeners of every pattern that matches the topic."""
        reached: Set[_Node] = set()
        _reach(self.root, reached)
        for word in topic.split("."):
            onward: Set[_Node] = set()
            for node in reached:
                if node.repeats:
                    onward.add(node)
                if node.single is not None:
                    _reach(node.single, onward)
                child = node.exact.get(word)
                if child is not None:
                    _reach(child, onward)
            if not onward:
                return []
            for node in list(onward):
                _reach(node, onward)
            reached = onward
        return [node.listeners for node in reached if node.listeners]


def _reach(node: _Node, reached: Set[_Node]) -> None:
    """Add a node, and those that a `#` behind it reaches with no word at all."""
    reached.add(node)
    following = node.any_number
    while following is not None and following not in reached:
        reached.add(following)
        following = following.any_number


def matches(pattern: str, topic: str) -> bool:
    """Say whether one pattern matches one topic."""
    trie = Trie()
    trie.add(pattern, {0: TopicSubscription(0, Caller(), [pattern])})
    return bool(trie.match(topic))


def _check_topic(topic: str) -> None:
    if not topic.isascii():
        check_name("topic", topic)
    if topic[0] == "." or topic[-1] == "." or ".." in topic:
        raise invalid("topic", "words between dots, none of them empty", topic)


class Topics:
    """The pub/sub facility: one method per command, named as it is."""

    def __init__(
        self, limits: Limits, effects: Effects, ids: Callable[[], int], next_subscription: Callable[[], int]
    ) -> None:
        self.limits = limits
        self.effects = effects
        self.next_subscription = next_subscription
        self.prefix = f"{ids():x}-"
        self.published = 0
        self.delivered = 0
        self.subscriptions: Dict[int, TopicSubscription] = {}
        self.patterns: Dict[str, Listeners] = {}
        self.trie = Trie()

    # ------------------------------------------------------------------------------------------ commands

    def publish(self, p: c.PubSubPublish, now: float) -> c.TopicPublishAnswer:
        topic = p.topic
        _check_topic(topic)
        if ("*" in topic or "#" in topic) and _is_wild(topic):
            raise invalid("topic", "free of the wildcards * and #, which are for subscribing", topic)
        self.published += 1
        message_id = f"{self.prefix}{self.published:x}"
        listeners = self._listeners(topic)
        if listeners:
            value: bytes = p.message
            item = c.TopicMessage(topic, value, p.metadata or {}, int(now), message_id)
            if self.effects.held is None:
                self._push(list(listeners.values()), item)
            else:
                self.effects.do(self._push, list(listeners.values()), item)
        return c.TopicPublishAnswer(message_id, topic, len(listeners))

    def subscribe(self, p: c.PubSubSubscribe, now: float, caller: Caller) -> c.SubscribedToTopics:
        if len(caller.subscriptions) >= self.limits.subscriptions:
            raise too_many(self.limits.subscriptions)
        for pattern in p.topics:
            _check_topic(pattern)
        patterns = list(dict.fromkeys(p.topics))
        subscription = TopicSubscription(self.next_subscription(), caller, patterns)
        for pattern in patterns:
            listeners = self.patterns.get(pattern)
            if listeners is None:
                listeners = self.patterns[pattern] = {}
                if _is_wild(pattern):
                    self.trie.add(pattern, listeners)
            listeners[subscription.id] = subscription
        self.subscriptions[subscription.id] = caller.subscriptions[subscription.id] = subscription
        return c.SubscribedToTopics(subscription.id, patterns)

    def unsubscribe(self, p: c.PubSubUnsubscribe, now: float, caller: Caller) -> c.UnsubscribedAnswer:
        subscription = caller.subscriptions.get(p.subscription_id)
        if not isinstance(subscription, TopicSubscription):
            return c.UnsubscribedAnswer(False)
        self.drop(subscription)
        return c.UnsubscribedAnswer(True)

    def list(self, p: c.PubSubTopics, now: float) -> c.TopicsAnswer:
        """A pattern is matched against the subscribed ones as if they were topics."""
        if p.pattern is None:
            return c.TopicsAnswer(sorted(self.patterns))
        _check_topic(p.pattern)
        trie = Trie()
        trie.add(p.pattern, {0: TopicSubscription(0, Caller(), [])})
        return c.TopicsAnswer(sorted(pattern for pattern in self.patterns if trie.match(pattern)))

    def stats(self, p: c.PubSubStats, now: float) -> c.PubSubStatsAnswer:
        return c.PubSubStatsAnswer(len(self.subscriptions), len(self.patterns), self.published, self.delivered)

    # ------------------------------------------------------------------------------------------ subscribers

    def _listeners(self, topic: str) -> Listeners:
        exact = self.patterns.get(topic)
        found = self.trie.match(topic)
        if exact is not None:
            found.append(exact)
        if len(found) == 1:
            return found[0]
        merged: Listeners = {}
        for listeners in found:
            merged.update(listeners)
        return merged

    def _push(self, subscriptions: List[TopicSubscription], item: c.TopicMessage) -> None:
        for subscription in subscriptions:
            if subscription.id not in self.subscriptions:
                continue
            if subscription.caller.push(subscription.id, item):
                self.delivered += 1
            else:
                self.drop(subscription)
                subscription.caller.ended(subscription.id, _too_slow())

    def drop(self, subscription: TopicSubscription) -> None:
        if self.subscriptions.pop(subscription.id, None) is None:
            return
        subscription.caller.subscriptions.pop(subscription.id, None)
        for pattern in subscription.patterns:
            listeners = self.patterns[pattern]
            del listeners[subscription.id]
            if not listeners:
                del self.patterns[pattern]
                if _is_wild(pattern):
                    self.trie.remove(pattern)


def _is_wild(pattern: str) -> bool:
    if "*" not in pattern and "#" not in pattern:
        return False
    words = pattern.split(".")
    return "*" in words or "#" in words


def _too_slow() -> SynapError:
    return SynapError(
        "SLOW_CONSUMER", "the subscriber's buffer was full, so its subscription ended; subscribe again and read faster"
    )
