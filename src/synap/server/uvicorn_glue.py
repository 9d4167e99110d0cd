"""Patches of uvicorn: its HTTP protocol and its logging (WebSocket: `pinging_websocket`; start and shutdown: `drain`).

pyproject.toml bounds the versions it is written for; tests/server/test_uvicorn_glue.py checks what it relies on.
"""

from __future__ import annotations

import asyncio
import logging
from typing import cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from synap.errors import SynapError
from synap.server.clients import ABORT, ADMITTED, FAILED, Visit
from synap.server.corked import CorkedTransport
from synap.server.http_exchange import refusal
from synap.server.service import Service
from synap.wire.handshake import MAX_HEAD, check_host

log = logging.getLogger("synap.server")

PING_EVERY = 30.0

MAX_HEADERS = 256
BODY_PATIENCE = 35.0
"""Seconds that a body may take beside those for its bytes at `MIN_RATE`; its reader times out before that."""
PATIENCE = "patience"
"""The key, in a connection's state, of the timeout of a head or a message in seconds."""
MIN_RATE = 4096.0
"""Bytes a second that a peer must send of an incomplete request or message."""
FRAMING = 8
"""Bytes of chunk sizes, extensions and trailers allowed for each byte of a body, beside `MAX_HEAD`."""
MAX_PIPELINED = 32
"""Pipelined requests that may wait behind the one in flight; further input is not parsed until they are answered."""
MOST_UNPARSED = 64 * 1024
"""Bytes of such input beyond which no more is read."""
PIECE = 4096
"""Bytes of an HTTP head, of a body's framing or of a WebSocket that are parsed between two checks of the limits."""
BODY_PIECE = 16 * 1024
"""The same of an HTTP body."""


_OFFERS = (b"upgrade", b"http2-settings")
_BODIES = (b"content-length", b"transfer-encoding")


def quieten() -> None:
    """Filter uvicorn's log lines about malformed requests and about refused WebSockets."""
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    logging.getLogger("uvicorn.error").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not message.startswith("Invalid UTF-8") and "without completing handshake" not in message


class _Refused(Exception):
    """Raised in parser callbacks to refuse a request; the message says why."""


