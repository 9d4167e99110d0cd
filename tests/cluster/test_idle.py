"""What waiting costs the nodes: counted in their commands."""

from __future__ import annotations

import asyncio
import time
from typing import Any, AsyncIterator, Callable, Dict, List

import pytest
from pytest_asyncio import fixture as async_fixture

from synap import AsyncSynapClient
from synap.cluster import lines, waiting
from synap.cluster.joining import packed_requests
from synap.testing.cluster import ThrowawayCluster
from tests.cluster.conftest import a_space, another_url

MANY = 100


@async_fixture
async def two(one_node: ThrowawayCluster, only_what_is_asked: None) -> AsyncIterator[List[AsyncSynapClient]]:
    """Two clients that are a gateway each: they share names, and nothing in this process."""
    space = a_space()
    async with AsyncSynapClient(url=one_node.url, engine=space) as one:
        async with AsyncSynapClient(url=another_url(one_node), engine=space) as other:
            yield [one, other]


def calls(cluster: ThrowawayCluster) -> Dict[str, int]:
    """Return how often the nodes executed each command."""
    found: Dict[str, int] = {}
    for node in cluster.members:
        for line in node.ask("INFO", "commandstats").decode().splitlines():
            if line.startswith("cmdstat_"):
                name, _, figures = line[len("cmdstat_") :].partition(":calls=")
                found[name] = found.get(name, 0) + int(figures.partition(",")[0])
    return found


def since(cluster: ThrowawayCluster, before: Dict[str, int], name: str) -> int:
    """Return how often a command was executed since then."""
    return calls(cluster).get(name, 0) - before.get(name, 0)


async def all_wait(clients: List[AsyncSynapClient], queues: List[str]) -> List[Any]:
    """Let a consumer wait for each of some queues, at the clients in turns; returns when all are registered."""
    tasks = [
        asyncio.ensure_future(clients[place % len(clients)].queue.consume(queue, timeout=600))
        for place, queue in enumerate(queues)
    ]
    for queue in sorted(set(queues)):
        while (await clients[0].queue.stats(queue)).consumers != queues.count(queue):
            await asyncio.sleep(0.01)
    return tasks


async def let_go(tasks: List[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_message_wakes_one_gateway_and_costs_the_same_however_many_wait(
    one_node: ThrowawayCluster, two: List[AsyncSynapClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "POLL", 1e6)
    await two[0].queue.create("q")
    tasks = await all_wait(two, ["q"] * MANY)
    before = calls(one_node)
    for number in range(10):
        await two[0].queue.publish("q", number)
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        done = [task for task in tasks if task.done()]
        assert [task.result().message for task in done] == [number]
        tasks = [task for task in tasks if not task.done()]
    looks = 1
    while (await two[0].queue.stats("q")).consumers != len(tasks):  # the last gateway is registered again
        looks += 1
        await asyncio.sleep(0.01)
    hints = since(one_node, before, "spublish")
    asked = since(one_node, before, "fcall")
    await let_go(tasks)
    assert hints == 10
    assert asked <= 10 * 3 + 2 * looks + 10, (
        "a publish, a consume that finds it, one that finds nothing; and the looks of this test"
    )


@pytest.mark.parametrize(("queues", "count"), [(1, 10), (MANY, 100)])
async def test_who_waits_for_long_asks_seldom(
    one_node: ThrowawayCluster, two: List[AsyncSynapClient], monkeypatch: pytest.MonkeyPatch, queues: int, count: int
) -> None:
    monkeypatch.setattr(lines, "POLLS", 10)
    names = [f"q{place % queues}" for place in range(MANY)]
    for name in sorted(set(names)):
        await two[0].queue.create(name)
    tasks = await all_wait(two, names)
    began, before = time.monotonic(), calls(one_node)
    while since(one_node, before, "fcall") < count:
        await asyncio.sleep(0.05)
    seconds, asked = time.monotonic() - began, since(one_node, before, "fcall")
    await let_go(tasks)
    each = 1 / 0.8 if queues == 1 else 10 / 0.8  # of a gateway, with the jitter
    assert asked <= 2 * each * (seconds + 1) + 5


async def test_a_hint_asks_for_two_of_those_who_wait_and_for_more_while_there_is_more(
    two: List[AsyncSynapClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "POLL", 1e6)
    await two[0].queue.create("q")
    tasks = await all_wait(two[:1], ["q"] * MANY)
    asked: List[int] = []

    def counted(*arguments: Any) -> Any:
        asked.append(len(arguments[3]))
        return packed_requests(*arguments)

    monkeypatch.setattr(waiting, "packed_requests", counted)
    await two[1].queue.publish("q", 0)
    while not any(task.done() for task in tasks):
        await asyncio.sleep(0.01)
    assert asked == [2]
    await asyncio.gather(*(two[1].queue.publish("q", number) for number in range(1, MANY)))
    got = [(await task).message for task in tasks]
    assert sorted(got) == list(range(MANY))
    assert max(asked) > 16


def ahead(monkeypatch: pytest.MonkeyPatch, seconds: float, usual: Callable[[], float] = time.time) -> None:
    """Let the clock of gateways, which are in this process, be ahead of the node's."""
    monkeypatch.setattr(time, "time", lambda: usual() + seconds)


async def test_a_gateway_whose_clock_is_ahead_asks_as_seldom(
    one_node: ThrowawayCluster, two: List[AsyncSynapClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took what is due by the node's clock for overdue, and asked each millisecond."""
    monkeypatch.setattr(lines, "POLL", 1e6)
    ahead(monkeypatch, 7200)
    await two[0].queue.publish("q", "later", delay=3600)
    tasks = await all_wait(two, ["q"])
    before = calls(one_node)
    for _ in range(200):
        await two[0].kv.get("k")
    asked = since(one_node, before, "fcall")
    await let_go(tasks)
    assert asked == 0


async def test_the_gateway_that_asked_first_is_told_first_whatever_its_clock_says(
    two: List[AsyncSynapClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "POLL", 1e6)
    await two[0].queue.create("q")
    tasks = []
    for place, client in enumerate(two):
        ahead(monkeypatch, 7200 * (1 - place))
        tasks.append(asyncio.ensure_future(client.queue.consume("q", timeout=600)))
        while (await client.queue.stats("q")).consumers != place + 1:
            await asyncio.sleep(0)
    await two[1].queue.publish("q", 1)
    told, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    assert [task in told for task in tasks] == [True, False]
    await let_go(tasks)


async def test_names_used_now_and_then_cost_no_call_more_and_a_client_that_leaves_drops_what_was_remembered(
    one_node: ThrowawayCluster, only_what_is_asked: None
) -> None:
    space = a_space(partitions=256)
    async with AsyncSynapClient(url=one_node.url, engine=space) as client:
        await client.kv.get("opens the cluster")
        before = calls(one_node)
        for number in range(MANY):
            await client.kv.set(f"name{number}", number)
        assert since(one_node, before, "hdel") == 0
        pattern = f"{space['space']}:*}}:m:*"
        assert one_node.nodes[0].ask("KEYS", pattern)
    while one_node.nodes[0].ask("KEYS", pattern):
        await asyncio.sleep(0.01)
