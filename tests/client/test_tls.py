"""The native lane over TLS."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Iterator

import pytest

from synap import ConnectionError, TimeoutError
from synap.wire.codec import JSON
from synap.wire.frames import Kind, frame
from tests.client.conftest import Make
from tests.helpers.patience import impatient, in_time
from tests.helpers.scripted import Gone, Peer, ScriptedService, event, name_of

CERTS = Path(__file__).parent.parent / "lanes" / "certs"
LARGE = "x" * 3_000_000


def speak_tls(peer: Peer) -> None:
    """Speak TLS on a connection from now on. It may ask for the client's certificate later, in the midst of it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(CERTS / "cert.pem"), str(CERTS / "key.pem"))
    context.verify_mode = ssl.CERT_OPTIONAL
    context.post_handshake_auth = True
    try:
        peer.sock = context.wrap_socket(peer.sock, server_side=True)
    except ssl.SSLError:
        raise Gone from None


def script(peer: Peer) -> None:
    """Answer requests with a large value, and a request to subscribe with two events."""
    speak_tls(peer)
    peer.hello()
    while True:
        request = peer.request()
        if b"silence" in request.body:
            continue
        if name_of(request).endswith(".subscribe"):
            peer.answer(request, {"subscription_id": 1, "room": "room", "next_offset": 0})
            event(peer, 1, 0)
            event(peer, 1, 1)
        else:
            answer = {"found": True, "value": LARGE, "ttl": None, "exists": True, "success": True, "key": "key"}
            peer.say(frame(Kind.ANSWER, request.id, JSON.encode(answer)))


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    with ScriptedService(script) as service:
        yield service


def trust() -> ssl.SSLContext:
    """Make what a client needs to trust the service."""
    return ssl.create_default_context(cafile=str(CERTS / "cert.pem"))


@pytest.fixture
def trusting() -> ssl.SSLContext:
    return trust()


def https(service: ScriptedService) -> str:
    return service.url.replace("http://127.0.0.1", "https://localhost")


async def test_calls_and_pushes_go_over_tls(make: Make, service: ScriptedService, trusting: ssl.SSLContext) -> None:
    client = make(https(service), ssl=trusting, transport="native")
    for _ in range(3):
        assert (await client.kv.get("key")).value == LARGE
        assert (await client.kv.set("key", LARGE)).success
    seen = []
    async for item in in_time(await client.stream.subscribe("room")):
        seen.append(item.offset)
        if item.offset == 1:
            break
    assert seen == [0, 1]
    await client.close()


async def test_a_call_over_tls_ends_in_time(make: Make, service: ScriptedService, trusting: ssl.SSLContext) -> None:
    client = make(https(service), ssl=trusting, transport="native")
    await client.connect()
    with impatient(client, 4), pytest.raises(TimeoutError):
        await client.kv.get("silence")
    await client.close()


async def test_a_certificate_that_nobody_vouches_for_is_a_failed_connection(
    make: Make, service: ScriptedService
) -> None:
    with pytest.raises(ConnectionError, match="certificate") as caught:
        await make(https(service), retries=0, transport="native").kv.get("key")
    assert caught.value.code == "CONNECTION_FAILED"


async def test_speaking_tls_to_a_plain_service_is_a_failed_connection(make: Make, trusting: ssl.SSLContext) -> None:
    def plain(peer: Peer) -> None:
        peer.sock.recv(65536)
        peer.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with ScriptedService(plain) as service:
        with pytest.raises(ConnectionError) as caught:
            await make(https(service), ssl=trusting, retries=0, transport="native").kv.get("key")
    assert caught.value.code == "CONNECTION_FAILED"
