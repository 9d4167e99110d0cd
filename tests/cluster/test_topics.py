"""Topics on a cluster: many patterns at once, and what is seen while a gateway reads who is subscribed."""

from __future__ import annotations

import asyncio
from typing import Any, Callable, Dict, List

import msgspec
import pytest

from synap import AsyncSynapClient, SynapError
from synap import commands as c
from synap.cluster import functions, running
from synap.cluster.node import Node
from synap.cluster.running import Lock, Pending, Running, in_slices
from synap.cluster.topics import Mirror, Topics
from synap.engine.callers import Caller, Steps, run
from synap.testing.cluster import ThrowawayCluster
from tests.cluster.asking import Asking, result
from tests.cluster.conftest import a_space, another_url
from tests.helpers.patience import in_time

PATTERNS = [".".join(["*", *"abcdefghijklmnopqrstuvwxyz", str(number)]) for number in range(200)]
TOPIC = ".".join(["x", *"abcdefghijklmnopqrstuvwxyz", "7"])


async def test_many_patterns_of_many_words_are_one_subscription(one_node: ThrowawayCluster) -> None:
    space = a_space()
    async with AsyncSynapClient(url=one_node.url, engine=space) as one:
        async with AsyncSynapClient(url=another_url(one_node), engine=space) as other:
            first = await one.pubsub.subscribe(PATTERNS)
            second = await other.pubsub.subscribe([*PATTERNS, TOPIC])
            for client in (one, other):
                assert (await client.pubsub.publish(TOPIC, 1)).subscribers_matched == 2
                assert (await client.pubsub.stats()).subscriptions == 2
                assert await client.pubsub.topics() == sorted([*PATTERNS, TOPIC])
                assert await client.pubsub.topics("x.#") == [TOPIC]
            await first.unsubscribe()
            assert (await one.pubsub.publish(TOPIC, 1)).subscribers_matched == 1
            while (await other.pubsub.publish(TOPIC, 1)).subscribers_matched != 1:
                await asyncio.sleep(0.01)  # the other gateway is told
            await second.unsubscribe()
            while await one.pubsub.topics():
                await asyncio.sleep(0.01)


async def test_publishers_who_know_nothing_yet_read_together(
    one_node: ThrowawayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = reads = 0
    read, acquire = Mirror.read, Lock.acquire

    async def counted(lock: Lock) -> None:
        nonlocal asked
        asked += 1
        await acquire(lock)

    def slow(mirror: Mirror, *arguments: Any, **more: Any) -> Steps:
        nonlocal reads
        reads += 1
        while asked < 200:
            yield
        yield from read(mirror, *arguments, **more)

    monkeypatch.setattr(Lock, "acquire", counted)
    monkeypatch.setattr(Mirror, "read", slow)
    async with AsyncSynapClient(url=one_node.url, engine=a_space()) as client:
        answers = await asyncio.gather(*[client.pubsub.publish("t", number) for number in range(200)])
        assert {answer.subscribers_matched for answer in answers} == {0}
        assert reads == 2, "those who came during the first read share the next"


def read(mirror: Mirror, changes: Dict[bytes, List[str]], number: int, *, partial: bool = True) -> None:
    run(mirror.read(changes, number, partial=partial))


def test_a_mirror_is_what_the_changes_say() -> None:
    mirror = Mirror()
    read(mirror, {b"g 1": ["a.*", "b"], b"g 2": ["a.x"]}, 2, partial=False)
    assert mirror.match("a.x") == {b"g 1", b"g 2"}
    read(mirror, {b"g 2": [], b"g 3": ["#"]}, 4)
    assert (mirror.match("a.x"), mirror.number) == ({b"g 1", b"g 3"}, 4)
    read(mirror, {b"h 9": ["b"]}, 5, partial=False)
    assert (mirror.match("a.x"), mirror.match("b")) == (set(), {b"h 9"})
    assert (list(mirror.fields), list(mirror.patterns)) == ([b"h 9"], ["b"])


def test_a_subscription_that_goes_on_is_found_while_all_are_read_again() -> None:
    mirror = Mirror()
    stays, goes, comes = b"g 1", b"g 2", b"g 3"
    read(mirror, {stays: PATTERNS, goes: PATTERNS}, 2)
    turns = 0
    for _ in mirror.read({stays: list(PATTERNS), comes: PATTERNS}, 3, partial=False):
        turns += 1
        assert stays in mirror.match(TOPIC)
        assert mirror.number == 2
    assert turns > 10
    assert (mirror.match(TOPIC), mirror.number) == ({stays, comes}, 3)


@pytest.mark.parametrize("after", [1, 5])
@pytest.mark.parametrize("comes", [True, False])
def test_a_read_that_ended_too_early_is_made_good_by_the_next(comes: bool, after: int) -> None:
    mirror = Mirror()
    if not comes:
        read(mirror, {b"g 1": PATTERNS}, 1)
    steps = mirror.read({b"g 1": PATTERNS if comes else []}, 2, partial=True)
    for _ in range(after):
        next(steps)
    steps.close()
    assert mirror.number < 2
    for patterns in (PATTERNS, [], PATTERNS):
        read(mirror, {b"g 1": patterns}, 2)
        assert mirror.match(TOPIC) == ({b"g 1"} if patterns else set())
    read(mirror, {}, 3, partial=False)
    assert (mirror.fields, mirror.patterns, mirror.match(TOPIC)) == ({}, {}, set())


# ---------------------------------------------------------------------------------------------- coroutines


async def test_long_work_is_done_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "SLICE", 0.0)
    turns: List[Callable[[], None]] = []

    def steps() -> Steps:
        yield from range(3)
        return "done"

    work = Running(in_slices(steps(), turns.append)).start()
    assert not work.done
    while turns:
        turns.pop(0)()
    assert (work.done, work.value) == (True, "done")


