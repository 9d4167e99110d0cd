"""Services that are treated badly. Whatever is done to one of them, at the end it must be well."""

from __future__ import annotations

import uuid
from typing import Iterator

import pytest

from synap import SynapClient
from synap.testing import ThrowawayServer


@pytest.fixture(scope="session")
def server() -> Iterator[ThrowawayServer]:
    """A service in memory, shared by the tests of this folder; stops cleanly in spite of them."""
    with ThrowawayServer() as server:
        yield server
        with SynapClient(url=server.url) as client:
            assert client.health()["status"] == "ok"


@pytest.fixture
def name() -> str:
    """A name nobody else uses."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture(params=["memory", "native", "websocket"])
def place(request: pytest.FixtureRequest) -> str:
    """Where the engine is and which lane leads to it."""
    found: str = request.param
    return found


@pytest.fixture
def url(place: str, request: pytest.FixtureRequest, name: str) -> str:
    """The engine's address."""
    if place == "memory":
        return f"memory://{name}"
    found: str = request.getfixturevalue("server").url
    return found


@pytest.fixture
def transport(place: str) -> str:
    """The client option that goes with the place."""
    return "auto" if place == "memory" else place
