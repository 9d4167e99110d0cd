"""Pings without end: who doesn't read the answers is cut, who reads them stays, and either costs others little."""

from __future__ import annotations

import json
import os
import socket
import threading
from typing import Callable, Dict, Iterator, Tuple

import pytest

from synap.testing import ThrowawayServer
from synap.wire.frames import Kind, frame
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import Http, Native, dial, memory, read_head

MIB = 1024 * 1024
ROOM = 24 * MIB
"""What a flood may make the process grow by: what waits on either side, and what the allocator keeps of it."""
UPGRADE = (
    b"GET /api/v1/ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
PINGS = b"".join(frame(Kind.PING, number) for number in range(1, 4001))
Begin = Callable[[ThrowawayServer], socket.socket]


def narrow(server: ThrowawayServer) -> socket.socket:
    """Connect as over a network, where the system holds less that is unread than on one machine: it is full soon."""
    connection = socket.socket()
    connection.settimeout(PATIENCE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1460)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    connection.connect(("127.0.0.1", server.port))
    return connection


def websocket(server: ThrowawayServer, more: bytes = b"") -> socket.socket:
    connection = dial(server)
    connection.sendall(UPGRADE + more + b"\r\n")
    assert read_head(connection).startswith(b"HTTP/1.1 101 ")
    return connection


def inside(server: ThrowawayServer) -> socket.socket:
    return websocket(
        server,
        b"Sec-WebSocket-Protocol: synap.native\r\nSynap-Session: %b\r\nSynap-Format: json\r\n"
        % os.urandom(16).hex().encode(),
    )


def masked(opcode: int, payload: bytes) -> bytes:
    length = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    return bytes([0x80 | opcode]) + length + b"\0\0\0\0" + payload


FLOODS: Dict[str, Tuple[Begin, bytes]] = {
    "native": (lambda server: Native(server).socket, PINGS),
    "native over a WebSocket": (inside, masked(2, PINGS)),
    "WebSocket": (websocket, masked(9, b"x" * 125) * 500),
    "HTTP": (narrow, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200),
}
"""How each lane begins, and what is sent on it again and again; each asks for an answer."""
EMPTY = {"WebSocket, empty": (websocket, masked(9, b"") * 5000)}
"""The most work for the fewest bytes; it takes long until unread answers of two bytes fill what the system holds."""
UNASKED = {
    "pongs of the native lane": (FLOODS["native"][0], b"".join(frame(Kind.PONG, number) for number in range(4000))),
    "pongs of a WebSocket": (websocket, masked(10, b"x" * 125) * 500),
    "confirmations": (FLOODS["native"][0], frame(Kind.DONE, 1) * 4000),
    "cancellations": (FLOODS["native"][0], frame(Kind.CANCEL, 1) * 4000),
}
"""What nothing is answered to."""


@pytest.fixture(scope="module")
def impatient() -> Iterator[ThrowawayServer]:
    with ThrowawayServer(arguments=["--unread-timeout", "1s"]) as server:
        yield server
    said = "".join(server.output)
    assert "Traceback" not in said, said


class Flood:
    """Sends the same bytes again and again on a thread, until the connection ends or `stop`."""

    def __init__(self, connection: socket.socket, data: bytes, *, reads: bool) -> None:
        self.connection = connection
        self.ended = threading.Event()
        """Set once the service has ended the connection."""
        self.silent = False
        """Whether the service neither took what was sent nor ended the connection, for a minute."""
        self.received = 0
        self._stopped = False
        self._data = data
        connection.settimeout(3 * PATIENCE)
        self._threads = [threading.Thread(target=self._send, daemon=True)]
        if reads:
            self._threads.append(threading.Thread(target=self._read, daemon=True))
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        try:
            while not self._stopped:
                self.connection.sendall(self._data)
        except socket.timeout:
            self.silent = True
        except OSError:
            self.ended.set()

    def _read(self) -> None:
        try:
            while not self._stopped:
                piece = self.connection.recv(65536)
                if not piece:
                    self.ended.set()
                    return
                self.received += len(piece)
        except OSError:
            self.ended.set()

    def stop(self) -> None:
        self._stopped = True
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        for thread in self._threads:
            thread.join(PATIENCE)
        self.connection.close()


class Others:
    """A client of each kind, that asks for one thing after the other."""

    def __init__(self, server: ThrowawayServer) -> None:
        self._http, self._native = Http(server), Native(server)
        self._number = 0

    def ask(self) -> None:
        self._number += 1
        assert self._http.do("kv.set", key="a", value=self._number).status == 200
        assert self._native.do(self._number, "kv.get", key="a")["value"] == self._number

    def publish(self, queue: str) -> None:
        assert self._http.do("queue.publish", queue=queue, message=1).status == 200

    def close(self) -> None:
        self._http.close()
        self._native.close()


@pytest.fixture
def others(impatient: ThrowawayServer) -> Iterator[Others]:
    clients = Others(impatient)
    clients.ask()
    yield clients
    clients.close()


@pytest.mark.parametrize(("begin", "data"), FLOODS.values(), ids=FLOODS)
def test_who_asks_without_end_and_reads_nothing_is_cut(
    impatient: ThrowawayServer, others: Others, begin: Begin, data: bytes
) -> None:
    before = most = memory(impatient)
    flood = Flood(begin(impatient), data, reads=False)
    try:
        while not flood.ended.is_set():
            assert not flood.silent
            others.ask()
            most = max(most, memory(impatient))
    finally:
        flood.stop()
    assert most - before < ROOM
    others.ask()


def test_ten_who_pipeline_without_reading_together_hold_little(impatient: ThrowawayServer, others: Others) -> None:
    before = most = memory(impatient)
    begin, data = FLOODS["HTTP"]
    floods = [Flood(begin(impatient), data, reads=False) for _ in range(10)]
    try:
        while not all(flood.ended.is_set() for flood in floods):
            assert not any(flood.silent for flood in floods)
            others.ask()
            most = max(most, memory(impatient))
    finally:
        for flood in floods:
            flood.stop()
    assert most - before < ROOM
    others.ask()


def test_who_pipelines_behind_a_request_that_waits_holds_little(impatient: ThrowawayServer, others: Others) -> None:
    before = most = memory(impatient)
    connection = narrow(impatient)
    for timeout in (0.5, 2 * PATIENCE):  # the first is answered once the pipeline is full, and then the second reads on
        body = json.dumps({"command": "queue.consume", "payload": {"queue": "waits", "timeout": timeout}}).encode()
        head = "POST /api/v1/command HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
        connection.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body)
    flood = Flood(connection, FLOODS["HTTP"][1], reads=False)
    try:
        for _ in range(1000):
            others.ask()
            most = max(most, memory(impatient))
        others.publish("waits")
        while not flood.ended.is_set():
            others.ask()
            most = max(most, memory(impatient))
    finally:
        flood.stop()
    assert most - before < ROOM


@pytest.mark.parametrize(("begin", "data"), [*FLOODS.values(), *EMPTY.values()], ids=[*FLOODS, *EMPTY])
def test_who_asks_without_end_and_reads_stays_and_keeps_nobody_waiting(
    impatient: ThrowawayServer, others: Others, begin: Begin, data: bytes
) -> None:
    before = most = memory(impatient)
    flood = Flood(begin(impatient), data, reads=True)
    try:
        asked = 0
        while asked < 50 or flood.received < MIB // 16:
            assert not flood.ended.is_set()
            others.ask()
            asked += 1
            most = max(most, memory(impatient))
    finally:
        flood.stop()
    assert most - before < ROOM
    others.ask()


@pytest.mark.parametrize(("begin", "data"), UNASKED.values(), ids=UNASKED)
def test_what_is_not_answered_costs_others_little_too(
    impatient: ThrowawayServer, others: Others, begin: Begin, data: bytes
) -> None:
    before = most = memory(impatient)
    flood = Flood(begin(impatient), data, reads=False)
    try:
        for _ in range(50):
            others.ask()
            most = max(most, memory(impatient))
        assert not flood.silent
    finally:
        flood.stop()
    assert most - before < ROOM
    others.ask()
