"""What strangers send before they are let in, byte for byte: it costs little and ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Set

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from synap.server.tls import Acceptor
from synap.testing.server import ThrowawayServer
from synap.wire.frames import Kind, frame
from synap.wire.handshake import SUBPROTOCOL
from tests.helpers.loops import loop_environment
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import Native, dial, memory, pieces, read_all, read_head, request, wait_for

Serve = Callable[..., ThrowawayServer]
MB = 1024 * 1024


@pytest.fixture(scope="module")
def hasty() -> Iterator[ThrowawayServer]:
    """A service that waits for nothing longer than half a second."""
    with ThrowawayServer(arguments=["--handshake-timeout", "0.5", "--idle-timeout", "1"]) as running:
        yield running
    said = "".join(running.output)
    assert "Traceback" not in said, said


@pytest.fixture(scope="module")
def prompt() -> Iterator[ThrowawayServer]:
    """A service that waits longer than a busy machine takes to say the first thing, and no longer."""
    with ThrowawayServer(arguments=["--handshake-timeout", "6", "--idle-timeout", "6"]) as running:
        yield running


def swallowed(server: ThrowawayServer, head: bytes, piece: bytes, most: int) -> int:
    """Send a head, then a piece for ever; return how many bytes the service took before it ended the connection."""
    with dial(server) as peer:
        peer.settimeout(PATIENCE)
        peer.sendall(head)
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < most:
                peer.sendall(piece)
                sent += len(piece)
        return sent


@pytest.mark.parametrize("line", ["POST /api/v1/command", "GET /health", "GET /nowhere"])
@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"0\r\n", b"a:\r\n" * 16_384),
        (b"1\r\nx\r\n0\r\n", b"abcdefgh: ijklmnop\r\n" * 4096),
        (b"1;", b"extension=" * 8192),
        (b"", b"1;extension=0123456789\r\nx\r\n" * 4096),
        (b"", b"1" * 65_536),
    ],
    ids=["trailers", "longer trailers", "one extension", "an extension with each byte", "the size of a chunk"],
)
def test_what_is_around_a_body_is_bounded(server: ThrowawayServer, line: str, start: bytes, piece: bytes) -> None:
    before = memory(server)
    head = f"{line} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + start
    # What fits the buffers of both systems is sent, whatever the service does.
    assert swallowed(server, head, piece, 60 * MB) < 20 * MB
    assert memory(server) - before < 16 * MB


@pytest.mark.parametrize(
    "piece", [b"x: y\r\n", b"x" * 4096, b"\r\n" * 1000], ids=["headers", "one header", "line breaks"]
)
def test_heads_that_never_end_are_refused(server: ThrowawayServer, piece: bytes) -> None:
    start = b"" if piece.startswith(b"\r\n") else b"GET /health HTTP/1.1\r\nHost: localhost\r\nx:"
    assert swallowed(server, start, piece * 10, 60 * MB) < 20 * MB


def test_a_head_that_comes_in_one_piece_is_measured_all_the_same(server: ThrowawayServer) -> None:
    with dial(server) as peer:
        peer.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nx: " + b"y" * 40_000 + b"\r\n\r\n")
        assert read_all(peer).startswith(b"HTTP/1.1 400 ")


def test_headers_are_counted(server: ThrowawayServer) -> None:
    with dial(server) as peer:
        peer.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"x: y\r\n" * 300 + b"\r\n")
        answer = read_all(peer)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"256 headers" in answer


def test_a_chunked_body_with_extensions_and_trailers_is_read_as_ever(server: ThrowawayServer) -> None:
    body = b'{"command": "kv.exists", "payload": {"key": "a"}}'
    chunks = b"".join(b"1;a=b\r\n%c\r\n" % byte for byte in body)
    with dial(server) as peer:
        peer.sendall(
            b"POST /api/v1/command HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nChecksum: 1\r\n\r\n"
        )
        assert b'"exists":false' in read_all(peer)


# -------------------------------------------------------------------------------------- phases


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /api/v1/nat",
        b"GET /health HT",
        b"\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5",
        b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\na",
    ],
)
def test_what_is_begun_and_not_gone_on_with_ends(hasty: ThrowawayServer, sent: bytes) -> None:
    with dial(hasty) as peer:
        peer.sendall(sent)
        read_all(peer)


def test_drops_of_a_body_do_not_keep_a_connection(hasty: ThrowawayServer) -> None:
    began = time.monotonic()
    with dial(hasty) as peer, contextlib.suppress(ConnectionError):
        peer.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        while time.monotonic() - began < PATIENCE:
            peer.sendall(b"1\r\nx\r\n")
            time.sleep(0.05)  # slow is what this peer is
    assert time.monotonic() - began < PATIENCE


MISSING = pytest.mark.parametrize(
    "sent", [b"", b"\x00", frame(Kind.REQUEST, 1, b"{}", 2)[:-1]], ids=["none", "a byte", "most"]
)


@MISSING
def test_frames_that_do_not_come_end_the_connection(prompt: ThrowawayServer, sent: bytes) -> None:
    connection = Native(prompt)
    connection.send(sent)
    assert connection.ended()
    connection.close()


def test_a_native_connection_that_has_said_something_may_be_silent(prompt: ThrowawayServer) -> None:
    connection = Native(prompt)
    connection.do(1, "kv.exists", key="a")
    watcher = Native(prompt)
    assert watcher.ended()  # Its time was over, which began later.
    connection.do(2, "kv.exists", key="a")
    connection.close()
    watcher.close()


UPGRADE = (
    b"GET /api/v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.mark.parametrize("sent", [b"\x81", b"\x01\x81\x00\x00\x00\x00x"], ids=["a frame", "a message"])
def test_websocket_messages_that_do_not_come_end_the_connection(prompt: ThrowawayServer, sent: bytes) -> None:
    with dial(prompt) as peer:
        peer.sendall(UPGRADE + b"\r\n")
        assert read_head(peer).startswith(b"HTTP/1.1 101 ")
        peer.sendall(sent)
        read_all(peer)


@contextlib.contextmanager
def frames_in_a_websocket(server: ThrowawayServer) -> Iterator[ClientConnection]:
    url = f"ws://127.0.0.1:{server.port}/api/v1/ws"
    greeting = {"Synap-Session": os.urandom(16).hex(), "Synap-Format": "json"}
    options: Any = {"subprotocols": [SUBPROTOCOL], "proxy": None, "open_timeout": PATIENCE}
    with connect(url, additional_headers=greeting, **options) as carrier:
        yield carrier


@MISSING
def test_frames_that_do_not_come_end_their_websocket_too(prompt: ThrowawayServer, sent: bytes) -> None:
    with frames_in_a_websocket(prompt) as carrier:
        if sent:
            carrier.send(sent)
        assert b"took too long" in carrier.recv(PATIENCE, decode=False)
        with pytest.raises(ConnectionClosed):
            carrier.recv(PATIENCE)


def test_a_websocket_of_frames_that_has_said_something_may_be_silent(prompt: ThrowawayServer) -> None:
    with frames_in_a_websocket(prompt) as carrier:
        carrier.send(request(1, "kv.exists", key="a"))
        assert b'"exists":false' in carrier.recv(PATIENCE, decode=False)
        with frames_in_a_websocket(prompt) as watcher:
            watcher.recv(PATIENCE)  # Its time was over, which began later.
        carrier.send(request(2, "kv.exists", key="a"))
        assert b'"exists":false' in carrier.recv(PATIENCE, decode=False)


@pytest.mark.parametrize(
    "body", [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"]
)
@pytest.mark.parametrize("whole", [True, False])
def test_an_upgrade_with_a_body_is_refused_and_harms_no_stop(serve: Serve, body: bytes, whole: bool) -> None:
    service = serve()
    with dial(service) as peer:
        peer.sendall(UPGRADE + (body if whole else body[:-3]))
        assert read_all(peer).startswith(b"HTTP/1.1 400 ")
    with dial(service) as peer:
        peer.sendall(UPGRADE + body[:-3])
        assert service.stop() == 0
    assert "Traceback" not in "".join(service.output)
    assert "AssertionError" not in "".join(service.output)


def test_more_requests_than_wait_in_line_are_all_answered_in_order(server: ThrowawayServer) -> None:
    count = 3000
    with dial(server) as peer:
        for number in range(count):
            last = b"Connection: close\r\n" if number == count - 1 else b""
            peer.sendall(b"GET /n%d HTTP/1.1\r\nHost: localhost\r\n" % number + last + b"\r\n")
        seen = b"".join(pieces(peer))
    places = [seen.find(b"nothing at '/n%d'" % number) for number in range(count)]
    assert -1 not in places
    assert places == sorted(places)


# -------------------------------------------------------------------------------------- heads and bodies


@pytest.mark.parametrize("offer", [b"h2c", b"TLS/1.0", b"websocket, h2c"])
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_offers_of_other_protocols_leave_bodies_alone(server: ThrowawayServer, offer: bytes, size: int) -> None:
    body = b'{"command": "kv.exists", "payload": {"key": "b"}}'
    sent = (
        b"POST /api/v1/command HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: %b\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (offer, len(body))
    ) + body
    sent += b"GET /end HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with dial(server) as peer:
        for at in range(0, len(sent), size):
            peer.sendall(sent[at : at + size])
        answer = read_all(peer)
    assert answer.count(b"HTTP/1.1 ") == 2
    assert b'"exists":false' in answer
    assert b"nothing at '/end'" in answer


@pytest.mark.parametrize(
    "refused", [b"Content-Type: text/plain\r\n", b"Content-Type: application/json\r\nAccept: text/html\r\n"]
)
def test_bodies_of_refused_requests_are_bodies_to_their_end(server: ThrowawayServer, refused: bytes) -> None:
    hidden = b"GET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = b"a\r\nUpgrade: h2c\r\n\r\n" + hidden + b"\r\nUpgrade: h2c\r\nx: y\r\n\r\n"
    head = b"POST /api/v1/command HTTP/1.1\r\nHost: localhost\r\n" + refused + b"Content-Length: %d\r\n\r\n" % len(body)
    with dial(server) as peer:
        peer.sendall(head)
        assert read_head(peer).startswith(b"HTTP/1.1 400 ")
        peer.sendall(body)
        peer.sendall(b"GET /end HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        rest = read_all(peer)
    assert rest.count(b"HTTP/1.1 ") == 1
    assert b"hidden" not in rest
    assert b"nothing at '/end'" in rest


# -------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    return make_certificate(folder, "localhost")


def make_certificate(folder: Path, name: str) -> tuple[str, str]:
    certificate, key = str(folder / "cert.pem"), str(folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    return certificate, key


def test_silent_connections_to_a_tls_port_are_counted_and_end(serve: Serve, certificate: tuple[str, str]) -> None:
    cert, key = certificate
    service = serve("--tls-cert", cert, "--tls-key", key, "--handshake-timeout", "15", "--max-connections", "20")
    silent = [dial(service) for _ in range(19)]
    context = ssl.create_default_context(cafile=cert)
    with context.wrap_socket(dial(service), server_hostname="localhost") as peer:
        peer.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert b"synap_connections 20.0" in read_all(peer)
    for one in silent:
        read_all(one)
        one.close()
    assert service.stop() == 0


def test_silent_connections_to_a_tls_port_give_way(serve: Serve, certificate: tuple[str, str]) -> None:
    cert, key = certificate
    options = ("--handshake-timeout", "3600", "--max-connections", "5", "--api-key", "k" * 20)
    service = serve("--tls-cert", cert, "--tls-key", key, *options)
    silent = [dial(service) for _ in range(5)]
    context = ssl.create_default_context(cafile=cert)
    with context.wrap_socket(dial(service), server_hostname="localhost") as peer:
        asked = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-API-Key: %b\r\n\r\n"
        peer.sendall(asked % (b"k" * 20))
        assert b"synap_connections_refused_total 1.0" in read_all(peer)
    wait_for(lambda: "5 connections are open, as many as --max-connections allows" in "".join(service.output))
    assert read_all(silent[0]) == b""
    for one in silent:
        one.close()
    assert service.stop() == 0
    assert "Traceback" not in "".join(service.output)


def test_a_stop_does_not_wait_for_handshakes(serve: Serve, certificate: tuple[str, str]) -> None:
    cert, key = certificate
    service = serve("--tls-cert", cert, "--tls-key", key, "--handshake-timeout", "60", "--drain-timeout", "60")
    with dial(service) as silent, dial(service) as half:
        half.sendall(b"\x16\x03\x01\x02\x00\x01")
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < 50  # a handshake's time would be 60 seconds, and so would the drain
        assert read_all(silent) == b""


async def test_a_handshake_that_is_ended_before_it_begins_is_gone() -> None:
    """As where the service stops in the turn in which it accepted the connection."""

    class Connections(Set[Any]):
        def add(self, handshake: Any) -> None:
            super().add(handshake)
            asyncio.get_running_loop().call_soon(lambda: handshake.shutdown())  # before its task's first step
            accepted.set()

    accepted = asyncio.Event()
    connections = Connections()
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()) as peer:
        listening.setblocking(False)
        context: Any = SimpleNamespace(context=None)
        config = SimpleNamespace(handshake_timeout=PATIENCE)
        service: Any = SimpleNamespace(connections=connections, strangers={}, full=lambda: False, config=config)
        acceptor = Acceptor(listening, service, context, asyncio.Protocol)
        await asyncio.wait_for(accepted.wait(), PATIENCE)
        peer.settimeout(PATIENCE)
        assert await asyncio.to_thread(peer.recv, 1) == b""
        assert not connections
        acceptor.close()


def test_nonsense_on_a_tls_port_harms_nobody(serve: Serve, certificate: tuple[str, str]) -> None:
    cert, key = certificate
    service = serve("--tls-cert", cert, "--tls-key", key)
    for nonsense in (b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 1000, b"\x16\x03\x01\xff\xff" + b"x" * 1000):
        with dial(service) as peer:
            peer.sendall(nonsense)
            read_all(peer)
    context = ssl.create_default_context(cafile=cert)
    with context.wrap_socket(dial(service), server_hostname="localhost") as peer:
        peer.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert b'"status": "ok"' in read_all(peer)
    assert service.stop() == 0
    assert "Traceback" not in "".join(service.output)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_a_service_without_descriptors_says_so_in_a_line_and_accepts_again(
    serve: Serve,
    tls: bool,
    certificate: tuple[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """On asyncio's own loop: it logged a traceback for each of 2,048 connections that might have waited."""
    resource = pytest.importorskip("resource")
    secured = ("--tls-cert", certificate[0], "--tls-key", certificate[1]) if tls else ()
    server = serve(*secured, environment=loop_environment("asyncio", tmp_path_factory))
    context = ssl.create_default_context(cafile=certificate[0])

    def ask(peer: socket.socket, path: str, connection: bytes = b"close") -> bytes:
        with context.wrap_socket(peer, server_hostname="localhost") if tls else peer as peer:
            head = b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: %b\r\n\r\n"
            peer.sendall(head % (path.encode(), connection))
            return read_all(peer)

    ask(dial(server), "/api/v1/ws", b"Upgrade\r\nUpgrade: websocket")  # what is imported later needs descriptors, too
    ask(dial(server), "/metrics")
    soft, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (8, hard))
    waiting = [dial(server) for _ in range(3)]
    wait_for(lambda: "no connection can be accepted" in "".join(server.output))
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert all(b'"status": "ok"' in ask(peer, "/health") for peer in waiting)
    assert server.stop() == 0
    said = "".join(server.output)
    assert "Traceback" not in said
    assert "out of system resource" not in said


