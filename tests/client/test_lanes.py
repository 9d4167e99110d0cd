"""Which lane a client takes, and what it does where the native one is not to be had."""

from __future__ import annotations

import json
from typing import Iterator

import pytest

from synap import AuthenticationError, ConnectionError, PermissionDeniedError, RateLimitError, SynapError
from synap.lanes import known
from synap.wire.frames import MAX_BODY
from synap.wire.handshake import PROTOCOL, accept
from tests.client.conftest import Make
from tests.client.plain import PlainServer
from tests.client.scripted import Peer, ScriptedService


@pytest.fixture(autouse=True)
def _ignorant() -> Iterator[None]:
    """Begin and end with no server known to be plain."""
    known.forget()
    yield
    known.forget()


@pytest.mark.parametrize("status", [200, 400, 404, 405, 426, 500, 502])
async def test_where_the_native_lane_is_not_offered_plain_http_is_spoken(make: Make, status: int) -> None:
    with PlainServer(status) as server:
        client = make(server.url)
        await client.kv.set("key", [1, 2])
        assert (await client.kv.get("key")).value == [1, 2]
        assert server.offers == 1
        await client.close()


async def test_that_is_remembered_for_all_clients_for_five_minutes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    assert known.MEMORY == 5 * 60, "docs/guide/getting-started.md says how long"
    now = 1000.0
    monkeypatch.setattr(known, "monotonic", lambda: now)
    with PlainServer() as server:
        for seconds, offers in ((0, 1), (1, 1), (298, 1), (2, 2), (298, 2), (2, 3)):
            now += seconds
            client = make(server.url)
            await client.kv.set("key", seconds)
            await client.close()
            assert server.offers == offers, now


async def test_a_server_that_learns_the_native_lane_is_spoken_to_in_it_five_minutes_later(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was upgraded, or the proxy in front of it."""
    now = 1000.0
    monkeypatch.setattr(known, "monotonic", lambda: now)
    learnt = False

    def script(peer: Peer) -> None:
        if learnt:
            peer.hello()
            while True:
                peer.answer(peer.request(), {"value": 2})
        peer.say(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    with ScriptedService(script) as service:
        with pytest.raises(SynapError):  # no HTTP to be had either
            await make(service.url, retries=0).kv.incr("n")
        learnt = True
        now += known.MEMORY + 1
        assert await make(service.url, retries=0).kv.incr("n") == 2


async def test_servers_are_remembered_each_by_itself(make: Make) -> None:
    def script(peer: Peer) -> None:
        peer.hello()
        while True:
            peer.answer(peer.request(), {"value": 1})

    with PlainServer() as plain_one, PlainServer() as plain_two, ScriptedService(script) as native:
        for _ in range(2):  # whichever is known by then
            for client in (make(plain_one.url), make(native.url), make(plain_two.url), make(native.url)):
                assert await client.kv.incr("n") >= 1
                await client.close()
        assert plain_one.offers == plain_two.offers == 1
        assert plain_one.requests.count("kv.incr") == plain_two.requests.count("kv.incr") == 2
        assert len(native.peers) == 4


async def test_a_client_that_insists_on_the_native_lane_says_that_it_is_not_offered(make: Make) -> None:
    with PlainServer() as server:
        with pytest.raises(ConnectionError, match="doesn't offer the native lane") as caught:
            await make(server.url, transport="native", retries=0).kv.get("key")
    assert caught.value.code == "CONNECTION_FAILED"
    assert not caught.value.may_have_happened
    assert server.requests == []


async def test_a_client_that_insists_on_http_does_not_ask(make: Make) -> None:
    with PlainServer() as server:
        client = make(server.url, transport="http")
        await client.kv.set("key", 1)
        await client.close()
    assert server.offers == 0


async def test_a_server_that_lost_the_native_lane_meanwhile_is_spoken_to_in_plain_http(make: Make) -> None:
    """An older service was started in its place."""

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
        with pytest.raises(ConnectionError, match=r"no answer within 0\.2 seconds") as caught:
            await make(service.url, retries=0, timeout=0.2).kv.set("key", 1)
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
