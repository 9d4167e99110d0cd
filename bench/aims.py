"""What the project promises, and whether this run keeps it.

Each aim has a floor that must be passed and an aim to reach for; both are compared with figures of this run only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, List

if TYPE_CHECKING:
    from bench.report import Results

__all__ = ["AIMS", "Aim", "Verdict", "judge"]


@dataclass
class Aim:
    """`measure` gives the figure (NaN: not measured); more is better unless `less`."""

    title: str
    floor: float
    aim: float
    measure: Callable[[Results], float]
    unit: str = ""
    less: bool = False


@dataclass
class Verdict:
    """An aim beside what was measured, as text."""

    title: str
    floor: str
    aim: str
    measured: str
    word: str


def _ratio(peer: str, *keys: str) -> Callable[[Results], float]:
    return lambda results: _least([results.ratio(key, peer) for key in keys])


def _server(peer: str, *keys: str) -> Callable[[Results], float]:
    return lambda results: _least([results.server_ratio(key, peer) for key in keys])


def _finding(key: str) -> Callable[[Results], float]:
    return lambda results: results.findings[key].value if key in results.findings else math.nan


def _least(values: List[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return min(known) if known else math.nan


AIMS = [
    Aim("async get/set, one by one, vs redis-py asyncio", 1.2, 1.5, _ratio("redis-py", "get/async/1", "set/async/1")),
    Aim(
        "async get/set, 100 under way, vs redis-py asyncio with a pool",
        5,
        8,
        _ratio("redis-py", "get/async/100", "set/async/100"),
    ),
    Aim("sync get/set, one by one, vs redis-py with hiredis", 1.1, 1.4, _ratio("redis-py", "get/sync/1", "set/sync/1")),
    Aim("batch of 200 vs redis-py pipeline", 1.5, 3, _ratio("redis-py", "batch/200")),
    Aim("queue cycle, 50 under way, vs LMOVE with redis-py", 3, 5, _ratio("redis-py", "queue/cycle/50")),
    Aim("queue cycle, 50 under way, vs JetStream with nats-py", 5, 10, _ratio("nats-py", "queue/cycle/50")),
    Aim("stream publish, 100 under way, vs XADD with redis-py", 4, 8, _ratio("redis-py", "stream/publish/100")),
    Aim(
        "fan-out 1→50, delivered/s, vs redis-py pub/sub", 1.5, 3, _ratio("redis-py", "fanout/topic", "fanout/wildcard")
    ),
    Aim("fan-out 1→50, delivered/s, vs nats-py", 1.5, 3, _ratio("nats-py", "fanout/topic", "fanout/wildcard")),
    Aim(
        "server CPU per operation, 100 under way, valkey-server's over ours",
        0.5,
        1.0,
        _server("redis-py", "get/async/100", "set/async/100"),
    ),
    Aim("memory:// get", math.nan, 3, _finding("memory/get/sync"), "µs", less=True),
    Aim("fsync=always, 100 writes under way, vs appendfsync always", 1, 1.5, _ratio("redis-py", "durable/always/100")),
    Aim("everysec, throughput against in memory", 0.75, 0.9, _finding("durable/everysec")),
    Aim("recovery of 1,000,000 keys", 5, 3, _finding("recovery/keys"), "s", less=True),
    Aim("p99.9 a snapshot adds to a request", 20, 5, _finding("snapshot/stall"), "ms", less=True),
    Aim("memory of an idle subscriber", 30, 15, _finding("idle/memory"), "KB", less=True),
]


def judge(results: Results) -> List[Verdict]:
    """Compare every aim with what was measured."""
    return [_verdict(aim, aim.measure(results)) for aim in AIMS]


def _verdict(aim: Aim, value: float) -> Verdict:
    def better(limit: float) -> bool:
        return value <= limit if aim.less else value >= limit

    if math.isnan(value):
        word = "not measured"
    elif better(aim.aim):
        word = "**aim reached**"
    elif math.isnan(aim.floor) or not better(aim.floor):
        word = "**missed**"
    else:
        word = "passed"
    return Verdict(aim.title, _show(aim.floor, aim.unit), _show(aim.aim, aim.unit), _show(value, aim.unit), word)


def _show(value: float, unit: str) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}{' ' + unit if unit else ''}"
