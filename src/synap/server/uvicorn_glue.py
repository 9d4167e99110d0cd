"""All that is changed of uvicorn: its HTTP and WebSocket protocols."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from synap.errors import SynapError
from synap.server.clients import Visit
from synap.server.http_exchange import refusal
from synap.wire.handshake import MAX_HEAD

__all__ = ["PING_EVERY", "PingingWebSocket", "PlainHttp"]

log = logging.getLogger("synap.server")

PING_EVERY = 30.0
MISSES = 3

_HTTP2 = re.compile(rb"\r\nupgrade:[ \t]*h2c[ \t]*(?=\r\n)", re.IGNORECASE)


def _without_http2(data: bytes) -> bytes:
    """Take the offer of HTTP/2 out of a head: nobody is bound to take it, but the parser would skip the body for it.

    Java's HttpClient makes this offer with every first request.
    """
    head, end, body = data.partition(b"\r\n\r\n")
    return _HTTP2.sub(b"", head + b"\r\n")[:-2] + end + body if end else data


class _Corked:
    """A transport that keeps the head of an answer back until its body follows: one packet and one system call."""

    __slots__ = ("_head", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        if self._head:
            self._transport.write(self._head + data)
            self._head = b""
        elif data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1"):
            self._head = data
        else:
            self._transport.write(data)

    def flush(self) -> None:
        if self._head and not self._transport.is_closing():
            self._transport.write(self._head)
        self._head = b""

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class PlainHttp(HttpToolsProtocol):
    """uvicorn's HTTP with a bound on heads, heads and bodies in one write, and JSON where it would answer by itself."""

    since: float | None = None
    """When the head began that is still to come (loop time)."""
    _head = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base
        super().connection_made(transport)
        self._plain_transport = transport
        self.visit = Visit.over("http", transport)
        self.transport = cast(asyncio.Transport, _Corked(transport))

    def on_response_complete(self) -> None:
        cast(_Corked, self.transport).flush()
        super().on_response_complete()

    def handle_websocket_upgrade(self) -> None:
        self.transport = self._plain_transport
        super().handle_websocket_upgrade()

    def data_received(self, data: bytes) -> None:
        heading = self.since is not None
        if b"h2c" in data and (self.cycle is None or self.cycle.response_complete):
            data = _without_http2(data)
        super().data_received(data)
        if heading and self.since is not None:
            self._head += len(data)
            if self._head > MAX_HEAD:
                self.send_400_response(f"the head of a request may have {MAX_HEAD} bytes")

    def on_message_begin(self) -> None:
        self.since = self.loop.time()
        self._head = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self.since = None
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self.since = None
        self.transport.write(refusal(SynapError("INVALID_REQUEST", msg)))
        self.transport.close()

    def disconnect(self) -> None:
        """Close the connection, as an admin asked."""
        self._plain_transport.close()

    def overdue(self) -> None:
        """The head doesn't come: give up."""
        self.send_400_response("the head of the request took too long")

    def _unsupported_upgrade_warning(self) -> None:
        log.debug("an Upgrade that is not to a WebSocket was not taken")


class PingingWebSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, which gives up after several missed pings instead of one."""

    _missed = 0

    def handle_pong(self, event: Any) -> None:
        self._missed = 0
        super().handle_pong(event)

    def keepalive_timeout(self) -> None:
        self._missed += 1
        if self._missed < MISSES and not self.close_sent and not self.transport.is_closing():
            self.pong_timer = None
            self.send_keepalive_ping()
        else:
            super().keepalive_timeout()