def test_work_that_is_cancelled_is_closed() -> None:
    ended: List[bool] = []

    def steps() -> Steps:
        try:
            while True:
                yield
        finally:
            ended.append(True)

    turns: List[Callable[[], None]] = []
    work = Running(in_slices(steps(), turns.append)).start()
    work.cancel()
    assert ended == [True]


class Holders:
    """Coroutines that want a lock, and write down when they have it, until they are let go on."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.had: List[int] = []
        self.work: Dict[int, Pending] = {}

    def start(self, number: int, *, at_once: bool = False) -> Running:
        async def hold() -> None:
            await self.lock.acquire()
            try:
                self.had.append(number)
                if not at_once:
                    self.work[number] = Pending()
                    await self.work[number]
            finally:
                self.lock.release()

        return Running(hold()).start()


def test_a_lock_is_had_in_order_by_one_at_a_time() -> None:
    holders = Holders()
    for number in range(4):
        holders.start(number)
    for number in range(4):
        assert holders.had == list(range(number + 1))
        holders.work[number].finish()
    assert not holders.lock.held


def test_those_that_have_it_for_a_moment_are_not_resumed_within_each_other() -> None:
    holders = Holders()
    holders.start(0)
    for number in range(1, 5000):
        holders.start(number, at_once=True)
    holders.work[0].finish()
    assert holders.had == list(range(5000))
    assert not holders.lock.held


def test_a_lock_passes_over_who_is_cancelled() -> None:
    holders = Holders()
    first, second, third = (holders.start(number) for number in range(3))
    second.cancel()
    first.cancel()
    assert holders.had == [0, 2]
    holders.work[2].finish()
    assert third.done
    assert not holders.lock.held


# ---------------------------------------------------------------------------------------------- the registry


def topics_of(asking: Asking) -> Topics:
    return asking.host.facilities.topics


async def matched(asking: Asking, topic: str) -> int:
    value: Any = b"1"
    published = topics_of(asking).publish(c.PubSubPublish(topic, value), asking.request())
    answer: c.TopicPublishAnswer = await result(Running(published).start())
    return answer.subscribers_matched


async def register(asking: Asking, gateway: bytes, number: int, patterns: List[str], alive: int = 60_000) -> int:
    """Enter a subscription as another gateway does; returns the number of the change."""
    topics = topics_of(asking)
    packed = msgspec.msgpack.encode(patterns) if patterns else b""
    entry = (gateway, b"%d" % number, packed, b"%d" % alive)
    change: int = await result(asking.link.call(0, "syn_p_change", topics._registry(), entry))
    await result(Running(topics._tell(change)).start())
    return change


async def test_a_gateway_without_subscriptions_too_takes_out_those_of_one_that_died(asking: Asking) -> None:
    await register(asking, b"dead", 1, ["t"], alive=0)
    assert await matched(asking, "t") == 1
    while await matched(asking, "t"):  # it is over from the next millisecond on
        await result(Running(topics_of(asking).alive()).start())


async def test_changes_that_a_failover_took_back_are_not_taken_for_those_that_came_instead(asking: Asking) -> None:
    for number in range(4):
        await register(asking, b"g", number, [f"t{number}"])
    assert await matched(asking, "t3") == 1
    table, counter, changes, _ = topics_of(asking)._registry()
    kept = (await asking.command("", "XRANGE", changes, "-", "+"))[:-2]
    await asking.command("", "DEL", changes)  # as at a replica that lacked the last two
    for id, (*fields, _) in kept:
        await asking.command("", "XADD", changes, id, *fields, "another history")
    await asking.command("", "SET", counter, kept[-1][0].partition(b"-")[0])
    await asking.command("", "HDEL", table, "g 2", "g 3")
    for number in range(10, 13):
        await register(asking, b"h", number, [f"t{number}"])
    assert [await matched(asking, f"t{number}") for number in (10, 11, 12, 3)] == [1, 1, 1, 0]


async def test_a_subscription_that_ends_while_all_are_entered_anew_is_not_entered(asking: Asking) -> None:
    topics, caller = topics_of(asking), Caller()
    made = [Running(topics.subscribe(c.PubSubSubscribe([topic]), caller)).start() for topic in ("a", "b")]
    stays, ends = [(await result(one)).subscription_id for one in made]
    entering = Running(topics._register()).start()
    await result(Running(topics.unsubscribe(c.PubSubUnsubscribe(ends), caller)).start())
    await result(entering)
    assert await asking.command("", "HKEYS", topics._registry()[0]) == [topics.gateway + b" %d" % stays]


async def test_a_gateway_that_died_with_many_subscriptions_is_taken_out_in_several_calls(asking: Asking) -> None:
    topics = topics_of(asking)
    table, _, _, gateways = topics._registry()
    patterns = msgspec.msgpack.encode(["t"])
    fields = [text for number in range(2500) for text in (b"dead %d" % number, patterns)]
    await asking.command("", "HSET", table, *fields, b"lives 1", patterns)
    await asking.command("", "ZADD", gateways, "1", "dead", "+inf", "lives")
    own = (topics.gateway, b"60000")
    number, more = await result(asking.link.call(0, "syn_p_alive", topics._registry(), own))
    assert (number > 0, more, await asking.command("", "HLEN", table)) == (True, 1, 1501)
    assert await matched(asking, "t") == 1501
    await result(Running(topics.alive()).start())
    assert await asking.command("", "HKEYS", table) == [b"lives 1"]
    assert await matched(asking, "t") == 1


async def test_a_lost_registry_is_entered_anew_once_however_often_a_gateway_says_that_it_is_alive(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes longer than from one sign of life to the next where there are many subscriptions."""
    topics, caller, entered = topics_of(asking), Caller(), []
    for number in range(20):
        await result(Running(topics.subscribe(c.PubSubSubscribe([f"t{number}"]), caller)).start())
    for key in topics._registry():
        await asking.command("", "DEL", key)
    enter = topics._enter

    async def noted(subscription: Any) -> None:
        entered.append(subscription.id)
        await enter(subscription)

    monkeypatch.setattr(topics, "_enter", noted)
    for alive in [Running(topics.alive()).start() for _ in range(3)]:
        await result(alive)
    assert sorted(entered) == sorted(caller.subscriptions)
    assert len((await result(Running(topics.topics(c.PubSubTopics(), asking.request())).start())).topics) == 20


