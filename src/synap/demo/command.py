"""The command `synap demo`."""

from __future__ import annotations

import asyncio
import sys
from typing import Optional

import click

from synap.cli.command import Command
from synap.cli.exits import INTERRUPTED, NEGATIVE, OK, OTHER, Failure
from synap.demo.display import LiveScreen, Output, PlainScreen, Screen
from synap.demo.run import Broken, Settings, Stopped, run


@click.command(
    "demo",
    cls=Command,
    short_help="See it all work, on real input.",
    examples=[
        "synap demo",
        "synap demo --files 500 --workers 8",
        "synap demo --plain > demo.log",
        "synap demo --cluster",
    ],
    negative="A digest is missing or wrong.",
)
@click.option("--files", type=click.IntRange(min=1), metavar="N", help="Hash N files. [default: all]")
@click.option(
    "--workers", type=click.IntRange(1, 64), metavar="N", default=4, show_default=True, help="Worker processes."
)
@click.option("--memory", is_flag=True, help="Let the server keep its data in memory. [default: on disk]")
@click.option("--kill/--no-kill", default=True, help="Kill one worker in the middle of its work. [default: kill]")
@click.option("--cluster", is_flag=True, help="On a cluster, of which a gateway and a primary are killed too.")
@click.option("--plain", is_flag=True, help="Print lines, no live picture (also where there is no terminal).")
def demo(files: Optional[int], workers: int, memory: bool, kill: bool, cluster: bool, plain: bool) -> int:
    """Start a server and worker processes and hash the standard library with them.

    A producer publishes a task for every file of this Python's standard library, the smaller the more urgent.
    Workers lease the tasks, hash the files (SHA-256), store the digests, and publish to a room and a topic. One of
    them hangs and is killed while it holds leases, which expire and go to the others. At the end every digest is
    checked against its file.

    With --cluster, the same on six nodes of Valkey (three primaries, each with a replica) behind two gateways. Of these
    one gateway and the primary that has the queue are killed as well.
    """
    if cluster and memory:
        raise click.UsageError("--cluster keeps its data on its nodes: leave --memory out")
    console = Output(highlight=False)
    live = not plain and console.is_terminal and not console.is_dumb_terminal
    screen: Screen = LiveScreen(console) if live else PlainScreen(console)
    try:
        outcome = asyncio.run(run(Settings(files, workers, memory, kill, cluster), screen))
    except Broken as problem:
        raise Failure(OTHER, "DEMO_FAILED", str(problem)) from None
    except Stopped as stopped:
        sys.stderr.write("synap: the demo was stopped; its processes are gone\n")
        return INTERRUPTED if stopped.signal == 2 else 128 + stopped.signal
    return OK if outcome.verdict.good else NEGATIVE
