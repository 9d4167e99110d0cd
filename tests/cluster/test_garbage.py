"""What a call leaves behind is freed with it, not by a garbage collector that has to find it."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections import Counter
from typing import List

import pytest

from synap import AsyncSynapClient
from synap import commands as c
from synap.cluster.host import ClusterHost
from synap.cluster.running import Pending
from synap.testing.cluster import ThrowawayCluster
from tests.cluster.conftest import a_space, options
from tests.cluster.test_refused import Caller
from tests.helpers.patience import PATIENCE

ROUNDS = 50


async def call_each(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, "value")
    await client.kv.get(name)
    await client.kv.delete(name)
    await client.stream.publish(name, "event", 1)
    await client.pubsub.publish(name, 1)
    await client.queue.publish(name, 1)
    await client.queue.publish(name, 2)
    first = await client.queue.consume(name)
    assert first is not None
    second = await client.queue.consume(name, ack=first.message_id)
    assert second is not None
    await client.queue.nack(name, second.message_id)
    (third,) = await client.queue.consume_many([name], max=2)
    await client.queue.ack(name, third.message_id)
    assert await client.queue.consume(name) is None
    waiting = asyncio.ensure_future(client.queue.consume(name, timeout=PATIENCE))
    await asyncio.sleep(0)
    await client.queue.publish(name, 3)
    fourth = await waiting
    assert fourth is not None
    await client.queue.ack(name, fourth.message_id)


async def garbage(client: AsyncSynapClient) -> List[str]:
    """Return the types of what calls left behind for the collector."""
    async with client:
        await call_each(client, "warm")
        gc.collect()
        gc.disable()
        try:
            await asyncio.gather(*(call_each(client, f"n{number}") for number in range(ROUNDS)))
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            return [type(one).__qualname__ for one in gc.garbage]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()


async def test_a_message_that_was_delivered_is_not_kept(
    one_node: ThrowawayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synap.cluster.host.REMEMBERED", 5)
    made, large = ClusterHost(options(one_node, durability="none")), "x" * 1_000_000
    await made.open()
    caller = Caller(made)
    for number in range(0, 40, 4):
        await caller.ask(number, c.QUEUE_PUBLISH, queue="jobs", message=large)
        await caller.ask(number + 1, c.QUEUE_PUBLISH, queue="jobs", message=large)
        if number == 4:
            tracemalloc.start()
        many = await caller.ask(number + 2, c.QUEUE_CONSUME_MANY, queues=["jobs"], max=2)
        assert [len(message.message) for message in many.messages] == [len(large) + 2] * 2
        assert len(made._delivered) <= 2  # of five messages
        many = None
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    await made.close()
    assert kept < 2 * len(large), kept


async def test_a_wait_that_is_over_leaves_nothing_until_its_time_would_be_up(host: ClusterHost) -> None:
    caller = Caller(host)
    assert await caller.ask(0, c.QUEUE_CONSUME, queue="jobs", timeout=0.01) is None  # its channel is heard from now on
    for number in range(1, 100, 2):
        await caller.ask(number, c.QUEUE_PUBLISH, queue="jobs", message=1)
        await caller.ask(number + 1, c.QUEUE_CONSUME, queue="jobs", timeout=3600)
    for _ in range(100):
        await asyncio.sleep(0)
    assert sum(type(one) is Pending for one in gc.get_objects()) < 25


def test_calls_make_no_reference_cycles(one_node: ThrowawayCluster) -> None:
    left = asyncio.run(garbage(AsyncSynapClient(url=one_node.url, engine=a_space())))
    assert len(left) < ROUNDS, Counter(left)


def test_calls_in_memory_make_no_reference_cycles() -> None:
    left = asyncio.run(garbage(AsyncSynapClient(url="memory://")))
    assert len(left) < ROUNDS, Counter(left)
