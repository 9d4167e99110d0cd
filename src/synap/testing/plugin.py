"""Fixtures for pytest. They cost nothing until a test asks for one.

`synap_server` a `ThrowawayServer` in memory, one for the whole run; `synap_url` its URL; `synap_client` and
`sync_synap_client` clients of it, closed after the test. A fixture of the same name in a project replaces the one here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, AsyncIterator, Callable, Iterator

import pytest

if TYPE_CHECKING:
    from synap import AsyncSynapClient, SynapClient
    from synap.testing.server import ThrowawayServer

async_fixture: Callable[..., Any]
try:
    from pytest_asyncio import fixture as async_fixture
except ImportError:  # then an async fixture belongs to whatever plugin runs the project's async tests
    async_fixture = pytest.fixture


@pytest.fixture(scope="session")
def synap_server() -> Iterator[ThrowawayServer]:
    """A real service in memory, shared by the tests of the run: take names of your own."""
    from synap.testing.server import ThrowawayServer

    with ThrowawayServer() as server:
        yield server


@pytest.fixture(scope="session")
def synap_url(synap_server: ThrowawayServer) -> str:
    """The URL of `synap_server`."""
    return synap_server.url


@async_fixture
async def synap_client(synap_url: str) -> AsyncIterator[AsyncSynapClient]:
    """An `AsyncSynapClient` of `synap_server`."""
    from synap import AsyncSynapClient

    async with AsyncSynapClient(url=synap_url) as client:
        yield client


@pytest.fixture
def sync_synap_client(synap_url: str) -> Iterator[SynapClient]:
    """A `SynapClient` of `synap_server`."""
    from synap import SynapClient

    with SynapClient(url=synap_url) as client:
        yield client
