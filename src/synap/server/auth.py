"""Authentication: keys of the configuration and of files, which are read again when they change."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from synap.errors import AuthenticationError
from synap.server import keyfile
from synap.server.grants import Access
from synap.server.rates import Rates, origin
from synap.server.settings import ServerConfig

log = logging.getLogger("synap.server")

GUESSES = 10.0
"""Wrong keys a second that one address may try."""
MAX_KNOWN = 10_000
"""Pairs of address and key that are remembered, and admitted while others at the address guess."""


def signed_out() -> AuthenticationError:
    """Build the error for a caller whose console session is over."""
    return AuthenticationError("UNAUTHORIZED", "the sign-in that this was asked under is over")


def gone() -> AuthenticationError:
    """Build the error for a caller whose key was taken away."""
    return AuthenticationError("UNAUTHORIZED", "this key is not known here any more")


class Keys:
    """The keys of the service. Those of the configuration are stored as keyed digests and compared in constant time,
    all of them each time; those of a file are looked up by their digest.
    """

    def __init__(self, config: ServerConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._paths = config.api_key_file, config.admin_key_file, config.keys_file
        self._secret = os.urandom(32)
        self._guesses = Rates(GUESSES, clock)
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._secrets: dict[Any, Access] = {}
        """By its digest: the access of each key without a name."""
        self._numbered = 0
        """Keys without names that were numbered so far."""
        self.version = 0
        """How often they were read."""
        self.reload()

    def reload(self) -> None:
        """Read the files again. Raises `INVALID_REQUEST` for an invalid one, and keeps the old keys."""
        config = self._config
        seen = self._stamps()  # first: a file that is written while it is read has changed since
        texts = {path: keyfile.read_text(path) for path in self._paths if path is not None}
        self._seen = seen  # also where one has a mistake: it is parsed again once it has changed
        plain, admins = list(config.api_keys), list(config.admin_keys)
        if config.api_key_file is not None:
            plain += keyfile.parse_secrets(texts[config.api_key_file], config.api_key_file)
        if config.admin_key_file is not None:
            admins += keyfile.parse_secrets(texts[config.admin_key_file], config.admin_key_file)
        named = {} if config.keys_file is None else keyfile.parse(texts[config.keys_file], config.keys_file)
        keys = [*((key, False) for key in plain if key not in admins), *((key, True) for key in admins)]
        self._secrets = dict([self._numbered_key(key, admin) for key, admin in keys])
        if any(len(key) < keyfile.LEAST for key, _ in keys):
            log.warning("a key has fewer than %d characters and may be guessed: `synap keys new`", keyfile.LEAST)
        self._named: dict[Any, Access] = named
        self.version += 1

    def _numbered_key(self, key: str, admin: bool) -> tuple[bytes, Access]:
        """Return the digest and the access of a key without a name; its number stays its own while others go."""
        digest = self._digest(key)
        known = self._secrets.get(digest)
        if known is None:
            self._numbered += 1
        return digest, Access(f"key {self._numbered - 1}" if known is None else known.name, admin, digest=digest)

    def _stamps(self) -> list[tuple[int, ...] | None]:
        stamps: list[tuple[int, ...] | None] = []
        for path in self._paths:
            try:
                status = None if path is None else os.stat(path)
            except OSError:
                status = None
            stamps.append(
                None if status is None else (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
            )
        return stamps

    @property
    def changed(self) -> bool:
        """Whether a file of keys has changed since all were last read; it stays so while one can't be read."""
        return self._stamps() != self._seen

    @property
    def on(self) -> bool:
        """Whether the service asks for keys."""
        return self._config.keys_on

    def find(self, access: Access) -> Access | None:
        """Return what the key that `access` was given for is allowed now; None where the key is gone."""
        return self._named.get(access.digest) or self._secrets.get(access.digest)

    def admit(self, key: str | None, address: str, certified: str | None = None) -> Access:
        """Return the access of a caller with this key, or this name in its certificate; raises `UNAUTHORIZED`.

        Guessing is rate-limited: after too many wrong keys from an address, only keys that were used from there before
        are admitted for a while; others get `RATE_LIMIT_EXCEEDED`, whether they are right or not.
        """
        address = origin(address)
        if not self.on:
            return Access(address, True)
        if key is None:
            # Only keys of the file have names that people chose, which a certificate may have.
            access = next((one for one in self._named.values() if one.name == certified), None)
            if access is not None:
                return access
            raise AuthenticationError(
                "UNAUTHORIZED", "this service asks for a key: X-API-Key: <key>, or Authorization: Bearer <key>"
            )
        found = self._look_up(key)
        if found is None:
            self._guesses.bucket(address).take()
            mistyped = key.startswith(keyfile.PREFIX) and not keyfile.has_checksum(key)
            raise AuthenticationError(
                "UNAUTHORIZED",
                "this key is not known here" + ("; its checksum is wrong: it was mistyped, or cut" if mistyped else ""),
            )
        known = (address, found.name)
        if known not in self._known:
            if self._guesses.exhausted(address):
                self._guesses.bucket(address).take()
            self._known[known] = None
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(known)
        return found

    def _look_up(self, key: str) -> Access | None:
        found = self._named.get(keyfile.digest(key)) if self._named else None
        if self._secrets:
            digest = self._digest(key)
            for known, access in self._secrets.items():
                if hmac.compare_digest(known, digest):
                    found = access
        return found

    def _digest(self, key: str) -> bytes:
        return hashlib.blake2b(key.encode("utf-8", "surrogateescape"), key=self._secret, digest_size=32).digest()
