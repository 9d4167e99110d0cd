"""`admin.watch`: pushes the service's figures twice a second to subscribers; computed only while there are any.

They are pushed as messages of the topic `admin.watch`, to which nobody can publish. The first has everything
(`whole` is true); later ones have all totals, but of queues and rooms only those whose figures changed. A watcher that
doesn't keep up misses some and then gets everything again.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

import msgspec

from synap.commands import BY_CODE, AdminWatch, SubscribedToFigures, SuccessAnswer, TopicMessage
from synap.errors import SynapError
from synap.host import Output, Session
from synap.wire.codec import JSON

if TYPE_CHECKING:
    from synap.server.service import Service

log = logging.getLogger("synap.server")

EVERY = 0.5
"""Seconds between pushes."""
MOST = 5000
"""Queues, and rooms, that have figures of their own; further ones are only counted."""
PROBE_EVERY = 0.05
PROBES = 200
"""Probes that the percentiles are computed from: those of the last ten seconds."""
FIRST_ID = 1 << 31
"""The first subscription id of watchers: the engine counts its own from 1."""


class _Probe(Session):
    """A session that measures the service's latency by requests of its own."""

    __slots__ = ("at", "sink")

    def __init__(self, service: Service, at: float, sink: deque[float]) -> None:
        super().__init__(service.host, JSON)
        self.at = at
        self.sink = sink

    def deliver(self, output: list[Output]) -> None:
        self.sink.append(time.perf_counter() - self.at)

    def has_room(self) -> bool:
        return False


class _Watcher:
    """One watcher: whether it needs all figures next, and the number of the one it replaced (0: none)."""

    __slots__ = ("before", "number", "whole")

    def __init__(self, number: int, before: int = 0) -> None:
        self.number = number
        self.before = before
        self.whole = True


