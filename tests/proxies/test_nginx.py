"""What a client does must be the same through a proxy: the upgrade passed, only WebSockets passed, TLS ended there."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, AsyncIterator, Callable, Iterator, List

import pytest
from pytest_asyncio import fixture as async_fixture

import synap
from synap import AsyncSynapClient, SynapClient
from synap.testing import ThrowawayServer
from tests.helpers.colour import coated
from tests.helpers.patience import PATIENCE
from tests.helpers.seen import Seen
from tests.proxies.nginx import CERTS, CONFIGURATIONS, Nginx

pytestmark = pytest.mark.usefixtures("nothing_known")

PASSING = sorted(set(CONFIGURATIONS) - {"neither"})
KEY = "a key for the proxies"


@pytest.fixture(scope="module")
def server() -> Iterator[ThrowawayServer]:
    """A service in memory that asks for a key."""
    with ThrowawayServer(environment={"SYNAP_API_KEY": KEY}) as server:
        yield server


@pytest.fixture(params=PASSING)
def configuration(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def proxy(server: ThrowawayServer, configuration: str, tmp_path: Path) -> Iterator[Nginx]:
    with Nginx(tmp_path, server.url, configuration) as nginx:
        yield nginx


@pytest.fixture
def name() -> str:
    return f"t-{uuid.uuid4().hex[:12]}"


Make = Callable[..., AsyncSynapClient]


@async_fixture(params=["async", "sync"])
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Make]:
    """Makes clients of either colour, which are closed after the test."""
    made: List[AsyncSynapClient] = []

    def make_client(url: str, **options: Any) -> AsyncSynapClient:
        options = {"api_key": KEY, "timeout": 20.0, **options}
        if url.startswith("https"):
            options["tls_ca"] = str(CERTS / "cert.pem")
        if request.param == "async":
            made.append(AsyncSynapClient(url, **options))
        else:
            made.append(coated(SynapClient(url, **options)))
        return made[-1]

    yield make_client
    for client in made:
        await client.close()


async def test_calls_values_of_any_size_and_waits(proxy: Nginx, make: Make, name: str) -> None:
    client = make(proxy.url)
    for size in (1, 100_000, 3_000_000):
        await client.kv.set(name, "x" * size)
        assert (await client.kv.get(name)).value == "x" * size
    assert await client.queue.consume(name, timeout=0.2) is None
    await client.queue.publish(name, {"n": 1})
    message = await client.queue.consume(name, timeout=PATIENCE)
    assert message is not None
    await client.queue.ack(name, message.message_id)
    assert (await client.health())["status"] == "ok"


async def test_the_lane_is_the_one_that_passes(proxy: Nginx, make: Make, name: str, configuration: str) -> None:
    client = make(proxy.url, retries=0)
    await client.kv.set(name, 1)
    lane: Any = client._calls.lane
    assert lane.name == ("websocket" if configuration.endswith("websocket") else "native")


async def test_subscriptions_go_on_where_the_proxy_is_restarted(proxy: Nginx, make: Make, name: str) -> None:
    client = make(proxy.url, retries=30, retry_delay=0.02, retry_max_delay=0.2)
    events = Seen()
    await client.stream.subscribe(name, events)
    for number in range(30):
        await client.stream.publish(name, "number", number)
        if number == 15:
            await client.kv.set(name, number)
            proxy.restart()
    seen = await events.until(lambda event: event.offset == 29)
    assert [event.data for event in seen] == list(range(30))


async def test_a_write_takes_effect_once_through_restarts_of_the_proxy(proxy: Nginx, make: Make, name: str) -> None:
    client = make(proxy.url, retries=30, retry_delay=0.02, retry_max_delay=0.2)
    for number in range(1, 61):
        assert await client.kv.incr(name) == number
        if number % 20 == 0:
            proxy.restart()


async def test_a_wrong_key_is_refused_as_such(proxy: Nginx, make: Make) -> None:
    with pytest.raises(synap.AuthenticationError):
        await make(proxy.url, api_key="wrong", retries=0).kv.get("key")


@pytest.mark.parametrize("configuration", ["neither"], indirect=True)
async def test_a_proxy_that_passes_neither_is_named(proxy: Nginx, make: Make) -> None:
    with pytest.raises(synap.ConnectionError, match="doesn't offer a WebSocket at /api/v1/ws") as caught:
        await make(proxy.url, retries=0).kv.set("key", 1)
    assert not caught.value.may_have_happened
