"""The first bytes of a connection: what does it speak?

`GET /api/v1/native` begins the native lane; anything else is handed to uvicorn's HTTP protocol, byte for byte.
uvicorn makes one `Sniffer` for each connection it accepts.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from synap._version import __version__
from synap.errors import SynapError
from synap.server.http_exchange import CERTIFIED, refusal
from synap.server.native import NativeSession
from synap.server.service import Service
from synap.server.tls import common_name
from synap.server.uvicorn_glue import PATIENCE, PlainHttp
from synap.wire.handshake import MAX_HEAD, PATH, PROTOCOL, accept, parse_head, parse_hello

__all__ = ["Sniffer"]

log = logging.getLogger("synap.server")

_NATIVE = f"GET {PATH} ".encode()


class Sniffer(asyncio.Protocol):
    """A connection that has not yet said what it speaks."""

    __slots__ = ("_buffer", "_config", "_service", "_shared", "_state", "_transport", "deadline")

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
        self._shared = app_state
        self._buffer = b""
        self._transport: asyncio.Transport
        self.deadline: float | None = None
        """When the head must have come (loop time). None: nothing more is taken."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        service = self._service
        # With TLS, connections were counted before their handshake.
        if service.tls is None and len(service.connections) >= service.config.max_connections:
            service.count_refused()
            error = SynapError(
                "SERVICE_UNAVAILABLE",
                f"{len(service.connections)} connections are open, as many as may be; nothing was done",
                {"retry_after": 1.0},
            )
            self._transport.write(refusal(error))
            self._transport.close()
            return
        self.deadline = asyncio.get_running_loop().time() + service.config.handshake_timeout
        service.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.deadline = None
        self._service.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        if self.deadline is None:
            return
        data = self._buffer + data if self._buffer else data
        if data.startswith(_NATIVE):
            self._greet(data)
        elif len(data) < len(_NATIVE) and _NATIVE.startswith(data):
            self._buffer = data
        else:
            shared = {
                **self._shared,
                PATIENCE: self._service.config.handshake_timeout,
                CERTIFIED: self._certified(),
            }
            self._hand_over(PlainHttp(self._config, self._state, shared), data)

    def shutdown(self) -> None:
        """Close; the service has nothing to say to who hasn't asked anything. (uvicorn's name for it.)"""
        self.deadline = None
        self._transport.close()

    overdue = shutdown

    def _hand_over(self, protocol: asyncio.Protocol, data: bytes) -> None:
        self.deadline = None
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
            service.origins.check({name.encode(): value.encode("latin-1") for name, value in headers.items()})
            hello = parse_hello(data[:end])
            certified = self._certified()
            guest, bucket = service.admit(hello.api_key, str(peer[0]) if peer else "", "native", certified)
            if service.draining:
                raise service.closing()
            service.check_connections(guest.access)
        except SynapError as error:
            self._refuse(error)
            return
        self._transport.write(accept(__version__, service.config.max_body))
        session = NativeSession(service, hello, guest, bucket)
        session.deadline = asyncio.get_running_loop().time() + service.config.idle_timeout
        self._hand_over(session, data[end + 4 :])

    def _certified(self) -> str | None:
        """Return the name in the peer's certificate, where one is asked for."""
        return common_name(self._transport) if self._service.config.tls_client_ca else None

    def _refuse(self, error: SynapError, status: int | None = None, headers: str = "") -> None:
        self.deadline = None
        self._transport.write(refusal(error, status, headers))
        self._transport.close()
