"""What a bad network between client and node must not change: effects are there once, and answers come."""

from __future__ import annotations

import asyncio
from typing import Iterator

import pytest

from synap import AsyncSynapClient
from tests.cluster.proxied import ProxiedCluster
from tests.helpers.fault_proxy import Fault, FaultProxy

PATIENT = {"durability": "none", "patience": 40}


@pytest.fixture(scope="module")
def proxied() -> Iterator[ProxiedCluster]:
    cluster = ProxiedCluster()
    with cluster:
        yield cluster


@pytest.fixture
def proxy(proxied: ProxiedCluster) -> Iterator[FaultProxy]:
    found = proxied.all_proxies[0]
    yield found
    found.heal()


def client(cluster: ProxiedCluster) -> AsyncSynapClient:
    return AsyncSynapClient(url=cluster.url, engine=PATIENT, timeout=50)


async def test_a_connection_that_carries_nothing_any_more_is_given_up(
    proxied: ProxiedCluster, proxy: FaultProxy
) -> None:
    async with client(proxied) as synap:
        await synap.kv.set("frozen", 1)
        proxy.freeze()
        assert (await synap.kv.get("frozen")).value == 1


async def test_what_was_on_its_way_when_a_connection_was_given_up_takes_no_effect_later(
    proxied: ProxiedCluster, proxy: FaultProxy
) -> None:
    async with client(proxied) as synap:
        await synap.kv.set("late", 0)
        proxy.freeze()
        answers = await asyncio.gather(*(synap.kv.incr("late") for _ in range(20)))
        assert sorted(answers) == list(range(1, 21))
        proxy.heal()  # what was frozen goes on now, and ends as its client has gone
        while proxy.once_frozen:
            await asyncio.sleep(0.01)
        assert (await synap.kv.get("late")).value == 20


@pytest.mark.parametrize("reset", [False, True])
async def test_what_was_done_and_whose_answer_was_cut_off_is_done_once(
    proxied: ProxiedCluster, proxy: FaultProxy, reset: bool
) -> None:
    key = f"cut-{reset}"
    async with client(proxied) as synap:
        for turn in range(10):
            proxy.fail(down=Fault(cut=3 * turn, reset=reset))
            answers = [asyncio.ensure_future(synap.kv.incr(key)) for _ in range(10)]
            await asyncio.sleep(0.05)
            proxy.heal()
            await asyncio.gather(*answers)
        assert (await synap.kv.get(key)).value == 100


async def test_answers_that_take_long_come(proxied: ProxiedCluster, proxy: FaultProxy) -> None:
    async with client(proxied) as synap:
        await synap.kv.set("slow", 0)
        proxy.fail(up=Fault(delay=0.4), down=Fault(delay=0.4))
        answers = await asyncio.gather(*(synap.kv.incr("slow") for _ in range(20)))
        assert sorted(answers) == list(range(1, 21))
