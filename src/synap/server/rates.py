"""How often callers may come: a token bucket for each key or address."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import NoReturn

from synap.errors import RateLimitError

__all__ = ["Bucket", "Rates"]


_DUST = 1e-3
"""The part of a token that sums of floating point numbers may be off by, and nobody shall be refused for."""


class Bucket:
    """A token bucket: `rate` requests a second, and as many at once after a second of rest.

    It is kept as the one number that the generic cell rate algorithm of ITU-T I.371 has for it: the time at which the
    bucket will be full again. That makes a request that passes one look at the clock and one addition.
    """

    __slots__ = ("capacity", "clock", "counted", "full", "most", "rate", "rest", "spacing")

    def __init__(self, rate: float, clock: Callable[[], float], counted: str = "requests") -> None:
        self.rate = rate
        self.counted = counted
        """What tokens are, for people."""
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
            self._refuse(self.full - self.clock() + self.spacing - self.rest)

    def _refuse(self, missing: float) -> NoReturn:
        wait = max(math.ceil(max(missing, 0.0) * 1000 - 1e-6), 1) / 1000
        raise RateLimitError(
            "RATE_LIMIT_EXCEEDED",
            f"more than {self.rate:g} {self.counted} a second; the next is welcome in {wait:g} s",
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

    def charge(self, count: int) -> None:
        """Take `count` further tokens for one request that holds as many commands; raises as `take` does.

        More than there can ever be are taken once the bucket is full, and owed.
        """
        if count <= 0:
            return
        now = self.clock()
        full = max(self.full, now)
        needed = min(count, self.capacity - 1.0) * self.spacing
        if full + needed - now > self.most:
            self._refuse(full + needed - self.rest - now)
        self.full = full + count * self.spacing

    def give(self, count: int) -> None:
        """Give tokens back that were not used."""
        self.full -= count * self.spacing

    def left(self) -> tuple[int, int]:
        """Return the tokens there are, and the seconds (rounded up) until there are as many as there can be."""
        missing = max(self.full - self.clock(), 0.0)
        return max(int((self.rest - missing) * self.rate + _DUST), 0), math.ceil(missing - 1e-6)


class Rates:
    """A bucket for each key or address, at `rate` where nothing else is said.

    There are `most` of them; the one not used for longest is forgotten first.
    """

    def __init__(self, rate: float, clock: Callable[[], float], most: int = 10_000, counted: str = "requests") -> None:
        self.rate = rate
        self._counted = counted
        self._clock = clock
        self._most = most
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def exhausted(self, name: str) -> bool:
        """Whether there is no token left for a key or address."""
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
