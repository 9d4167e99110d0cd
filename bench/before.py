"""What a change did to the benchmark: `python -m bench.before TREE` measures another checkout beside this one.

    git worktree add ../before 0.2.0
    python -m bench.before ../before --only kv --only queue

The two trees take turns, workload by workload, every second turn the other way round, each with its own benchmark, its
own source and the servers of others started anew. Shown are medians over the turns, for rows that both have. The column
`others` says what became of the peers meanwhile, whose code is the same in both trees: how far from 1 it is, is noise.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from typing import Any, Dict, List, Tuple

import click

from bench.__main__ import WORKLOADS

__all__ = ["Row", "collect", "row_lines"]

HERE = pathlib.Path(__file__).resolve().parent.parent
OURS = "synap"
NOTICED = 0.05
"""By how much a row has to be slower to be marked."""


@dataclass
class Row:
    """One row of both trees: what each turn measured. Of rates more is better, of findings (`unit`) less is."""

    title: str
    unit: str
    before: List[float] = field(default_factory=list)
    now: List[float] = field(default_factory=list)
    client: Tuple[List[float], List[float]] = field(default_factory=lambda: ([], []))
    server: Tuple[List[float], List[float]] = field(default_factory=lambda: ([], []))
    peers: Dict[str, Tuple[List[float], List[float]]] = field(default_factory=dict)

    @property
    def speed(self) -> float:
        """How fast it is now, of how fast it was: above 1 is faster."""
        before, now = statistics.median(self.before), statistics.median(self.now)
        if self.unit:
            before, now = now, before
        return now / before if before else math.nan

    @property
    def others(self) -> float:
        """The same of the peers, their median; NaN where there is none."""
        ratios = [
            statistics.median(now) / statistics.median(before) for before, now in self.peers.values() if before and now
        ]
        return statistics.median(ratios) if ratios else math.nan


def collect(rows: Dict[str, Row], document: Dict[str, Any], now: bool) -> None:
    """Put what one run of the benchmark wrote (`--json`) into the rows."""
    for key, case in document["cases"].items():
        ours = case["contenders"].get(OURS)
        if ours is None or not ours["rate"]:
            continue
        row = rows.setdefault(key, Row(case["title"], ""))
        (row.now if now else row.before).append(ours["rate"])
        for figures, seconds in ((row.client, ours["client_cpu"]), (row.server, ours["server_cpu"])):
            if seconds is not None:
                figures[now].append(seconds * 1e6)
        for name, outcome in case["contenders"].items():
            if not name.startswith(OURS) and outcome["rate"]:
                row.peers.setdefault(name, ([], []))[now].append(outcome["rate"])
    for key, finding in document["findings"].items():
        row = rows.setdefault(key, Row(finding["title"], finding["unit"]))
        (row.now if now else row.before).append(finding["value"])


def row_lines(rows: Dict[str, Row]) -> List[str]:
    """Write the rows that both trees have as Markdown; in bold what is slower by more than a twentieth."""
    lines = ["| | before | now | speed | others | client, CPU µs | server, CPU µs |", "|---|---|---|---|---|---|---|"]
    for key, row in rows.items():
        if not (row.before and row.now):
            continue
        speed = f"{row.speed:.2f}"
        if row.speed < 1 - NOTICED:
            speed = f"**{speed}**"
        unit = f" {row.unit}" if row.unit else "/s"
        cells = [f"{row.title} `{key}`", *(_figure(values) + unit for values in (row.before, row.now)), speed]
        cells.append("–" if math.isnan(row.others) else f"{row.others:.2f}")
        for before, now in (row.client, row.server):
            cells.append(f"{statistics.median(before):.1f} → {statistics.median(now):.1f}" if before and now else "–")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _figure(values: List[float]) -> str:
    value = statistics.median(values)
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def run(tree: pathlib.Path, python: str, workload: str, rounds: int, seconds: float, quick: bool) -> Dict[str, Any]:
    """Run one workload of a tree's own benchmark, in that tree; raise `subprocess.CalledProcessError` if it fails."""
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory, "figures.json")
        command = [python, "-m", "bench", "--only", workload, "--rounds", str(rounds), "--seconds", str(seconds)]
        subprocess.run(
            [*command, *(["--quick"] if quick else []), "--json", str(file)],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tree / "src"), str(tree)))},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        document: Dict[str, Any] = json.loads(file.read_text())
        return document


@click.command()
@click.argument("tree", type=click.Path(exists=True, file_okay=False))
@click.option("--python", default=sys.executable, help="The interpreter for that tree.  [default: this one]")
@click.option("--only", multiple=True, metavar="NAME", help="A workload. Repeatable.  [default: all but growth]")
@click.option("--turns", type=click.IntRange(1, 100), default=3, show_default=True, help="Turns of each tree.")
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="Rounds within a turn.")
@click.option("--seconds", type=click.FloatRange(0.02, 60), default=0.3, show_default=True, help="Length of a round.")
@click.option("--quick", is_flag=True, help="A twentieth of the load: shows that it works, proves little.")
def main(tree: str, python: str, only: Tuple[str, ...], turns: int, rounds: int, seconds: float, quick: bool) -> None:
    """Measure the checkout TREE beside this one and print what became faster and slower."""
    unknown = [name for name in only if name not in WORKLOADS]
    if unknown:
        raise click.BadParameter(f"no workload {unknown[0]!r}; there are: {', '.join(WORKLOADS)}", param_hint="--only")
    before = pathlib.Path(tree).resolve()
    trees = [(before, python, False), (HERE, sys.executable, True)]
    rows: Dict[str, Row] = {}
    for workload in only or [name for name in WORKLOADS if name != "growth"]:
        for turn in range(turns):
            click.echo(f"{workload}, turn {turn + 1} of {turns}", err=True)
            for place, interpreter, now in trees if turn % 2 == 0 else trees[::-1]:
                try:
                    collect(rows, run(place, interpreter, workload, rounds, seconds, quick), now)
                except subprocess.CalledProcessError as failed:
                    click.echo(f"{workload} did not run in {place}: exit code {failed.returncode}", err=True)
    click.echo("\n".join(row_lines(rows)))


if __name__ == "__main__":
    main()
