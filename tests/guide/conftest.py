"""The service that the guide's blocks talk to: one for each test, since the guide's names repeat."""

from __future__ import annotations

from typing import AsyncIterator

import pytest
from pytest_asyncio import fixture as async_fixture

from synap import AsyncSynapClient


@pytest.fixture
def url(synap_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The service's address, also for the blocks that print none."""
    monkeypatch.setenv("SYNAP_URL", synap_url)
    return synap_url


@async_fixture
async def client(url: str) -> AsyncIterator[AsyncSynapClient]:
    """A client of a service on which nothing that the guide names exists."""
    async with AsyncSynapClient(url=url) as client:
        for queue in await client.queue.list():
            await client.queue.delete(queue)
        for room in await client.stream.rooms():
            await client.stream.delete(room)
        page = await client.kv.scan()
        while page.keys:
            await client.kv.delete(*page.keys)
            page = await client.kv.scan()
        yield client
