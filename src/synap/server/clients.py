"""`admin.clients`: lists the connections, with what each waits for and subscribes to, and disconnects one."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

from synap.commands import AdminClients, ClientsAnswer
from synap.host import Session
from synap.results import ClientInfo

if TYPE_CHECKING:
    import asyncio

    from synap.server.service import Service

_numbers = itertools.count(1)

SUBSCRIBERS = "subscribers"
"""The key in an HTTP connection's state for the list of sessions with subscriptions over it."""
UNDER_WAY = "under_way"
"""The key there for a list with the request that is being executed."""
RECEIVED = "received"
"""The key in a connection's state for what counts bytes that it received and holds."""
ABORT = "abort"
"""The key there of what ends the connection at once."""
ADMITTED = "admitted"
"""The key there of what is called once somebody was admitted over the connection, and at its end."""
FAILED = "failed"
"""The key there of what counts an error by its code."""
NAMED = 20
"""Queues and subscriptions of a client that are listed by name; further ones are only counted."""


class Visit:
    """The facts about a connection: when it was made, from where, with which key. `number` is unique."""

    __slots__ = ("address", "key", "lane", "number", "since")

    def __init__(self, lane: str, peer: Any, key: str = "") -> None:
        self.number = next(_numbers)
        self.since = time.time()
        self.lane = lane
        self.address = _address(peer)
        self.key = key

    @classmethod
    def over(cls, lane: str, transport: asyncio.BaseTransport, key: str = "") -> Visit:
        """Make it from the connection's transport."""
        return cls(lane, transport.get_extra_info("peername"), key)


def _address(peer: Any) -> str:
    if not isinstance(peer, (tuple, list)) or len(peer) < 2:
        return "local"
    return f"[{peer[0]}]:{peer[1]}" if ":" in str(peer[0]) else f"{peer[0]}:{peer[1]}"


def answer(service: Service, payload: AdminClients, session: Session) -> ClientsAnswer:
    """List the connections, newest last, from the one after `after` on; or disconnect one."""
    visits = {
        one.visit.number: one
        for one in (*service.connections, *service.listeners)
        if hasattr(one, "visit") and not getattr(one, "app_state", {}).get(SUBSCRIBERS)  # they are listed in its place
    }
    disconnected: bool | None = None
    if payload.disconnect is not None:
        gone = visits.pop(payload.disconnect, None)
        disconnected = gone is not None
        if gone is not None:
            gone.disconnect()
    numbers = sorted(number for number in visits if payload.after is None or number > payload.after)
    shown = numbers[: payload.limit]
    waiting = waits(service)
    clients = [_describe(visits[number], waiting, session) for number in shown]
    return ClientsAnswer(clients, len(visits), len(shown) < len(numbers), disconnected)


def waits(service: Service) -> dict[Any, list[str]]:
    """Return the queues on which each session waits."""
    found: dict[Any, list[str]] = {}
    for caller, queue in service.host.waits():
        found.setdefault(caller, []).append(queue)
    return found


def parts_of(one: Any) -> list[Any]:
    """Return the sessions of a connection: its own, and of HTTP or a WebSocket its requests'."""
    return [one, *getattr(one, "under_way", getattr(one, "app_state", {}).get(UNDER_WAY, ()))]


def queues_of(one: Any, waiting: dict[Any, list[str]]) -> list[str]:
    """Return the queues on which a connection waits, of what `waits` returned."""
    return [queue for part in parts_of(one) for queue in waiting.get(part, ())]


def _describe(one: Any, waiting: dict[Any, list[str]], asking: Session) -> ClientInfo:
    visit: Visit = one.visit
    parts = parts_of(one)
    subscriptions = [name for part in getattr(one, "subscriptions", {}).values() for name in part.named()]
    return ClientInfo(
        id=visit.number,
        lane=visit.lane,
        address=visit.address,
        key=visit.key,
        session=getattr(one, "session", ""),
        format=one.codec.format if isinstance(one, Session) else "",
        since=visit.since,
        waits=_some(queues_of(one, waiting)),
        subscriptions=_some(subscriptions),
        unsent=getattr(one, "unsent", 0),
        you=asking in parts,
    )


def _some(names: list[str]) -> list[str]:
    distinct = sorted(set(names))
    return distinct if len(distinct) <= NAMED else [*distinct[:NAMED], f"and {len(distinct) - NAMED} more"]
