"""The handshake of the native lane: an HTTP/1.1 Upgrade, on the same port as plain HTTP.

    GET /api/v1/native HTTP/1.1                 HTTP/1.1 101 Switching Protocols
    Host: …                                     Connection: Upgrade
    Connection: Upgrade                         Upgrade: synap/1
    Upgrade: synap/1                            Synap-Version: <of the service>
    Synap-Session: <32 hexadecimal digits>      Synap-Max-Body: <bytes>
    Synap-Format: json | msgpack
    Synap-Compression: gzip        (optional)
    X-API-Key: …                   (optional)

Frames follow the empty line in both directions. Any other status means that the native lane isn't offered, except
401, 403, 429 and 503, whose JSON body is an error envelope.

Behind a proxy that refuses this upgrade, the same headers open a WebSocket at `/api/v1/ws` with the subprotocol
`synap.native`, whose binary messages carry the frames: a stream of bytes, cut wherever the sender likes.
"""

from __future__ import annotations

import re
from typing import Dict, List, Mapping, NamedTuple, Optional, Tuple

from synap.config import FORMATS
from synap.errors import SynapError

PATH = "/api/v1/native"
PROTOCOL = "synap/1"
WEBSOCKET_PATH = "/api/v1/ws"
SUBPROTOCOL = "synap.native"
MAX_MESSAGE = 256 * 1024
"""The most bytes of frames in one WebSocket message; larger writes are split, so that neither side buffers more."""
MAX_HEAD = 16 * 1024
"""The most bytes of an HTTP head, on either side."""

_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+;=%-]+)(?::\d{0,5})?")
"""An address or a name, and maybe a port, as a URL has it; without a comma, which joins two headers into one."""
_SESSION = re.compile(r"[0-9a-f]{32}")


class Hello(NamedTuple):
    """The client's part of the handshake."""

    session: str
    format: str
    compression: bool
    api_key: Optional[str]


class Head(NamedTuple):
    """The head of an HTTP message: its first line and its headers, names in lower case."""

    line: str
    headers: Dict[str, str]


def hello_headers(hello: Hello) -> List[Tuple[str, str]]:
    """Return the client's headers, for both the upgrade and a WebSocket."""
    headers = [("Synap-Session", hello.session), ("Synap-Format", hello.format)]
    if hello.compression:
        headers.append(("Synap-Compression", "gzip"))
    if hello.api_key is not None:
        headers.append(("X-API-Key", hello.api_key))
    return headers


def greet(host: str, hello: Hello) -> bytes:
    """Build the client's request; `host`: the value of the Host header."""
    lines = [f"GET {PATH} HTTP/1.1", f"Host: {host}", "Connection: Upgrade", f"Upgrade: {PROTOCOL}"]
    lines += [f"{name}: {value}" for name, value in hello_headers(hello)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def accept(version: str, max_body: int) -> bytes:
    """Build the service's 101 response."""
    return (
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
        f"Upgrade: {PROTOCOL}\r\nSynap-Version: {version}\r\nSynap-Max-Body: {max_body}\r\n\r\n"
    ).encode("latin-1")


def parse_head(head: bytes) -> Head:
    """Parse the head of an HTTP message, without the empty line. Raises `INVALID_REQUEST`."""
    line, *rest = head.decode("latin-1").split("\r\n")
    headers: Dict[str, str] = {}
    for header in rest:
        name, colon, value = header.partition(":")
        if not colon or name != name.strip() or not name:
            raise SynapError("INVALID_REQUEST", f"not an HTTP header: {header[:80]!r}")
        if name.lower() == "host" and "host" in headers:
            raise SynapError("INVALID_REQUEST", "a request has one Host")
        headers[name.lower()] = value.strip()
    return Head(line, headers)


def check_host(host: Optional[bytes]) -> bytes:
    """Check and return the `Host` of a request. Raises `INVALID_REQUEST`."""
    if host is None:
        raise SynapError("INVALID_REQUEST", "a request of HTTP/1.1 has a Host")
    if not _HOST.fullmatch(host):
        shown = host[:80].decode("latin-1")
        raise SynapError("INVALID_REQUEST", f"Host is a name or an address, and maybe a port, not {shown!r}")
    return host


def parse_hello(head: bytes) -> Hello:
    """Read the client's request, `GET PATH` having been seen already. Raises `INVALID_REQUEST`."""
    headers = parse_head(head).headers
    if headers.get("upgrade", "").lower() != PROTOCOL or "upgrade" not in headers.get("connection", "").lower():
        raise SynapError("INVALID_REQUEST", f"{PATH} takes an Upgrade to {PROTOCOL}, see docs/protocol.md")
    return read_hello(headers)


def read_hello(headers: Mapping[str, str]) -> Hello:
    """Parse the client's headers, names in lower case. Raises `INVALID_REQUEST`."""
    session = headers.get("synap-session", "")
    if not _SESSION.fullmatch(session):
        raise SynapError("INVALID_REQUEST", "Synap-Session must be 32 hexadecimal digits in lower case")
    format = headers.get("synap-format", "json")
    if format not in FORMATS:
        raise SynapError("INVALID_REQUEST", f"Synap-Format must be json or msgpack, got {format[:40]!r}")
    key = headers.get("x-api-key")
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if key is None and scheme.lower() == "bearer":
        key = token.strip()
    return Hello(session, format, headers.get("synap-compression", "") == "gzip", key)
