"""What the README shows of a run, in its order: the table and the chart are both made from this list."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Tuple

__all__ = ["CASES", "PEERS", "cases", "settings_line"]

CASES = (
    ("get/async/1", "get, async, one by one"),
    ("set/async/1", "set, async, one by one"),
    ("get/async/10", "get, async, 10 under way"),
    ("set/async/10", "set, async, 10 under way"),
    ("get/async/100", "get, async, 100 under way"),
    ("set/async/100", "set, async, 100 under way"),
    ("mixed/async/100", ""),
    ("get/sync/1", "get, sync, one by one"),
    ("set/sync/1", "set, sync, one by one"),
    ("get/sync/8", "get, sync, 8 threads"),
    ("batch/200", "batch of 200 (commands)"),
    ("queue/cycle/50", "queue cycle, 50 under way"),
    ("queue/combined/50", "queue cycle, acknowledging and taking in one call, 50 under way"),
    ("queue/sync/1", "queue cycle, sync, one by one"),
    ("stream/publish/100", "stream publish, 100 under way"),
    ("fanout/topic", "pub/sub 1→50 (deliveries)"),
    ("fanout/wildcard", "pub/sub 1→50, wildcards (deliveries)"),
    ("fanout/room", "event stream 1→50 (deliveries)"),
    ("size/10000", "set and get of 10 KB in turn, 10 under way"),
    ("size/1000000", "set and get of 1 MB in turn, 10 under way"),
    ("durable/always/100", "set, every write synced, 100 under way"),
    ("durable/queue/50", "queue cycle, every write synced, 50 under way"),
    ("durable/stream/100", "stream publish, every write synced, 100 under way"),
    ("durable/always/1", "set, every write synced, one by one"),
    ("durable/always/1/spin", ""),
    ("durable/queue/1", "queue cycle, every write synced, one by one"),
    ("durable/queue/1/spin", ""),
    ("durable/stream/1", "stream publish, every write synced, one by one"),
)
"""Keys and titles; without one, the case's own counts."""
PEERS = ("redis-py", "nats-py")
"""Contenders that promise the same, whose ratios count."""


def cases(document: Dict[str, Any]) -> Iterator[Tuple[str, str, List[Tuple[str, Dict[str, Any]]]]]:
    """Return key, title and measured peers of each case to show, and then of every other one in which ours is slower.

    `document` is what `report.as_json` made.
    """
    measured = document["cases"]
    titles = dict(CASES)
    lost = [
        key for key in measured if key not in titles and any(peer["ratio"] < 1 for _, peer in _peers(measured[key]))
    ]
    for key in [*titles, *lost]:
        peers = _peers(measured[key]) if key in measured else []
        if peers:
            yield key, titles.get(key) or measured[key]["title"], peers


def _peers(case: Dict[str, Any]) -> List[Tuple[str, Dict[str, Any]]]:
    contenders = case["contenders"]
    return [(peer, contenders[peer]) for peer in PEERS if contenders.get(peer, {}).get("ratio")]


def settings_line(document: Dict[str, Any]) -> str:
    """Say how the figures came about: rounds, machine, versions."""
    machine, settings = document["machine"], document["settings"]
    packages = machine["packages"]
    quick = "With --quick, which proves little: " if settings["quick"] else ""
    loop = "uvloop" if settings["uvloop"] else "asyncio"
    return (
        f"{quick}Medians of up to {settings['rounds']} alternating rounds of {settings['seconds']:g} s, "
        f"{machine['cores']} cores of {machine['processor']}, Python {machine['python']}, {loop}, "
        f"redis-py {packages['redis']}, nats-py {packages['nats-py']}, {machine['date'][:10]}"
    )
