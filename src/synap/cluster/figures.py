"""Figures of the whole cluster, collected from its partitions on request, at most once a second."""

from __future__ import annotations

from typing import Any, Callable, Coroutine, Dict, List, Optional

from msgspec import structs

from synap import commands as c
from synap.cluster.calls import Refused
from synap.cluster.checks import NodeState, dotted, inspect_node
from synap.cluster.facilities import Facilities
from synap.cluster.link import Link
from synap.cluster.running import Running, begin_each
from synap.engine.limits import Limits
from synap.errors import SynapError

FRESH = 1.0
"""Seconds for which collected figures are good enough."""
_NOTHING: Dict[str, Any] = {"memory": 0, "memory_limit": None, "keys": 0, "keys_expiring": 0, "queues": {}, "rooms": {}}
MOST = 1000
"""Queues, and rooms, that are asked one by one."""


class Collector:
    """Sums up the partitions."""

    def __init__(self, link: Link, facilities: Facilities, limits: Limits) -> None:
        self.link = link
        self.facilities = facilities
        self.limits = limits
        self._collected: Dict[str, Any] = {}
        self._nodes: List[NodeState] = []
        self._at = -FRESH
        self._running: Optional[Running] = None

    def figures(self, most: Optional[int]) -> Dict[str, Any]:
        """Return what was collected last; `most` queues, and rooms, have figures of their own."""
        figures: Dict[str, Any] = {**_NOTHING, **self._collected}
        if most is not None:
            for group in ("queues", "rooms"):
                figures[group] = dict(list(figures[group].items())[:most])
        figures["nodes"] = {
            str(state.address): {
                "role": "primary",
                "memory": state.memory,
                "memory_limit": state.memory_limit,
                "replicas": state.replicas,
                "lag_bytes": state.lag,
                "version": f"{state.server} {dotted(state.version)}",
            }
            for state in self._nodes
        }
        figures["retries"] = dict(self.link.retries)
        return figures

    def refresh(self) -> None:
        """Collect anew in the background, where the figures are old."""
        if self._stale():
            self._running = Running(self._collect()).start()

    async def collect(self) -> None:
        """Collect anew, where the figures are old, and wait for it."""
        if self._stale():
            try:
                await self._collect()
            except SynapError:
                return  # the last figures stay

    def _stale(self) -> bool:
        """Whether the figures are old and none are being collected."""
        under_way = self._running is not None and not self._running.done
        return not under_way and self.link.loop.time() - self._at > FRESH

    async def _collect(self) -> None:
        link, bases = self.link, self.link.places.bases
        self._at = link.loop.time()
        link.soon(lambda: link.spawn(self._inspect_nodes()))
        keys = [link.command(q, "ZCARD", base + b"kx") for q, base in enumerate(bases)]
        expiring = [link.command(q, "ZCARD", base + b"kt") for q, base in enumerate(bases)]
        own = self.facilities
        request: Any = None
        queues = (await own.queues.list(c.QueueList(), request)).queues[:MOST]
        rooms = (await own.rooms.rooms(c.StreamRooms(), request)).rooms[:MOST]
        stats = await self._ask_each(queues, lambda name: own.queues.stats(c.QueueStats(name), request))
        lags = await self._ask_each(rooms, lambda name: own.rooms.cursors(c.StreamCursors(name), request))
        views = await self._ask_each(rooms, lambda name: own.rooms.stats(c.StreamStats(name), request))
        found: Dict[str, Any] = {"keys": 0, "keys_expiring": 0, "queues": {}, "rooms": {}}
        for call in keys:
            found["keys"] += await call
        for call in expiring:
            found["keys_expiring"] += await call
        for name, queue in stats.items():
            try:
                figures = structs.asdict(await queue)
            except SynapError:
                continue  # deleted meanwhile
            del figures["oldest_message_age_secs"]
            found["queues"][name] = figures
        for name, room in views.items():
            try:
                view = await room
                cursors = (await lags[name]).cursors
            except (SynapError, Refused):  # deleted meanwhile
                continue
            found["rooms"][name] = {
                "events": view.events,
                "subscribers": view.subscribers,
                "published_total": view.published_total,
                "lag": {cursor.name: cursor.lag for cursor in cursors},
            }
        self._collected.update(found)

    async def _ask_each(self, names: List[str], ask: Callable[[str], Coroutine[Any, Any, Any]]) -> Dict[str, Running]:
        """Ask for figures of each name; returns what is under way."""
        return dict(zip(names, await begin_each(lambda name: Running(ask(name)).start(), names, self.link.soon)))

    async def _inspect_nodes(self) -> None:
        states = []
        for address in self.link.topology.primaries:
            try:
                states.append(await inspect_node(self.link, address))
            except SynapError:
                continue  # it is in a failover
        self._nodes = states
        limits = [state.memory_limit for state in states]
        self._collected["memory"] = sum(state.memory for state in states)
        self._collected["memory_limit"] = sum(limits) if limits and all(limits) else None
