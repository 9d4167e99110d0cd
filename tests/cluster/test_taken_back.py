"""Changes of subscriptions that a failover takes back, at real nodes: nobody's messages stay away for good."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any, AsyncIterator, Dict, Iterator, List

import pytest

from synap import commands as c
from synap.cluster.host import ClusterHost
from synap.cluster.running import Running
from synap.engine.callers import Caller
from synap.testing.cluster import ThrowawayCluster
from tests.cluster.asking import Asking, result
from tests.cluster.conftest import options
from tests.helpers.patience import STEADY

pytestmark = pytest.mark.usefixtures("only_what_is_asked")


class Listener(Caller):
    """Has room for everything."""

    def push(self, subscription_id: int, item: Any) -> bool:
        return True


class Gateway(Asking):
    """A gateway that gives signs of life only where that is asked for."""

    @property
    def topics(self) -> Any:
        return self.host.facilities.topics

    async def subscribe(self, *patterns: str) -> None:
        await result(Running(self.topics.subscribe(c.PubSubSubscribe(list(patterns)), Listener())).start())

    async def matched(self, topic: str) -> int:
        value: Any = b"1"
        published = self.topics.publish(c.PubSubPublish(topic, value), self.request())
        answer: c.TopicPublishAnswer = await result(Running(published).start())
        return answer.subscribers_matched

    async def alive(self) -> None:
        await result(Running(self.topics.alive()).start())


@pytest.fixture
def shards() -> Iterator[ThrowawayCluster]:
    with ThrowawayCluster(3, 1, node_timeout=STEADY) as cluster:
        yield cluster


@asynccontextmanager
async def gateways(cluster: ThrowawayCluster, count: int) -> AsyncIterator[List[Gateway]]:
    given: Dict[str, Any] = {"space": "syn", "partitions": 16, "durability": "none"}
    hosts = [ClusterHost(options(cluster, **given)) for _ in range(count)]
    for host in hosts:
        await host.open()
    try:
        yield [Gateway(host) for host in hosts]
    finally:
        for host in hosts:
            await host.close()


class Away:
    """The replica of partition 0's node gets nothing any more, until it takes over from that."""

    def __init__(self, cluster: ThrowawayCluster) -> None:
        self.cluster = cluster
        self.primary = cluster.members[0]
        self.replica = cluster.replicas_of(self.primary)[0]

    def keep_back(self) -> None:
        self.primary.ask("WAIT", 1, 0)
        self.replica.pause()
        self.primary.ask("CLIENT", "KILL", "TYPE", "replica")

    def take_over(self) -> None:
        self.primary.kill()
        self.replica.go_on()
        assert self.cluster.fail_over(self.primary, "TAKEOVER") is self.replica


def elsewhere(gateway: Gateway) -> str:
    """Return a topic whose publishers are held to what they must know at another node than partition 0's."""
    owners = gateway.link.topology.owners
    return next(name for name in map(str, range(1000)) if owners[gateway.places.partition(name)] != owners[0])


async def test_a_subscription_that_a_failover_took_back_is_found_after_a_publisher_noticed(
    shards: ThrowawayCluster,
) -> None:
    async with gateways(shards, 2) as (subscriber, publisher):
        topic, away = elsewhere(publisher), Away(shards)
        await subscriber.subscribe("other")
        assert await publisher.matched("other") == 1
        away.keep_back()
        await subscriber.subscribe(topic)
        assert await subscriber.matched(topic) == 1
        await asyncio.get_running_loop().run_in_executor(None, away.take_over)
        assert await publisher.matched(topic) == 0, "partition 0 doesn't know of it any more"
        await subscriber.alive()
        assert await publisher.matched(topic) == 1
        assert await publisher.matched("other") == 1


async def test_changes_after_a_failover_are_not_taken_for_those_that_it_took_back(shards: ThrowawayCluster) -> None:
    async with gateways(shards, 3) as (subscriber, publisher, another):
        away = Away(shards)
        await subscriber.subscribe("before")
        away.keep_back()
        await subscriber.subscribe("lost 1")
        await subscriber.subscribe("lost 2")
        assert await publisher.matched("lost 2") == await subscriber.matched("lost 2") == 1
        await asyncio.get_running_loop().run_in_executor(None, away.take_over)
        for number in range(5):
            await another.subscribe(f"later {number}")
        assert [await publisher.matched(f"later {number}") for number in range(5)] == [1] * 5
        await subscriber.alive()
        assert [await publisher.matched(name) for name in ("before", "lost 1", "lost 2")] == [1] * 3


async def test_changes_after_a_restart_without_data_are_not_taken_for_those_before() -> None:
    with ThrowawayCluster(1) as cluster:
        async with gateways(cluster, 3) as (subscriber, publisher, another):
            await subscriber.subscribe("before")
            assert await publisher.matched("before") == await subscriber.matched("before") == 1
            cluster.members[0].kill()
            cluster.spawn(cluster.members[0])
            await asyncio.get_running_loop().run_in_executor(None, cluster.wait)
            for number in range(3):
                await another.subscribe(f"later {number}")
            assert [await publisher.matched(f"later {number}") for number in range(3)] == [1] * 3
            await subscriber.alive()
            assert await publisher.matched("before") == 1
