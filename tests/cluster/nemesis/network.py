"""What a network can do between clients and nodes, while the nodes reach each other: rows for a `ProxiedCluster`."""

from __future__ import annotations

import asyncio
import random
from typing import Any, Callable, Coroutine, List

from synap.testing.cluster import ThrowawayCluster
from tests.cluster.proxied import ProxiedCluster
from tests.helpers.fault_proxy import Fault, FaultProxy

__all__ = ["cut_answers", "delay", "drop", "half_open"]

Happens = Callable[[ThrowawayCluster], Coroutine[Any, Any, None]]


async def _off(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, lambda: function(*arguments, **named))


async def _before_primaries(cluster: ThrowawayCluster) -> List[FaultProxy]:
    assert isinstance(cluster, ProxiedCluster)
    return [cluster.proxies[node.port] for node in await _off(cluster.current_primaries)]


def cut_answers(times: int) -> Happens:
    """Connections end somewhere in what a node answers, in order or with a reset: it is done, and nobody is told."""

    async def happens(cluster: ThrowawayCluster) -> None:
        for turn in range(times):
            for proxy in await _before_primaries(cluster):
                await _off(proxy.fail, down=Fault(cut=random.randrange(300), reset=bool(turn % 2)))
                await asyncio.sleep(0.1)
                await _off(proxy.heal)
            await asyncio.sleep(0.1)

    return happens


def half_open(seconds: float) -> Happens:
    """Connections stand and carry nothing any more, as where a router forgot them; new ones are sound. Then what was on
    its way arrives after all."""

    async def happens(cluster: ThrowawayCluster) -> None:
        for proxy in await _before_primaries(cluster):
            await _off(proxy.freeze)
            await asyncio.sleep(seconds)
            await _off(proxy.heal)

    return happens


def delay(seconds: float) -> Happens:
    """Everything takes 0.2 s longer in each direction."""

    async def happens(cluster: ThrowawayCluster) -> None:
        for proxy in await _before_primaries(cluster):
            await _off(proxy.fail, up=Fault(delay=0.2), down=Fault(delay=0.2))
        await asyncio.sleep(seconds)
        for proxy in await _before_primaries(cluster):
            await _off(proxy.heal)

    return happens


def drop(seconds: float) -> Happens:
    """Nothing arrives and nobody is told, at one node after the other: to it, from it, and both."""

    async def happens(cluster: ThrowawayCluster) -> None:
        gone = Fault(swallow=True)
        ways = ({"up": gone}, {"down": gone}, {"up": gone, "down": gone})
        for faults, proxy in zip(ways, await _before_primaries(cluster)):
            await _off(proxy.fail, **faults)
            await asyncio.sleep(seconds)
            await _off(proxy.heal)
            await asyncio.sleep(2.0)

    return happens
