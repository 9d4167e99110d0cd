"""Pub/sub: messages by topic to current subscribers. Nothing is stored.

Patterns with wildcards are in a trie, those without in a dict. A subscription gets a message once, however many of its
patterns match.
"""

from __future__ import annotations

from typing import Dict, Iterable, Iterator, List, Tuple, Union

from synap import commands as c
from synap.engine.callers import STEP, Caller, Steps, at_once, in_order, run
from synap.engine.core import Core
from synap.engine.limits import check_name
from synap.engine.streams import too_many
from synap.engine.trie import Trie, is_wild
from synap.errors import SynapError, invalid


class TopicSubscription:
    """A subscription and its patterns."""

    __slots__ = ("caller", "cost", "id", "patterns")

    def __init__(self, id: int, caller: Caller) -> None:
        self.id = id
        self.caller = caller
        self.patterns: List[str] = []
        self.cost = 0
        """The bytes that the budget has set aside for it."""

    def named(self) -> List[str]:
        """Return what it is subscribed to, for people."""
        return self.patterns


SUBSCRIPTION_COST, PATTERN_COST, WORD_COST = 500, 960, 260
"""Estimated bytes of a subscription, of each of its patterns beside its text, and of a word of one with wildcards from
the fourth on."""

Listeners = Dict[int, TopicSubscription]


def check_topic(topic: str) -> None:
    """Refuse a topic or pattern that isn't words between dots."""
    if not topic.isascii():
        check_name("topic", topic)
    if topic[0] == "." or topic[-1] == "." or ".." in topic:
        raise invalid("topic", "words between dots, none of them empty", topic)


def no_wildcards(topic: str) -> SynapError:
    """Build the error for publishing to a topic with wildcards."""
    return invalid("topic", "free of the wildcards * and #, which are for subscribing", topic)


def check_pattern(pattern: str) -> None:
    """Refuse what is not a pattern, and wildcards inside a word, which could never match."""
    check_topic(pattern)
    if "*" in pattern or "#" in pattern:
        for word in pattern.split("."):
            if len(word) > 1 and ("*" in word or "#" in word):
                rule = "words between dots, each of them *, # or text without these (`a.*` is one more word, `a.#` any)"
                raise invalid("topic", rule, pattern)


def by_words(patterns: Iterable[str], times: int = 1) -> Iterator[Tuple[str, bool]]:
    """Go over patterns; with each comes whether steps may be interrupted before it.

    That is after `STEP` words of those before it, each counted `times`.
    """
    words = 0
    for pattern in patterns:
        yield pattern, words >= STEP
        words = (words if words < STEP else 0) + (pattern.count(".") + 1) * times


def matched_by(pattern: str, topics: List[str]) -> Steps:
    """List the topics that a pattern matches, in order."""
    trie: Trie[bool] = Trie()
    trie.add(pattern, True)
    found: List[str] = []
    for topic, pause in by_words(topics, pattern.count(".") + 1):
        if pause:
            yield
        if trie.match(topic):
            found.append(topic)
    return (yield from in_order(found))


