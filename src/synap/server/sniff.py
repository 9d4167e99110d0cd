"""Detects the protocol of a connection by its first bytes.

`LISTENERS` maps prefixes to protocols: `GET /api/v1/native` begins the native lane, anything else is handed to
uvicorn's HTTP protocol, byte for byte. uvicorn makes one `Sniffer` for each connection it accepts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple, Optional, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from synap._version import __version__
from synap.errors import SynapError
from synap.server.clients import ADMITTED, FAILED, RECEIVED, SUBSCRIBERS, UNDER_WAY
from synap.server.http_exchange import CERTIFIED, refusal
from synap.server.native import NativeSession
from synap.server.service import Service
from synap.server.tls import common_name
from synap.server.uvicorn_glue import PATIENCE, PlainHttp
from synap.wire.handshake import MAX_HEAD, PATH, PROTOCOL, accept, check_host, parse_head, parse_hello


class Taken(NamedTuple):
    """The protocol that takes a connection over, and the bytes received for it."""

    protocol: asyncio.Protocol
    data: bytes


Factory = Callable[["Sniffer", bytes], Optional[Taken]]


class Listener(NamedTuple):
    """The first bytes of a protocol, and the factory of its connections.

    The factory gets all received bytes. It returns None until they are enough, and raises `SynapError` or `Refused`.
    """

    prefix: bytes
    factory: Factory


class Refused(Exception):
    """A refusal with a status and headers of its own."""

    def __init__(self, error: SynapError, status: int, headers: str) -> None:
        super().__init__(error, status, headers)
        self.error = error
        self.status = status
        self.headers = headers


class Sniffer(asyncio.Protocol):
    """A connection whose protocol is not known yet."""

    __slots__ = ("_buffer", "_transport", "app_state", "config", "deadline", "server_state", "service")

    def __init__(
        self,
        service: Service,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.service = service
        self.config = config
        self.server_state = server_state
        self.app_state = app_state
        self._buffer = b""
        self._transport: asyncio.Transport
        self.deadline: float | None = None
        """When the head must be complete (loop time). None: further bytes are ignored."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        service = self.service
        self._transport = cast(asyncio.Transport, transport)
        # With TLS, connections were counted before their handshake.
        if service.tls is None and service.full():
            error = SynapError(
                "SERVICE_UNAVAILABLE",
                f"{len(service.connections)} connections are open, as many as may be; nothing was done",
                {"retry_after": 1.0},
            )
            self._refuse(error)
            return
        self.deadline = asyncio.get_running_loop().time() + service.config.handshake_timeout
        service.connections.add(self)
        service.strangers[self._transport] = self._transport.abort

    def connection_lost(self, exc: Exception | None) -> None:
        self.admitted()
        self.deadline = None
        self.service.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        if self.deadline is None:
            return
        data = self._buffer + data if self._buffer else data
        self._buffer = data
        for prefix, factory in LISTENERS:
            if data.startswith(prefix):
                self._offer(factory, data)
                return
            if prefix.startswith(data):
                return  # It may become this one's.

    def _offer(self, factory: Factory, data: bytes) -> None:
        try:
            taken = factory(self, data)
        except Refused as refused:
            self._refuse(refused.error, refused.status, refused.headers)
        except SynapError as error:
            self._refuse(error)
        else:
            if taken is not None:
                self._hand_over(*taken)

    def shutdown(self) -> None:
        """Close; refuse a request whose head is incomplete. (The name is uvicorn's.)"""
        if self._buffer and self.deadline is not None:
            self._refuse(self.service.closing())
        else:
            self.overdue()

    def overdue(self) -> None:
        """Close; there is no request to answer."""
        self.deadline = None
        self._transport.close()

    def _hand_over(self, protocol: asyncio.Protocol, data: bytes) -> None:
        self.deadline = None
        self._buffer = b""
        self.service.connections.discard(self)
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        if data:
            protocol.data_received(data)

    def _refuse(self, error: SynapError, status: int | None = None, headers: str = "") -> None:
        self.deadline = None
        self.service.host.count_error(error.code)
        self._transport.write(refusal(error, status, headers))
        self._transport.close()

    # ---- for factories
    @property
    def certified(self) -> str | None:
        """The name in the peer's certificate, where one is required."""
        return common_name(self._transport) if self.service.config.tls_client_ca else None

    @property
    def address(self) -> str:
        """The peer's IP address."""
        peer = self._transport.get_extra_info("peername")
        return str(peer[0]) if peer else ""

    def admitted(self) -> None:
        """Note that the connection need not give way to others, or is gone."""
        self.service.strangers.pop(self._transport, None)

    def write(self, data: bytes) -> None:
        """Send bytes, before the connection is handed over."""
        self._transport.write(data)


def native(opening: Sniffer, data: bytes) -> Taken | None:
    """Make a session of the native lane, once the head of its request is complete."""
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD)
    if end < 0:
        if len(data) >= MAX_HEAD:
            raise SynapError("INVALID_REQUEST", f"the head of a request may have {MAX_HEAD} bytes")
        return None
    service = opening.service
    headers = parse_head(data[:end]).headers
    if headers.get("upgrade", "").lower() != PROTOCOL:
        error = SynapError("INVALID_REQUEST", f"{PATH} takes an Upgrade to {PROTOCOL}, see docs/protocol.md")
        raise Refused(error, 426, f"Upgrade: {PROTOCOL}\r\n")
    named = {name.encode("latin-1"): value.encode("latin-1") for name, value in headers.items()}
    check_host(named.get(b"host"))
    service.origins.check(named)
    hello = parse_hello(data[:end])
    principal, _ = service.admit(hello.api_key, opening.address, "native", opening.certified)
    if service.draining:
        raise service.closing()
    service.check_connections(principal.access)
    opening.admitted()
    opening.write(accept(__version__, service.config.max_body))
    session = NativeSession(service, hello, principal)
    session.deadline = asyncio.get_running_loop().time() + service.config.idle_timeout
    return Taken(session, data[end + 4 :])


def http(opening: Sniffer, data: bytes) -> Taken | None:
    """Make a connection of uvicorn's, which gets all of `data`."""
    shared = {
        **opening.app_state,
        PATIENCE: opening.service.config.handshake_timeout,
        SUBSCRIBERS: [],
        UNDER_WAY: [],
        RECEIVED: opening.service.transit.add,
        ADMITTED: opening.admitted,
        FAILED: opening.service.host.count_error,
        CERTIFIED: opening.certified,
    }
    return Taken(PlainHttp(opening.config, opening.server_state, shared), data)


LISTENERS: list[Listener] = [Listener(f"GET {PATH} ".encode(), native), Listener(b"", http)]
"""The first one whose prefix matches takes the connection. The last one takes any."""
