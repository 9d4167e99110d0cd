"""Pub/sub: gateways match topics with subscriptions; the cluster numbers changes of these.

A subscription is a numbered change in partition 0, told to the topics' partitions before it is answered. Every gateway
mirrors the changes. A publisher names the last change it knows; where the topic's partition knows a later one, it reads
the changes and asks again, so `subscribers_matched` is exact whichever gateways are involved, and only gateways that
match are told.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from itertools import count
from types import GeneratorType
from typing import Any, Callable, Deque, Dict, List, Set, Tuple

import msgspec

from synap import commands as c
from synap.cluster.calls import Call, Refused
from synap.cluster.channels import Channels
from synap.cluster.facility import Facility
from synap.cluster.link import Link
from synap.cluster.memory import Request
from synap.cluster.running import Lock, Running, in_slices
from synap.engine import topics as local
from synap.engine.callers import Caller, Steps, in_order
from synap.engine.core import Core
from synap.engine.limits import Limits
from synap.engine.topics import TopicSubscription, by_words, check_pattern, check_topic, matched_by, no_wildcards
from synap.engine.trie import Trie, is_wild
from synap.errors import SynapError
from synap.host.jobs import SLICE

PARTITIONS = 16
"""Partitions in which publishers are held to what they must know."""
ALIVE = 15_000
"""Milliseconds that a gateway's subscriptions count without a sign of life."""
TOLD_TOGETHER = 100
"""Subscriptions that ended which the registry is told of together."""

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder().decode


class Mirror:
    """Who is subscribed to which patterns, at all gateways. A field is b'<gateway> <subscription>'."""

    def __init__(self) -> None:
        self.number = 0
        """The last change that is known."""
        self.patterns: Dict[str, Dict[bytes, bool]] = {}
        self.fields: Dict[bytes, List[str]] = {}
        self._unfinished: Dict[bytes, List[str]] = {}
        """Those that are being changed, or were when a read ended too early: all patterns that may name them."""
        self._trie: Trie[Dict[bytes, bool]] = Trie()

    def read(self, changes: Dict[bytes, List[str]], number: int, *, partial: bool) -> Steps:
        """Take over changes up to a number: the patterns of subscriptions, none of those that ended.

        Where they aren't `partial` they are all there are. A subscription that goes on is found at any time meanwhile.
        """
        if not partial:
            for field in [*self.fields, *self._unfinished]:
                changes.setdefault(field, [])
        for field, patterns in changes.items():
            if field in self._unfinished or self.fields.get(field, []) != patterns:
                yield from self._change(field, patterns)
        self.number = number

    def _change(self, field: bytes, patterns: List[str]) -> Steps:
        before = [*self.fields.pop(field, ()), *self._unfinished.pop(field, ())]
        self._unfinished[field] = [*before, *patterns]
        for pattern, pause in by_words(before):
            if pause:
                yield
            fields = self.patterns.get(pattern, {})
            if fields.pop(field, None) and not fields:
                del self.patterns[pattern]
                if is_wild(pattern):
                    self._trie.remove(pattern)
        for pattern, pause in by_words(patterns):
            if pause:
                yield
            known = self.patterns.get(pattern)
            if known is None:
                known = self.patterns[pattern] = {}
                if is_wild(pattern):
                    self._trie.add(pattern, known)
            known[field] = True
        del self._unfinished[field]
        if patterns:
            self.fields[field] = patterns

    def match(self, topic: str) -> Set[bytes]:
        """Return the subscriptions that a topic goes to."""
        found = set(self.patterns.get(topic, ()))
        for fields in self._trie.match(topic):
            found.update(fields)
        return found


