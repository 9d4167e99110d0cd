"""The chart of the README, drawn by hand as SVG: how many times faster than each peer, one bar a workload."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple
from xml.sax.saxutils import escape

__all__ = ["draw"]

SHOWN = (
    ("get/async/1", "get, one by one"),
    ("set/async/1", "set, one by one"),
    ("get/async/100", "get, 100 under way"),
    ("set/async/100", "set, 100 under way"),
    ("mixed/async/100", "80/20 over 1 M keys"),
    ("get/sync/1", "sync get, one by one"),
    ("batch/200", "batch of 200"),
    ("queue/cycle/50", "queue cycle, 50 under way"),
    ("stream/publish/100", "stream publish, 100 under way"),
    ("fanout/topic", "pub/sub 1→50"),
    ("fanout/wildcard", "pub/sub 1→50, wildcards"),
    ("durable/always/100", "set, every write synced, 100"),
)
COLOURS = {"redis-py": "#c2553d", "nats-py": "#3f74b5"}
PEERS = {"redis-py": "valkey-server + redis-py", "nats-py": "nats-server + nats-py"}

WIDTH, LEFT, RIGHT, TOP, BAR, GAP, GROUP = 820, 235, 60, 78, 13, 2, 12
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#333}.title{font-size:17px;font-weight:600}"
    ".small{font-size:11px;fill:#666}.paper{fill:#fff}line{stroke:#ccc}.even{stroke:#333;stroke-width:1.5}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.small{fill:#aaa}.paper{fill:#16181c}line{stroke:#444}.even{stroke:#ddd}}"
)


def draw(document: Dict[str, Any]) -> str:
    """Draw what `report.as_json` wrote. Workloads that weren't measured are left out."""
    rows = _rows(document["cases"])
    longest = max((ratio for _, bars in rows for _, ratio in bars), default=1.0)
    scale = (WIDTH - LEFT - RIGHT) / max(longest, 2.0)
    parts: List[str] = []
    y = TOP
    for title, bars in rows:
        height = len(bars) * (BAR + GAP) - GAP
        parts.append(f'<text x="{LEFT - 10}" y="{y + height / 2 + 4.5:.1f}" text-anchor="end">{escape(title)}</text>')
        for peer, ratio in bars:
            length = max(1.0, ratio * scale)
            parts.append(
                f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2" fill="{COLOURS[peer]}"/>'
            )
            parts.append(f'<text x="{LEFT + length + 5:.1f}" y="{y + BAR - 2.5}">{ratio:.1f}×</text>')
            y += BAR + GAP
        y += GROUP
    grid = []
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if longest / step <= 8)
    for mark in range(0, int(longest) + 1, step):
        x = LEFT + mark * scale
        grid.append(f'<line x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{y - GROUP + 6}"/>')
    even = LEFT + scale
    grid.append(f'<line class="even" x1="{even:.1f}" y1="{TOP - 8}" x2="{even:.1f}" y2="{y - GROUP + 6}"/>')
    head = [
        '<text class="title" x="14" y="26">How many times faster than the same work through…</text>',
        *_legend(),
        f'<text class="small" x="14" y="{y + 12}">{escape(_caption(document))}</text>',
    ]
    body = "\n".join([*head, *grid, *parts])
    height = y + 24
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" aria-label="Throughput against peers">\n<style>{STYLE}</style>\n'
        f'<rect class="paper" width="{WIDTH}" height="{height}" rx="6"/>\n{body}\n</svg>\n'
    )


def _rows(cases: Dict[str, Any]) -> List[Tuple[str, List[Tuple[str, float]]]]:
    rows = []
    for key, title in SHOWN:
        contenders = cases[key]["contenders"] if key in cases else {}
        bars = [(peer, contenders[peer]["ratio"]) for peer in COLOURS if contenders.get(peer, {}).get("ratio")]
        if bars:
            rows.append((title, bars))
    return rows


def _legend() -> List[str]:
    parts, x = [], 14
    for peer, colour in COLOURS.items():
        parts.append(f'<rect x="{x}" y="40" width="{BAR}" height="{BAR}" rx="2" fill="{colour}"/>')
        parts.append(f'<text x="{x + BAR + 6}" y="51">{escape(PEERS[peer])}</text>')
        x += 210
    return parts


def _caption(document: Dict[str, Any]) -> str:
    machine, settings = document["machine"], document["settings"]
    packages = machine["packages"]
    return (
        f"Medians of {settings['rounds']} alternating rounds of {settings['seconds']:g} s, {machine['cores']} cores of "
        f"{machine['processor']}, Python {machine['python']}, redis-py {packages['redis']}, "
        f"nats-py {packages['nats-py']}. The black line is equal."
    )