# -------------------------------------------------------------------------------------- where a request ends

ASK = b'{"command":"kv.exists","payload":{"key":"a"}}'
AMBIGUOUS = {
    "both lengths": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
    "both, turned": b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
    "an unknown coding": b"Transfer-Encoding: xchunked\r\nContent-Length: 45\r\n",
    "chunked, then another": b"Transfer-Encoding: chunked, identity\r\n",
    "two codings": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "two lengths": b"Content-Length: 45\r\nContent-Length: 4\r\n",
    "a list of lengths": b"Content-Length: 45, 45\r\n",
    "a sign": b"Content-Length: +45\r\n",
    "less than nothing": b"Content-Length: -1\r\n",
    "hexadecimal": b"Content-Length: 0x2d\r\n",
    "too much for a number": b"Content-Length: 99999999999999999999999\r\n",
    "a space before the colon": b"Content-Length : 45\r\n",
    "a folded line": b"X: a\r\n Content-Length: 4\r\nContent-Length: 45\r\n",
    "a bare return": b"X: a\rTransfer-Encoding: chunked\r\nContent-Length: 45\r\n",
    "a NUL": b"X: a\x00b\r\nContent-Length: 45\r\n",
    "bare line feeds": b"X: a\nContent-Length: 45\n",
}


@pytest.mark.parametrize("headers", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_requests_whose_end_could_be_read_two_ways_are_refused(server: ThrowawayServer, headers: bytes) -> None:
    head = b"POST /api/v1/command HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + headers + b"\r\n"
    hidden = b"0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with dial(server) as peer:
        peer.sendall(head + ASK + hidden)
        answer = read_all(peer)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"hidden" not in answer


HOSTS = {
    "no host": b"",
    "two hosts": b"Host: localhost\r\nHost: localhost\r\n",
    "two different hosts": b"Host: localhost\r\nhOST: other\r\n",
    "an empty host": b"Host:\r\n",
    "nothing but a port": b"Host: :80\r\n",
    "two names": b"Host: localhost other\r\n",
    "a list": b"Host: localhost, other\r\n",
    "a path": b"Host: localhost/a\r\n",
    "a user": b"Host: a@localhost\r\n",
    "a URL": b"Host: http://localhost\r\n",
    "a name for a port": b"Host: localhost:http\r\n",
    "two ports": b"Host: localhost:80:80\r\n",
    "an open bracket": b"Host: [::1\r\n",
    "half an address": b"Host: ::1\r\n",
    "other letters": "Host: löcalhost\r\n".encode(),
}
HEADED = {
    "HTTP": b"GET /health HTTP/1.1\r\n",
    "a command": b"POST /api/v1/command HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 45\r\n",
    "an offer of HTTP/2": b"GET /health HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n",
    "a WebSocket": (
        b"GET /api/v1/ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    ),
    "the native lane": (
        b"GET /api/v1/native HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: synap/1\r\n"
        b"Synap-Session: 0123456789abcdef0123456789abcdef\r\n"
    ),
}


@pytest.fixture(scope="module")
def named() -> Iterator[ThrowawayServer]:
    """A service that answers to any name: it asks for a key."""
    with ThrowawayServer(arguments=["--api-key", "k"]) as running:
        yield running


@pytest.mark.parametrize("head", HEADED.values(), ids=HEADED)
@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_a_request_says_in_one_host_for_whom_it_is(named: ThrowawayServer, head: bytes, host: bytes) -> None:
    with dial(named) as peer:
        peer.sendall(head + host + b"X-API-Key: k\r\n\r\n" + ASK)
        answer = read_all(peer)
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert b"\r\nHTTP/1.1 " not in answer
    assert b"Host" in answer


@pytest.mark.parametrize("head", HEADED.values(), ids=HEADED)
@pytest.mark.parametrize(
    "host", [b"localhost", b"a.example:15500", b"127.0.0.1:1", b"[::1]:15500", b"a_b.example:", b"xn--lcalhost-n4a."]
)
def test_a_host_is_a_name_or_an_address_and_maybe_a_port(named: ThrowawayServer, head: bytes, host: bytes) -> None:
    with dial(named) as peer:
        peer.sendall(head + b"Host: " + host + b"\r\nX-API-Key: k\r\n\r\n")
        if b"Content-Length" in head:
            peer.sendall(ASK)
        assert read_head(peer).split(b" ")[1] in (b"200", b"101")


def test_a_request_of_http_1_0_needs_no_host(named: ThrowawayServer) -> None:
    with dial(named) as peer:
        peer.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert read_all(peer).startswith(b"HTTP/1.1 200 ")


def test_the_second_request_of_a_connection_says_it_too(named: ThrowawayServer) -> None:
    with dial(named) as peer:
        peer.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_head(peer).startswith(b"HTTP/1.1 200 ")
        peer.sendall(b"GET /health HTTP/1.1\r\n\r\n")
        assert b"HTTP/1.1 400 " in read_all(peer)


@pytest.mark.parametrize("lines", ["Host: a,b", "Host: localhost, localhost", "Host: a\r\nHost: a", "Host: a b"])
@pytest.mark.parametrize("path", ["/health", "/api/v1/native"])
def test_a_request_has_one_host(server: ThrowawayServer, path: str, lines: str) -> None:
    with dial(server) as peer:
        peer.sendall(f"GET {path} HTTP/1.1\r\n{lines}\r\nConnection: Upgrade\r\nUpgrade: synap/1\r\n\r\n".encode())
        assert read_all(peer).startswith(b"HTTP/1.1 400 ")
