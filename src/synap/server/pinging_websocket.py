"""uvicorn's WebSocket, patched. A module of its own, so that the library it needs is imported with the first one."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Iterable
from typing import Any, cast

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState
from websockets.http11 import Request, Response
from websockets.streams import StreamReader

from synap.errors import SynapError
from synap.server.apart import PIECES, Pieces
from synap.server.clients import ADMITTED, RECEIVED
from synap.server.turns import TURN
from synap.server.uvicorn_glue import MIN_RATE, PATIENCE, PIECE
from synap.wire.envelope import WIRES

MISSES = 3
MOST_UNREAD = 1024 * 1024
"""Unsent bytes of pongs at which a peer that doesn't read is disconnected."""
MOST_QUEUED = 64
"""Parsed messages in the queue beyond which no more are parsed."""
MAX_FRAGMENTS = 10_000
"""The most frames of one message."""


_READ_EXACT = cast(Any, StreamReader.read_exact).__code__


def _waits_for_a_rest(conn: Any) -> bool:
    """Return whether the parser is within a frame, of which it may have taken all bytes out of its buffer."""
    parser = conn.parser
    while parser.gi_yieldfrom is not None:
        parser = parser.gi_yieldfrom
    return parser.gi_code is _READ_EXACT


def _reject(reject: Callable[[Any, str], Response], status: Any, text: str) -> Response:
    """Refuse a handshake as the library does, but in JSON, as everything is refused."""
    response = reject(status, text)
    body = response.body = WIRES["json"].error("", SynapError("INVALID_REQUEST", text.partition("\n")[0]))
    for name, value in (("Content-Length", str(len(body))), ("Content-Type", "application/json")):
        del response.headers[name]
        response.headers[name] = value
    return response


class PingingWebSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket: closes after several missed pings instead of one, and on incomplete messages."""

    outlives_requests = True
    """It is shut down once what was asked over it is answered, not before (`drain`)."""
    deadline: float | None = None
    """When the current message must be complete (loop time)."""
    _missed = 0

    _unparsed = b""
    """Received bytes, of which the first `_parsed` are parsed, in turns."""
    _parsed = 0
    _scheduled = False

    def handle_connect(self, event: Request) -> None:
        """Answer the handshake."""
        self.conn.reject = functools.partial(_reject, self.conn.reject)  # type: ignore[method-assign]
        super().handle_connect(event)
        del self.conn.reject  # which is a cycle

    def data_received(self, data: bytes) -> None:
        waits = self._parsed < len(self._unparsed)
        self._unparsed = self._unparsed[self._parsed :] + data
        self._parsed = 0
        if not waits:
            self._parse_on()

    def _parse_on(self) -> None:
        """Parse received bytes until the turn's time is up or the application's queue is full."""
        self._scheduled = False
        end = time.perf_counter() + TURN
        while self._parsed < len(self._unparsed) and not self.disconnected and not self.transport.is_closing():
            if self.queue.qsize() > MOST_QUEUED:  # `receive` resumes it
                self._pause()
                return
            data = self._unparsed[self._parsed : self._parsed + PIECE]
            self._parsed += len(data)
            self._parse(data)
            if time.perf_counter() > end and self._parsed < len(self._unparsed):
                self._pause()
                self._schedule()
                return
        self._unparsed = b""
        self._parsed = 0
        if self.read_paused and self.queue.empty() and not self.transport.is_closing():
            self.read_paused = False
            self.transport.resume_reading()

    def _pause(self) -> None:
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._parse_on)

    def connection_lost(self, exc: Exception | None) -> None:
        self.app_state[ADMITTED]()
        super().connection_lost(exc)
        # What is incomplete: this connection is in cycles, and it may be long until they are collected.
        self._unparsed, self._parsed, self.frames = b"", 0, []
        self.conn.reader.discard()

    def eof_received(self) -> None:
        """End the conversation: the transport closes once its peer has read what was written, if it ever does."""
        self.disconnected = True
        self.writable.set()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": 1006})

    async def run_asgi(self) -> None:
        await super().run_asgi()
        while not self.queue.empty():  # likewise, what nobody will take
            self.queue.get_nowait()

    async def receive(self) -> Any:
        """Wait for the next message. Unparsed bytes are parsed before more are read."""
        message = await super().receive()
        if self._parsed < len(self._unparsed):
            if not self.transport.is_closing():
                self._pause()
            if self.queue.qsize() <= MOST_QUEUED:
                self._schedule()
        return message

    async def send(self, message: Any) -> None:
        """Send an ASGI message. Between the pieces of a large one, other connections have their turns."""
        whole: Pieces | None = message.get(PIECES)
        if whole is None:
            # Its peer sent nonsense or a close meanwhile.
            if self.conn.eof_sent or (self.close_sent and self.initial_response is None):
                raise ClientDisconnected
            if message["type"] == "websocket.send" and self.transport.is_closing():  # what is written is a warning
                raise ClientDisconnected
            await super().send(message)
            return
        begin = self.conn.send_text if whole.text else self.conn.send_binary
        last = len(whole.pieces) - 1
        for place, piece in enumerate(whole.pieces):
            await self.writable.wait()
            if self.disconnected or self.close_sent or self.transport.is_closing():
                raise ClientDisconnected
            try:
                (self.conn.send_continuation if place else begin)(piece, place == last)
            except InvalidState:
                raise ClientDisconnected from None
            self.transport.write(b"".join(self.conn.data_to_send()))
            if place < last:
                await asyncio.sleep(0)

    def _parse(self, data: bytes) -> None:
        super().data_received(data)
        if self.frames or self.conn.reader.buffer or _waits_for_a_rest(self.conn):
            since = self.loop.time() + self.app_state[PATIENCE] if self.deadline is None else self.deadline
            self.deadline = since + len(data) / MIN_RATE
            self.app_state[RECEIVED](len(data))
            if len(self.frames) > MAX_FRAGMENTS:
                self.transport.close()
        else:
            self.deadline = None

    def queued(self) -> int:
        """Return the bytes of messages that are incomplete, or that the application has not taken."""
        waiting: Iterable[Any] = cast(Any, self.queue)._queue
        size = sum(map(len, self.frames)) + sum([len(one.get("text") or one.get("bytes") or b"") for one in waiting])
        return size + len(self._unparsed) - self._parsed + len(self.conn.reader.buffer)

    def handle_text(self, event: Any) -> None:
        super().handle_text(event)
        event.data = b""  # the library's parser holds its last frame until the next one

    def handle_bytes(self, event: Any) -> None:
        super().handle_bytes(event)
        event.data = b""

    def handle_cont(self, event: Any) -> None:
        super().handle_cont(event)
        event.data = b""

    def handle_parser_exception(self) -> None:
        """Close on a protocol error; before the handshake is answered, without a close frame."""
        if self.conn.close_sent is None:
            self.transport.close()
        else:
            super().handle_parser_exception()

    def overdue(self) -> None:
        """Called after `deadline`: close, unless reading is paused."""
        if self.read_paused:
            self.deadline = self.loop.time() + self.app_state[PATIENCE]
        else:
            self.deadline = None
            self.transport.close()

    def handle_ping(self) -> None:
        super().handle_ping()
        if self.transport.get_write_buffer_size() > MOST_UNREAD:
            self.transport.abort()

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
