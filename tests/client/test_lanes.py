"""Which lane a client takes, and what it does where the upgrade to native frames is not to be had."""

from __future__ import annotations

import json
from typing import Optional

import pytest

from synap import AuthenticationError, ConnectionError, PermissionDeniedError, RateLimitError, SynapError
from synap.lanes import upgrades
from synap.testing import ThrowawayServer
from synap.wire.frames import MAX_BODY
from synap.wire.handshake import PROTOCOL, accept
from tests.client.conftest import Make
from tests.helpers.gateway import Gateway
from tests.helpers.patience import in_time
from tests.helpers.scripted import Peer, ScriptedService

pytestmark = pytest.mark.usefixtures("nothing_known")


@pytest.mark.parametrize("status", [200, 400, 404, 405, 426, 500, 502, None])
async def test_where_the_upgrade_is_refused_a_websocket_carries_the_frames(
    make: Make, server: ThrowawayServer, status: Optional[int]
) -> None:
    with Gateway(server.url, status) as gateway:
        client = make(gateway.url, retries=1)
        await client.kv.set("key", [1, 2])
        assert (await client.kv.get("key")).value == [1, 2]
        async with await client.pubsub.subscribe(["behind.gateway"]) as messages:
            await client.pubsub.publish("behind.gateway", 3)
            async for _, message in in_time(messages):
                assert message == 3
                break
        assert gateway.offers == (2 if status is None else 1), "a cut may be a server that stops: asked twice"
        assert gateway.websockets >= 1
        await client.close()


