"""What the project promises, and whether this run keeps it.

Each aim has a floor that must be passed and an aim to reach for; both are compared with figures of this run only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, List, NamedTuple, Optional, Tuple

if TYPE_CHECKING:
    from bench.report import Results

__all__ = ["AIMS", "Aim", "Floor", "Verdict", "floor", "judge"]


@dataclass
class Aim:
    """A floor and an aim (NaN: there is none) for the worst of some figures; more is better unless `less`.

    `kind` says what is compared: 'rate' (how many times faster than `peer` ours is in the cases `keys`), 'server' (the
    processor time of the peer's server over that of ours there), 'finding' (the value of the findings `keys`).
    """

    title: str
    floor: float
    aim: float
    kind: str
    keys: Tuple[str, ...]
    peer: str = ""
    unit: str = ""
    less: bool = False

    def measured(self, results: Results) -> float:
        """Return the worst of the figures, NaN where one of them wasn't measured: a part promises nothing."""
        if self.kind == "finding":
            found = results.findings
            values = [found[key].value if key in found else math.nan for key in self.keys]
        else:
            ratio = results.ratio if self.kind == "rate" else results.server_ratio
            values = [ratio(key, self.peer) for key in self.keys]
        if any(math.isnan(value) for value in values):
            return math.nan
        return max(values) if self.less else min(values)

    def better(self, value: float, limit: float) -> bool:
        """Whether a value is at least as good as a limit."""
        return value <= limit if self.less else value >= limit


@dataclass
class Verdict:
    """An aim beside what was measured, as text."""

    title: str
    floor: str
    aim: str
    measured: str
    word: str


class Floor(NamedTuple):
    """What one figure must not fall below, with the aim it belongs to."""

    aim: Aim

    def passed(self, value: float) -> bool:
        """Whether the value keeps it."""
        return self.aim.better(value, self._limit)

    @property
    def shown(self) -> str:
        return _show(self._limit, self.aim.unit)

    @property
    def _limit(self) -> float:
        """The floor, or the aim where that is all there is."""
        return self.aim.aim if math.isnan(self.aim.floor) else self.aim.floor


def _rate(title: str, floor: float, aim: float, peer: str, *keys: str) -> Aim:
    return Aim(title, floor, aim, "rate", keys, peer)


def _server(title: str, floor: float, aim: float, peer: str, *keys: str) -> Aim:
    return Aim(title, floor, aim, "server", keys, peer)


def _most(title: str, floor: float, aim: float, unit: str, *keys: str) -> Aim:
    return Aim(title, floor, aim, "finding", keys, unit=unit, less=True)


def _share(title: str, floor: float, aim: float, *keys: str) -> Aim:
    return Aim(title, floor, aim, "finding", keys)


AIMS = [
    _rate("async get/set, one by one, vs redis-py asyncio", 1.2, 1.5, "redis-py", "get/async/1", "set/async/1"),
    _rate(
        "async get/set, 100 under way, vs redis-py asyncio with a pool",
        5,
        8,
        "redis-py",
        "get/async/100",
        "set/async/100",
    ),
    _rate("sync get/set, one by one, vs redis-py with hiredis", 1.3, 1.4, "redis-py", "get/sync/1", "set/sync/1"),
    _rate("batch of 200 vs redis-py pipeline", 1.5, 3, "redis-py", "batch/200"),
    _rate("queue cycle, 50 under way, vs LMOVE with redis-py", 3, 5, "redis-py", "queue/cycle/50"),
    _rate("queue cycle, 50 under way, vs JetStream with nats-py", 5, 10, "nats-py", "queue/cycle/50"),
    _rate(
        "queue cycle with ack and take in one call, 50 under way, vs JetStream with nats-py",
        6,
        math.nan,
        "nats-py",
        "queue/combined/50",
    ),
    _rate("values of 1 MB, MessagePack, vs redis-py", 1, math.nan, "redis-py", "size/1000000/msgpack/1"),
    _rate("stream publish, 100 under way, vs XADD with redis-py", 4, 8, "redis-py", "stream/publish/100"),
    _rate("fan-out 1→50, delivered/s, vs redis-py pub/sub", 1.5, 3, "redis-py", "fanout/topic", "fanout/wildcard"),
    _rate("fan-out 1→50, delivered/s, vs nats-py", 1.5, 3, "nats-py", "fanout/topic", "fanout/wildcard"),
    _server(
        "server CPU per operation, 100 under way, valkey-server's over ours",
        0.5,
        1.0,
        "redis-py",
        "get/async/100",
        "set/async/100",
    ),
    _most("memory:// get", math.nan, 3, "µs", "memory/get/sync"),
    _rate("fsync=always, 100 writes under way, vs appendfsync always", 1, 1.5, "redis-py", "durable/always/100"),
    _rate("set, every write synced, one by one, vs appendfsync always", 1.1, math.nan, "redis-py", "durable/always/1"),
    _rate(
        "queue cycle and stream publish, every write synced, one by one, vs appendfsync always",
        1,
        math.nan,
        "redis-py",
        "durable/queue/1",
        "durable/stream/1",
    ),
    _share("everysec, throughput against in memory", 0.85, 0.9, "durable/everysec"),
    _most("recovery of 1,000,000 keys", 5, 3, "s", "recovery/keys"),
    _most("p99.9 a snapshot adds to a request", 20, 5, "ms", "snapshot/stall"),
    _most("memory of an idle subscriber", 30, 15, "KB", "idle/memory"),
    _most(
        "rate limit and metrics, share of the service's time for a request, 100 under way",
        5,
        math.nan,
        "%",
        "hotpath/limits/100",
    ),
]


def floor(kind: str, key: str, peer: str = "") -> Optional[Floor]:
    """Return what the aims ask of one figure, None where they ask nothing."""
    for aim in AIMS:
        if aim.kind == kind and aim.peer == peer and key in aim.keys:
            return Floor(aim)
    return None


def judge(results: Results) -> List[Verdict]:
    """Compare every aim with what was measured."""
    return [_verdict(aim, aim.measured(results)) for aim in AIMS]


def _verdict(aim: Aim, value: float) -> Verdict:
    if math.isnan(value):
        word = "not measured"
    elif aim.better(value, aim.aim):
        word = "**aim reached**"
    elif Floor(aim).passed(value):
        word = "passed"
    else:
        word = "**missed**"
    return Verdict(aim.title, _show(aim.floor, aim.unit), _show(aim.aim, aim.unit), _show(value, aim.unit), word)


def _show(value: float, unit: str) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}{' ' + unit if unit else ''}"
