"""A stop while peers of every lane don't read large answers: over in time, quiet, and nothing is lost."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
from pathlib import Path
from typing import Any, Iterator, List

import pytest

from synap import SynapClient
from synap.testing import ThrowawayServer
from synap.testing.server import can_serve
from synap.wire.handshake import SUBPROTOCOL, Hello, greet
from tests.helpers.patience import Stopwatch
from tests.helpers.raw import read_head, request, wait_for

CERTS = Path(__file__).parent.parent / "lanes" / "certs"
TLS = ["--tls-cert", str(CERTS / "cert.pem"), "--tls-key", str(CERTS / "key.pem")]
SLACK = 30.0
"""Seconds that a stop may take: a second that it waits, and what a busy machine needs to end a process."""
SMALL = 4096
"""Bytes that a peer which doesn't read has room for."""
LARGE = os.urandom(2_000_000).hex()
ANSWERS = 3
"""Answers that each connection asks for."""

ASK = json.dumps({"command": "kv.get", "payload": {"key": "large"}}).encode()
CHANGE = json.dumps({"command": "kv.incr", "payload": {"key": "changes"}}).encode()


def post(body: bytes) -> bytes:
    head = b"POST /api/v1/command HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def masked(opcode: int, body: bytes) -> bytes:
    """Make one frame of a client's WebSocket, masked with zeros."""
    return bytes((0x80 | opcode, 0x80 | 126)) + len(body).to_bytes(2, "big") + bytes(4) + body


def upgrade(connection: socket.socket, headers: bytes = b"") -> None:
    connection.sendall(
        b"GET /api/v1/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n" + headers + b"\r\n"
    )
    assert read_head(connection).startswith(b"HTTP/1.1 101 ")


def frames() -> List[bytes]:
    return [request(1, "kv.incr", key="changes"), *(request(2 + n, "kv.get", key="large") for n in range(ANSWERS))]


def native(connection: socket.socket) -> None:
    connection.sendall(greet("x", Hello("1" * 32, "json", False, None)))
    read_head(connection)
    connection.sendall(b"".join(frames()))


def carried(connection: socket.socket) -> None:
    hello = greet("x", Hello("2" * 32, "json", False, None)).split(b"\r\n")
    own = [line for line in hello if line.lower().startswith(b"synap-")]
    upgrade(connection, b"\r\n".join([*own, b"Sec-WebSocket-Protocol: " + SUBPROTOCOL.encode(), b""]))
    connection.sendall(b"".join(masked(2, frame) for frame in frames()))


def websocket(connection: socket.socket) -> None:
    upgrade(connection)
    connection.sendall(masked(1, CHANGE) + masked(1, ASK) * ANSWERS)


def http(connection: socket.socket) -> None:
    connection.sendall(post(CHANGE) + post(ASK) * ANSWERS)


def compressed(connection: socket.socket) -> None:
    connection.sendall(post(CHANGE) + post(ASK).replace(b"Host", b"Accept-Encoding: gzip\r\nHost") * ANSWERS)


def events(connection: socket.socket) -> None:
    connection.sendall(post(CHANGE))
    connection.sendall(b"GET /api/v1/stream/subscribe?room=r&from_offset=0 HTTP/1.1\r\nHost: x\r\n\r\n")


LANES = (native, carried, websocket, http, compressed, events)


@contextlib.contextmanager
def unread(server: ThrowawayServer, secure: bool, each: int) -> Iterator[List[socket.socket]]:
    """Have connections of each lane ask for large answers and not read them."""
    opened = []
    for ask in LANES:
        for _ in range(each):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
            connection.connect(("127.0.0.1", server.port))
            if secure:
                context = ssl.create_default_context(cafile=str(CERTS / "cert.pem"))
                connection = context.wrap_socket(connection, server_hostname="localhost")
            opened.append(connection)
            ask(connection)
    yield opened
    for connection in opened:
        connection.close()


@pytest.mark.skipif(not can_serve(), reason="the service needs Python 3.10")
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_stop_among_peers_that_do_not_read_is_quiet_and_over_in_time(tmp_path: Path, secure: bool) -> None:
    each = 3
    arguments = ["--drain-timeout", "1", *(TLS if secure else [])]
    trusting: Any = ssl.create_default_context(cafile=str(CERTS / "cert.pem")) if secure else None
    server = ThrowawayServer(data=tmp_path / "data", arguments=arguments)
    with server, SynapClient(url=server.url, ssl=trusting) as client:
        client.kv.set("large", LARGE)
        for _ in range(4):
            client.stream.publish("r", "t", LARGE)
        with unread(server, secure, each):
            wait_for(lambda: client.kv.get("changes").value == each * len(LANES))
            with Stopwatch() as watch:
                code = server.stop()
        output = "".join(server.output)
        assert code == 0, output
        assert "Traceback" not in output
        assert "ERROR" not in output
        assert watch.seconds < SLACK
        server.start()
        assert client.kv.get("changes").value == each * len(LANES)
