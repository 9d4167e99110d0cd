"""Limits the bytes in flight of all connections together: large requests until they are done, unread answers, pushes.

Each connection has limits of its own, but a thousand of them add up. So bytes of large bodies and of peers that are
behind are counted, and when the count may have reached the limit, all connections are measured, and those that hold
most are ended until the rest fits. A peer that reads nothing for a while is disconnected too.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from synap.errors import SynapError
from synap.server.sizes import no_room, too_large

try:
    import fcntl
    import termios
except ImportError:  # Windows
    pass

if TYPE_CHECKING:
    from synap.server.service import Service

WITHOUT_LIMIT = 256 * 1024 * 1024
"""The limit in bytes where memory has none."""
CONNECTION_COST = 16 * 1024
"""Estimated bytes of a connection beside its bytes in flight."""
SHARE = 4
"""The limit is the memory limit divided by this."""

LEAST = 96 * 1024 * 1024
"""The least limit in bytes: the largest answer, and some."""

_TCP_INFO, _ACKED = 11, 120
"""Linux' socket option TCP_INFO, and the offset of `tcpi_bytes_acked` in it."""


class Transit:
    """The accounting of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        config = service.config
        whole = service.host.memory_limit
        self.limit: int = config.transit_limit or (WITHOUT_LIMIT if whole is None else max(whole // SHARE, LEAST))
        self.bodies: dict[Any, int] = {}
        """Bytes in flight outside of connections: bodies of HTTP until they are decoded, answers that are translated or
        compressed."""
        self.working: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        """Bytes of decoded requests that are executed. They don't end, and were in `bodies` before."""
        self.counted = 0
        """Bytes in flight at the last measurement of all connections."""
        self._since = 0
        self._reported = 0
        self._again = False
        self._ending: set[Any] = set()
        """Connections that were ended and may not be closed yet."""
        self._taken: dict[Any, tuple[float, int]] = {}
        """(loop time since which a peer has read nothing, bytes it had read by then)."""
        self._quiet: dict[Any, int | None] = {}
        """Closed TLS connections whose peers had taken all that the system had, as last seen; the bytes so far."""
        self.ended = {"too_much": 0, "unread": 0}
        """Ended connections, by reason."""

    def add(self, size: int) -> None:
        """Count bytes that were received, or written to a peer that may be behind."""
        self._since += size
        if self.counted + self._since > self.limit:
            self.look()

    def look(self) -> None:
        """Measure all connections, and end those that hold most while the total is above the limit."""
        listed = dict(self._held())
        self._ending.intersection_update(listed)
        held = {one: size for one, size in listed.items() if one not in self._ending}
        working = self._service.host.working_on + sum(self.working.values())
        total = working + sum(held.values())
        whole = working + sum(listed.values())  # what is ended holds its bytes until it is closed
        for one in sorted(held, key=held.__getitem__, reverse=True) if total > self.limit else ():
            if total <= self.limit or not held[one]:
                break
            total -= held[one]
            self.ended["too_much"] += 1
            self._ending.add(one)
            _end(one)
        if self._ending and not self._again:
            # Ended connections are still listed until the event loop has closed them. Others must not end for them.
            self._again = True
            asyncio.get_running_loop().call_later(0.01, self._look_again)
        self.counted, self._since = whole, 0
        reported = total + CONNECTION_COST * len(self._service.connections)
        self._service.host.set_aside(reported - self._reported)
        self._reported = reported

    def _look_again(self) -> None:
        self._again = False
        self.look()

    def has_room(self, size: int, *, promised: bool = False) -> bool:
        """Return whether `size` more bytes fit; connections that hold most may be ended for them.

        `promised`: whether a connection counts them already, so that a look at all connections finds them there.
        """
        if size > self.limit:  # not even alone; a look would count it to its connection, and end that
            return False
        if self.counted + self._since + size > self.limit:
            self._since += size
            self.look()
            size = 0 if promised else size
        return self.counted + self._since + size <= self.limit

    def refusal(self, size: int, answer: Any) -> SynapError:
        """Build the error for an answer that there was no room for: now, or ever."""
        return no_room(answer) if size <= self.limit else too_large(size, answer, self.limit)

    def end_unread(
        self, now: float, patience: float | None = None, chosen: Callable[[Any], bool] | None = None
    ) -> None:
        """End connections whose peers have not read waiting data for too long.

        `patience`: seconds, by default `unread_timeout`; `chosen`: which connections, by default those not yet closing.
        """
        if patience is None:
            patience = self._service.config.unread_timeout
        before, self._taken = self._taken, {}
        for connection in list(self._service.connections):
            transport = transport_of(connection)
            if transport is None or (transport.is_closing() if chosen is None else not chosen(connection)):
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

    def end_closed(self) -> None:
        """End TLS connections that are closed and only wait for their peers to say so too, which may read at leisure.

        What they were sent has arrived. The system's queue tells that: a TLS transport doesn't count what it encrypted.
        It may be empty for a moment on a busy event loop, which then fills it again before the next look.
        """
        before, self._quiet = self._quiet, {}
        for connection in list(self._service.connections):
            transport = transport_of(connection)
            if transport is None or not transport.is_closing() or transport.get_extra_info("ssl_object") is None:
                continue
            if transport.get_write_buffer_size() or on_its_way(transport) != 0:
                continue
            self._quiet[connection] = acked = _acked(transport)
            if connection in before and before[connection] == acked:
                transport.abort()

    def _held(self) -> Iterator[tuple[Any, int]]:
        """Yield (connection or body, bytes it holds)."""
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
    """Return the transport of a connection's protocol."""
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


def on_its_way(transport: asyncio.Transport) -> int | None:
    """Return the bytes that the system has and the peer's system has not; None where that is unknown."""
    try:
        waiting = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except (AttributeError, OSError, NameError):
        return None
    return int.from_bytes(waiting, sys.byteorder)


def _acked(transport: asyncio.Transport) -> int | None:
    """Return the bytes that the peer's system has acknowledged so far; None where that is unknown."""
    connection = transport.get_extra_info("socket")
    try:
        with socket.socket(fileno=os.dup(connection.fileno())) as same:  # an event loop's own may have no getsockopt
            reported = same.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _ACKED + 8)
        acked: int = struct.unpack_from("=Q", reported, _ACKED)[0]
    except (AttributeError, OSError, struct.error):
        return None
    return acked