async def test_changes_of_many_patterns_leave_nothing_of_them_once_they_are_over(asking: Asking) -> None:
    topics = topics_of(asking)
    table, counter, changes, _ = topics._registry()
    await register(asking, b"g", 0, ["first"])
    assert await matched(asking, "first") == 1
    patterns = [f"{number}.{'x' * 180}" for number in range(1000)]
    for number in range(20):
        await register(asking, b"g", number, patterns)
        await register(asking, b"g", number, [])
    await register(asking, b"g", 20, ["t"])
    assert await asking.command("", "MEMORY", "USAGE", changes) < 100_000
    known = b"%d" % topics.mirror.number
    _, partial, *found = await asking.call("", "syn_p_read", (table, counter, changes), known, changes=False)
    assert (partial, len(found)) == (1, 2 * 21)
    assert b"".join(found[1::2]) == msgspec.msgpack.encode(["t"])
    assert [await matched(asking, topic) for topic in ("t", patterns[0])] == [1, 0]


async def register_as_before(asking: Asking, gateway: bytes, number: int, patterns: List[str]) -> None:
    """Enter a subscription as a gateway of an older release does, which wrote its patterns with each change."""
    topics = topics_of(asking)
    table, counter, changes, _ = topics._registry()
    field, packed = gateway + b" %d" % number, msgspec.msgpack.encode(patterns) if patterns else b""
    await asking.command("", *(("HSET", table, field, packed) if patterns else ("HDEL", table, field)))
    change = await asking.command("", "INCR", counter)
    await asking.command("", "XADD", changes, b"%d-0" % change, "f", field, "p", packed, "h", "x")
    await result(Running(topics._tell(change)).start())


