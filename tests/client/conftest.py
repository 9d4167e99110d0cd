"""Clients of both colours for the tests of this folder."""

from __future__ import annotations

from typing import Any, AsyncIterator, Callable, List

import pytest
import pytest_asyncio

from synap import AsyncSynapClient, SynapClient
from tests.helpers.colour import coated

Make = Callable[..., AsyncSynapClient]


@pytest.fixture(params=["async", "sync"])
def colour(request: pytest.FixtureRequest) -> str:
    """Which of the two clients a test is about."""
    return str(request.param)


@pytest_asyncio.fixture
async def make(colour: str) -> AsyncIterator[Make]:
    """Make clients of the colour that behave as the async one; they are closed after the test."""
    made: List[AsyncSynapClient] = []

    def make_client(url: str, **options: Any) -> AsyncSynapClient:
        options = {"retry_delay": 0.01, "timeout": 10.0, **options}
        client = AsyncSynapClient(url=url, **options) if colour == "async" else coated(SynapClient(url=url, **options))
        made.append(client)
        return client

    yield make_client
    for client in made:
        await client.close()
