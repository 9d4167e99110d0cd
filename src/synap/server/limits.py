"""Who may come in, and how often: keys and rates."""

from __future__ import annotations

import hashlib
import hmac
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from synap.errors import AuthenticationError, PermissionDeniedError, RateLimitError

__all__ = ["Access", "Bucket", "Keys", "Rates", "check_origin"]


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


_DUST = 1e-3
"""The part of a token that sums of floating point numbers may be off by, and nobody shall be refused for."""


class Bucket:
    """A token bucket: `rate` requests a second, and as many at once after a second of rest.

    It is kept as the one number that the generic cell rate algorithm of ITU-T I.371 has for it: the time at which the
    bucket will be full again. That makes a request that passes one look at the clock and one addition.
    """

    __slots__ = ("capacity", "clock", "full", "most", "rate", "rest", "spacing")

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        self.rate = rate
        self.capacity = max(rate, 1.0)
        self.clock = clock
        self.spacing = 1.0 / rate
        """Seconds that one token takes to come back."""
        self.rest = self.capacity * self.spacing
        """Seconds that an empty bucket takes to fill."""
        self.most = self.rest + _DUST * self.spacing
        self.full = clock()

    def take(self) -> None:
        """Take one token; raises `RATE_LIMIT_EXCEEDED` with `retry_after` seconds."""
        if not self.grab(1):
            missing = max(self.full - self.clock() + self.spacing - self.rest, 0.0)
            wait = max(math.ceil(missing * 1000 - 1e-6), 1) / 1000
            raise RateLimitError(
                "RATE_LIMIT_EXCEEDED",
                f"more than {self.rate:g} requests a second; the next is welcome in {wait:g} s",
                {"retry_after": wait, "limit": self.rate},
            )

    def grab(self, count: int) -> bool:
        """Take `count` tokens if there are as many, else none."""
        now = self.clock()
        full = self.full
        if full < now:
            full = now
        full += count * self.spacing
        if full - now > self.most:
            return False
        self.full = full
        return True

    def give(self, count: int) -> None:
        """Give tokens back that were not used."""
        self.full -= count * self.spacing

    def left(self) -> tuple[int, int]:
        """Return the tokens there are, and the seconds (rounded up) until there are as many as there can be."""
        missing = max(self.full - self.clock(), 0.0)
        return max(int((self.rest - missing) * self.rate + _DUST), 0), math.ceil(missing - 1e-6)


class Rates:
    """A bucket for each key or address; `most` of them, the one not used for longest forgotten first."""

    def __init__(self, rate: float, clock: Callable[[], float], most: int = 10_000) -> None:
        self.rate = rate
        self._clock = clock
        self._most = most
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def bucket(self, name: str) -> Bucket:
        """Return the bucket of a key or address."""
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = Bucket(self.rate, self._clock)
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(name)
        return bucket

    def __len__(self) -> int:
        return len(self._buckets)


_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


def check_origin(origin: str | None, host: str | None, keys_on: bool) -> None:
    """Refuse what a web page of somebody else's makes a browser send; raises `FORBIDDEN`.

    Browsers let any page post to any address, and open WebSockets to it, and say in `Origin` whose page it was. It
    must be the service's own. Without keys it must also be named as this machine, since a foreign name can be made
    to lead here (DNS rebinding).
    """
    if origin is None:
        return
    try:
        name = urlsplit(origin).hostname
        asked = urlsplit(f"//{host}").hostname
    except ValueError:
        name = asked = None
    if name is None or name != asked or not (keys_on or name in _THIS_MACHINE):
        raise PermissionDeniedError("FORBIDDEN", "requests from other sites' web pages are not taken here")
