"""More at once than anybody should."""

from __future__ import annotations

import asyncio

from synap import AsyncSynapClient, SynapClient
from synap.testing import ThrowawayServer
from tests.helpers.patience import PATIENCE


async def test_ten_thousand_calls_at_once_are_all_answered(url: str, transport: str, name: str) -> None:
    async with AsyncSynapClient(url=url, transport=transport) as client:
        counts = await asyncio.gather(*(client.kv.incr(name) for _ in range(10_000)))
        assert sorted(counts) == list(range(1, 10_001))


async def test_a_thousand_consumers_wait_at_once(server: ThrowawayServer, name: str) -> None:
    async with AsyncSynapClient(url=server.url, transport="native") as client:
        waiting = [asyncio.create_task(client.queue.consume(name, timeout=PATIENCE)) for _ in range(1_000)]
        while name not in await client.queue.list() or (await client.queue.stats(name)).consumers < 1_000:
            await asyncio.sleep(0.01)
        await asyncio.gather(*(client.queue.publish(name, number) for number in range(1_000)))
        messages = await asyncio.gather(*waiting)
        assert [message.message for message in messages if message] == list(range(1_000))


async def test_two_hundred_clients_at_once(server: ThrowawayServer, name: str) -> None:
    clients = [AsyncSynapClient(url=server.url) for _ in range(200)]
    counts = await asyncio.gather(*(client.kv.incr(name) for client in clients for _ in range(5)))
    assert sorted(counts) == list(range(1, 1_001))
    await asyncio.gather(*(client.close() for client in clients))


async def test_large_values_at_once(url: str, transport: str, name: str) -> None:
    async with AsyncSynapClient(url=url, transport=transport) as client:
        values = {f"{name}:{number}": str(number) * 200_000 for number in range(20)}
        await asyncio.gather(*(client.kv.set(key, value) for key, value in values.items()))
        results = await asyncio.gather(*(client.kv.get(key) for key in values))
        assert [result.value for result in results] == list(values.values())


def test_clients_come_and_go(server: ThrowawayServer, name: str) -> None:
    for number in range(1, 101):
        with SynapClient(url=server.url) as client:
            assert client.kv.incr(name) == number
