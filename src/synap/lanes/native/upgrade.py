"""The client's side of the native lane's handshake, without I/O: what came back, and what it means."""

from __future__ import annotations

import ssl
from typing import Optional

import msgspec

from synap.config import ClientConfig, Target
from synap.errors import SynapError, from_wire
from synap.lanes.errors import NotOffered, failed
from synap.wire.codec import JSON
from synap.wire.frames import MAX_BODY
from synap.wire.handshake import MAX_HEAD, PROTOCOL, Head, Hello, greet, parse_head

__all__ = ["Upgrade", "tls_context"]

_MOST_BODY = 64 * 1024

_REFUSALS = {
    401: "UNAUTHORIZED",
    403: "FORBIDDEN",
    429: "RATE_LIMIT_EXCEEDED",
    503: "SERVICE_UNAVAILABLE",
}


class Upgrade:
    """One handshake. Send `request`, then `feed` what comes until it gives what follows the service's consent."""

    def __init__(self, config: ClientConfig, target: Target, session: str) -> None:
        self.place = target.authority
        self.request = greet(target.authority, Hello(session, config.format, config.compression, config.api_key))
        self.max_body = MAX_BODY
        """Bytes the service takes as one body, once it has consented."""
        self._received = b""

    def feed(self, data: bytes) -> Optional[bytes]:
        """Take what came; returns the bytes after the service's consent, None where more has to come.

        Raises `NotOffered` where the lane is not to be had here, the service's own refusal (`AuthenticationError`,
        `RateLimitError`, …), and `CONNECTION_FAILED` for what is no HTTP at all.
        """
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            if len(self._received) > MAX_HEAD or not b"HTTP/1.".startswith(self._received[:7]):
                raise failed(self.place, "what answers there speaks no HTTP")
            return None
        try:
            parsed = parse_head(head)
            version, status_text = parsed.line.split(" ")[:2]
            status = int(status_text)
        except (SynapError, ValueError):
            raise failed(self.place, "what answers there speaks no HTTP") from None
        if not version.startswith("HTTP/1."):
            raise failed(self.place, "what answers there speaks no HTTP/1.1")
        if status == 101 and parsed.headers.get("upgrade", "").lower() == PROTOCOL:
            limit = parsed.headers.get("synap-max-body", "")
            if limit.isdigit():
                self.max_body = int(limit)
            return rest
        if status in _REFUSALS:
            self._refused(status, parsed, rest)
            return None
        text = f"the server at {self.place} doesn't offer the native lane (it answered {status}); nothing was sent"
        raise NotOffered("CONNECTION_FAILED", text, {"place": self.place})

    def _refused(self, status: int, head: Head, body: bytes) -> None:
        """Raise the refusal that the body holds, once it is there."""
        length = head.headers.get("content-length", "")
        if length.isdigit() and int(length) <= _MOST_BODY and len(body) < int(length):
            return
        try:
            raise JSON.decode_error(_error_of(body))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            pass
        after = head.headers.get("retry-after", "")
        details = {"retry_after": int(after)} if after.isdigit() else {}
        raise from_wire(_REFUSALS[status], f"the server at {self.place} answered {status}", details)

    def ended(self) -> SynapError:
        """Return what it means that the connection ended before there was an answer."""
        return failed(self.place, "the connection was closed in the handshake")


def _error_of(body: bytes) -> bytes:
    """Take the error envelope out of a response, or out of what is one already."""
    parsed = JSON.decode(body)
    if isinstance(parsed, dict) and isinstance(parsed.get("error"), dict):
        parsed = parsed["error"]
    return JSON.encode(parsed)


def tls_context(config: ClientConfig, target: Target) -> Optional[ssl.SSLContext]:
    """Return what to speak TLS with, None for plain `http://`."""
    if target.scheme != "https":
        return None
    return config.ssl if config.ssl is not None else ssl.create_default_context()
