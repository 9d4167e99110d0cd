"""A peer that says what a test wants it to say, byte by byte: no service would answer like this."""

from __future__ import annotations

import re
import socket
import threading
from types import TracebackType
from typing import Callable, List, Optional, Type, Union

__all__ = ["CannedPeer", "http_answer"]

Reply = Union[bytes, Callable[[bytes], bytes]]


def http_answer(body: bytes, status: str = "200 OK", content_type: str = "application/json", extra: str = "") -> bytes:
    """Write an HTTP answer with a correct length."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


class CannedPeer:
    """Listens on a free port and answers every request with `reply`, then keeps the connection or, `ends`, doesn't.

    `reply` may be a function of the request. Requests that came are in `requests`.
    """

    def __init__(self, reply: Reply, *, ends: bool = False) -> None:
        self.reply = reply
        self.ends = ends
        self.requests: List[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: List[socket.socket] = [self._listener]
        self._threads: List[threading.Thread] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> CannedPeer:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        for sock in list(self._sockets):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has ended
            sock.close()
        for thread in self._threads:
            thread.join(5)

    def _start(self, function: Callable[[], None]) -> None:
        thread = threading.Thread(target=function, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        try:
            while len(self._sockets) < 100:
                sock, _ = self._listener.accept()
                self._sockets.append(sock)
                self._start(lambda sock=sock: self._converse(sock))  # type: ignore[misc]
        except OSError:
            pass  # closed

    def _converse(self, sock: socket.socket) -> None:
        try:
            while True:
                request = self._request(sock)
                if request is None:
                    return
                self.requests.append(request)
                sock.sendall(self.reply(request) if callable(self.reply) else self.reply)
                if self.ends:
                    sock.shutdown(socket.SHUT_RDWR)
                    sock.close()
                    return
        except OSError:
            pass  # the client has had enough

    @staticmethod
    def _request(sock: socket.socket) -> Optional[bytes]:
        """Receive one whole request, None where the connection ends."""
        data = b""
        while True:
            head, separator, body = data.partition(b"\r\n\r\n")
            if separator:
                length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
                if len(body) >= (int(length.group(1)) if length else 0):
                    return data
            more = sock.recv(65536)
            if not more:
                return None
            data += more
