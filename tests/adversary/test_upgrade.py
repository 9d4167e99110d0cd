"""A connection that breaks while the native lane begins: an error or a retry, and no wrong idea of the server."""

from __future__ import annotations

import asyncio
from typing import Iterator

import pytest

import synap
from synap.testing import ThrowawayServer
from synap.wire.frames import MAX_BODY
from synap.wire.handshake import PATH, accept
from tests.adversary.test_faults import COLOURS, LATE, connect
from tests.helpers.colour import in_thread
from tests.helpers.fault_proxy import Fault, FaultProxy
from tests.helpers.patience import impatient, in_time
from tests.helpers.seen import Seen

pytestmark = pytest.mark.usefixtures("nothing_known")

HEAD = accept(synap.__version__, MAX_BODY)
"""What the service consents with."""
WITHIN = [0, 1, 8, 12, 40, len(HEAD) // 2, len(HEAD) - 1]
NATIVE = f"GET {PATH} HTTP/1.1"
WEBSOCKET = "GET /api/v1/ws HTTP/1.1"


@pytest.fixture
def proxy(server: ThrowawayServer) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", server.port) as proxy:
        yield proxy


@pytest.fixture
def plain_proxy(server: ThrowawayServer) -> Iterator[FaultProxy]:
    """A proxy before a whole service that knows nothing of the native lane."""
    with FaultProxy("127.0.0.1", server.port, refuses=PATH) as proxy:
        yield proxy


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("lane", ["native", "auto"])
@pytest.mark.parametrize("reset", [False, True], ids=["cut", "reset"])
async def test_a_consent_that_breaks_off_is_a_failed_connection_and_no_refusal(
    proxy: FaultProxy, name: str, lane: str, colour: str, reset: bool
) -> None:
    for cut in WITHIN:
        client = connect(colour, url=proxy.url, transport=lane, retries=0, timeout=LATE)
        before = proxy.connections
        proxy.fail(down=Fault(cut=cut, reset=reset))
        with pytest.raises(synap.ConnectionError) as caught:
            await asyncio.wait_for(client.kv.incr(name), 2 * LATE)
        assert caught.value.code == "CONNECTION_FAILED", cut
        assert not caught.value.may_have_happened
        assert proxy.connections == before + 1
        proxy.heal()
        assert (await client.kv.set(f"{name}:{cut}", cut)).success
        assert (await client.kv.get(f"{name}:{cut}")).value == cut
        await client.close()
    async with synap.AsyncSynapClient(url=proxy.url) as observer:
        assert not (await observer.kv.get(name)).found, "what could not be sent was done"
    assert set(proxy.openings) == {NATIVE}


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("lane", ["native", "auto"])
async def test_a_consent_that_breaks_off_is_asked_for_again(
    proxy: FaultProxy, name: str, lane: str, colour: str
) -> None:
    client = connect(colour, url=proxy.url, transport=lane, retries=1000, retry_delay=0.001, retry_max_delay=0.01)
    for number, cut in enumerate(WITHIN, 1):
        again = connect(colour, url=proxy.url, transport=lane, retries=1000, retry_delay=0.001, retry_max_delay=0.01)
        before = proxy.connections
        proxy.fail(down=Fault(cut=cut))
        counting = asyncio.ensure_future(again.kv.incr(name))
        while proxy.connections < before + 3:
            await asyncio.sleep(0.001)
        proxy.heal()
        assert await counting == number
        await again.close()
    assert (await client.kv.get(name)).value == len(WITHIN)
    await client.close()
    # Cut twice before a byte came, a client that may choose tries a WebSocket too.
    assert set(proxy.openings) <= ({NATIVE, WEBSOCKET} if lane == "auto" else {NATIVE})


@pytest.mark.parametrize("colour", COLOURS)
async def test_a_consent_that_never_comes_runs_into_the_timeout_and_is_no_refusal(
    proxy: FaultProxy, name: str, colour: str
) -> None:
    client = connect(colour, url=proxy.url, retries=0)
    proxy.fail(down=Fault(swallow=True))
    with impatient(client, 0.3), pytest.raises(synap.TimeoutError) as caught:
        await asyncio.wait_for(client.kv.incr(name), 0.3 + LATE)
    assert not caught.value.may_have_happened
    proxy.heal()
    await client.close()
    client = connect(colour, url=proxy.url, retries=0)
    assert await client.kv.incr(name) == 1
    await client.close()
    assert set(proxy.openings) == {NATIVE}


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("retries", [0, 3])
async def test_a_consent_after_which_nothing_comes_is_no_endless_loop(
    proxy: FaultProxy, name: str, colour: str, retries: int
) -> None:
    client = connect(colour, url=proxy.url, retries=retries, retry_delay=0.01)
    proxy.fail(down=Fault(cut=len(HEAD)))
    with impatient(client, 2), pytest.raises(synap.ConnectionError) as caught:
        await asyncio.wait_for(client.kv.incr(name), 2 + LATE)
    assert caught.value.code in ("CONNECTION_FAILED", "CONNECTION_LOST")
    assert proxy.connections <= 2 + retries  # the first attempt may begin anew before it has sent anything
    proxy.heal()
    assert await client.kv.incr(name) in (1, 2)
    await client.close()
    assert set(proxy.openings) == {NATIVE}


# ------------------------------------------------------------------------------------------ a proxy that refuses


@pytest.mark.parametrize("colour", COLOURS)
async def test_where_the_lane_is_refused_calls_and_subscriptions_come_all_the_same(
    plain_proxy: FaultProxy, name: str, colour: str
) -> None:
    client = connect(colour, url=plain_proxy.url)
    await client.kv.set(name, [1, 2])
    assert (await client.kv.get(name)).value == [1, 2]
    await client.stream.publish(name, "number", 0)
    await client.stream.publish(name, "number", 1)
    events, messages = Seen(), Seen()
    await client.stream.subscribe(name, events, from_offset=0)
    await client.pubsub.subscribe([f"{name}.*"], messages)
    async with connect(colour, url=plain_proxy.url) as publisher:
        await publisher.stream.publish(name, "number", 2)
        await publisher.pubsub.publish(f"{name}.a", {"n": 1})
        await publisher.pubsub.publish(f"{name}.b", {"n": 2})
    assert [event.data for event in await events.until(lambda event: event.offset == 2)] == [0, 1, 2]
    assert await messages.first(2) == [(f"{name}.a", {"n": 1}), (f"{name}.b", {"n": 2})]
    await client.close()
    assert plain_proxy.openings.count(NATIVE) == 1
    assert WEBSOCKET in plain_proxy.openings


@pytest.mark.parametrize("colour", COLOURS)
async def test_a_client_that_begins_with_a_subscription_falls_back_too(
    plain_proxy: FaultProxy, name: str, colour: str
) -> None:
    client = connect(colour, url=plain_proxy.url)
    subscription = await client.pubsub.subscribe([name])
    await client.pubsub.publish(name, "first")
    async for pair in in_time(subscription):
        assert pair == (name, "first")
        break
    await client.close()
    assert plain_proxy.openings[0] == NATIVE
    assert plain_proxy.openings.count(NATIVE) == 1
    assert WEBSOCKET in plain_proxy.openings


@pytest.mark.parametrize("colour", COLOURS)
async def test_a_subscription_that_fell_back_goes_on_through_lost_connections(
    plain_proxy: FaultProxy, server: ThrowawayServer, name: str, colour: str
) -> None:
    client = connect(colour, url=plain_proxy.url, retries=30, retry_delay=0.01, retry_max_delay=0.05)
    events = Seen()
    await client.stream.subscribe(name, events)
    async with synap.AsyncSynapClient(url=server.url) as publisher:
        for number in range(60):
            await publisher.stream.publish(name, "number", number)
            if number % 20 == 10:
                await in_thread(plain_proxy.drop_all, reset=number % 40 == 10)
    assert [event.offset for event in await events.until(lambda event: event.offset == 59)] == list(range(60))
    await client.close()
    assert plain_proxy.openings.count(NATIVE) == 1
