"""Clients that say exactly what a test wants said: HTTP by the standard library, frames by hand."""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from synap.commands import BATCH, COMMANDS
from synap.testing.server import ThrowawayServer
from synap.wire.frames import MAX_ANSWER, Kind, frame
from synap.wire.handshake import Hello, greet
from tests.helpers.frames import Frame, FrameReader
from tests.helpers.patience import PATIENCE


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        document = self.document
        assert document["success"] is False
        assert document["status"] == "error"
        return document["error"]

    @property
    def payload(self) -> Any:
        document = self.document
        assert document["success"] is True, document
        return document["payload"]


class Http:
    """One keep-alive connection."""

    def __init__(self, server: ThrowawayServer, **headers: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def request(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}) -> Reply:
        self.connection.request(method, path, body, {**self.headers, **headers})
        answer = self.connection.getresponse()
        return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())

    def post(self, body: bytes | object, **headers: str) -> Reply:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("POST", "/api/v1/command", data, {"content-type": "application/json", **named})

    def do(self, command: str, **payload: Any) -> Reply:
        return self.post({"command": command, "payload": payload})

    def close(self) -> None:
        self.connection.close()


class Native:
    """One connection of the native lane."""

    def __init__(
        self, server: ThrowawayServer, format: str = "json", session: str | None = None, *, gzip: bool = False
    ) -> None:
        self.socket = dial(server)
        self.reader = FrameReader(MAX_ANSWER)
        self.frames: list[Frame] = []
        self.session = session or os.urandom(16).hex()
        self.socket.sendall(greet("localhost", Hello(self.session, format, gzip, None)))
        head = read_head(self.socket)
        assert head.startswith(b"HTTP/1.1 101 "), head

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(frames))

    def read(self) -> Frame:
        """The next frame. EOFError where the service ended the connection."""
        while not self.frames:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            self.frames += self.reader.feed(data)
        return self.frames.pop(0)

    def do(self, number: int, command: str, flags: int = 0, **payload: Any) -> Any:
        """One request and its answer; an error answer fails the test."""
        self.send(request(number, command, flags, **payload))
        answer = self.read()
        assert (answer.kind, answer.id) == (Kind.ANSWER, number), answer
        return json.loads(answer.body)

    def ended(self) -> bool:
        """Whether the service has ended the connection, once it has."""
        try:
            while True:
                self.read()
        except (EOFError, ConnectionResetError):
            return True

    def close(self) -> None:
        self.socket.close()


def request(number: int, command: str, flags: int = 0, **payload: Any) -> bytes:
    code = (BATCH if command == "batch" else COMMANDS[command]).code
    return frame(Kind.REQUEST, number, json.dumps(payload).encode(), code, flags)


def memory(server: ThrowawayServer) -> int:
    """Bytes that a service takes; where the system doesn't say, none."""
    status = Path(f"/proc/{server.pid}/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0


def dial(server: ThrowawayServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), PATIENCE)


def read_head(connection: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = connection.recv(1)
        if not piece:
            raise EOFError(head)
        head += piece
    return head


def read_all(connection: socket.socket) -> bytes:
    """Everything until the service ends the connection."""
    return b"".join(pieces(connection))


def pieces(connection: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            piece = connection.recv(65536)
        except ConnectionResetError:
            return
        if not piece:
            return
        yield piece


def wait_for(what: Callable[[], bool]) -> None:
    """Ask until it is so, for `PATIENCE` seconds at most."""
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def last_word(native: Native) -> str:
    """The code of the error about the connection, after which it ends."""
    while True:
        told = native.read()
        if (told.kind, told.id) == (Kind.ERROR, 0):
            break
    assert native.ended()
    code = json.loads(told.body)["code"]
    assert isinstance(code, str)
    return code
