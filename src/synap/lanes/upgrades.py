"""Remember which servers refuse the upgrade to native frames and take a WebSocket, for all clients of this process."""

from __future__ import annotations

from time import monotonic
from typing import Dict, Tuple, TypeVar

MEMORY = 300.0
"""Seconds until the upgrade is tried again."""
MAX_SERVERS = 1000
"""Servers that are remembered."""

T = TypeVar("T")
Server = Tuple[str, int]
"""(host, port)."""

_refused_until: Dict[Server, float] = {}
_cut: Dict[Server, None] = {}


def mark_refused(server: Server) -> None:
    """Record that a server refuses the upgrade and takes a WebSocket."""
    _record(_refused_until, server, monotonic() + MEMORY)


def is_refused(server: Server) -> bool:
    """Return whether a server has refused the upgrade in the last `MEMORY` seconds."""
    return _refused_until.get(server, 0.0) > monotonic()


def mark_cut(server: Server) -> bool:
    """Record that a connection was closed without an answer to the upgrade; returns whether twice in a row.

    Once, it may be a server that is stopping; twice, a proxy that refuses this way is more likely.
    """
    if server in _cut:
        return True
    _record(_cut, server, None)
    return False


def mark_answered(server: Server) -> None:
    """Record that the upgrade was answered."""
    _cut.pop(server, None)


def forget() -> None:
    """Forget all servers, for tests."""
    _refused_until.clear()
    _cut.clear()


def _record(records: Dict[Server, T], server: Server, what: T) -> None:
    if len(records) > MAX_SERVERS:
        records.clear()
    records[server] = what
