"""What the demo shows: a live picture on a terminal, a line a second elsewhere, and the figures at the end."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Any, List, Tuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from synap.demo import names
from synap.demo.check import Verdict
from synap.demo.progress import Progress

STATES = {
    "starting": "dim",
    "working": "green",
    "primary": "green",
    "replica": "cyan",
    "killed": "bold red",
    "ended": "dim",
}


MACHINES = 4
"""Nodes and gateways in a row."""


def picture(progress: Progress, width: int = 100) -> RenderableType:
    """Draw the progress."""
    done, total = len(progress.hashed), progress.total

    head = Table.grid(expand=True)
    head.add_column()
    head.add_column(justify="right")
    head.add_row(
        Text.assemble((progress.title, "bold cyan"), f"  SHA-256 of {total:,} files of the standard library"),
        Text(f"{progress.url}  {progress.storage}", style="dim"),
    )

    bar = Table.grid(expand=True, padding=(0, 1))
    bar.add_column(ratio=1)
    bar.add_column(justify="right")
    bar.add_row(
        ProgressBar(total=max(total, 1), completed=done, complete_style="cyan", finished_style="green"),
        Text(f"{done:,}/{total:,}  {progress.elapsed:5.1f} s", style="bold"),
    )

    classes = "  ".join(f"{name} {count:,}" for name, count in progress.messages.items())
    middle = Table.grid(expand=True, padding=(0, 2))
    middle.add_column(ratio=4)
    middle.add_column(ratio=3)
    middle.add_row(_workers(progress), _traffic(progress))

    feed = Text("\n".join(progress.feed), overflow="ellipsis", no_wrap=True)
    below: List[RenderableType] = [Text(), _machines(progress), Text()] if progress.machines else []
    return Panel(
        Group(
            head,
            Text(),
            bar,
            Text(),
            middle,
            *below,
            Text(f" by topic: {classes}", style="dim"),
            Text(),
            Panel(feed, title=f"room {names.ROOM}", title_align="left", border_style="dim", height=8),
            Text(f" {progress.phase}", style="yellow"),
        ),
        border_style="cyan",
        width=min(width, 110),
    )


def _workers(progress: Progress) -> Table:
    workers = Table(title="worker processes", title_justify="left", expand=True, box=None, padding=(0, 1))
    workers.add_column("worker", no_wrap=True, min_width=9)
    for figure in ("pid", "hashed", "holds", "took over"):
        workers.add_column(figure, justify="right", no_wrap=True)
    workers.add_column("state", no_wrap=True)
    for worker in progress.workers.values():
        state = Text(worker.state, style=STATES.get(worker.state.partition(" ")[0], ""))
        numbers = (worker.pid, f"{worker.hashed:,}", len(worker.holds), worker.taken_over or "")
        workers.add_row(worker.name, *map(str, numbers), state)
    return workers


def _traffic(progress: Progress) -> Table:
    files_rate, operations_rate = progress.rates()
    traffic = Table(title="traffic", title_justify="left", expand=True, box=None, padding=(0, 1), show_header=False)
    traffic.add_column()
    traffic.add_column(justify="right")
    traffic.add_row(f"queue {names.QUEUE}", f"{progress.depth:,} ready, {progress.pending:,} leased")
    traffic.add_row("files/s", f"{files_rate:,.0f}")
    traffic.add_row("operations/s", f"{operations_rate:,.0f}")
    traffic.add_row(f"room {names.ROOM}", f"{progress.events:,} events")
    traffic.add_row("topic hashed.*", f"{sum(progress.messages.values()):,} messages")
    return traffic


def _machines(progress: Progress) -> Table:
    machines = Table.grid(expand=True, padding=(0, 1))
    for place in range(0, len(progress.machines), MACHINES):
        row = list(progress.machines.values())[place : place + MACHINES]
        machines.add_row(*(Text.assemble(f"{one.name} ", (one.state, STATES.get(one.state, ""))) for one in row))
    return machines


def figures(progress: Progress, verdict: Verdict, redelivered: int) -> List[Tuple[str, str]]:
    """Return the final figures by name."""
    seconds = max(progress.elapsed, 1e-9)
    rows = [
        ("tasks", f"{progress.total:,}"),
        ("redelivered", f"{redelivered:,}"),
        ("missing", f"{len(verdict.missing):,}"),
        ("wrong", f"{len(verdict.wrong):,}"),
        ("operations", f"{progress.operations:,}"),
        ("operations/s", f"{progress.operations / seconds:,.0f}"),
        ("seconds", f"{seconds:.1f}"),
    ]
    if progress.victim is None and progress.to_kill:
        rows.append(("killed", "nobody: the work was over too soon"))
    elif progress.victim is not None:
        rows.append(("killed", f"{progress.victim} (SIGKILL), with {progress.lost} tasks leased"))
    return [*rows, *progress.events_of.items()]


def summary(progress: Progress, verdict: Verdict, redelivered: int) -> RenderableType:
    """Draw the final figures."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(style="bold")
    for name, figure in figures(progress, verdict, redelivered):
        bad = name in ("missing", "wrong") and figure != "0"
        table.add_row(name, Text(figure, style="bold red" if bad else ""))
    mark = Text(f"every one of {verdict.checked:,} digests is there and right", style="bold green")
    if not verdict.good:
        mark = Text("; ".join([*verdict.missing[:5], *verdict.wrong[:5]]), style="bold red")
    return Group(table, mark)


class Output(Console):
    """A console that raises when its reader is gone; rich's own exits the program."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Screen(AbstractContextManager["Screen"]):
    """Base class of displays."""

    every = 0.125
    """Seconds between two `show`s."""

    def show(self, progress: Progress) -> None:
        """Show the current progress."""
        raise NotImplementedError

    def finish(self, progress: Progress, verdict: Verdict, redelivered: int) -> None:
        """Show the final figures."""
        raise NotImplementedError

    def __exit__(self, *error: Any) -> None:
        return None


class LiveScreen(Screen):
    """A live picture on a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> LiveScreen:
        self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.live.__exit__(*error)

    def show(self, progress: Progress) -> None:
        self.live.update(picture(progress, self.console.width), refresh=True)

    def finish(self, progress: Progress, verdict: Verdict, redelivered: int) -> None:
        self.show(progress)
        self.live.stop()
        self.console.print(summary(progress, verdict, redelivered))


class PlainScreen(Screen):
    """Lines of text, for files, pipes and screen readers: one a second, and one for each new step."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.shown_at = 0.0
        self.phase = ""

    def show(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self.shown_at < 1 and progress.phase == self.phase:
            return
        if progress.phase != self.phase:
            self._print(progress.phase)
        self.shown_at, self.phase = now, progress.phase
        files_rate, operations_rate = progress.rates()
        self._print(
            f"{progress.elapsed:5.1f} s  {len(progress.hashed):,}/{progress.total:,} files  {files_rate:,.0f} files/s  "
            f"{operations_rate:,.0f} operations/s  queue {progress.depth:,} ready {progress.pending:,} leased  "
            f"room {progress.events:,}  topics {sum(progress.messages.values()):,}"
        )

    def finish(self, progress: Progress, verdict: Verdict, redelivered: int) -> None:
        for name, figure in figures(progress, verdict, redelivered):
            self._print(f"{name:<13} {figure}")
        for what, paths in (("missing", verdict.missing), ("wrong", verdict.wrong)):
            for path in paths[:20]:
                self._print(f"{what}: {path}")

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
