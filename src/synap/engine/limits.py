"""How much the engine may hold, and how much it holds."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Optional

from synap.errors import SynapError

__all__ = ["Budget", "Limits", "check_name"]


@dataclass
class Limits:
    """Bounds of one engine. Ages are seconds, `memory` is bytes.

    `memory` bounds the estimate that `Budget` keeps, which is near to what the stored data costs, not exact.
    """

    memory: Optional[int] = None
    room_events: int = 100_000
    room_age: float = 86_400.0
    replies: int = 100_000
    reply_age: float = 600.0
    reply_bytes: int = 256 * 1024 * 1024
    queues: int = 1_000_000
    rooms: int = 1_000_000
    waiting: int = 100_000
    """Consumers that wait on one queue."""
    subscriptions: int = 10_000
    """Subscriptions of one caller."""


class Budget:
    """The bytes that stored data is estimated to take, and their limit."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: Optional[int]) -> None:
        self.used = 0
        self.limit = sys.maxsize if limit is None else limit

    def check(self, growth: int) -> None:
        """Raise `MEMORY_LIMIT` where holding `growth` more bytes would pass the limit."""
        if growth > 0 and self.used + growth > self.limit:
            raise self.exceeded(growth)

    def exceeded(self, growth: int) -> SynapError:
        return SynapError(
            "MEMORY_LIMIT",
            f"this needs about {growth} bytes and {max(self.limit - self.used, 0)} of {self.limit} are left; "
            "delete something or raise the memory limit",
            {"limit": self.limit, "used": self.used},
        )


def check_name(field: str, name: str, most: int = 256) -> None:
    """Refuse a name of more than `most` bytes, or one that is not UTF-8; the table only counts characters."""
    try:
        size = len(name) if name.isascii() else len(name.encode())
    except UnicodeEncodeError:
        raise SynapError("INVALID_PAYLOAD", f"{field} must be text that UTF-8 can hold", {"field": field}) from None
    if not 0 < size <= most:
        raise SynapError(
            "INVALID_PAYLOAD",
            f"{field} must be a string of 1 to {most:,} bytes of UTF-8, got {size:,}",
            {"field": field},
        )
