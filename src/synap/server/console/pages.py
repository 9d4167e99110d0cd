"""Serves the console: the page and its files with a strict content security policy, and signing in and out."""

from __future__ import annotations

import asyncio
import functools
import gzip
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from synap._version import __version__
from synap.errors import SynapError
from synap.server.console.sessions import ConsoleSession, ConsoleSessions
from synap.server.grants import Access
from synap.server.http_exchange import Exchange, Header

BUNDLE = Path(__file__).parent / "bundle"
TYPES = {
    "index.html": b"text/html; charset=utf-8",
    "console.js": b"text/javascript; charset=utf-8",
    "console.css": b"text/css; charset=utf-8",
    "icon.svg": b"image/svg+xml",
}
SECURITY: list[Header] = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        b"require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
]
"""Headers of the page and its files: scripts and data from this origin only, no HTML from scripts."""
MAX_SIGN_IN = 16 * 1024


class File(NamedTuple):
    """A file of the bundle, with its headers' values."""

    body: bytes
    packed: bytes
    content_type: bytes
    etag: bytes


class SignIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /console/session`."""

    key: str


@functools.lru_cache(maxsize=None)
def read(name: str) -> File:
    """Read a file of the bundle (cached)."""
    body = (BUNDLE / name).read_bytes()
    etag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'.encode()
    return File(body, gzip.compress(body, 9, mtime=0), TYPES[name], etag)


class Console:
    """The console of one service. `lifetime`: seconds that a sign-in lasts without use of the page."""

    def __init__(self, lifetime: float, *, secure: bool) -> None:
        self.sessions = ConsoleSessions(lifetime)
        self._secure = secure
        pages: dict[tuple[str, str], Callable[[Exchange], Awaitable[None]]] = {
            ("GET", "/console/session"): self._show,
            ("POST", "/console/session"): self._sign_in,
            ("PUT", "/console/session"): self._renew,
            ("DELETE", "/console/session"): self._sign_out,
        }
        for name in TYPES:
            if name != "index.html":
                pages["GET", f"/console/{name}"] = pages["HEAD", f"/console/{name}"] = self._file
        self._pages = pages

    def page(self, method: str, path: str, headers: dict[bytes, bytes]) -> Callable[[Exchange], Awaitable[None]] | None:
        """Return the handler of a request; None where it isn't for the console. `/` is, where HTML is accepted."""
        if path == "/":
            return self._file if method in ("GET", "HEAD") and b"text/html" in headers.get(b"accept", b"") else None
        return self._pages.get((method, path))

    # ------------------------------------------------------------------------------------------ files

    async def _file(self, exchange: Exchange) -> None:
        name = exchange.scope["path"].rpartition("/")[2] or "index.html"
        file = read(name)
        headers = [
            *SECURITY,
            (b"content-type", file.content_type),
            (b"cache-control", b"no-cache"),
            (b"etag", file.etag),
            (b"vary", b"accept, accept-encoding" if name == "index.html" else b"accept-encoding"),
        ]
        body, status = file.body, 200
        if file.etag in exchange.headers.get(b"if-none-match", b""):
            body, status = b"", 304
        elif exchange.takes_gzip:
            body = file.packed
            headers.append((b"content-encoding", b"gzip"))
        headers.append((b"content-length", b"%d" % len(body)))
        if exchange.scope["method"] == "HEAD":
            body = b""
        await exchange.send({"type": "http.response.start", "status": status, "headers": headers})
        await exchange.send({"type": "http.response.body", "body": body})

    # ------------------------------------------------------------------------------------------ signing in and out

    async def _show(self, exchange: Exchange) -> None:
        service = exchange.service
        if not service.keys.on:
            principal, _ = service.admit(None, exchange.address, "console")
            await self._send_state(exchange, None, access=principal.access)
            return
        await self._send_state(exchange, self.sessions.find(exchange.headers.get(b"cookie")))

    async def _sign_in(self, exchange: Exchange) -> None:
        # A form can't send this content type, and a foreign page only after a CORS preflight.
        if exchange.headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
            raise SynapError("INVALID_REQUEST", "the Content-Type of a sign-in is application/json")
        body = await exchange.body(exchange.address, MAX_SIGN_IN)
        try:
            key = msgspec.json.decode(body, type=SignIn).key
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise SynapError("INVALID_REQUEST", 'a sign-in is {"key": "…"} as JSON') from None
        principal, bucket = exchange.service.admit(key, exchange.address, "console")
        if bucket is not None:
            bucket.take()
        earlier = self.sessions.find(exchange.headers.get(b"cookie"))
        if earlier is not None:
            self.sessions.end(earlier)
        token, session = self.sessions.begin(principal.access)
        await self._send_state(exchange, session, self._cookie(token))

    async def _renew(self, exchange: Exchange) -> None:
        session = self._confirmed(exchange)
        if session is not None:
            self.sessions.renew(session)
        await self._send_state(exchange, session)

    async def _sign_out(self, exchange: Exchange) -> None:
        session = self._confirmed(exchange)
        if session is not None:
            self.sessions.end(session)
        await self._send_state(exchange, None, self._cookie("", 0))

    def _confirmed(self, exchange: Exchange) -> ConsoleSession | None:
        cookies = exchange.headers.get(b"cookie")
        return self.sessions.admit(cookies, exchange.headers.get(b"x-csrf-token", b"").decode("latin-1"))

    def _cookie(self, token: str, age: float | None = None) -> Header:
        # The session on the server decides when it is over, so the cookie has no expiry by default.
        parts = [f"{self.sessions.cookie}={token}", "Path=/", "HttpOnly", "SameSite=Strict"]
        if age is not None:
            parts.append(f"Max-Age={age:.0f}")
        if self._secure:
            parts.append("Secure")
        return b"set-cookie", "; ".join(parts).encode()

    async def _send_state(
        self, exchange: Exchange, session: ConsoleSession | None, *extra: Header, access: Access | None = None
    ) -> None:
        """Send who is signed in. `access`: what who isn't may do all the same."""
        access = access if session is None else session.access
        state: dict[str, Any] = {
            "version": __version__,
            "keys": exchange.service.keys.on,
            "signed_in": session is not None,
            "name": "" if session is None else session.access.name,
            "grants": [] if access is None else access.texts(),
            "csrf": "" if session is None else session.csrf,
            "expires_in": None if session is None else session.expires - asyncio.get_running_loop().time(),
        }
        headers = [(b"cache-control", b"no-store"), *SECURITY, *extra]
        await exchange.send_whole(msgspec.json.encode(state), 200, b"application/json", headers)
