"""Rate limits: a token bucket for each key or address."""

from __future__ import annotations

import functools
import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import NoReturn

from synap.errors import RateLimitError


@functools.lru_cache(1000)
def origin(address: str) -> str:
    """Return what of an address limits are for: of IPv6 its /64 network, which one caller has all addresses of."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found.ipv4_mapped or ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))


_TOLERANCE = 1e-3
"""Tolerance in tokens for rounding errors of floating point sums."""


class Bucket:
    """A token bucket: `rate` requests a second, and as many at once after a second of rest.

    Implemented by the generic cell rate algorithm (ITU-T I.371), whose state is one number: the time at which the
    bucket will be full again. So an accepted request costs one reading of the clock and one addition.
    """

    __slots__ = ("capacity", "clock", "counted", "full", "most", "rate", "rest", "spacing")

    def __init__(self, rate: float, clock: Callable[[], float], counted: str = "requests") -> None:
        self.rate = rate
        self.counted = counted
        """What tokens stand for, in error messages."""
        self.capacity = max(rate, 1.0)
        self.clock = clock
        self.spacing = 1.0 / rate
        """Seconds until one token is back."""
        self.rest = self.capacity * self.spacing
        """Seconds that an empty bucket takes to fill."""
        self.most = self.rest + _TOLERANCE * self.spacing
        self.full = clock()

    def take(self) -> None:
        """Take one token; raises `RATE_LIMIT_EXCEEDED` with `retry_after` seconds."""
        if not self.grab(1):
            self._refuse(self.full - self.clock() + self.spacing - self.rest)

    def _refuse(self, missing: float) -> NoReturn:
        wait = max(math.ceil(max(missing, 0.0) * 1000 - 1e-6), 1) / 1000
        raise RateLimitError(
            "RATE_LIMIT_EXCEEDED",
            f"more than {self.rate:g} {self.counted} a second; the next is welcome in {wait:g} s",
            {"retry_after": wait, "limit": self.rate},
        )

    def grab(self, count: int, size: int = 0) -> bool:
        """Take `count` tokens if there are as many, else none; returns whether it did. `size`: see `Weighing`."""
        now = self.clock()
        full = self.full
        if full < now:
            full = now
        full += count * self.spacing
        if full - now > self.most:
            return False
        self.full = full
        return True

    def charge(self, count: int) -> None:
        """Take `count` further tokens for the commands of a batch; raises as `take` does.

        More tokens than the bucket's capacity are taken once it is full, as a debt.
        """
        if count <= 0:
            return
        now = self.clock()
        full = max(self.full, now)
        needed = min(count, self.capacity - 1.0) * self.spacing
        if full + needed - now > self.most:
            self._refuse(full + needed - self.rest - now)
        self.full = full + count * self.spacing

    def give(self, count: int, size: int = 0) -> None:
        """Return unused tokens."""
        self.full -= count * self.spacing

    def left(self) -> tuple[int, int]:
        """Return the available tokens, and the seconds (rounded up) until the bucket is full."""
        missing = max(self.full - self.clock(), 0.0)
        return max(int((self.rest - missing) * self.rate + _TOLERANCE), 0), math.ceil(missing - 1e-6)


class Weighing:
    """The limits of a key that has one for bytes: both buckets, of requests (None: no limit) and of their bytes."""

    __slots__ = ("_requests", "_sizes")

    def __init__(self, requests: Bucket | None, sizes: Bucket) -> None:
        self._requests = requests
        self._sizes = sizes

    def grab(self, count: int, size: int) -> bool:
        """Take what `count` requests of `size` bytes together cost if there is as much, else nothing."""
        if not self._sizes.grab(size):
            return False
        if self._requests is None or self._requests.grab(count):
            return True
        self._sizes.give(size)
        return False

    def take(self) -> None:
        """Take the token of one request, whose bytes were charged."""
        if self._requests is not None:
            self._requests.take()

    def charge(self, count: int) -> None:
        """Take further tokens for the commands of a batch."""
        if self._requests is not None:
            self._requests.charge(count)

    def give(self, count: int, size: int) -> None:
        """Return what requests cost that are put off."""
        self._sizes.give(size)
        if self._requests is not None:
            self._requests.give(count)


class Rates:
    """A bucket for each key or address, by default with `rate`.

    At most `most` are kept; the least recently used is dropped first.
    """

    def __init__(self, rate: float, clock: Callable[[], float], most: int = 10_000, counted: str = "requests") -> None:
        self.rate = rate
        self._counted = counted
        self._clock = clock
        self._most = most
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def exhausted(self, name: str) -> bool:
        """Return whether a key or address has no token left."""
        bucket = self._buckets.get(name)
        return bucket is not None and not bucket.left()[0]

    def bucket(self, name: str, rate: float | None = None) -> Bucket:
        """Return the bucket of a key or address."""
        bucket = self._buckets.get(name)
        rate = self.rate if rate is None else rate
        if bucket is None or bucket.rate != rate:
            bucket = self._buckets[name] = Bucket(rate, self._clock, self._counted)
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(name)
        return bucket

    def __len__(self) -> int:
        return len(self._buckets)
