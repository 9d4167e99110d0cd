"""Clients of both colours for the tests of this folder."""

from __future__ import annotations

from typing import Any, AsyncIterator, Callable, Iterator, List

import pytest
import pytest_asyncio

from synap import AsyncSynapClient, SynapClient
from synap.testing.server import ThrowawayServer, can_serve
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


@pytest.fixture(scope="module")
def server() -> Iterator[ThrowawayServer]:
    """A service in memory."""
    if not can_serve():
        pytest.skip("this Python can't run the service")
    with ThrowawayServer() as server:
        yield server
