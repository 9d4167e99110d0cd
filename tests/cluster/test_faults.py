"""What a bad network between client and node must not change: effects are there once, and answers come."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from typing import Iterator

import pytest

from synap import AsyncSynapClient, SynapError
from synap import commands as c
from synap.cluster.host import ClusterHost
from synap.cluster.options import Address, EngineOptions
from synap.cluster.places import Places
from synap.cluster.running import Running
from synap.testing.cluster import ThrowawayCluster
from tests.cluster.asking import result
from tests.cluster.conftest import options
from tests.cluster.proxied import ProxiedCluster
from tests.helpers.fault_proxy import Fault, FaultProxy
from tests.helpers.patience import PATIENCE

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


async def test_what_is_late_at_one_gateway_and_was_made_again_at_another_takes_effect_once(
    proxied: ProxiedCluster, proxy: FaultProxy
) -> None:
    given = {"space": "t" + uuid.uuid4().hex[:12], "partitions": 16, "durability": "none"}
    one, other = (ClusterHost(EngineOptions.read(proxied.url, given, environ={})) for _ in range(2))
    for host in (one, other):
        await host.open()
    past_the_proxy = Address("127.0.0.1", proxied.members[0].port)
    other.link.topology.owners = [past_the_proxy] * other.link.places.count

    def incr(host: ClusterHost, number: int, retried: bool) -> Running:
        request = host.memory.request("s" * 32, number, retried)
        running = Running(host.facilities.keys.incr(c.KvIncr("late", 1), request)).start()
        running.when_done(lambda: host.memory.answered("s" * 32, number, request))
        return running

    proxy.fail(up=Fault(swallow=True))
    stalled = incr(one, 1, False)
    assert (await result(incr(other, 1, True))).value == 1
    for number in range(2, 50):  # the answers of all before are forgotten, but for that
        assert (await result(incr(other, number, False))).value == number
        other.memory.confirm("s" * 32, number)
    proxy.heal()
    assert (await result(stalled)).value == 1
    assert (await result(incr(other, 50, False))).value == 50
    for host in (one, other):
        await host.close()


async def test_what_waits_for_the_replicas_of_what_was_sent_before_has_the_same_patience() -> None:
    """Held back until a commit is over, it was never looked at where that never was: a caller waited for its whole
    timeout."""
    with ThrowawayCluster(1, 1) as cluster:
        (primary,) = cluster.current_primaries()
        host = ClusterHost(options(cluster, durability="replicated"))
        await host.open()

        def incr() -> Running:
            return Running(host.facilities.keys.incr(c.KvIncr("k"), host.memory.request("", 0, False))).start()

        await result(incr())
        (node,) = host.link.nodes.values()
        host.link.options = dataclasses.replace(host.options, patience=0.5)
        primary.pause()
        sent = incr()
        while not node.waiting:
            await asyncio.sleep(0)
        held_back = incr()
        for late, may_have_happened in ((sent, True), (held_back, False)):
            with pytest.raises(SynapError, match="did not answer in time") as caught:
                await result(late)
            assert caught.value.may_have_happened is may_have_happened
        primary.go_on()
        while node.waiting:
            await asyncio.sleep(0.01)
        await host.close()
        async with AsyncSynapClient(url=cluster.url, engine={**PATIENT, "space": host.options.space}) as client:
            assert await client.kv.incr("k") < 4


async def test_what_is_due_on_nodes_that_are_there_happens_while_another_is_away() -> None:
    with ThrowawayCluster(3) as cluster:
        engine = {"durability": "none", "patience": 0.5}
        async with AsyncSynapClient(url=cluster.url, engine=engine, timeout=PATIENCE) as client:
            places = Places()
            queue = next(name for name in map(str, range(1000)) if places.partition(name) < places.count // 3)
            await client.queue.create(queue)
            cluster.members[2].kill()
            await client.queue.publish(queue, 1, delay=0.1)
            while not (await client.queue.peek(queue)).messages:  # which lets nothing happen itself
                await asyncio.sleep(0.05)
