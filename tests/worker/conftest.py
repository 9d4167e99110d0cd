"""Workers against an engine in this process, the same on disk, and a server."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import asynccontextmanager
from typing import Any, AsyncIterator, Awaitable, Callable

import pytest
from pytest_asyncio import fixture as async_fixture

from synap import AsyncSynapClient
from synap.testing.server import can_serve
from synap.worker import Worker

PATIENCE = 20.0
"""Seconds within which anything that is to happen has happened; only failing tests wait as long."""

PLACES = ["memory", "file", "server"] if can_serve() else ["memory", "file"]


@pytest.fixture
def name() -> str:
    """A name nobody else uses."""
    return f"w-{uuid.uuid4().hex[:10]}"


@async_fixture(params=PLACES)
async def client(request: pytest.FixtureRequest, name: str) -> AsyncIterator[AsyncSynapClient]:
    if request.param == "server":
        url = request.getfixturevalue("synap_url")
    else:
        url = f"memory://{name}" if request.param == "memory" else f"file://{request.getfixturevalue('tmp_path')}/data"
    async with AsyncSynapClient(url=url) as made:
        yield made


@asynccontextmanager
async def running(worker: Worker) -> AsyncIterator[asyncio.Task[None]]:
    """Run a worker for the length of a block."""
    task = asyncio.ensure_future(worker.run(handle_signals=False))
    try:
        yield task
    finally:
        worker.stop()
        await asyncio.wait_for(task, PATIENCE)


async def until(condition: Callable[[], Any]) -> None:
    """Wait until a condition holds; it may be asynchronous."""

    async def holds() -> None:
        while True:
            found = condition()
            if isinstance(found, Awaitable):
                found = await found
            if found:
                return
            await asyncio.sleep(0.005)

    await asyncio.wait_for(holds(), PATIENCE)