async def test_that_is_remembered_for_all_clients_for_five_minutes(
    make: Make, server: ThrowawayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert upgrades.MEMORY == 5 * 60, "docs/guide/getting-started.md says how long"
    now = 1000.0
    monkeypatch.setattr(upgrades, "monotonic", lambda: now)
    with Gateway(server.url) as gateway:
        for seconds, offers in ((0, 1), (1, 1), (298, 1), (2, 2), (298, 2), (2, 3)):
            now += seconds
            client = make(gateway.url)
            await client.kv.set("key", seconds)
            await client.close()
            assert gateway.offers == offers, now


async def test_a_gateway_that_passes_neither_is_asked_again(make: Make, server: ThrowawayServer) -> None:
    """Nothing is remembered that didn't work either."""
    with Gateway(server.url) as gateway:
        gateway.passes_websockets = False
        with pytest.raises(ConnectionError, match="doesn't offer a WebSocket at /api/v1/ws"):
            await make(gateway.url, retries=0).kv.get("key")
        gateway.passes_websockets = True
        await make(gateway.url, retries=0).kv.get("key")
        assert gateway.offers == 2


async def test_a_server_that_learns_the_native_lane_is_spoken_to_in_it_five_minutes_later(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was upgraded, or the proxy in front of it."""
    now = 1000.0
    monkeypatch.setattr(upgrades, "monotonic", lambda: now)
    learnt = False

    def script(peer: Peer) -> None:
        if learnt:
            peer.hello()
            while True:
                peer.answer(peer.request(), {"value": 2})
        peer.say(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    with ScriptedService(script) as service:
        with pytest.raises(SynapError):  # no WebSocket to be had either
            await make(service.url, retries=0).kv.incr("n")
        learnt = True
        now += upgrades.MEMORY + 1
        assert await make(service.url, retries=0).kv.incr("n") == 2


async def test_servers_are_remembered_each_by_itself(make: Make, server: ThrowawayServer) -> None:
    with Gateway(server.url) as first, Gateway(server.url) as second:
        for _ in range(2):  # whichever is known by then
            for client in (make(first.url), make(server.url), make(second.url), make(server.url)):
                assert await client.kv.incr("each by itself") >= 1
                assert (client._calls.lane.name == "native") == (client.config.url == server.url)  # type: ignore[union-attr]
                await client.close()
        assert first.offers == second.offers == 1
        assert first.websockets == second.websockets == 2


@pytest.mark.parametrize("status", [404, None])
async def test_a_client_that_insists_on_the_upgrade_says_that_it_is_not_offered(
    make: Make, server: ThrowawayServer, status: Optional[int]
) -> None:
    with Gateway(server.url, status) as gateway:
        why = (
            "closed in the handshake" if status is None else r"doesn't offer the upgrade to synap/1 \(it answered 404\)"
        )
        with pytest.raises(ConnectionError, match=why) as caught:
            await make(gateway.url, transport="native", retries=0).kv.get("key")
        assert gateway.websockets == 0
    assert caught.value.code == "CONNECTION_FAILED"
    assert not caught.value.may_have_happened


async def test_a_client_that_insists_on_a_websocket_does_not_ask(make: Make, server: ThrowawayServer) -> None:
    with Gateway(server.url) as gateway:
        client = make(gateway.url, transport="websocket")
        await client.kv.set("key", 1)
        await client.close()
        assert gateway.offers == 0


async def test_where_the_upgrade_is_lost_meanwhile_a_websocket_is_tried(make: Make) -> None:
    """A proxy was put in front of the service."""

    def script(peer: Peer) -> None:
        if peer.number == 0:
            peer.hello()
            peer.answer(peer.request(), {"found": True, "value": "native", "ttl": None, "exists": True})
            return
        head = peer.head()
        if b"/api/v1/native" in head:
            peer.say(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        else:
            peer.say(b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nplain")

    with ScriptedService(script) as service:
        client = make(service.url, retries=2)
        assert (await client.kv.get("key")).value == "native"
        with pytest.raises(SynapError) as caught:
            await client.kv.get("key")
        assert caught.value.code == "SERVICE_UNAVAILABLE"
        await client.close()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        ("401 Unauthorized", "UNAUTHORIZED", AuthenticationError),
        ("403 Forbidden", "FORBIDDEN", PermissionDeniedError),
        ("429 Too Many Requests", "RATE_LIMIT_EXCEEDED", RateLimitError),
        ("503 Service Unavailable", "SERVICE_UNAVAILABLE", SynapError),
    ],
)
@pytest.mark.parametrize("body", ["envelope", "words"])
async def test_a_refusal_in_the_handshake_is_raised_as_what_it_is(
    make: Make, status: str, code: str, kind: type, body: str
) -> None:
    envelope = {"error": {"code": code, "message": "not you", "details": {}}}
    text = json.dumps(envelope) if body == "envelope" else "not you"

    def script(peer: Peer) -> None:
        peer.head()
        head = f"HTTP/1.1 {status}\r\nRetry-After: 60\r\nContent-Length: {len(text)}\r\n\r\n"
        peer.say(head.encode())
        peer.say(text.encode())

    with ScriptedService(script) as service:
        with pytest.raises(kind) as caught:
            await make(service.url, retries=0, api_key="wrong").connect()
    assert isinstance(caught.value, SynapError)
    assert caught.value.code == code
    assert "wrong" not in str(caught.value)


async def test_the_key_and_the_format_travel_in_the_handshake(make: Make) -> None:
    heads = []

    def script(peer: Peer) -> None:
        heads.append(peer.head().decode())
        peer.say(accept("scripted", MAX_BODY))
        peer.frame()

    with ScriptedService(script) as service:
        await make(service.url, api_key="secret", format="msgpack", compression=True).connect()
    assert "X-API-Key: secret" in heads[0]
    assert "Synap-Format: msgpack" in heads[0]
    assert "Synap-Compression: gzip" in heads[0]
    assert f"Upgrade: {PROTOCOL}" in heads[0]


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 101 Switch", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1\r\n\r\n", b"x" * 20_000]
)
async def test_a_handshake_that_breaks_off_or_is_none_is_a_failed_connection(make: Make, said: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.say(said)

    with ScriptedService(script) as service:
        with pytest.raises(ConnectionError) as caught:
            await make(service.url, retries=0).kv.set("key", 1)
    assert caught.value.code == "CONNECTION_FAILED"
    assert not caught.value.may_have_happened


async def test_a_handshake_that_never_ends_runs_into_the_timeout(make: Make) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.frame()

    with ScriptedService(script) as service:
        with pytest.raises(ConnectionError, match=r"no answer within 2 seconds") as caught:
            await make(service.url, retries=0, timeout=2).kv.set("key", 1)
    assert caught.value.code == "TIMEOUT"


async def test_a_handshake_may_come_in_single_bytes_and_with_the_first_frames(make: Make) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        for byte in accept("scripted", 1000):
            peer.say(bytes([byte]))
        while True:
            peer.answer(peer.request(), {"value": 3})

    with ScriptedService(script) as service:
        client = make(service.url)
        assert await client.kv.incr("n") == 3
        with pytest.raises(SynapError, match="a request may have 1000 bytes"):
            await client.kv.set("key", "x" * 1000)
        assert await client.kv.incr("n") == 3
