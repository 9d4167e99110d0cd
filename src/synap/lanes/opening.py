"""The client's side of the handshake, without I/O.

`Upgrade` is the HTTP upgrade to native frames; `synap.lanes.websocket` has the handshake of a WebSocket that carries
them. Both are an `Opening`: send `request`, then `feed` received bytes until it returns those after the handshake.
"""

from __future__ import annotations

import ssl
from typing import Any, Callable, Mapping, Optional

import msgspec

from synap.config import ClientConfig, Target, tls_context
from synap.errors import SynapError, from_wire
from synap.lanes.errors import CERTIFICATE_HINT, TLS_HINT, HandshakeCut, NotOffered, connect_failed
from synap.wire.codec import JSON
from synap.wire.frames import MAX_BODY
from synap.wire.handshake import MAX_HEAD, PROTOCOL, Head, Hello, greet, parse_head

_MOST_BODY = 64 * 1024
"""Bytes of a refusal's body that are waited for."""

_REFUSALS = {401: "UNAUTHORIZED", 403: "FORBIDDEN", 429: "RATE_LIMIT_EXCEEDED", 503: "SERVICE_UNAVAILABLE"}


class Framing:
    """A layer between frames and the socket (a WebSocket), without I/O."""

    def wrap(self, data: bytes) -> bytes:
        """Return the bytes to send for these bytes of frames."""
        raise NotImplementedError

    def unwrap(self, data: bytes) -> bytes:
        """Return the bytes of frames in received data, which is `b""` at the end of the connection. Raises `Fault`."""
        raise NotImplementedError

    def take_out(self) -> bytes:
        """Return what the layer itself has to send: the answer to a ping, a close."""
        raise NotImplementedError

    def goodbye(self) -> bytes:
        """Return what to send before the connection is closed."""
        raise NotImplementedError


class Opening:
    """One handshake."""

    def __init__(self, target: Target) -> None:
        self.place = target.authority
        self._cut = f"without an answer ({TLS_HINT if target.scheme == 'http' else CERTIFICATE_HINT})"
        self.request = b""
        """The bytes to send first."""
        self.max_body = MAX_BODY
        """The service's limit for the body of a request, known after the handshake."""
        self.framing: Optional[Framing] = None
        """The layer between frames and the socket after the handshake; None: there is none."""

    def feed(self, data: bytes) -> Optional[bytes]:
        """Process received bytes; returns those after the handshake, None while it is incomplete.

        Raises `NotOffered` where the server doesn't offer this transport, its own refusal (`AuthenticationError`,
        `RateLimitError`, …), and `CONNECTION_FAILED` for what is not HTTP.
        """
        raise NotImplementedError

    def ended(self) -> SynapError:
        """Return the error for a connection that ended during the handshake, before anything came."""
        return connect_failed(self.place, f"the connection was closed in the handshake, {self._cut}")

    def _take_limit(self, limit: str) -> None:
        if limit.isdigit() and len(limit) < 19:
            self.max_body = int(limit)


Open = Callable[[ClientConfig, Target, str], Opening]
"""Makes the handshake for a session."""


def hello_of(config: ClientConfig, session: str) -> Hello:
    """Return the client's part of the handshake."""
    return Hello(session, config.format, config.compression, config.api_key)


class Upgrade(Opening):
    """The HTTP/1.1 upgrade to native frames."""

    def __init__(self, config: ClientConfig, target: Target, session: str) -> None:
        super().__init__(target)
        self.request = greet(target.authority, hello_of(config, session))
        self._received = b""

    def feed(self, data: bytes) -> Optional[bytes]:
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            if len(self._received) > MAX_HEAD or not b"HTTP/1.".startswith(self._received[:7]):
                raise connect_failed(self.place, "what answers there speaks no HTTP")
            return None
        try:
            parsed = parse_head(head)
            version, status_text = parsed.line.split(" ")[:2]
            status = int(status_text)
        except (SynapError, ValueError):
            raise connect_failed(self.place, "what answers there speaks no HTTP") from None
        if not version.startswith("HTTP/1."):
            raise connect_failed(self.place, "what answers there speaks no HTTP/1.1")
        if status == 101 and parsed.headers.get("upgrade", "").lower() == PROTOCOL:
            self._take_limit(parsed.headers.get("synap-max-body", ""))
            return rest
        if status in _REFUSALS and not _whole(parsed, rest):
            return None
        raise refusal(self.place, f"the upgrade to {PROTOCOL}", status, parsed.headers, rest)

    def ended(self) -> SynapError:
        if self._received:
            return connect_failed(self.place, "the connection was closed in the handshake")
        error = super().ended()
        return HandshakeCut(error.code, error.message, error.details)


def _whole(head: Head, body: bytes) -> bool:
    """Return whether the body of a refusal is complete, or longer than is waited for."""
    length = head.headers.get("content-length", "")
    return not (length.isdigit() and len(length) < 19 and len(body) < int(length) <= _MOST_BODY)


def refusal(place: str, what: str, status: int, headers: Mapping[str, str], body: bytes) -> SynapError:
    """Build the error for a handshake that was answered with `status`. Names of `headers` are in lower case.

    `what`: what the client asked for, for the message.
    """
    if status not in _REFUSALS:
        text = f"the server at {place} doesn't offer {what} (it answered {status}); nothing was sent"
        return NotOffered("CONNECTION_FAILED", text, {"place": place})
    try:
        return JSON.decode_error(_error_of(body))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    after = headers.get("retry-after", "")
    details = {"retry_after": int(after)} if after.isdigit() and len(after) < 19 else {}
    return from_wire(_REFUSALS[status], f"the server at {place} answered {status}", details)


def _error_of(body: bytes) -> bytes:
    """Extract the error envelope from a response, or from a bare envelope."""
    parsed: Any = JSON.decode(body)
    if isinstance(parsed, dict) and isinstance(parsed.get("error"), dict):
        parsed = parsed["error"]
    return JSON.encode(parsed)


def tls_for(config: ClientConfig, target: Target) -> Optional[ssl.SSLContext]:
    """Return the TLS context; None for plain `http://`."""
    return tls_context(config) if target.scheme == "https" else None
