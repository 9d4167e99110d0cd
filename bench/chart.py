"""The chart of the README, drawn by hand as SVG: how many times as fast as each peer, one bar a workload.

Bars begin at the line of 1×: to the right ours is faster, to the left it is slower. The scale is logarithmic, so that
half as fast is as long a bar as twice as fast.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List
from xml.sax.saxutils import escape

from bench.shown import cases, settings_line

__all__ = ["draw"]

COLOURS = {"redis-py": "#c2553d", "nats-py": "#3f74b5"}
PEERS = {"redis-py": "valkey-server + redis-py", "nats-py": "nats-server + nats-py"}
MARKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)

WIDTH, LEFT, RIGHT, TOP, BAR, GAP, GROUP = 900, 345, 40, 104, 12, 2, 9
NUMBER = 50
"""Room for a number beside a bar."""
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#333}.title{font-size:17px;font-weight:600}"
    ".small{font-size:11px;fill:#666}.paper{fill:#fff}line{stroke:#ddd}.even{stroke:#333;stroke-width:1.5}"
    ".slow{font-weight:700}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.small{fill:#aaa}.paper{fill:#16181c}line{stroke:#333}"
    ".even{stroke:#ddd}}"
)


class _Scale:
    """Where a ratio is on the paper."""

    def __init__(self, ratios: List[float]) -> None:
        least = max([mark for mark in MARKS if mark <= min([*ratios, 0.5])], default=MARKS[0])
        most = min([mark for mark in MARKS if mark >= max([*ratios, 2.0])], default=MARKS[-1])
        self.marks = [mark for mark in MARKS if least <= mark <= most]
        self._least = least
        self._each = (WIDTH - LEFT - RIGHT - NUMBER) / math.log(most / least)

    def x(self, ratio: float) -> float:
        return LEFT + NUMBER + max(0.0, math.log(ratio / self._least) * self._each)


def draw(document: Dict[str, Any]) -> str:
    """Draw what `report.as_json` wrote. Workloads that weren't measured are left out."""
    rows = [
        (title, [(peer, float(outcome["ratio"])) for peer, outcome in peers]) for _, title, peers in cases(document)
    ]
    scale = _Scale([ratio for _, bars in rows for _, ratio in bars])
    even = scale.x(1)
    parts: List[str] = []
    y = TOP
    for title, bars in rows:
        height = len(bars) * (BAR + GAP) - GAP
        parts.append(f'<text x="14" y="{y + height / 2 + 4.5:.1f}">{escape(title)}</text>')
        for peer, ratio in bars:
            end = scale.x(ratio)
            left, length = min(end, even), max(1.0, abs(end - even))
            parts.append(
                f'<rect x="{left:.1f}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2" fill="{COLOURS[peer]}"/>'
            )
            parts.append(_number(ratio, end, y + BAR - 1.5))
            y += BAR + GAP
        y += GROUP
    bottom = y - GROUP + 6
    grid = []
    for mark in scale.marks:
        x = scale.x(mark)
        kind = ' class="even"' if mark == 1 else ""
        grid.append(f'<line{kind} x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{bottom}"/>')
        grid.append(f'<text class="small" x="{x:.1f}" y="{TOP - 13}" text-anchor="middle">{mark:g}×</text>')
    head = [
        '<text class="title" x="14" y="26">How many times as fast as the same work through…</text>',
        *_legend(),
        f'<text class="small" x="{even - 6:.1f}" y="{TOP - 28}" text-anchor="end">← slower</text>',
        f'<text class="small" x="{even + 6:.1f}" y="{TOP - 28}">faster →</text>',
        f'<text class="small" x="14" y="{bottom + 18}">{escape(settings_line(document))}.</text>',
        f'<text class="small" x="14" y="{bottom + 33}">The dark line is equal; the scale is logarithmic. Every case of '
        "the run in which a peer was faster is shown.</text>",
    ]
    body = "\n".join([*grid, *head, *parts])
    height = bottom + 44
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" aria-label="Throughput against peers">\n<style>{STYLE}</style>\n'
        f'<rect class="paper" width="{WIDTH}" height="{height}" rx="6"/>\n{body}\n</svg>\n'
    )


def _number(ratio: float, end: float, y: float) -> str:
    """Write the ratio at the far end of its bar; one below 1 never looks like 1."""
    if ratio < 1:
        shown = f"{math.floor(ratio * 100) / 100:.2f}×"
        return f'<text class="slow" x="{end - 5:.1f}" y="{y}" text-anchor="end">{shown}</text>'
    return f'<text x="{end + 5:.1f}" y="{y}">{math.floor(ratio * 10) / 10:.1f}×</text>'


def _legend() -> List[str]:
    parts, x = [], 14
    for peer, colour in COLOURS.items():
        parts.append(f'<rect x="{x}" y="40" width="{BAR}" height="{BAR}" rx="2" fill="{colour}"/>')
        parts.append(f'<text x="{x + BAR + 6}" y="51">{escape(PEERS[peer])}</text>')
        x += 210
    return parts
