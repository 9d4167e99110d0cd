"""The console's sign-ins: a key, typed once, is exchanged for a cookie that scripts can't read, and a CSRF token.

The cookie is `HttpOnly` and `SameSite=Strict` and is renewed while the page is in use, for `lifetime` seconds each
time and `LONGEST` in all. It is not enough by itself: requests need the token too, which only a page of this origin can
read (double submit; OWASP, Cross-Site Request Forgery Prevention). Sessions are kept in memory, by digests.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections import Counter
from collections.abc import Callable

from synap.errors import PermissionDeniedError
from synap.server.grants import Access

SUBPROTOCOL = "synap.console"
"""The WebSocket subprotocol of the console, which offers `csrf.<token>` beside it: browsers can't set headers there."""
LONGEST = 12 * 3600.0
"""Seconds after which a session ends, however often it was renewed."""
MOST = 1000
"""The most sessions; the oldest of the key that has most of them is ended first."""


class ConsoleSession:
    """One sign-in. `ended` callbacks are called once, when it is over."""

    __slots__ = ("access", "csrf", "digest", "ends", "expires", "on_end", "over", "timer")

    def __init__(self, digest: bytes, access: Access, expires: float, ends: float) -> None:
        self.digest = digest
        self.access = access
        self.csrf = secrets.token_urlsafe(32)
        self.expires = expires
        """When it ends unless it is renewed (loop time)."""
        self.ends = ends
        """When it ends however often it is renewed."""
        self.on_end: set[Callable[[], None]] = set()
        """Called at its end: they close its connections."""
        self.timer: asyncio.TimerHandle | None = None
        self.over = False

    def confirms(self, token: str | None) -> bool:
        """Whether `token` is this session's CSRF token."""
        return token is not None and hmac.compare_digest(token.encode(), self.csrf.encode())


class ConsoleSessions:
    """All sign-ins of one service."""

    def __init__(self, lifetime: float) -> None:
        self.lifetime = lifetime
        self.cookie = f"synap_console_{secrets.token_hex(4)}"
        """The cookie's name. Cookies don't know ports, so services on one machine need names of their own."""
        self._sessions: dict[bytes, ConsoleSession] = {}

    def begin(self, access: Access) -> tuple[str, ConsoleSession]:
        """Begin a session; returns the cookie's value and the session."""
        token = secrets.token_urlsafe(32)
        now = asyncio.get_running_loop().time()
        session = ConsoleSession(_digest(token), access, now + self.lifetime, now + LONGEST)
        while len(self._sessions) >= MOST:
            names = Counter(one.access.name for one in self._sessions.values())
            most = max(names.values())
            self.end(next(one for one in self._sessions.values() if names[one.access.name] == most))
        self._sessions[session.digest] = session
        self._wind(session)
        return token, session

    def renew(self, session: ConsoleSession) -> None:
        """Extend a session to `lifetime` from now."""
        now = asyncio.get_running_loop().time()
        session.expires = min(now + self.lifetime, session.ends)
        self._wind(session)

    def end(self, session: ConsoleSession) -> None:
        """End a session, and close its connections."""
        session.over = True
        if session.timer is not None:
            session.timer.cancel()
        self._sessions.pop(session.digest, None)
        callbacks, session.on_end = session.on_end, set()
        for callback in callbacks:
            callback()

    def reconsider(self, find: Callable[[Access], Access | None]) -> None:
        """Apply changed permissions to all sessions; end those whose keys are gone."""
        for session in list(self._sessions.values()):
            access = find(session.access)
            if access is None:
                self.end(session)
            else:
                session.access = access

    def find(self, cookies: bytes | None) -> ConsoleSession | None:
        """Return the session that a Cookie header names."""
        token = self._token(cookies)
        return None if token is None else self._sessions.get(_digest(token))

    def admit(self, cookies: bytes | None, token: str | None) -> ConsoleSession | None:
        """Return the session that a Cookie header names; None where it names none.

        Raises `FORBIDDEN` where `token` isn't the session's CSRF token.
        """
        session = self.find(cookies)
        if session is None:
            return None
        if not session.confirms(token):
            raise PermissionDeniedError(
                "FORBIDDEN", "the console's cookie needs its CSRF token: X-CSRF-Token, as GET /console/session gives it"
            )
        return session

    def _token(self, cookies: bytes | None) -> str | None:
        # `http.cookies` gives up at odd ones, and takes quadratic time before Python 3.12.6 (CVE-2024-7592).
        found = None
        for part in (cookies or b"").decode("latin-1").split(";"):
            name, _, value = part.strip().partition("=")
            if name == self.cookie:
                found = value
        return found

    def _wind(self, session: ConsoleSession) -> None:
        if session.timer is not None:
            session.timer.cancel()
        session.timer = asyncio.get_running_loop().call_at(session.expires, self.end, session)


def _digest(token: str) -> bytes:
    return hashlib.blake2b(token.encode("utf-8", "surrogateescape"), digest_size=32).digest()