class PlainHttp(HttpToolsProtocol):
    """uvicorn's HTTP with limits on heads, framing, pipelining and time. An answer's head and body leave in one write.

    Bytes belong to a head, to a body or to its framing (chunk sizes, extensions, trailers). All but the body are
    limited, and each part has a deadline, whether the application reads the body or not.
    """

    deadline: float | None = None
    """When the current request must be complete (loop time)."""
    _begun = False
    """Whether a request is incomplete."""
    _heading = False
    """Whether its head is incomplete."""
    _head = 0
    _outside = 0
    """Bytes of the request that aren't body."""
    _body = 0
    _host: bytes | None = None
    _last_host = b"\n"
    """The last `Host` that was valid; initially one that no request can have."""
    _stopping = False
    """Whether the service drains: the connection closes after the answers to complete requests."""
    _again: bytes | None = None
    """The head of a request with an unsupported `Upgrade`, without that header."""
    _unparsed = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base
        super().connection_made(transport)
        self._plain_transport = transport
        self.visit = Visit.over("http", transport)
        self.app_state[ABORT] = transport.abort
        self.transport = cast(asyncio.Transport, CorkedTransport(transport))

    def connection_lost(self, exc: Exception | None) -> None:
        self.app_state[ADMITTED]()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """End what is answered once it began: the transport closes once its peer has read what was written, if ever."""
        self.loop.call_soon(self._left)

    def _left(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self.flow.resume_writing()

    def on_response_complete(self) -> None:
        cast(CorkedTransport, self.transport).flush()
        if self._begun:
            self.deadline = self.loop.time() + self.app_state[PATIENCE]
        super().on_response_complete()
        if self._stopping and not self._plain_transport.is_closing():
            self.shutdown()
        if self._unparsed and not self._plain_transport.is_closing():
            self.flow.pause_reading()  # which each answer resumes: what was received before is parsed first
            self.loop.call_soon(self._parse_on)

    def handle_websocket_upgrade(self) -> None:
        self.transport = self._plain_transport
        super().handle_websocket_upgrade()

    # ------------------------------------------------------------------------------------------ input

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._unparsed:
            self._unparsed += data
            if len(self._unparsed) > MOST_UNPARSED:  # below, reading goes on, so that a disconnect is noticed
                self.flow.pause_reading()
        else:
            self._parse(data)

    def _parse_on(self) -> None:
        data, self._unparsed = self._unparsed, b""
        if data and not self.transport.is_closing():
            self.flow.resume_reading()
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        """Parse received bytes in pieces, so that little is parsed before a limit refuses it."""
        at = 0
        while at < len(data):
            if len(self.pipeline) >= MAX_PIPELINED:
                self._unparsed = data[at:]
                self.flow.pause_reading()
                return
            step = BODY_PIECE if self._begun and not self._heading else PIECE
            piece = data if at == 0 and step >= len(data) else data[at : at + step]
            at += len(piece)
            self._outside += len(piece)
            if not self._feed(piece):
                if self._plain_transport.get_protocol() is not self:
                    return  # A WebSocket from now on; its client may not send frames before the answer.
                if self._again is None:
                    return
                # The parser treats any `Upgrade` as accepted, and skips the body.
                head, self._again = self._again, None
                self._begun = False
                self.parser = httptools.HttpRequestParser(self)
                if not self._feed(head):
                    return
                data, at = piece[self._upgrade_at :] + data[at:], 0
                continue
            if self._over_limits():
                return
        if not self._begun and self.deadline is None and (self.cycle is None or self.cycle.response_complete):
            self.deadline = self.loop.time() + self.app_state[PATIENCE]  # Empty lines between requests don't begin one.

    def _feed(self, data: bytes) -> bool:
        """Parse a piece; returns False if the rest must not be parsed as HTTP."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade_at = upgrade.args[0]
            if self._again is None:
                self.handle_websocket_upgrade()
            return False
        except httptools.HttpParserError as error:
            reason = error.__context__
            self.send_400_response(str(reason) if isinstance(reason, _Refused) else "this is not HTTP/1.1")
            return False
        return True

    def _over_limits(self) -> bool:
        if self._outside > MAX_HEAD + FRAMING * self._body:
            if self._heading or not self._begun:
                self.send_400_response(f"the head of a request may have {MAX_HEAD} bytes")
            else:
                self.send_400_response("there is more around the chunks of this body than in them")
        elif self._body > self.config.ws_max_size and self._begun and self.cycle.response_complete:
            self.send_400_response("this body is too large, and was answered already")
        return self.transport.is_closing()

    # ---- callbacks of the parser
    def on_message_begin(self) -> None:
        if self._again is None:
            self.deadline = self.loop.time() + self.app_state[PATIENCE]
        self._begun = self._heading = True
        self._head = self._body = 0
        self._host = None
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._heading:
            return  # A trailer: ignored.
        self._count(len(name) + len(value) + 4)
        if len(self.headers) >= MAX_HEADERS:
            raise _Refused(f"a request may have {MAX_HEADERS} headers")
        if len(name) == 4 and name.lower() == b"host":
            if self._host is not None:
                raise _Refused("a request has one Host")
            self._host = value
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._head += size
        if self._head > MAX_HEAD:
            raise _Refused(f"the head of a request may have {MAX_HEAD} bytes")

    def on_headers_complete(self) -> None:
        self._heading = False
        self._outside = 0
        self.deadline = self.loop.time() + BODY_PATIENCE
        if self._host != self._last_host:
            self._check_host()
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise _Refused("CONNECT is for proxies; this is none")
            if not self._should_upgrade():
                self._again = self._head_without_offer()
                return
            if any(name in _BODIES and value.strip(b"0") for name, value in self.headers):
                raise _Refused("a request to upgrade to a WebSocket has no body")
        super().on_headers_complete()

    def _check_host(self) -> None:
        if self._host is None and self.parser.get_http_version() == "1.0":
            return
        try:
            self._last_host = check_host(self._host)
        except SynapError as error:
            raise _Refused(error.message) from None

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        self._outside -= len(body)
        assert self.deadline is not None
        self.deadline += len(body) / MIN_RATE
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._again is None:
            self._begun = False
            self._outside = 0
            self.deadline = None
            super().on_message_complete()

    def _head_without_offer(self) -> bytes:
        """Rebuild the head without `Upgrade`: Java's HttpClient offers HTTP/2 with each request."""
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % (name, value) for name, value in self.headers if name not in _OFFERS]
        return b"\r\n".join([*lines, b"", b""])

    # ------------------------------------------------------------------------------------------ the end

    def send_400_response(self, msg: str) -> None:
        """Send a 400 response and close."""
        self._refuse(SynapError("INVALID_REQUEST", msg))

    def _refuse(self, error: SynapError) -> None:
        """Send an error response and close. Only close where an earlier request's answer would come next."""
        self.deadline = None
        self._unparsed = b""
        cycle = self.cycle
        own = self._begun and not self._heading and not self.pipeline and cycle is not None
        if cycle is None or cycle.response_complete or (own and not cycle.response_started):
            self.app_state[FAILED](error.code)
            self._plain_transport.write(refusal(error))
        self._plain_transport.close()

    def shutdown(self) -> None:
        """Close after the answers to complete requests; refuse an incomplete one, which might never be completed."""
        self._stopping = True
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            partial = self._heading
        else:
            partial = self._begun and not (self._heading or self.pipeline or cycle.response_started)
        if partial:
            self._refuse(Service.closing())
        else:
            super().shutdown()

    def disconnect(self) -> None:
        """Close the connection, as an admin asked."""
        self._plain_transport.close()

    def overdue(self) -> None:
        """Called after `deadline`: refuse the request, unless reading is paused."""
        if self.flow.read_paused:
            self.deadline = self.loop.time() + BODY_PATIENCE
        else:
            what = "head" if self._heading or not self._begun else "body"
            self.send_400_response(f"the {what} of the request took too long")
