"""The whole client against the whole service with TLS in between, and a proxy that takes the TLS off."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any, Iterator

import pytest

import synap
from synap import AsyncSynapClient
from synap.lanes import upgrades
from synap.testing import ThrowawayServer
from synap.wire.handshake import PATH
from tests.adversary.test_faults import COLOURS, connect
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.seen import Seen

pytestmark = pytest.mark.usefixtures("nothing_known")

CERTS = Path(__file__).parent.parent / "lanes" / "certs"
NATIVE = f"GET {PATH} HTTP/1.1"
MEGABYTE = "0123456789abcdef" * 65_536


@pytest.fixture(scope="module")
def secure() -> Iterator[ThrowawayServer]:
    """A service with TLS, shared by the tests of this module."""
    arguments = ["--tls-cert", str(CERTS / "cert.pem"), "--tls-key", str(CERTS / "key.pem")]
    with ThrowawayServer(arguments=arguments) as server:
        assert server.url.startswith("https://")
        yield server


def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(CERTS / "cert.pem"))


def terminating(server: ThrowawayServer, refuses: str = "") -> FaultProxy:
    """Make a proxy that speaks TLS with clients and none with the service."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(CERTS / "cert.pem"), str(CERTS / "key.pem"))
    return FaultProxy("127.0.0.1", server.port, refuses=refuses, context=context)


async def everything_works(client: AsyncSynapClient, name: str) -> None:
    """Use all that a client has: small and large values, many calls at once, subscriptions of both kinds."""
    assert await client.kv.incr(f"{name}:n") == 1
    await client.kv.set(name, [MEGABYTE, name])
    assert (await client.kv.get(name)).value == [MEGABYTE, name]

    async def own(number: int) -> Any:
        await client.kv.set(f"{name}:{number}", number)
        return (await client.kv.get(f"{name}:{number}")).value

    assert await asyncio.gather(*(own(number) for number in range(50))) == list(range(50))
    events, messages = Seen(), Seen()
    await client.stream.publish(name, "number", 0)
    await client.stream.subscribe(name, events, from_offset=0)
    await client.pubsub.subscribe([f"{name}.*"], messages)
    await client.stream.publish(name, "text", MEGABYTE)
    await client.stream.publish(name, "number", 2)
    await client.pubsub.publish(f"{name}.a", MEGABYTE)
    assert [event.data for event in await events.first(3)] == [0, MEGABYTE, 2]
    assert await messages.first(1) == [(f"{name}.a", MEGABYTE)]


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("lane", ["auto", "native", "websocket"])
async def test_every_lane_does_everything_over_tls(secure: ThrowawayServer, name: str, lane: str, colour: str) -> None:
    client = connect(colour, url=secure.url, transport=lane, ssl=trusting())
    await everything_works(client, name)
    await client.close()
    assert not upgrades.is_refused(("127.0.0.1", secure.port)), "the native lane was not even tried, or refused"


@pytest.mark.parametrize("colour", COLOURS)
async def test_where_the_lane_is_offered_everything_is_done_in_it_over_tls(
    server: ThrowawayServer, name: str, colour: str
) -> None:
    with terminating(server) as proxy:
        client = connect(colour, url=proxy.url, ssl=trusting())
        await everything_works(client, name)
        await client.close()
        assert set(proxy.openings) == {NATIVE}


@pytest.mark.parametrize("colour", COLOURS)
async def test_where_the_lane_is_refused_everything_is_done_in_plain_http_over_tls(
    server: ThrowawayServer, name: str, colour: str
) -> None:
    with terminating(server, refuses=PATH) as proxy:
        client = connect(colour, url=proxy.url, ssl=trusting())
        await everything_works(client, name)
        await client.close()
        assert proxy.openings.count(NATIVE) == 1
        assert "GET /api/v1/ws HTTP/1.1" in proxy.openings


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("lane", ["auto", "native", "websocket"])
async def test_a_service_that_nobody_vouches_for_gets_no_request(
    secure: ThrowawayServer, name: str, lane: str, colour: str
) -> None:
    client = connect(colour, url=secure.url, transport=lane, retries=0)
    with pytest.raises(synap.ConnectionError, match="certificate") as caught:
        await client.kv.set(name, 1)
    assert caught.value.code == "CONNECTION_FAILED"
    assert not caught.value.may_have_happened
    await client.close()
