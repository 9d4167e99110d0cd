"""One cluster a session for the tests of this folder, and a fresh space of names for each."""

from __future__ import annotations

import uuid
from typing import Any, AsyncIterator, Dict, Iterator

import pytest
from pytest_asyncio import fixture as async_fixture

from synap.cluster.host import ClusterHost
from synap.cluster.options import EngineOptions
from synap.cluster.sweeper import Sweeper
from synap.testing.cluster import ThrowawayCluster
from tests.cluster.asking import Asking
from tests.helpers.keys import hang_up as hang_up


@pytest.fixture(scope="session")
def one_node() -> Iterator[ThrowawayCluster]:
    with ThrowawayCluster() as cluster:
        yield cluster


def a_space(**given: Any) -> Dict[str, Any]:
    """What a client is given for a space of names that nobody else uses, on one node."""
    return {"space": "t" + uuid.uuid4().hex[:12], "partitions": 16, "durability": "none", **given}


def another_url(cluster: ThrowawayCluster) -> str:
    """Return a URL of the cluster under which a client has a connection, and is a gateway, of its own."""
    return cluster.url.replace("127.0.0.1", "localhost")


def options(cluster: ThrowawayCluster, **given: Any) -> EngineOptions:
    """Options for a space of names that nobody else uses."""
    return EngineOptions.read(
        cluster.url, {"space": "t" + uuid.uuid4().hex[:12], "partitions": 16, **given}, environ={}
    )


@pytest.fixture
def only_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what a gateway does besides, each second or so: a busy machine makes that more."""
    monkeypatch.setattr(Sweeper, "sweep", lambda self: None)
    monkeypatch.setattr(ClusterHost, "_renew", lambda self: None)


@async_fixture
async def host(one_node: ThrowawayCluster) -> AsyncIterator[ClusterHost]:
    host = ClusterHost(options(one_node, durability="none"))
    await host.open()
    yield host
    await host.close()


@async_fixture
async def asking(host: ClusterHost) -> Asking:
    return Asking(host)
