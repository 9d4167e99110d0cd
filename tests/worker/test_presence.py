"""Workers tell who they are and what they run, and are gone from the list when they stop."""

from __future__ import annotations

import asyncio
from typing import Any, List

from synap import AsyncSynapClient
from synap.worker import Worker
from synap.worker.presence import PREFIX
from tests.worker.conftest import running, until


async def listed(client: AsyncSynapClient) -> List[Any]:
    keys = (await client.kv.scan(PREFIX)).keys
    return [found.value for found in await client.kv.mget(*keys) if found.found] if keys else []


async def test_a_worker_is_listed_with_what_it_runs_until_it_stops(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client)
    go_on = asyncio.Event()

    @worker.handles(name)
    async def slow(value: Any) -> None:
        await go_on.wait()

    async def mine() -> List[Any]:
        return [report for report in await listed(client) if name in report["queues"]]

    async def busy() -> bool:
        return any(report["busy"] for report in await mine())

    async with running(worker):
        await client.queue.publish(name, 1)
        await until(busy)
        (report,) = await mine()
        assert report["running"][0]["queue"] == name
        assert "slow" in report["running"][0]["name"]
        assert report["pid"] > 0
        go_on.set()
    assert await mine() == []
