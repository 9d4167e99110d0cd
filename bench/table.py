"""The README's table, as Markdown, from what one run measured."""

from __future__ import annotations

import math
from typing import Any, Dict, Iterator, List, Optional

from bench import aims, shown

__all__ = ["table_lines"]

SERVERS = {"redis-py": "valkey-server", "nats-py": "nats-server"}
DURABLE = {"redis-py": "`appendfsync always`, redis-py", "nats-py": "JetStream, `sync_interval: always`, nats-py"}
NAMES = {
    "queue/": {"redis-py": "`LMOVE` pattern, redis-py", "nats-py": "JetStream, nats-py"},
    "stream/": {"redis-py": "`XADD`, redis-py", "nats-py": "JetStream, nats-py"},
    "batch/": {"redis-py": "redis-py pipeline"},
    "fanout/room": {"redis-py": "`XREAD`, redis-py", "nats-py": "JetStream, nats-py"},
    "durable/always": DURABLE,
    "durable/queue": DURABLE,
    "durable/stream": DURABLE,
}
"""What a peer does in the cases whose keys begin so; elsewhere its client's name says enough."""

FINDINGS = (
    ("memory/get/sync", "`get` on `memory://`"),
    ("memory/set/sync", "`set` on `memory://`"),
    ("idle/memory", ""),
    ("idle/memory/nats", ""),
    ("recovery/keys", ""),
    ("snapshot/stall", "p99.9 that a snapshot adds to a request"),
    ("durable/everysec", "set, synced every second, 100 under way, of in memory"),
    ("hotpath/limits/1", "rate limit and metrics, share of the service's time, one by one"),
    ("hotpath/limits/100", "rate limit and metrics, share of the service's time, 100 under way"),
)
"""Findings to show, with a title where their own isn't used."""
SERVER_TIMES = (("get/async/100", "get"), ("set/async/100", "set"))


def table_lines(document: Dict[str, Any]) -> List[str]:
    """Write the table and, below it, how it came about. `document` is what `report.as_json` made.

    Bold is slower than the peer. A figure below a floor of `aims.AIMS` says so.
    """
    lines = ["| | Synap | peer in the same run | ratio |", "|---|---|---|---|"]
    lines += _cases(document)
    lines += _server_times(document)
    lines += _findings(document)
    return [*lines, "", f"{shown.settings_line(document)}. **Bold**: slower than the peer, or a floor missed."]


def _cases(document: Dict[str, Any]) -> Iterator[str]:
    for key, title, peers in shown.cases(document):
        case = document["cases"][key]
        ours: Optional[str] = f"{case['contenders']['synap']['rate']:,.0f}/s"
        for peer, outcome in peers:
            floor = aims.floor("rate", key, peer)
            ratio = _ratio(outcome["ratio"], floor)
            yield f"| {title if ours else ''} | {ours or ''} | {_name(key, peer)} {outcome['rate']:,.0f}/s | {ratio} |"
            ours = None


def _server_times(document: Dict[str, Any]) -> Iterator[str]:
    for key, name in SERVER_TIMES:
        contenders = document["cases"].get(key, {}).get("contenders", {})
        for peer in shown.PEERS:
            ours, theirs = (contenders.get(who, {}).get("server_cpu") for who in ("synap", peer))
            if ours and theirs:
                ratio = _ratio(theirs / ours, aims.floor("server", key, peer))
                title = f"processor time of the server per {name}, 100 under way"
                yield f"| {title} | {ours * 1e6:.1f} µs | {SERVERS[peer]} {theirs * 1e6:.1f} µs | {ratio} |"


def _findings(document: Dict[str, Any]) -> Iterator[str]:
    above = None
    for key, title in FINDINGS:
        finding = document["findings"].get(key)
        if finding is None:
            continue
        value, unit, peer, theirs = (finding[name] for name in ("value", "unit", "peer", "peer_value"))
        floor = aims.floor("finding", key)
        figure = f"{value:.0%}" if unit == "of it" else f"{value:.3g} {unit}"
        title = title or finding["title"]
        missed = floor is not None and not floor.passed(value)
        ours = f"**{figure}** (floor {floor.shown})" if missed and floor is not None else figure
        # The same figure beside another peer isn't said again.
        left = " | " if (title, figure) == above else f"{title} | {ours}"
        above = title, figure
        beside = "–" if peer is None else f"{peer} {theirs:.3g} {unit}"
        ratio = "–" if peer is None or not value else _ratio(theirs / value, None)
        yield f"| {left} | {beside} | {ratio} |"


def _name(key: str, peer: str) -> str:
    for beginning, names in NAMES.items():
        if key.startswith(beginning):
            return names.get(peer, peer)
    return peer


def _ratio(ratio: float, floor: Optional[aims.Floor]) -> str:
    missed = floor is not None and not floor.passed(ratio)
    if ratio >= 1 and not missed:
        return f"{math.floor(ratio * 10) / 10:.1f}"
    # Rounding never makes a loss look like a draw.
    digits = f"**{math.floor(ratio * 100) / 100:.2f}**"
    return f"{digits} (floor {floor.shown})" if missed and floor is not None else digits
