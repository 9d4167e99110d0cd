"""Workers against an engine in this process, the same on disk, a server, a cluster, and a gateway to that."""

from __future__ import annotations

import asyncio
import random
import sys
import uuid
from contextlib import asynccontextmanager
from typing import Any, AsyncIterator, Awaitable, Callable, Dict

import pytest
from pytest_asyncio import fixture as async_fixture

from synap import AsyncSynapClient
from synap.testing.server import can_serve
from synap.worker import Worker
from tests.helpers.patience import PATIENCE

PLACES = ["memory", "file"]
if can_serve():
    PLACES.append("server")
    if sys.version_info >= (3, 10):  # the wheel with valkey-server needs it
        PLACES += ["valkey", "gateways"]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> str:
    """What a test runs on."""
    return str(request.param)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name nobody else uses. On a cluster it has a tag, so that what a handler writes lies beside its queue."""
    text = f"w-{uuid.uuid4().hex[:10]}"
    place = request.getfixturevalue("place") if "place" in request.fixturenames else ""
    return f"{{{text}}}" if place in ("valkey", "gateways") else text


@async_fixture
async def client(request: pytest.FixtureRequest, place: str, name: str) -> AsyncIterator[AsyncSynapClient]:
    options: Dict[str, Any] = {}
    if place == "server":
        url = request.getfixturevalue("synap_url")
    elif place == "valkey":
        url = request.getfixturevalue("valkey_node").url
        options["engine"] = {"durability": "none"}
    elif place == "gateways":
        url = random.choice(request.getfixturevalue("gateways"))
    else:
        url = f"memory://{name}" if place == "memory" else f"file://{request.getfixturevalue('tmp_path')}/data"
    async with AsyncSynapClient(url=url, **options) as made:
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