class Topics:
    """The pub/sub facility: one method per command, named as it is."""

    def __init__(self, core: Core) -> None:
        self.budget, self.timeline, self.limits, self.effects = core.budget, core.timeline, core.limits, core.effects
        self.leftovers, self.next_subscription = core.leftovers, core.next_subscription
        self.partial = 0
        """Subscriptions that are about to begin or have ended, and are named by some of their patterns."""
        self.prefix = f"{core.ids():x}-"
        self.number = 0
        self.published = 0
        self.delivered = 0
        self.subscriptions: Dict[int, TopicSubscription] = {}
        self.patterns: Dict[str, Listeners] = {}
        self.trie: Trie[Listeners] = Trie()

    # ------------------------------------------------------------------------------------------ commands

    def publish(self, p: c.PubSubPublish, now: float) -> Union[c.TopicPublishAnswer, Steps]:
        """Push a message to subscribers. Where finding them takes long it is done in steps, and then all get it."""
        topic = p.topic
        check_topic(topic)
        if "*" in topic or "#" in topic:
            raise no_wildcards(topic)
        listeners, shown = self._listeners(topic), int(self.timeline.shown(now))
        if isinstance(listeners, dict):
            return self._publish(p, shown, self._there(listeners) if self.partial else list(listeners.values()))
        return self._publish_later(p, shown, listeners)

    def _publish(self, p: c.PubSubPublish, shown: int, to: List[TopicSubscription]) -> c.TopicPublishAnswer:
        self.number += 1
        message_id = f"{self.prefix}{self.number:x}"
        value: bytes = p.message
        item = c.TopicMessage(p.topic, value, p.metadata or {}, shown, message_id)
        self.effects.do(self._push, to, item, to=len(to))
        return c.TopicPublishAnswer(message_id, p.topic, len(to))

    def _publish_later(self, p: c.PubSubPublish, shown: int, finding: Steps) -> Steps:
        return self._publish(p, shown, self._there((yield from finding)))

    def subscribe(self, p: c.PubSubSubscribe, now: float, caller: Caller) -> Union[c.SubscribedToTopics, Steps]:
        """Subscribe to patterns, many of them in steps: the subscription begins as a whole, with the answer."""
        return at_once(self._subscribe(p.topics, caller), sum([topic.count(".") + 1 for topic in p.topics]))

    def _subscribe(self, topics: List[str], caller: Caller) -> Steps:
        if len(caller.subscriptions) >= self.limits.subscriptions:
            raise too_many(self.limits.subscriptions)
        subscription = TopicSubscription(self.next_subscription(), caller)
        caller.subscriptions[subscription.id] = subscription
        self.partial += 1
        try:
            for topic, pause in by_words(topics):
                if pause:
                    yield
                check_pattern(topic)
            patterns = list(dict.fromkeys(topics))
            if subscription.id in caller.subscriptions:
                cost = _cost(patterns)
                self.budget.check(cost)
                self.budget.set_aside(cost)
                subscription.cost = cost
                subscription.patterns = patterns
                yield from self._list(subscription)
        except BaseException:
            self.drop(subscription)
            raise
        finally:
            self.partial -= 1
        if subscription.id not in caller.subscriptions:
            raise SynapError("SERVICE_UNAVAILABLE", "the subscription ended before it had begun")
        self.subscriptions[subscription.id] = subscription
        return c.SubscribedToTopics(subscription.id, patterns)

    def _list(self, subscription: TopicSubscription) -> Steps:
        """Enter a subscription's patterns, as long as its caller is there."""
        for pattern, pause in by_words(subscription.patterns):
            if pause:
                yield
                if subscription.id not in subscription.caller.subscriptions:
                    return
            listeners = self.patterns.get(pattern)
            if listeners is None:
                listeners = self.patterns[pattern] = {}
                if is_wild(pattern):
                    self.trie.add(pattern, listeners)
            listeners[subscription.id] = subscription

    def unsubscribe(self, p: c.PubSubUnsubscribe, now: float, caller: Caller) -> c.UnsubscribedAnswer:
        subscription = caller.subscriptions.get(p.subscription_id)
        if not isinstance(subscription, TopicSubscription):
            return c.UnsubscribedAnswer(False)
        self.drop(subscription)
        return c.UnsubscribedAnswer(True)

    def topics(self, p: c.PubSubTopics, now: float) -> Union[c.TopicsAnswer, Steps]:
        """List patterns; those of subscribers are matched by the given one as if they were topics."""
        if p.pattern is not None:
            check_pattern(p.pattern)
        found = list(self.patterns)
        if self.partial:
            there = self.subscriptions
            found = [name for name, listeners in self.patterns.items() if any(id in there for id in listeners)]
        if p.pattern is None:
            return at_once(_listed(in_order(found)), len(found))
        return at_once(_listed(matched_by(p.pattern, found)), len(found) * len(p.pattern))

    def stats(self, p: c.PubSubStats, now: float) -> c.PubSubStatsAnswer:
        return c.PubSubStatsAnswer(len(self.subscriptions), len(self.patterns), self.published, self.delivered)

    # ------------------------------------------------------------------------------------------ subscribers

    def _listeners(self, topic: str) -> Union[Listeners, Steps]:
        """Find who is subscribed to a topic, in steps where there are many, or many patterns to look at.

        Between steps some may end, and others begin.
        """
        found = self.trie.search(topic)
        if not isinstance(found, list):
            return self._found(topic, found)
        exact = self.patterns.get(topic)
        if exact is not None:
            found.append(exact)
        if len(found) < 2:
            return found[0] if found else {}
        return at_once(_merged(found), sum(map(len, found)))

    def _found(self, topic: str, finding: Steps) -> Steps:
        found = yield from finding
        return (yield from _merged([*found, self.patterns.get(topic, {})]))

    def _there(self, listeners: Listeners) -> List[TopicSubscription]:
        """Leave out those that are about to begin, or have ended."""
        return [one for id, one in listeners.items() if id in self.subscriptions]

    def deliver(self, topic: str, item: c.TopicMessage) -> List[int]:
        """Push a message that was published elsewhere to the subscribers of its topic here, in order with the others.

        Returns the subscriptions that it ended, since their callers are too slow.
        """
        listeners = self._listeners(topic)
        return self._push(list((listeners if isinstance(listeners, dict) else run(listeners)).values()), item)

    def _push(self, subscriptions: List[TopicSubscription], item: c.TopicMessage) -> List[int]:
        self.published += 1
        ended: List[int] = []
        for subscription in subscriptions:
            if subscription.id not in self.subscriptions:
                continue
            if subscription.caller.try_push(subscription.id, item):
                self.delivered += 1
            else:
                self.drop(subscription)
                subscription.caller.ended(subscription.id, _too_slow())
                ended.append(subscription.id)
        return ended

    def drop(self, subscription: TopicSubscription) -> None:
        if subscription.caller.subscriptions.pop(subscription.id, None) is None:
            return
        self.subscriptions.pop(subscription.id, None)
        self.budget.set_aside(-subscription.cost)
        self.partial += 1
        self.leftovers.free(self._unlist(subscription), sum([one.count(".") + 1 for one in subscription.patterns]))

    def _unlist(self, subscription: TopicSubscription) -> Steps:
        for pattern, pause in by_words(subscription.patterns):
            if pause:
                yield
            listeners = self.patterns.get(pattern)
            if listeners is None or listeners.pop(subscription.id, None) is None:
                continue  # it ended before this one was entered
            if not listeners:
                del self.patterns[pattern]
                if is_wild(pattern):
                    self.trie.remove(pattern)
        self.partial -= 1


def _merged(found: List[Listeners]) -> Steps:
    merged: Listeners = {}
    count = 0
    for listeners in found:
        merged.update(listeners)
        count += len(listeners)
        if count > STEP:
            count = 0
            yield
    return merged


def _listed(steps: Steps) -> Steps:
    return c.TopicsAnswer((yield from steps))


def _cost(patterns: List[str]) -> int:
    words = sum([max(pattern.count(".") - 2, 0) for pattern in patterns if is_wild(pattern)])
    return SUBSCRIPTION_COST + sum(map(len, patterns)) + PATTERN_COST * len(patterns) + WORD_COST * words


def _too_slow() -> SynapError:
    return SynapError(
        "SLOW_CONSUMER", "the subscriber's buffer was full, so its subscription ended; subscribe again and read faster"
    )
