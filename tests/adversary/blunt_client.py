"""A client that sends what a test says, without asking whether that is wise."""

from __future__ import annotations

import gzip
import json
import os
import socket
from typing import Any

from synap.commands import BATCH, COMMANDS
from synap.testing import ThrowawayServer
from synap.wire.frames import GZIP, MAX_ANSWER, Kind, frame
from synap.wire.handshake import Hello, greet
from tests.helpers.frames import Frame, FrameReader


class Client:
    """A native connection that says exactly what it is told, and reads or doesn't."""

    def __init__(self, server: ThrowawayServer, *, gzipped: bool = False, format: str = "json") -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port))
        self.socket.settimeout(60)
        self.reader = FrameReader(MAX_ANSWER)
        self.frames: list[Frame] = []
        self.number = 0
        self.socket.sendall(greet("x", Hello(os.urandom(16).hex(), format, gzipped, None)))
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.socket.recv(65536)

    def write(self, command: str, flags: int = 0, **payload: Any) -> bytes:
        """Build a request."""
        self.number += 1
        body = json.dumps(payload).encode()
        if flags & GZIP:
            body = gzip.compress(body)
        code = BATCH.code if command == "batch" else COMMANDS[command].code
        return frame(Kind.REQUEST, self.number, body, code, flags)

    def send(self, *requests: bytes) -> None:
        self.socket.sendall(b"".join(requests))

    def read(self, count: int = 1) -> list[Frame]:
        """Read so many frames."""
        while len(self.frames) < count:
            data = self.socket.recv(1 << 20)
            if not data:
                raise EOFError
            self.frames += self.reader.feed(data)
        told, self.frames = self.frames[:count], self.frames[count:]
        return told

    def call(self, command: str, **payload: Any) -> Frame:
        """Send a request and read its answer."""
        self.send(self.write(command, **payload))
        return self.read()[0]

    def again(self, request: bytes, count: int = 1) -> None:
        """Send a request that was built before, and read its answer."""
        self.send(*[request] * count)
        self.read(count)


def websocket(server: ThrowawayServer) -> socket.socket:
    """Open a WebSocket."""
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(
        b"GET /api/v1/ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    connection.recv(65536)
    return connection
