"""What a failover, a cut and a lost library look like to callers of a cluster of three primaries and three replicas."""

from __future__ import annotations

import asyncio
from typing import Iterator

import pytest

from synap.testing.cluster import ThrowawayCluster
from tests.cluster.nemesis.__main__ import complaints
from tests.cluster.nemesis.load import run
from tests.cluster.nemesis.rows import Row, cut, fail_over, flush_functions
from tests.helpers.patience import PATIENCE


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