class Watch:
    """The watchers of one service. `service.listeners` has the connections that are still open."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._listeners: AbstractSet[Any] = service.listeners
        self._watchers: dict[Any, _Watcher] = {}
        self._numbers = itertools.count(FIRST_ID)
        self._rows: dict[str, dict[str, Any]] = {}
        self._probes: deque[float] = deque(maxlen=PROBES)
        self._timer: asyncio.TimerHandle | None = None
        self._probing: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None

    @property
    def on(self) -> bool:
        """Whether anything is computed."""
        return bool(self._watchers)

    def answer(self, payload: AdminWatch, session: Session) -> SubscribedToFigures | SuccessAnswer:
        """Start or stop pushing figures to a session. Raises `INVALID_COMMAND` where nothing can be pushed."""
        if session not in self._listeners:
            raise SynapError(
                "INVALID_COMMAND", "admin.watch needs a connection to push on: the native lane, or GET /api/v1/ws"
            )
        before = self._watchers.pop(session, None)
        if not payload.enabled:
            return SubscribedToFigures(0 if before is None else before.number, False)
        watcher = _Watcher(next(self._numbers), 0 if before is None else before.number)
        self._begin(session, watcher)
        return SubscribedToFigures(watcher.number, True)

    def drop(self, session: Any) -> int:
        """Stop pushing to a session that may no longer watch; returns its subscription's number (0: none)."""
        watcher = self._watchers.pop(session, None)
        return 0 if watcher is None else watcher.number

    def take_back(self, session: Session, answer: SubscribedToFigures) -> None:
        """Undo what was answered so: the disk refused what had happened before."""
        before = answer.subscription_id
        if answer.watching:
            watcher = self._watchers.get(session)
            if watcher is None or watcher.number != answer.subscription_id:
                return
            del self._watchers[session]
            before = watcher.before
        if before and session in self._listeners:
            self._begin(session, _Watcher(before))

    def _begin(self, session: Session, watcher: _Watcher) -> None:
        self._watchers[session] = watcher
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_soon(self._tick)  # type: ignore[assignment]  # a handle that can be cancelled, too
            self._probing = loop.call_later(PROBE_EVERY, self._probe, loop.time() + PROBE_EVERY)

    def stop(self) -> None:
        """Stop: the service ends."""
        self._watchers.clear()
        for timer in (self._timer, self._probing):
            if timer is not None:
                timer.cancel()
        self._timer = self._probing = None
        if self._looking is not None:
            self._looking.cancel()

    # ------------------------------------------------------------------------------------------ each push

    def _tick(self) -> None:
        watchers = self._watchers
        for session in [one for one in watchers if one not in self._listeners]:
            del watchers[session]
        if not watchers:
            self._rows = {}
            self._probes.clear()
            self.stop()
            return
        self._timer = asyncio.get_running_loop().call_later(EVERY, self._tick)
        if self._looking is None:
            self._looking = asyncio.ensure_future(self._look_and_push())

    async def _look_and_push(self) -> None:
        service = self._service
        try:
            stats = await service.turns.work_off("admin.watch", service.survey(MOST))
            self._push(stats)
        except Exception:  # the next figures may come through
            log.exception("pushing the watched figures failed")
        finally:
            self._looking = None
            service.host.end_turn()

    def _push(self, stats: dict[str, Any]) -> None:
        host = self._service.host
        figures, rows = self._sorted_out(stats)
        before, self._rows = self._rows, rows
        bodies: dict[bool, bytes] = {}
        now = int(host.wall())
        for session, watcher in self._watchers.items():
            body = bodies.get(watcher.whole)
            if body is None:
                body = bodies[watcher.whole] = _written(figures, rows, {} if watcher.whole else before, watcher.whole)
            item = TopicMessage("admin.watch", body, {}, now, f"watch-{watcher.number:x}-{now}")
            watcher.whole = not session.push(watcher.number, item)

    def _sorted_out(self, stats: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Split figures into totals, and rows by kind and name."""
        service, host = self._service, self._service.host
        operations: dict[str, int] = {}
        for code, count in enumerate(host.requests):
            if count:
                command = BY_CODE.get(code)
                group = "batch" if command is None else command.group
                operations[group] = operations.get(group, 0) + count
        totals = {
            "time": host.wall(),
            "operations": operations,
            "errors": stats["errors"],
            "connections": stats["connections"],
            "max_connections": service.config.max_connections,
            "memory": stats.get("memory", 0),
            "memory_limit": stats.get("memory_limit"),
            "keys": stats.get("keys", 0),
            "queues": stats.get("queues_total", len(stats["queues"])),
            "rooms": stats.get("rooms_total", len(stats["rooms"])),
            "subscriptions": stats.get("stream_subscriptions", 0) + stats.get("topic_subscriptions", 0),
            "waiting": stats.get("waiting", 0),
            "answer_ms": self._percentiles(),
            "health": service.health(),
            "log": stats.get("log"),
            "disk": _disk(service),
            "cluster": _cluster(stats),
        }
        return totals, {"queues": stats["queues"], "rooms": stats["rooms"]}

    # ------------------------------------------------------------------------------------------ how long answers take

    def _probe(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is None:
            return
        now = loop.time()
        self._probing = loop.call_later(PROBE_EVERY, self._probe, now + PROBE_EVERY)
        # Timers may fire a few milliseconds late; where it is more, the loop was busy.
        late = now - due
        loop.call_soon(self._ask, time.perf_counter() - (late if late > 0.005 else 0.0))

    def _ask(self, began: float) -> None:
        _Probe(self._service, began, self._probes).answer(0, SuccessAnswer())
        self._service.host.end_turn()

    def _percentiles(self) -> dict[str, float] | None:
        found = sorted(self._probes)
        if not found:
            return None
        at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
        return {name: round(1000 * found[min(len(found) - 1, int(part * len(found)))], 3) for name, part in at.items()}


def _written(
    totals: dict[str, Any], rows: dict[str, dict[str, Any]], before: dict[str, dict[str, Any]], whole: bool
) -> bytes:
    push: dict[str, Any] = {"whole": whole, "totals": totals}
    for kind, named in rows.items():
        known = before.get(kind, {})
        push[kind] = named if whole else {name: row for name, row in named.items() if known.get(name) != row}
        push[f"{kind}_gone"] = [] if whole else [name for name in known if name not in named]
    return msgspec.json.encode(push)


def _cluster(stats: dict[str, Any]) -> dict[str, Any] | None:
    """Return the state of a cluster's nodes; None where the engine is not a cluster."""
    if "nodes" not in stats:
        return None
    return {"nodes": [{"address": address, **state} for address, state in stats["nodes"].items()]}


def _disk(service: Service) -> dict[str, int] | None:
    """Return the total and free bytes of the data's disk."""
    if service.durable is None:
        return None
    try:
        usage = shutil.disk_usage(os.path.abspath(service.config.data))
    except OSError:
        return None
    return {"size": usage.total, "free": usage.free}
