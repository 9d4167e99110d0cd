"""A service on the native lane whose every move is written in the test: what it is sent, and what it says when."""

from __future__ import annotations

import socket
import struct
from types import TracebackType
from typing import Any, Callable, Dict, List, Optional, Type

from synap.commands import BY_CODE
from synap.wire.codec import JSON
from synap.wire.frames import HEADER, MAX_BODY, Kind, frame
from synap.wire.handshake import Hello, accept, parse_hello
from tests.helpers.frames import Frame
from tests.helpers.listener import Listener, end
from tests.helpers.patience import PATIENCE

__all__ = ["Gone", "Peer", "ScriptedService"]


class Gone(Exception):
    """The client has closed the connection."""


class Peer:
    """One connection of a client, seen from the service."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number
        """How many connections came before."""
        self.health: Dict[str, Any] = {"status": "ok"}
        self._received = b""

    def _read(self, size: int) -> bytes:
        while len(self._received) < size:
            data = self.sock.recv(65536)
            if not data:
                raise Gone
            self._received += data
        taken, self._received = self._received[:size], self._received[size:]
        return taken

    def head(self) -> bytes:
        """Read the head of an HTTP request."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self._read(1)
        return head[:-4]

    def hello(self) -> Hello:
        """Read the client's offer of the native lane and consent to it."""
        hello = parse_hello(self.head())
        self.say(accept("scripted", MAX_BODY))
        return hello

    def frame(self) -> Frame:
        """Read one frame."""
        length, kind, flags, code, id = HEADER.unpack(self._read(HEADER.size))
        return Frame(kind, flags, code, id, self._read(length))

    def request(self) -> Frame:
        """Read up to the next request, and answer pings on the way."""
        while True:
            received = self.frame()
            if received.kind == Kind.REQUEST:
                return received
            if received.kind == Kind.PING:
                self.say(frame(Kind.PONG, received.id, JSON.encode(self.health)))

    def say(self, data: bytes) -> None:
        """Send bytes."""
        self.sock.sendall(data)

    def answer(self, request: Frame, answer: Any) -> None:
        """Answer a request."""
        self.say(frame(Kind.ANSWER, request.id, JSON.encode(answer)))

    def refuse(self, request: Frame, code: str, **details: Any) -> None:
        """Answer a request with an error."""
        error = {"code": code, "message": "as scripted", "details": details}
        self.say(frame(Kind.ERROR, request.id, JSON.encode(error)))

    def reset(self) -> None:
        """End the connection as a crash of the machine would."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


Script = Callable[[Peer], None]


class ScriptedService(Listener):
    """Listens on a free loopback port and runs `script` for each connection, on a thread of its own."""

    def __init__(self, script: Script) -> None:
        super().__init__()
        self.script = script
        self.peers: List[Peer] = []
        self.failures: List[BaseException] = []

    def __enter__(self) -> ScriptedService:
        super().__enter__()
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        super().__exit__(kind, error, trace)
        if kind is None and self.failures:
            raise self.failures[0]

    def sockets(self) -> List[socket.socket]:
        return [peer.sock for peer in self.peers]  # a script may have wrapped what was accepted in TLS

    def accepted(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what was said is there when `say` returns
        peer = Peer(sock, len(self.peers))
        self.peers.append(peer)
        self.begin(self._serve, peer)

    def _serve(self, peer: Peer) -> None:
        try:
            self.script(peer)
        except (Gone, OSError):
            pass
        except BaseException as error:
            self.failures.append(error)
        finally:
            end(peer.sock)


def name_of(request: Frame) -> str:
    """Return the name of the command that a request is for."""
    return BY_CODE[request.code].name


def payload_of(request: Frame) -> Any:
    """Return a request's payload."""
    return JSON.decode(request.body)


def event_body(offset: int, log: str = "e") -> Dict[str, Any]:
    """Make an event of a room."""
    return {
        "event_id": f"{log}-{offset}",
        "offset": offset,
        "event_type": "number",
        "data": offset,
        "timestamp": 1,
        "metadata": {},
        "room": "room",
    }


def event(peer: Peer, subscription: int, offset: int, log: str = "e") -> None:
    """Push an event of a room."""
    peer.say(frame(Kind.EVENT, subscription, JSON.encode(event_body(offset, log))))


def message(peer: Peer, subscription: int, body: Any) -> None:
    """Push a message of a topic."""
    said = {"topic": "a.b", "message": body, "metadata": {}, "timestamp": 1, "message_id": "m"}
    peer.say(frame(Kind.MESSAGE, subscription, JSON.encode(said)))


def subscribe(peer: Peer) -> Frame:
    """Wait for a request to subscribe, answering everything else."""
    while True:
        request = peer.request()
        if name_of(request).endswith(".subscribe"):
            return request
        if name_of(request) == "stream.history":
            peer.answer(request, {"events": [], "oldest_offset": 0, "newest_offset": 10**6})
            continue
        peer.answer(request, {"found": False, "unsubscribed": True, "exists": False})
