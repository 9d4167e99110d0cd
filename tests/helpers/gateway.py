"""A proxy in front of a service, as they are met: it passes WebSockets and plain HTTP, and no other upgrade."""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import List, Optional, Set, Type
from urllib.parse import urlsplit

from synap.wire.handshake import parse_head

__all__ = ["Gateway"]


class Gateway:
    """Listens on a free loopback port. `offers` counts the upgrades to native frames that were refused."""

    def __init__(self, behind: str, status: Optional[int] = 404) -> None:
        parts = urlsplit(behind)
        self._behind = (parts.hostname or "", parts.port or 0)
        self.status = status
        """What such an upgrade is answered with; None: the connection is cut."""
        self.passes_websockets = True
        self.offers = 0
        self.websockets = 0
        """WebSockets that were passed."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: List[threading.Thread] = []
        self._sockets: Set[socket.socket] = set()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Gateway:
        self._begin(self._accept)
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self._sockets):
            _end(sock)
        for thread in self._threads:
            thread.join(10)
        for sock in self._sockets:
            sock.close()

    def _begin(self, function: object, *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)  # type: ignore[arg-type]  # a function
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.add(sock)
            self._begin(self._serve, sock)

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
            _end(sock)

    def _pass_on(self, sock: socket.socket, head: bytes) -> None:
        behind = socket.create_connection(self._behind, 10)
        behind.settimeout(None)
        self._sockets.add(behind)
        behind.sendall(head)
        self._begin(_copy, behind, sock)
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
    _end(to)


def _end(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # ended already
