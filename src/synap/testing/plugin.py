"""Fixtures for pytest. They cost nothing until a test asks for one.

| fixture | what it is | lives |
|---|---|---|
| `synap_server` | a `ThrowawayServer` in memory | the run |
| `synap_url` | its URL | the run |
| `synap_client`, `sync_synap_client` | clients of it, which find it empty | a test |
| `synap_durable_server` | a server with a directory, for tests that `kill()`, `stop()` and `restart()` it | a test |
| `synap_memory`, `sync_synap_memory` | clients of a fresh engine in this process, on `synap_clock` | a test |
| `synap_clock` | a `TestClock`: leases, ttls and delays pass when it is moved | a test |

A fixture of the same name in a project replaces the one here.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, AsyncIterator, Callable, Iterator

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from synap import AsyncSynapClient, SynapClient
    from synap.testing.clock import TestClock
    from synap.testing.server import ThrowawayServer

async_fixture: Callable[..., Any]
try:
    from pytest_asyncio import fixture as async_fixture
except ImportError:  # then an async fixture belongs to whatever plugin runs the project's async tests
    async_fixture = pytest.fixture


# ------------------------------------------------------------------------------------------ a server


@pytest.fixture(scope="session")
def synap_server() -> Iterator[ThrowawayServer]:
    """A real service in memory, shared by the tests of the run."""
    from synap.testing.server import ThrowawayServer

    with ThrowawayServer() as server:
        yield server


@pytest.fixture(scope="session")
def synap_url(synap_server: ThrowawayServer) -> str:
    """The URL of `synap_server`."""
    return synap_server.url


@pytest.fixture
def synap_empty(synap_url: str) -> None:
    """See that `synap_server` holds nothing: no key, queue or room that an earlier test has left."""
    from synap import SynapClient

    with SynapClient(url=synap_url) as client:
        _empty(client)


def _empty(client: SynapClient) -> None:
    """Delete all keys, queues and rooms."""
    with client.pipeline() as p:
        queues = p.queue.list()
        rooms = p.stream.rooms()
        page = p.kv.scan(count=10_000)
    keys = page.result()
    while True:
        if keys.keys:
            client.kv.delete(*keys.keys)
        if not keys.has_more:
            break
        keys = client.kv.scan(cursor=keys.cursor, count=10_000)
    if queues.result() or rooms.result():
        with client.pipeline() as p:
            deleted = [p.queue.delete(queue) for queue in queues.result()]
            gone = [p.stream.delete(room) for room in rooms.result()]
        for handle in (*deleted, *gone):
            handle.result()


@async_fixture
async def synap_client(synap_url: str, synap_empty: None) -> AsyncIterator[AsyncSynapClient]:
    """An `AsyncSynapClient` of `synap_server`, which is empty."""
    from synap import AsyncSynapClient

    async with AsyncSynapClient(url=synap_url) as client:
        yield client


@pytest.fixture
def sync_synap_client(synap_url: str, synap_empty: None) -> Iterator[SynapClient]:
    """A `SynapClient` of `synap_server`, which is empty."""
    from synap import SynapClient

    with SynapClient(url=synap_url) as client:
        yield client


@pytest.fixture
def synap_durable_server(tmp_path: Path) -> Iterator[ThrowawayServer]:
    """A service of this test alone that keeps its data: `restart()` kills it and starts it again on the same port."""
    from synap.testing.server import ThrowawayServer

    with ThrowawayServer(data=tmp_path / "synap-data") as server:
        yield server


# ------------------------------------------------------------------------------------------ no server


@pytest.fixture
def synap_clock() -> TestClock:
    """Time that this test moves by hand: `synap_clock.advance(3600)`."""
    from synap.testing.clock import TestClock

    return TestClock()


@pytest.fixture
def synap_memory_url() -> str:
    """The URL of an engine in this process that no other test knows."""
    return f"memory://test-{uuid.uuid4().hex}"


@async_fixture
async def synap_memory(synap_memory_url: str, synap_clock: TestClock) -> AsyncIterator[AsyncSynapClient]:
    """An `AsyncSynapClient` of a fresh engine in this process, whose time is `synap_clock`."""
    from synap import AsyncSynapClient

    async with AsyncSynapClient(url=synap_memory_url, clock=synap_clock) as client:
        yield client


@pytest.fixture
def sync_synap_memory(synap_memory_url: str, synap_clock: TestClock) -> Iterator[SynapClient]:
    """A `SynapClient` of the same engine as `synap_memory`."""
    from synap import SynapClient

    with SynapClient(url=synap_memory_url, clock=synap_clock) as client:
        yield client
