"""What is on its way, of all connections together: bodies that aren't whole yet, answers and pushes that nobody took.

Each connection has bounds of its own; a thousand of them would still add up. So what large bodies and peers that are
behind add is counted as it comes, and when that may have reached the limit, all connections are looked at: those that
hold most are ended until the rest fits. A peer that takes nothing of what is his is ended too, after a while.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synap.server.service import Service

__all__ = ["Transit", "transport_of"]

WITHOUT_LIMIT = 256 * 1024 * 1024
"""Bytes on their way where memory has no limit."""
CONNECTION_COST = 16 * 1024
"""Bytes that a connection is estimated to take beside what is on its way."""
SHARE = 4
"""The part of the memory limit that may be on its way: one in so many."""

LEAST = 96 * 1024 * 1024
"""Bytes that may be on their way however small the limit is: the largest answer, and some."""

_TCP_INFO, _ACKED = 11, 120
"""Linux' option that tells of a TCP connection, and where in it the number of bytes stands that its peer has taken."""


class Transit:
    """The count for one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        config = service.config
        whole = service.host.memory_limit
        self.limit: int = config.transit_limit or (WITHOUT_LIMIT if whole is None else max(whole // SHARE, LEAST))
        self.bodies: dict[Any, int] = {}
        """Bytes of HTTP bodies that aren't whole yet."""
        self.counted = 0
        """What was on its way when all connections were looked at last."""
        self._since = 0
        self._told = 0
        self._again = False
        self._taken: dict[Any, tuple[float, int]] = {}
        """Since when (loop time) a peer has taken nothing, and how much it had taken by then."""
        self.ended = {"too_much": 0, "unread": 0}
        """Connections that were ended, by the reason."""

    def add(self, size: int) -> None:
        """Count bytes that came, or that were written to a peer that may be behind."""
        self._since += size
        if self.counted + self._since > self.limit:
            self.look()

    def look(self) -> None:
        """Look at all connections, and end those that hold most while all together hold too much."""
        held = dict(self._held())
        whole = total = sum(held.values())
        while total > self.limit:
            most = max(held, key=lambda one: held[one])
            if not held[most]:
                break
            total -= held.pop(most)
            self.ended["too_much"] += 1
            _end(most)
        if total < whole and not self._again:
            # What was ended is there until the event loop has closed it.
            self._again = True
            asyncio.get_running_loop().call_later(0.01, self._look_again)
        self.counted, self._since = whole, 0
        told = total + CONNECTION_COST * len(self._service.connections)
        self._service.host.set_aside(told - self._told)
        self._told = told

    def _look_again(self) -> None:
        self._again = False
        self.look()

    def has_room(self, size: int) -> bool:
        """Say whether so many bytes more may be on their way; those who hold most are ended for it."""
        if self.counted + self._since + size > self.limit:
            self._since += size
            self.look()
        return self.counted + self._since + size <= self.limit

    def end_unread(self, now: float) -> None:
        """End connections whose peers have taken nothing of what waits for them for too long."""
        patience = self._service.config.unread_timeout
        before, self._taken = self._taken, {}
        for connection in list(self._service.connections):
            transport = transport_of(connection)
            if transport is None or transport.is_closing():
                continue
            waiting = transport.get_write_buffer_size()
            if not waiting:
                continue
            acked = _acked(transport)
            taken = -waiting if acked is None else acked
            since, earlier = before.get(connection, (now, taken))
            if taken > earlier:
                since = now
            elif now - since > patience:
                self.ended["unread"] += 1
                transport.abort()
                continue
            self._taken[connection] = since, taken

    def _held(self) -> Iterator[tuple[Any, int]]:
        """Go through what holds bytes, and how many."""
        service = self._service
        seen: set[Any] = set()
        for one in (*service.connections, *service.listeners):
            if one not in seen:
                seen.add(one)
                transport = transport_of(one)
                size = 0 if transport is None else transport.get_write_buffer_size()
                queued = getattr(one, "queued", None)
                yield one, size + (0 if queued is None else queued())
        yield from list(self.bodies.items())


def transport_of(connection: Any) -> asyncio.Transport | None:
    """Find the transport of whatever speaks on a connection."""
    for name in ("_plain_transport", "_transport", "transport"):
        transport: asyncio.Transport | None = getattr(connection, name, None)
        if transport is not None:
            return transport
    return None


def _end(one: Any) -> None:
    transport = transport_of(one)
    if transport is not None:
        transport.abort()
    else:
        one.abort()


def _acked(transport: asyncio.Transport) -> int | None:
    """Return the bytes that the peer's machine has taken so far; None where the system doesn't tell."""
    connection = transport.get_extra_info("socket")
    try:
        with socket.socket(fileno=os.dup(connection.fileno())) as same:  # an event loop's own may have no getsockopt
            told = same.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _ACKED + 8)
        acked: int = struct.unpack_from("=Q", told, _ACKED)[0]
    except (AttributeError, OSError, struct.error):
        return None
    return acked
