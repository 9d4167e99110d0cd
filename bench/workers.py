"""Workers beside each other: Synap, Celery, dramatiq, taskiq and arq, the latter four with Redis.

    python -m bench.workers                                  this Python has the peers (extra `bench`)
    python -m bench.workers --peers /path/to/venv/bin/python  another one has

Each runs one worker process with an empty job and a server of its own; all are acknowledged after the job. They take
turns, and every figure is the median of the rounds. Redis is Valkey that keeps nothing, Synap's server has `--memory`.

jobs/s     jobs were enqueued before the worker starts; from the first that began to the last
wait       one job at a time, to a worker that has nothing else: from before it is enqueued to where it begins
CPU a job  processor time of worker and server together, for the same jobs
idle       the same, of a minute in which nothing happens
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterator, List

import click

from bench.measure import percentile
from bench.peers import Servers, start_synap, start_valkey
from bench.worker_apps.board import Board

__all__ = ["CONTENDERS", "Figures", "main"]

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 120.0
TICKS = os.sysconf("SC_CLK_TCK")


class Stuck(Exception):
    """Jobs that should have run by now have not."""


@dataclass
class Contender:
    """A worker: its server, and the command that runs one process of it."""

    name: str
    redis: bool
    command: List[str]
    enqueue: str


APPS = "bench.worker_apps"
CONTENDERS = [
    Contender("synap", False, ["-m", "synap.worker", f"{APPS}.synap_app:worker"], "synap_app"),
    Contender(
        "celery",
        True,
        ["-m", "celery", "-A", f"{APPS}.celery_app:app", "worker", "-c", "1", "-l", "ERROR", "--without-mingle"],
        "celery_app",
    ),
    Contender("dramatiq", True, ["-m", "dramatiq", f"{APPS}.dramatiq_app", "--processes", "1"], "dramatiq_app"),
    Contender(
        "taskiq",
        True,
        ["-m", "taskiq", "worker", f"{APPS}.taskiq_app:broker", "-w", "1", "--log-level", "WARNING"],
        "taskiq_app",
    ),
    Contender("arq", True, ["-m", "arq", f"{APPS}.arq_app.WorkerSettings"], "arq_app"),
]


@dataclass
class Figures:
    """What was measured of one contender, one value a round."""

    rates: List[float] = field(default_factory=list)
    costs: List[float] = field(default_factory=list)
    waits: List[float] = field(default_factory=list)
    idle: List[float] = field(default_factory=list)


def tree(pid: int) -> List[int]:
    """List a process and all below it."""
    found = [pid]
    for process in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{process}/task"):
                children = Path(f"/proc/{process}/task/{task}/children").read_text()
                found.extend(int(child) for child in children.split())
    return found


def processor_seconds(*pids: int) -> float:
    """Return the processor time that processes and their children have taken."""
    total = 0
    for process in {process for pid in pids for process in tree(pid)}:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / TICKS


class Round:
    """One contender, once."""

    def __init__(self, contender: Contender, python: str, folder: str, servers: Servers) -> None:
        self.contender = contender
        self.python = python if contender.redis else sys.executable
        server = servers.get(contender.name, start_valkey if contender.redis else start_synap)
        scheme = "redis" if contender.redis else "http"
        self.server = server
        self.path = os.path.join(folder, f"{contender.name}-{time.monotonic_ns()}.board")
        self.board = Board(self.path)
        self.environment = {
            **os.environ,
            "BENCH_URL": f"{scheme}://127.0.0.1:{server.port}" + ("/0" if contender.redis else ""),
            "BENCH_BOARD": self.path,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")] if not contender.redis else [str(ROOT)]),
        }

    def enqueue(self, count: int, pause: float = 0.0) -> None:
        """Enqueue jobs in a process of their own."""
        command = [self.python, "-m", f"bench.worker_apps.{self.contender.enqueue}", str(count), str(pause)]
        subprocess.run(command, cwd=ROOT, env=self.environment, check=True, timeout=PATIENCE)

    @contextlib.contextmanager
    def worker(self) -> Iterator[int]:
        """Run the worker; gives its process id."""
        process = subprocess.Popen(
            [self.python, *self.contender.command],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield process.pid
        finally:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def until(self, jobs: int) -> None:
        """Wait until so many jobs have run."""
        until = time.monotonic() + PATIENCE
        while self.board.read()[0] < jobs:
            if time.monotonic() > until:
                raise Stuck(f"{self.contender.name}: {self.board.read()[0]} of {jobs} jobs ran in {PATIENCE:g} seconds")
            time.sleep(0.01)

    def measure(self, jobs: int, lone: int, idle: float, figures: Figures) -> None:
        """Measure everything once."""
        self.enqueue(1)
        with self.worker() as pid:  # one job, to see what starting costs
            self.until(1)
            time.sleep(1.0)
            start = processor_seconds(pid)
        self.board.clear()
        self.enqueue(jobs)
        before = processor_seconds(self.server.pid)
        with self.worker() as pid:
            self.until(jobs)
            time.sleep(0.2)
            spent = processor_seconds(pid) - start + processor_seconds(self.server.pid) - before
            _, first, last, _ = self.board.read()
            figures.rates.append(jobs / max(last - first, 1e-9))
            figures.costs.append(spent / jobs)
        self.board.clear()
        with self.worker() as pid:
            self.enqueue(1)
            self.until(1)
            self.enqueue(lone, 0.01)
            self.until(1 + lone)
            figures.waits.extend(self.board.read()[3][1:])
            time.sleep(1.0)
            before = processor_seconds(pid, self.server.pid)
            time.sleep(idle)
            figures.idle.append((processor_seconds(pid, self.server.pid) - before) / idle * 60)


def has(python: str, module: str) -> bool:
    """Say whether a Python has a module."""
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0


@click.command()
@click.option("--peers", default=sys.executable, help="The Python that has the peers.")
@click.option("--jobs", default=5000, show_default=True, help="Jobs in a round.")
@click.option("--lone", default=200, show_default=True, help="Jobs one at a time in a round.")
@click.option("--idle", default=5.0, show_default=True, help="Seconds of doing nothing in a round.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--only", multiple=True, help="Only these.")
def main(peers: str, jobs: int, lone: int, idle: float, rounds: int, only: List[str]) -> None:
    """Measure workers beside each other."""
    contenders = [one for one in CONTENDERS if not only or one.name in only]
    for one in [one for one in contenders if one.redis and not has(peers, one.name)]:
        click.echo(f"{one.name} is not installed there, so it is left out: pip install '.[bench]'")
        contenders.remove(one)
    figures: Dict[str, Figures] = {one.name: Figures() for one in contenders}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for one in contenders if number % 2 == 0 else reversed(contenders):
                try:
                    with Servers() as servers:
                        Round(one, peers, folder, servers).measure(jobs, lone, idle, figures[one.name])
                except Stuck as error:
                    click.echo(f"round {number + 1}: {error}, left out")
                    continue
                click.echo(f"round {number + 1}: {line(one.name, figures[one.name])}")
    click.echo("\nmedians")
    for one in [one for one in contenders if figures[one.name].idle]:
        click.echo(line(one.name, figures[one.name]))


def line(name: str, figures: Figures) -> str:
    """Say the figures of one contender."""
    waits = sorted(figures.waits)
    return (
        f"{name:9} {statistics.median(figures.rates):8,.0f} jobs/s   wait p50 {percentile(waits, 0.5) * 1e3:7.2f} ms, "
        f"p99 {percentile(waits, 0.99) * 1e3:7.2f} ms   CPU a job {statistics.median(figures.costs) * 1e6:7.0f} µs   "
        f"idle {statistics.median(figures.idle) * 1e3:6.0f} ms a minute"
    )


if __name__ == "__main__":
    main()
