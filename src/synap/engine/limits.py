"""Limits of an engine, and the estimate of the memory it uses."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Callable, List, Optional, TypeVar

from msgspec import Struct

from synap.errors import SynapError
from synap.shapes import size_of

T = TypeVar("T", bound=Struct)

ANSWER_BYTES = 8 * 1024 * 1024
"""The most bytes of messages or events in one answer that holds several. A lane delivers 64 MiB, and a byte of a value
may be six in the reader's format: what one answer can't deliver must not be leased for it."""


@dataclass
class Limits:
    """Limits of one engine. Ages are seconds, `memory` is bytes.

    `memory` limits the estimate that `Budget` keeps, which is close to what the data takes, not exact. With `evict`,
    keys with a ttl are evicted where it is reached.
    """

    memory: Optional[int] = None
    evict: bool = False
    room_events: int = 100_000
    room_age: float = 86_400.0
    replies: int = 100_000
    reply_age: float = 600.0
    reply_bytes: int = 256 * 1024 * 1024
    queues: int = 1_000_000
    rooms: int = 1_000_000
    idle: Optional[float] = None
    """Seconds after which an unused, empty queue that was made by its first use is removed; None: never."""
    waiting: int = 100_000
    """Consumers that wait on one queue."""
    subscriptions: int = 10_000
    """Subscriptions of one caller."""
    names: int = 10_000
    """Names of durable subscriptions that one room remembers."""


class Budget:
    """The estimated memory in bytes, and its limit.

    `used` is taken by stored data, `aside` by all else: remembered answers, subscriptions, connections. `limit` is what
    the latter leave of the whole for stored data.
    """

    __slots__ = ("aside", "evict", "limit", "used")

    def __init__(self, limit: Optional[int]) -> None:
        self.used = self.aside = 0
        self.limit = sys.maxsize if limit is None else limit
        self.evict: Optional[Callable[[int], None]] = None
        """Evicts until so many bytes fit; None without eviction."""

    @property
    def total(self) -> int:
        """All estimated bytes."""
        return self.used + self.aside

    def set_aside(self, growth: int) -> None:
        """Count bytes (or, below 0, no longer) that aren't stored data."""
        self.aside += growth
        self.limit -= growth

    def check(self, growth: int) -> None:
        """Raise `MEMORY_LIMIT` where holding `growth` more bytes would pass the limit."""
        if growth > 0 and self.used + growth > self.limit:
            self.make_room(growth)

    def make_room(self, growth: int) -> None:
        """Evict until `growth` more bytes fit. Raises `MEMORY_LIMIT` where that isn't enough."""
        if self.evict is not None:
            self.evict(growth)
            if self.used + growth <= self.limit:
                return
        whole = self.limit + self.aside
        raise SynapError(
            "MEMORY_LIMIT",
            f"this needs about {growth} bytes and {max(self.limit - self.used, 0)} of {whole} are left; "
            "delete something or raise the memory limit",
            {"limit": whole, "used": self.total},
        )


def fitting(found: List[T]) -> List[T]:
    """Return the first of some messages or events, as many as one answer holds: one at least, where there is any."""
    left = ANSWER_BYTES
    for count, one in enumerate(found):
        left -= size_of(one)
        if left < 0:
            return found[: max(count, 1)]
    return found


def utf8_size(field: str, text: str) -> int:
    """Return the bytes of a text as UTF-8; raises `INVALID_PAYLOAD` where that can't hold it."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise SynapError("INVALID_PAYLOAD", f"{field} must be text that UTF-8 can hold", {"field": field}) from None


def check_name(field: str, name: str, most: int = 256) -> None:
    """Refuse a name of more than `most` bytes of UTF-8: the payload's type counts characters only."""
    size = len(name) if name.isascii() else utf8_size(field, name)
    if not 0 < size <= most:
        raise SynapError(
            "INVALID_PAYLOAD",
            f"{field} must be a string of 1 to {most:,} bytes of UTF-8, got {size:,}",
            {"field": field},
        )
