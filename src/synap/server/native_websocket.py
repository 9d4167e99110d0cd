"""Native frames inside a WebSocket: `GET /api/v1/ws` with the subprotocol `synap.native`.

The session is the one of the native lane. Its transport sends what it writes as binary messages; message boundaries
mean nothing to either side.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from typing import Any

from synap._version import __version__
from synap.server.http_exchange import Exchange, Receive
from synap.server.native import NativeSession
from synap.server.service import Principal
from synap.wire.handshake import MAX_MESSAGE, SUBPROTOCOL, Hello

log = logging.getLogger("synap.server")

UNSUPPORTED = 1003
"""Close code for a text message, which this subprotocol doesn't have."""
SERVICE_RESTART = 1012
"""Close code of a service that is stopping, as registered."""


async def carry(exchange: Exchange, hello: Hello, principal: Principal) -> None:
    """Serve one WebSocket of native frames until it ends."""
    service = exchange.service
    headers = [(b"synap-version", __version__.encode()), (b"synap-max-body", b"%d" % service.config.max_body)]
    await exchange.send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL, "headers": headers})
    session = NativeSession(service, hello, principal, lane="websocket")
    carrier = _Carrier(session, exchange)
    session.connection_made(carrier)
    session.deadline = asyncio.get_running_loop().time() + service.config.idle_timeout
    service.connections.discard(session)  # it is counted as a WebSocket already
    writer = asyncio.ensure_future(carrier.write_on())
    reader = asyncio.ensure_future(_read(session, carrier, exchange.receive))
    try:
        with exchange.signed_in(carrier.disconnect), exchange.pushes_to(session):
            await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
    finally:
        carrier.abort()
        session.connection_lost(None)
        await end_tasks("a WebSocket of native frames", reader, writer)


async def end_tasks(what: str, *tasks: asyncio.Task[None]) -> None:
    """Cancel the tasks of a connection, wait for them, and log what failed but for the network."""
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception) and not isinstance(outcome, OSError):
            log.error("%s failed", what, exc_info=outcome)


async def _read(session: NativeSession, carrier: _Carrier, receive: Receive) -> None:
    while True:
        await carrier.readable.wait()
        message = await receive()
        if message["type"] != "websocket.receive":
            return
        data = message.get("bytes")
        if data is None:
            carrier.close(UNSUPPORTED)
            return
        session.data_received(data)


class _Carrier(asyncio.Transport):
    """The transport of a session: sends WebSocket messages."""

    def __init__(self, session: NativeSession, exchange: Exchange) -> None:
        super().__init__({"peername": (exchange.address, 0)})
        self.readable = asyncio.Event()
        """Whether the session is reading."""
        self.readable.set()
        self._session = session
        self._exchange = exchange
        self._sending = False
        """Whether a message is being sent; while others are heard, because the peer doesn't read."""
        self._queue: deque[bytes] = deque()
        self._size = 0
        self._high = 64 * 1024
        self._full = False
        self._something = asyncio.Event()
        self._code: int | None = None
        """The close code, once it is being closed."""

    async def write_on(self) -> None:
        """Send written data, until the transport is closed and empty."""
        while True:
            await self._something.wait()
            while self._queue:
                data = self._queue.popleft()
                for start in range(0, len(data), MAX_MESSAGE):
                    self._sending = True
                    await self._exchange.send({"type": "websocket.send", "bytes": data[start : start + MAX_MESSAGE]})
                    self._sending = False
                self._size -= len(data)
                if self._full and self._size <= self._high // 4:
                    self._full = False
                    self._session.resume_writing()
            if self._code is not None:
                await self._exchange.send({"type": "websocket.close", "code": self._code})
                return
            self._something.clear()

    # ---- asyncio's interface of a transport
    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is not None:
            self._high = high

    def write(self, data: Any) -> None:
        if self._code is not None:
            return
        self._queue.append(bytes(data))
        self._size += len(data)
        self._something.set()
        if self._size > self._high and not self._full:
            self._full = True
            self._session.pause_writing()

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(list_of_data))

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Nothing changes: messages come whole, and all go to the session's `data_received`."""

    def get_write_buffer_size(self) -> int:
        return self._size

    def pause_reading(self) -> None:
        self.readable.clear()

    def resume_reading(self) -> None:
        self.readable.set()

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self._code is not None

    def close(self, code: int = SERVICE_RESTART) -> None:
        """Close once everything is sent."""
        if self._code is None:
            self._code = code
            self._something.set()
            self.readable.set()

    def abort(self) -> None:
        """Drop unsent data and close, and let the session go: a peer that doesn't read would go on sending requests."""
        self._queue.clear()
        self._size = 0
        self.close()
        asyncio.get_running_loop().call_soon(self._session.connection_lost, None)
        if self._sending:
            self._exchange.end_connection()

    def disconnect(self) -> None:
        """Close at once: the console's session that opened it is over."""
        self._session.disconnect()
        self.abort()
