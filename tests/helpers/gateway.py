"""A proxy in front of a service, as they are met: it passes WebSockets and plain HTTP, and no other upgrade."""

from __future__ import annotations

import socket
from typing import List, Optional
from urllib.parse import urlsplit

from synap.wire.handshake import parse_head
from tests.helpers.listener import Listener, end

__all__ = ["Gateway"]


class Gateway(Listener):
    """Listens on a free loopback port. `offers` counts the upgrades to native frames that were refused."""

    def __init__(self, behind: str, status: Optional[int] = 404) -> None:
        super().__init__()
        parts = urlsplit(behind)
        self._behind = (parts.hostname or "", parts.port or 0)
        self._sockets: List[socket.socket] = []
        self.status = status
        """What such an upgrade is answered with; None: the connection is cut."""
        self.passes_websockets = True
        self.offers = 0
        self.websockets = 0
        """WebSockets that were passed."""

    def __enter__(self) -> Gateway:
        super().__enter__()
        return self

    def sockets(self) -> List[socket.socket]:
        return list(self._sockets)

    def accepted(self, sock: socket.socket) -> None:
        self._sockets.append(sock)
        self.begin(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        try:
            head = b""
            while b"\r\n\r\n" not in head:
                data = sock.recv(65536)
                if not data:
                    return
                head += data
            upgrade = parse_head(head.partition(b"\r\n\r\n")[0]).headers.get("upgrade", "")
            if upgrade == "websocket" and self.passes_websockets:
                self.websockets += 1
            elif upgrade:
                self.offers += upgrade != "websocket"
                if self.status is not None:
                    sock.sendall(b"HTTP/1.1 %d No\r\nContent-Length: 2\r\n\r\nno" % self.status)
                return
            self._pass_on(sock, head)
        except OSError:
            pass  # either side has had enough
        finally:
            end(sock)

    def _pass_on(self, sock: socket.socket, head: bytes) -> None:
        behind = socket.create_connection(self._behind, 10)
        behind.settimeout(None)
        self._sockets.append(behind)
        behind.sendall(head)
        self.begin(_copy, behind, sock)
        _copy(sock, behind)


def _copy(source: socket.socket, to: socket.socket) -> None:
    try:
        while True:
            data = source.recv(65536)
            if not data:
                break
            to.sendall(data)
    except OSError:
        pass  # either side has had enough
    end(to)