class Topics(Facility):
    """The pub/sub facility: one method per command, named as it is."""

    def __init__(
        self, link: Link, channels: Channels, gateway: bytes, limits: Limits, next_subscription: Callable[[], int]
    ) -> None:
        super().__init__(link)
        self.channels = channels
        self.gateway = gateway
        self.mirror = Mirror()
        core = Core(lambda: secrets.randbits(64), limits)
        core.next_subscription = next_subscription
        core.leftovers.begun = lambda: link.soon(self._let_go)
        self._leftovers = core.leftovers
        self.here = local.Topics(core)
        self.published = 0
        self._ended: Deque[int] = deque()
        """Subscriptions that the registry is still to be told the end of."""
        self._telling = False
        self._reading = Lock()
        self._repairing = False
        self._reads = 0
        """Reads of the registry that are over."""
        self._next = count(1).__next__
        self._prefix = secrets.token_hex(8)
        width = self.places.count // min(PARTITIONS, self.places.count)
        self._partitions = range(0, self.places.count, width)
        self._width = width

    # ------------------------------------------------------------------------------------------ keys

    def _registry(self) -> Tuple[bytes, ...]:
        base = self.places.bases[0]
        return base + b"P", base + b"PV", base + b"PL", base + b"PG"

    def _told(self, partition: int) -> Tuple[bytes, ...]:
        return (self.places.bases[partition] + b"TV",)

    # ------------------------------------------------------------------------------------------ commands

    async def publish(self, p: c.PubSubPublish, request: Request) -> c.TopicPublishAnswer:
        check_topic(p.topic)
        if is_wild(p.topic):
            raise no_wildcards(p.topic)
        self.alone("pubsub.publish")
        message_id = f"{self._prefix}-{self._next():x}"
        body = encode((p.topic, p.message, p.metadata or None, int(time.time()), message_id))
        partition = self.places.partition(p.topic) // self._width * self._width
        if not self.mirror.number:
            await self._read(0)
        while True:
            matched, gateways = 0, set()
            for field in self.mirror.match(p.topic):
                gateway, _, number = field.partition(b" ")
                if gateway != self.gateway or int(number) in self.here.subscriptions:  # ours may have ended by now
                    matched += 1
                    gateways.add(gateway)
            arguments = (b"%d" % self.mirror.number, body, *gateways)
            needed = await self.link.call(partition, "syn_p_publish", self._told(partition), arguments, once=True)
            if not needed:
                self.published += 1
                return c.TopicPublishAnswer(message_id, p.topic, matched)
            await self._read(needed)

    async def subscribe(self, p: c.PubSubSubscribe, caller: Caller) -> c.SubscribedToTopics:
        await self.all([self.channels.listen(q, self.places.gateway(q, self.gateway)) for q in self._partitions])
        made: Any = self.here.subscribe(p, 0.0, caller)
        answer: c.SubscribedToTopics = (
            await in_slices(made, self.link.soon) if isinstance(made, GeneratorType) else made
        )
        try:
            await self._change(answer.subscription_id, answer.topics)
        except BaseException:  # the end of a caller that went away included
            subscription = caller.subscriptions.get(answer.subscription_id)
            if isinstance(subscription, TopicSubscription):
                self.drop(subscription)
            raise
        return answer

    async def unsubscribe(self, p: c.PubSubUnsubscribe, caller: Caller) -> c.UnsubscribedAnswer:
        subscription = caller.subscriptions.get(p.subscription_id)
        if not isinstance(subscription, TopicSubscription):
            return c.UnsubscribedAnswer(False)
        self.here.drop(subscription)
        await self._change(subscription.id, [])
        return c.UnsubscribedAnswer(True)

    def drop(self, subscription: TopicSubscription) -> None:
        """End a subscription."""
        self.here.drop(subscription)
        self._gone(subscription.id)

    def _let_go(self) -> None:
        """Free a part of what ended."""
        end = time.perf_counter() + SLICE
        if self._leftovers.work(lambda: time.perf_counter() >= end):
            self.link.soon(self._let_go)

    def _gone(self, number: int) -> None:
        self._ended.append(number)
        if not self._telling:
            self._telling = True
            Running(self._tell_ended()).start()

    async def _tell_ended(self) -> None:
        try:
            while self._ended:
                some = [self._ended.popleft() for _ in range(min(TOLD_TOGETHER, len(self._ended)))]
                try:
                    await self._tell(max(await self.all([self._enter_as(number, []) for number in some])))
                except (SynapError, Refused):
                    pass  # `alive` repairs it later
        finally:
            self._telling = False

    async def topics(self, p: c.PubSubTopics, request: Request) -> c.TopicsAnswer:
        self.alone("pubsub.topics")
        if p.pattern is not None:
            check_pattern(p.pattern)
        await self._read(self.mirror.number)
        found = list(self.mirror.patterns)
        steps = in_order(found) if p.pattern is None else matched_by(p.pattern, found)
        return c.TopicsAnswer(await in_slices(steps, self.link.soon))

    async def stats(self, p: c.PubSubStats, request: Request) -> c.PubSubStatsAnswer:
        """Subscriptions and patterns are those of all gateways; what was published and delivered is this one's."""
        self.alone("pubsub.stats")
        await self._read(self.mirror.number)
        return c.PubSubStatsAnswer(
            len(self.mirror.fields), len(self.mirror.patterns), self.published, self.here.delivered
        )

    # ------------------------------------------------------------------------------------------ the registry

    async def _change(self, number: int, patterns: List[str]) -> None:
        await self._tell(await self._enter_as(number, patterns))

    def _enter_as(self, number: int, patterns: List[str]) -> Call:
        """Enter the patterns of a subscription, none of one that ended; its result is the change's number."""
        packed = encode(patterns) if patterns else b""
        arguments = (self.gateway, b"%d" % number, packed, b"%d" % ALIVE)
        return self.link.call(0, "syn_p_change", self._registry(), arguments)

    async def _tell(self, number: int) -> None:
        calls = [self.link.call(q, "syn_p_tell", self._told(q), (b"%d" % number,)) for q in self._partitions]
        await self.all(calls)

    async def _read(self, needed: int) -> None:
        """Bring the mirror up to date, at least to the change `needed`."""
        mirror = self.mirror
        before = self._reads + self._reading.held
        await self._reading.acquire()
        try:
            while self._reads <= before or mirror.number < needed:  # else one that began after this call was enough
                number, partial, *found = await self.link.call(
                    0, "syn_p_read", self._registry()[:3], (b"%d" % mirror.number,), changes=False
                )
                if number < needed:  # a failover lost changes that a topic's partition knows of
                    await self.link.call(0, "syn_p_raise", self._registry()[1:2], (b"%d" % needed,))
                    mirror.number = 0
                    await self._register()
                    continue
                changes = {field: decode(packed) if packed else [] for field, packed in zip(found[::2], found[1::2])}
                await in_slices(mirror.read(changes, number, partial=bool(partial)), self.link.soon)
                self._reads += 1
        finally:
            self._reading.release()

    async def _register(self) -> None:
        """Enter all subscriptions of this gateway anew."""
        for subscription in list(self.here.subscriptions.values()):
            await self._enter(subscription)

    async def _enter(self, subscription: TopicSubscription) -> None:
        if subscription.id in self.here.subscriptions:  # else it ended meanwhile, which the registry has been told
            await self._change(subscription.id, subscription.patterns)

    async def alive(self) -> None:
        """Renew this gateway's entries, and repair what the registry has wrong about it and about those that died."""
        if not self.here.subscriptions and not self.mirror.fields:
            return
        try:
            more = 1
            while more:
                number, more = await self.link.call(0, "syn_p_alive", self._registry(), (self.gateway, b"%d" % ALIVE))
            if not self._repairing:  # else the same changes would be made twice
                self._repairing = True
                try:
                    await self._repair(number)
                finally:
                    self._repairing = False
        except SynapError:
            pass  # the next sign of life tries again

    async def _repair(self, number: int) -> None:
        """Make our entries those of our subscriptions; read all anew where the registry has lost changes."""
        if number < self.mirror.number:
            self.mirror.number = 0
        await self._read(0)
        known = {field for field in self.mirror.fields if field.startswith(self.gateway + b" ")}
        mine = {self.gateway + b" %d" % id: here for id, here in self.here.subscriptions.items()}
        for field in known - set(mine):
            await self._change(int(field.partition(b" ")[2]), [])
        for field in set(mine) - known:
            await self._enter(mine[field])

    def received(self, packed: bytes) -> None:
        """Push a message to the subscriptions here."""
        topic, message, metadata, at, message_id = decode(packed)
        for number in self.here.deliver(topic, c.TopicMessage(topic, message, metadata or {}, at, message_id)):
            self._gone(number)
