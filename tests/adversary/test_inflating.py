"""Large requests of many connections at once are bounded together, from the first byte until they are executed."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import struct
import time
from collections.abc import Callable

import pytest

from synap.commands import BATCH, COMMANDS
from synap.testing import ThrowawayServer
from synap.wire.frames import GZIP, HEADER, Kind, frame
from tests.adversary.blunt_client import Client, websocket
from tests.adversary.memory import BESIDE, MIB, peak
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import memory

LIMIT = 100 * MIB
CONNECTIONS = 40
SIZE = 9_900_000

Attack = Callable[[ThrowawayServer], socket.socket]
"""Opens a connection and sends a request over it, which is answered once."""


def envelope(command: str, payload: str) -> bytes:
    return f'{{"command":"{command}","payload":{payload}}}'.encode()


VALUE = json.dumps({"key": "k", "value": "x" * SIZE})
BATCHED = json.dumps({"commands": [{"command": "kv.set", "payload": {"key": "k", "value": "x" * 900}}] * 10_000})
READS = json.dumps({"commands": [{"command": "kv.exists", "payload": {"key": "x" * 900}}] * 10_000})
"""Of which nothing is remembered: answers to writes are, within a bound of their own."""


def native(body: str, code: int, flags: int = 0) -> Attack:
    data = body.encode()
    request = frame(Kind.REQUEST, 1, gzip.compress(data) if flags else data, code, flags)

    def attack(server: ThrowawayServer) -> socket.socket:
        client = Client(server)
        try:
            client.send(request)
        except OSError:
            client.socket.close()
            raise
        return client.socket

    return attack


def http(body: bytes, encoding: str = "identity") -> Attack:
    data = gzip.compress(body) if encoding == "gzip" else body
    head = (
        "POST /api/v1/command HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Encoding: {encoding}\r\nContent-Length: {len(data)}\r\n\r\n"
    )

    def attack(server: ThrowawayServer) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.sendall(head.encode() + data)
        return connection

    return attack


def message(body: bytes) -> Attack:
    def attack(server: ThrowawayServer) -> socket.socket:
        connection = websocket(server)
        connection.sendall(bytes([0x81, 0x80 | 127]) + struct.pack(">Q", len(body)) + b"\0\0\0\0" + body)
        return connection

    return attack


ATTACKS: dict[str, Attack] = {
    "native, batch": native(READS, BATCH.code),
    "native, gzip": native(VALUE, COMMANDS["kv.set"].code, GZIP),
    "native, gzip, batch": native(READS, BATCH.code, GZIP),
    "http, gzip": http(envelope("kv.set", VALUE), "gzip"),
    "http, gzip, batch": http(b'{"type":"batch",' + BATCHED[1:].encode(), "gzip"),
    "http": http(envelope("kv.set", VALUE)),
    "http, batch": http(b'{"type":"batch",' + BATCHED[1:].encode()),
    "websocket": message(envelope("kv.set", VALUE)),
    "websocket, batch": message(b'{"type":"batch",' + BATCHED[1:].encode()),
}
NINE = b" " * 9_000_000


def begun(open_: Callable[[ThrowawayServer], socket.socket], head: bytes) -> Attack:
    """Send all but the last of a request of 10 MB."""

    def attack(server: ThrowawayServer) -> socket.socket:
        connection = open_(server)
        connection.sendall(head + NINE)
        return connection

    return attack


def _long(opcode: int, size: int) -> bytes:
    return bytes([opcode, 0x80 | 127]) + struct.pack(">Q", size) + b"\0\0\0\0"


UNFINISHED: dict[str, Attack] = {
    "native": begun(lambda server: Client(server).socket, HEADER.pack(10_000_000, Kind.REQUEST, 0, BATCH.code, 1)),
    "http": begun(
        lambda server: socket.create_connection(("127.0.0.1", server.port)),
        b"POST /api/v1/command HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 10000000\r\n\r\n",
    ),
    "websocket, a frame": begun(websocket, _long(0x81, 10_000_000)),
    "websocket, frames": begun(websocket, _long(0x01, len(NINE))),
}
LARGE = {
    "native": native(VALUE, COMMANDS["kv.set"].code),
    "http": ATTACKS["http"],
    "websocket": ATTACKS["websocket"],
}


@pytest.mark.parametrize("stays", [True, False], ids=["stays", "leaves"])
@pytest.mark.parametrize("name", ATTACKS)
def test_the_process_stays_near_its_limit(name: str, stays: bool) -> None:
    with ThrowawayServer(arguments=["--transit-limit", str(LIMIT)]) as server:
        opened = []
        for _ in range(CONNECTIONS):
            with contextlib.suppress(OSError):  # it is cut while it sends
                opened.append(ATTACKS[name](server))
                if not stays:
                    opened.pop().close()
        end = time.monotonic() + PATIENCE
        for connection in opened:
            connection.settimeout(max(0.1, end - time.monotonic()))
            with contextlib.suppress(ConnectionError):
                connection.recv(1)
            connection.close()
        probe = Client(server)
        assert probe.call("kv.exists", key="k").kind == Kind.ANSWER
        probe.socket.close()
        held = peak(server.pid)
    # What was received in many pieces leaves gaps between them; so it is only where the peer has sent as much itself.
    beside = BESIDE if "gzip" in name else 2 * BESIDE
    assert held <= LIMIT + beside, f"{held / MIB:.0f} MiB"


@pytest.mark.parametrize("name", ["native", "http", "websocket"])
def test_an_idle_connection_holds_nothing_of_its_last_request(name: str) -> None:
    with ThrowawayServer() as server:
        opened = []
        for _ in range(CONNECTIONS):
            connection = LARGE[name](server)
            connection.settimeout(PATIENCE)
            assert connection.recv(1)
            opened.append(connection)
        held = peak(server.pid)
        for connection in opened:
            connection.close()
    assert held <= 3 * BESIDE, f"{held / MIB:.0f} MiB"


@pytest.mark.parametrize("name", UNFINISHED)
def test_nothing_is_held_of_a_request_whose_connection_ended(name: str) -> None:
    with ThrowawayServer() as server:
        probe = Client(server)
        for _ in range(CONNECTIONS):
            UNFINISHED[name](server).close()
            assert probe.call("kv.exists", key="k").kind == Kind.ANSWER
        held = peak(server.pid)
        probe.socket.close()
    assert held <= 3 * BESIDE, f"{held / MIB:.0f} MiB"


def test_a_request_over_http_is_not_held_while_its_answer_waits_for_the_peer() -> None:
    reads = [{"command": "kv.get", "payload": {"key": "k"}}] * 10_000
    asked = http(json.dumps({"type": "batch", "commands": reads}).encode().ljust(SIZE))
    with ThrowawayServer() as server:
        probe = Client(server)
        probe.call("kv.set", key="k", value="x" * 500)
        opened = []
        for _ in range(CONNECTIONS):
            opened.append(asked(server))
            opened[-1].settimeout(PATIENCE)
            assert opened[-1].recv(1)
        held = memory(server)
        for connection in [*opened, probe.socket]:
            connection.close()
    assert held <= CONNECTIONS * 6 * MIB + 2 * BESIDE, f"{held / MIB:.0f} MiB"  # answers of 6 MB each
