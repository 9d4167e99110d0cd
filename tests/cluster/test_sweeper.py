"""What a gateway lets happen by the clock goes on where one node refuses it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from synap import commands as c
from synap.cluster.host import ClusterHost
from synap.cluster.running import Running
from synap.testing.cluster import ThrowawayCluster
from tests.cluster.asking import Asking, result
from tests.cluster.conftest import options
from tests.helpers.patience import PATIENCE


@pytest.mark.usefixtures("only_what_is_asked")
async def test_expired_keys_of_other_nodes_are_swept_while_one_refuses_writes() -> None:
    with ThrowawayCluster(2) as cluster:
        host = ClusterHost(options(cluster, durability="none", patience=0.1))
        await host.open()
        try:
            asking = Asking(host)
            owners = asking.link.topology.owners
            name = next(name for name in map(str, range(1000)) if owners[asking.places.partition(name)] == owners[0])
            index = asking.places.index(asking.places.partition(name))[0]
            cluster.members[1].ask("CONFIG", "SET", "min-replicas-to-write", "1")

            async def sweep() -> None:
                await result(Running(host.sweeper._sweep()).start())

            await sweep()  # up to the node that refuses
            value: Any = b"1"
            await result(Running(host.facilities.keys.set(c.KvSet(name, value, ttl=1), asking.request())).start())

            async def swept() -> None:
                while await asking.command(name, "ZCARD", index):
                    await sweep()

            await asyncio.wait_for(swept(), PATIENCE)
        finally:
            await host.close()
