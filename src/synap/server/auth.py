"""Who may come in: keys, and whose web pages may make a browser send requests."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from synap.errors import AuthenticationError, PermissionDeniedError

__all__ = ["Access", "Keys", "check_origin"]


class Access(NamedTuple):
    """What a caller may do. `name` tells callers apart for the rate limit without being a secret."""

    name: str
    admin: bool


class Keys:
    """The keys that open the service. Held and compared as keyed digests, all of them each time, in constant time."""

    def __init__(self, api_keys: Iterable[str] = (), admin_keys: Iterable[str] = ()) -> None:
        self._secret = os.urandom(32)
        admins = set(admin_keys)
        keys = [*((key, False) for key in api_keys if key not in admins), *((key, True) for key in admins)]
        self._known = [(self._digest(key), Access(f"key {index}", admin)) for index, (key, admin) in enumerate(keys)]

    @property
    def on(self) -> bool:
        """Whether a key is asked for at all."""
        return bool(self._known)

    def admit(self, key: str | None, address: str) -> Access:
        """Say what the caller with this key may do; raises `UNAUTHORIZED`, without the key."""
        if not self._known:
            return Access(address, True)
        if key is None:
            raise AuthenticationError(
                "UNAUTHORIZED", "this service asks for a key: X-API-Key: <key>, or Authorization: Bearer <key>"
            )
        digest = self._digest(key)
        found = None
        for known, access in self._known:
            if hmac.compare_digest(known, digest):
                found = access
        if found is None:
            raise AuthenticationError("UNAUTHORIZED", "this key is not known here")
        return found

    def _digest(self, key: str) -> bytes:
        return hashlib.blake2b(key.encode("utf-8", "surrogateescape"), key=self._secret, digest_size=32).digest()


_PORTS = {"http": 80, "https": 443}
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


def check_origin(origin: str | None, host: str | None, keys_on: bool) -> None:
    """Refuse what a web page of somebody else's makes a browser send; raises `FORBIDDEN`.

    Browsers let any page post to any address, and open WebSockets to it, and say in `Origin` whose page it was. It
    must be the service's own, port included: another program on this machine serves other pages. (A proxy may leave the
    port out of `Host`; then the name has to do.) Without keys it must also be named as this machine, since a foreign
    name can be made to lead here (DNS rebinding).
    """
    if origin is None:
        return
    try:
        page, asked = urlsplit(origin), urlsplit(f"//{host}")
        name, same = page.hostname, page.hostname == asked.hostname
        if asked.port is not None:
            same = same and asked.port == (page.port or _PORTS.get(page.scheme))
    except ValueError:
        name, same = None, False
    if name is None or not same or not (keys_on or name in _THIS_MACHINE):
        raise PermissionDeniedError("FORBIDDEN", "requests from other sites' web pages are not taken here")
