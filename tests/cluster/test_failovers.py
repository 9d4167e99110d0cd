"""What a failover, a cut and a lost library look like to callers of a cluster of three primaries and three replicas."""

from __future__ import annotations

import asyncio
from typing import Any, Iterator

import hiredis
import pytest

from synap import AsyncSynapClient, SynapError
from synap.cluster.node import Node
from synap.testing.cluster import ThrowawayCluster
from tests.cluster.nemesis.__main__ import complaints
from tests.cluster.nemesis.load import run
from tests.cluster.nemesis.rows import Happens, Row, cut, fail_over, flush_functions, kill, lagging
from tests.helpers.patience import PATIENCE, STEADY


@pytest.fixture(scope="module")
def shards() -> Iterator[ThrowawayCluster]:
    with ThrowawayCluster(3, 1) as cluster:
        yield cluster


async def test_nothing_is_lost_and_nothing_happens_twice_through_a_failover_cuts_and_a_flush(
    shards: ThrowawayCluster,
) -> None:
    async def everything() -> None:
        await fail_over(2)(shards)
        await cut("normal", 3)(shards)
        await cut("pubsub", 3)(shards)
        await flush_functions(1)(shards)

    row = Row(fail_over(0), "replicated")
    account = await asyncio.wait_for(run(shards.url, row.durability, everything, 3.0), PATIENCE)
    assert complaints(row, account) == []
    assert account.sent
    assert account.acked


@pytest.mark.parametrize(
    "refused",
    [
        "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
        "ERR WAIT cannot be used with replica instances.",
    ],
)
async def test_a_write_is_sent_again_whose_wait_ended_as_its_node_became_a_replica(
    shards: ThrowawayCluster, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """Redis, and Valkey before 9, answer a WAIT under way with the first of these."""
    committed, name = Node._committed, refused[:3]
    refusals = [hiredis.ReplyError(refused)]

    def once(node: Node, commit: Any, answer: Any) -> Any:
        return committed(node, commit, refusals.pop() if refusals else answer)

    async with AsyncSynapClient(url=shards.url, retries=0) as client:
        await client.kv.get(name)
        monkeypatch.setattr(Node, "_committed", once)
        assert await client.kv.incr(name) == 1
        assert not refusals
        assert (await client.kv.get(name)).value == 1


async def test_a_write_that_may_have_happened_says_so_whatever_its_second_try_is_refused_for(
    shards: ThrowawayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed, tries = Node._committed, [1]

    def once(node: Node, commit: Any, answer: Any) -> Any:
        if not tries:
            return committed(node, commit, answer)
        tries.pop()
        limit(1)
        return committed(node, commit, 0)  # as where replicas were too slow

    def limit(bytes: int) -> None:
        for member in shards.members:
            member.ask("CONFIG", "SET", "maxmemory", bytes)

    async with AsyncSynapClient(url=shards.url, retries=0) as client:
        await client.kv.get("full")
        monkeypatch.setattr(Node, "_committed", once)
        try:
            with pytest.raises(SynapError, match="maxmemory") as refused:
                await client.kv.incr("full")
        finally:
            limit(0)
        assert (refused.value.code, refused.value.may_have_happened) == ("MEMORY_LIMIT", True)
        assert (await client.kv.get("full")).value == 1


def test_a_failover_that_nodes_made_by_themselves_is_not_waited_for_twice() -> None:
    with ThrowawayCluster(1, 1) as cluster:
        primary, replica = cluster.members
        assert cluster.fail_over(primary) is replica
        cluster.wait()
        assert cluster.fail_over(primary) is replica
        assert cluster.current_primaries() == [replica]


def test_after_a_wait_every_node_says_who_took_over() -> None:
    with ThrowawayCluster(3, 1, node_timeout=STEADY) as cluster:
        primary = cluster.members[0]
        replica = cluster.fail_over(primary)
        cluster.wait()
        for node in cluster.members:
            ports = [shard[2][1] for shard in node.ask("CLUSTER", "SLOTS")]
            assert (replica.port in ports, primary.port in ports) == (True, False)


@pytest.mark.parametrize("happens", [kill(1), lagging(1)], ids=["kill", "lagging"])
async def test_a_primary_that_was_killed_is_back_when_a_replica_has_taken_over(happens: Happens) -> None:
    """Were it back earlier, what it answered while its disk was busy would be lost, and that isn't what is tested."""
    with ThrowawayCluster(3, 1, persistent=True, node_timeout=6000) as cluster:
        victim = cluster.members[0]
        await happens(cluster)
        assert victim not in cluster.current_primaries()
