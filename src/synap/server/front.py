"""The first bytes of a connection: what does it speak?

`GET /api/v1/native` begins the native lane; anything else is handed to uvicorn's HTTP protocol, byte for byte.
uvicorn makes one `Front` for each connection it accepts.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from synap._version import __version__
from synap.errors import SynapError, http_status
from synap.server.limits import check_origin
from synap.server.native import NativeSession
from synap.server.service import Service
from synap.wire.envelope import WIRES
from synap.wire.handshake import MAX_HEAD, PATH, PROTOCOL, accept, parse_head, parse_hello

__all__ = ["Front", "PlainHttp", "refusal"]

log = logging.getLogger("synap.server")

_NATIVE = f"GET {PATH} ".encode()
_PHRASES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    426: "Upgrade Required",
    429: "Too Many Requests",
}


def refusal(error: SynapError, status: int | None = None, extra: str = "") -> bytes:
    """Write a whole HTTP answer that refuses a connection, as JSON; the connection is closed after it."""
    status = http_status(error.code) if status is None else status
    body = WIRES["json"].error("", error)
    retry = error.details.get("retry_after")
    after = "" if retry is None else f"Retry-After: {max(1, math.ceil(retry))}\r\n"
    if status == 401:
        after = "WWW-Authenticate: Bearer\r\n"
    head = (
        f"HTTP/1.1 {status} {_PHRASES.get(status, 'Service Unavailable')}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n{after}{extra}\r\n"
    )
    return head.encode("latin-1") + body


class Front(asyncio.Protocol):
    """A connection that has not yet said what it speaks."""

    __slots__ = ("_buffer", "_config", "_options", "_service", "_state", "_transport", "since")

    def __init__(
        self,
        service: Service,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._service = service
        self._config = config
        self._state = server_state
        self._options: dict[str, Any] = {"app_state": app_state, "_loop": _loop}
        self._buffer = b""
        self._transport: asyncio.Transport
        self.since: float | None = None
        """When the head began that is still to come (loop time)."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        service = self._service
        if len(service.connections) >= service.config.max_connections:
            service.refused += 1
            error = SynapError(
                "SERVICE_UNAVAILABLE",
                f"{len(service.connections)} connections are open, as many as may be; nothing was done",
                {"retry_after": 1.0},
            )
            self._transport.write(refusal(error))
            self._transport.close()
            return
        self.since = asyncio.get_running_loop().time()
        service.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._service.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        if self.since is None:
            return
        data = self._buffer + data if self._buffer else data
        if data.startswith(_NATIVE):
            self._greet(data)
        elif len(data) < len(_NATIVE) and _NATIVE.startswith(data):
            self._buffer = data
        else:
            protocol = PlainHttp(self._config, self._state, **self._options)
            protocol.since = self.since
            self._hand_over(protocol, data)

    def shutdown(self) -> None:
        """Close; the service has nothing to say to who hasn't asked anything. (uvicorn's name for it.)"""
        self._transport.close()

    overdue = shutdown

    def _hand_over(self, protocol: asyncio.Protocol, data: bytes) -> None:
        self.since = None
        self._buffer = b""
        self._service.connections.discard(self)
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        if data:
            protocol.data_received(data)

    # ------------------------------------------------------------------------------------------ the native lane

    def _greet(self, data: bytes) -> None:
        end = data.find(b"\r\n\r\n", 0, MAX_HEAD)
        if end < 0:
            if len(data) >= MAX_HEAD:
                self._refuse(SynapError("INVALID_REQUEST", f"the head of a request may have {MAX_HEAD} bytes"))
            self._buffer = data
            return
        service = self._service
        peer = self._transport.get_extra_info("peername")
        try:
            headers = parse_head(data[:end]).headers
            if headers.get("upgrade", "").lower() != PROTOCOL:
                error = SynapError("INVALID_REQUEST", f"{PATH} takes an Upgrade to {PROTOCOL}, see docs/protocol.md")
                self._refuse(error, 426, f"Upgrade: {PROTOCOL}\r\n")
                return
            check_origin(headers.get("origin"), headers.get("host"), service.keys.on)
            hello = parse_hello(data[:end])
            access, bucket = service.admit(hello.api_key, str(peer[0]) if peer else "")
            if service.draining:
                raise service.closing()
        except SynapError as error:
            self._refuse(error)
            return
        self._transport.write(accept(__version__, service.config.max_body))
        self._hand_over(NativeSession(service, hello, access, bucket), data[end + 4 :])

    def _refuse(self, error: SynapError, status: int | None = None, headers: str = "") -> None:
        self.since = None
        self._transport.write(refusal(error, status, headers))
        self._transport.close()


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

    def overdue(self) -> None:
        """The head doesn't come: give up."""
        self.send_400_response("the head of the request took too long")

    def _unsupported_upgrade_warning(self) -> None:
        log.debug("an Upgrade that is not to a WebSocket was not taken")
