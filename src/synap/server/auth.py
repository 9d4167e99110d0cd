"""Who may come in: keys."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable
from typing import NamedTuple

from synap.errors import AuthenticationError

__all__ = ["Access", "Keys"]


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