async def test_changes_of_an_older_release_are_read_one_by_one_too(asking: Asking) -> None:
    topics = topics_of(asking)
    await register(asking, b"new", 1, ["a"])
    await register_as_before(asking, b"old", 1, ["a"])
    assert await matched(asking, "a") == 2
    known = topics.mirror.number
    await register_as_before(asking, b"old", 2, ["a"])
    await register_as_before(asking, b"old", 1, [])
    _, partial, *found = await asking.call("", "syn_p_read", topics._registry()[:3], b"%d" % known, changes=False)
    assert (partial, sorted(found[::2])) == (1, [b"old 1", b"old 2"])
    assert await matched(asking, "a") == 2


async def test_an_older_release_notices_that_it_cannot_read_a_change(asking: Asking) -> None:
    """It took the changes that are there for all if they were as many as the number had grown by, else it read all."""
    topics = topics_of(asking)
    _, counter, changes, _ = topics._registry()
    await register(asking, b"new", 1, ["a"])
    for count in range(1, 4):
        known = int(await asking.command("", "GET", counter))
        for number in range(count):
            await register(asking, b"new", number, ["b"])
        await register_as_before(asking, b"old", 1, ["a"])
        grown = int(await asking.command("", "GET", counter)) - known
        assert len(await asking.command("", "XRANGE", changes, known + 1, "+")) < grown


# ---------------------------------------------------------------------------------------------- at most once


async def test_a_message_waits_for_no_replica_and_is_delivered_once_where_none_is_there() -> None:
    """Each second try was delivered again: too few replicas had a message that nobody stores."""
    with ThrowawayCluster(1, 1) as cluster:
        async with AsyncSynapClient(url=cluster.url, engine={"durability": "replicated"}, retries=0) as client:
            async with await client.pubsub.subscribe(["t"]) as subscription:
                cluster.members[1].kill()
                for message in ("one", "end"):
                    assert (await client.pubsub.publish("t", message)).subscribers_matched == 1
                got = await heard(subscription)
            assert got == ["one", "end"]


async def test_a_message_that_may_have_been_delivered_is_not_sent_again(
    one_node: ThrowawayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = Node.data_received
    lost: List[bytes] = []

    def lose(node: Node, data: bytes) -> None:
        if not lost and any(call and call.function == functions.name("syn_p_publish") for call, _ in node.waiting):
            lost.append(data)
            node.abort()
        else:
            received(node, data)

    async with AsyncSynapClient(url=one_node.url, engine=a_space()) as client:
        async with await client.pubsub.subscribe(["t"]) as subscription:
            await client.pubsub.publish("t", "before")
            monkeypatch.setattr(Node, "data_received", lose)
            with pytest.raises(SynapError, match="is not sent again") as refused:
                await client.pubsub.publish("t", "lost")
            assert (refused.value.code, refused.value.may_have_happened, len(lost)) == ("SERVICE_UNAVAILABLE", True, 1)
            assert (await client.pubsub.publish("t", "end")).subscribers_matched == 1
            assert await heard(subscription) == ["before", "lost", "end"]


async def heard(subscription: Any) -> List[Any]:
    """Return what a subscription is told, up to the message 'end'."""
    messages: List[Any] = []
    async for message in in_time(subscription):
        messages.append(message.message)
        if message.message == "end":
            break
    return messages
