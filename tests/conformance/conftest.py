"""Each test of this folder runs once for every target it doesn't exclude.

pytestmark = pytest.mark.without("crashing")     not on these
@pytest.mark.only("async")                       on these and no others
@pytest.mark.once_per_place                      in one format and colour: time passes the same in all
@pytest.mark.parametrize(…)                      on half of the targets of a place, which differ most, in each case
"""

from __future__ import annotations

import itertools
import os
import uuid
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, AsyncIterator, Callable, Dict, FrozenSet, Iterator, List

import pytest
from pytest_asyncio import fixture as async_fixture

from synap import AsyncSynapClient, SynapClient
from synap.testing import ThrowawayServer
from tests.conformance.crashing import Crasher, CrashingServer
from tests.conformance.targets import CHOICE, CLUSTERS, Target, all_targets, chosen, fewer, unmet
from tests.helpers.colour import coated
from tests.helpers.other_servers import server_of

if TYPE_CHECKING:
    from synap.testing.cluster import ThrowawayCluster

Make = Callable[..., AsyncSynapClient]

_counter = itertools.count(1)


def _named(metafunc: pytest.Metafunc, mark: str) -> FrozenSet[str]:
    return frozenset(name for found in metafunc.definition.iter_markers(mark) for name in found.args)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target" in metafunc.fixturenames:
        only, without = _named(metafunc, "only"), _named(metafunc, "without")
        targets: List[Target] = [
            target
            for target in all_targets()
            if chosen(target, only, without)
            and not unmet(target.place, metafunc.module.__name__, metafunc.function.__name__)
        ]
        if metafunc.definition.get_closest_marker("parametrize") and not os.environ.get(CHOICE):
            targets = fewer(targets)
        if metafunc.definition.get_closest_marker("once_per_place"):
            targets = list({target.place: target for target in reversed(targets)}.values())
        metafunc.parametrize("target", targets, ids=str)


@pytest.fixture(scope="session")
def memory_server() -> Iterator[ThrowawayServer]:
    with ThrowawayServer() as server:
        yield server


@pytest.fixture(scope="session")
def durable_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayServer]:
    with ThrowawayServer(data=tmp_path_factory.mktemp("durable")) as server:
        yield server


@pytest.fixture(scope="session")
def crashing_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashingServer]:
    server = CrashingServer(os.fspath(tmp_path_factory.mktemp("crashing")))
    yield server
    server.close()


@pytest.fixture(scope="session")
def valkey8_node() -> Iterator[ThrowawayCluster]:
    from synap.testing.cluster import ThrowawayCluster

    with ThrowawayCluster(binary=server_of("valkey8")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def redis_node() -> Iterator[ThrowawayCluster]:
    from synap.testing.cluster import ThrowawayCluster

    with ThrowawayCluster(binary=server_of("redis")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def three_shards() -> Iterator[ThrowawayCluster]:
    from synap.testing.cluster import ThrowawayCluster

    with ThrowawayCluster(3, 1) as cluster:
        yield cluster


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name nobody else uses: services are shared by the tests.

    On a cluster it has a tag, so that a test's names share a partition, as a user's do who wants them in one batch.
    """
    text = f"t{next(_counter)}-{uuid.uuid4().hex[:8]}"
    target = request.getfixturevalue("target") if "target" in request.fixturenames else None
    return f"{{{text}}}" if target is not None and target.place in CLUSTERS else text


@pytest.fixture
def url(target: Target, request: pytest.FixtureRequest, name: str) -> str:
    """Where the target's engine is."""
    if target.place == "memory":
        return f"memory://{name}"
    if target.place == "file":
        return f"file://{request.getfixturevalue('tmp_path') / 'data'}"
    if target.place == "gateways":
        return str(request.getfixturevalue("gateways")[0])
    if target.place in CLUSTERS:
        fixture = "three_shards" if target.place == "failing" else f"{target.place}_node"
        cluster: ThrowawayCluster = request.getfixturevalue(fixture)
        return cluster.url
    servers: Dict[str, str] = {"native": "memory_server", "websocket": "durable_server", "crashing": "crashing_server"}
    found: str = request.getfixturevalue(servers[target.place]).url
    return found


def let_a_replica_take_over(cluster: ThrowawayCluster, name: str) -> None:
    """Let the shard that has `name` fail over."""
    from synap.cluster.places import Places

    places = Places()
    slot = places.slot(places.partition(name))
    for first, last, primary, *_ in cluster.members[0].ask("CLUSTER", "SLOTS"):
        if first <= slot <= last:
            cluster.fail_over(next(node for node in cluster.members if node.port == primary[1]))
            cluster.wait()


@async_fixture
async def make(target: Target, url: str, name: str, request: pytest.FixtureRequest) -> AsyncIterator[Make]:
    """Makes clients of the target: `make()`, or with further options, which go before the target's own."""
    crasher = None
    if target.place == "crashing":
        crasher = Crasher(request.getfixturevalue("crashing_server").crash, target.colour)
    if target.place == "failing":
        shards: ThrowawayCluster = request.getfixturevalue("three_shards")
        crasher = Crasher(lambda: let_a_replica_take_over(shards, name), target.colour)
    turns = itertools.count()
    async with AsyncExitStack() as stack:

        def make_client(**options: Any) -> AsyncSynapClient:
            place = request.getfixturevalue("gateways")[next(turns) % 2] if target.place == "gateways" else url
            options = {"url": place, **target.options, **options}
            if target.colour == "async":
                client = AsyncSynapClient(**options)
            else:
                client = coated(SynapClient(**options))
            stack.push_async_callback(client.close)
            return client if crasher is None else crasher.around(client)

        yield make_client


@pytest.fixture
def client(make: Make) -> AsyncSynapClient:
    """A client of the target."""
    return make()


@pytest.fixture
def other(make: Make) -> AsyncSynapClient:
    """Another client of the same target."""
    return make()
