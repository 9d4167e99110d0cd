"""Real services, each a process of its own, and raw connections to them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from synap.server import native
from synap.testing.server import ThrowawayServer
from tests.helpers.keys import hang_up as hang_up
from tests.helpers.raw import Http, Native

Serve = Callable[..., ThrowawayServer]
Attach = Callable[..., Native]


@pytest.fixture(scope="session")
def server() -> Iterator[ThrowawayServer]:
    """One service in memory for all tests that don't care what else is in it."""
    with ThrowawayServer() as running:
        yield running
    said = "".join(running.output)
    assert "Traceback" not in said, said


@pytest.fixture
def http(server: ThrowawayServer) -> Iterator[Http]:
    """A keep-alive connection to `server`."""
    connection = Http(server)
    yield connection
    connection.close()


@pytest.fixture
def attach(server: ThrowawayServer) -> Iterator[Attach]:
    """Opens connections of the native lane, to `server` where nothing else is said."""
    opened: list[Native] = []

    def connect(to: ThrowawayServer = server, *arguments: Any, **options: Any) -> Native:
        opened.append(Native(to, *arguments, **options))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


@pytest.fixture
def endless_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a connection of this process do all that came in one read at once, however slow the machine is."""
    monkeypatch.setattr(native, "SECONDS", float("inf"))


def name() -> str:
    """Make a name that nobody else has."""
    return uuid.uuid4().hex
