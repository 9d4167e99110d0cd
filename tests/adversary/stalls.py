"""The suite while its processes stand still for a moment again and again, as they do on a busy or a paused machine.

    python -m tests.adversary.stalls                          each process by itself, now and then
    python -m tests.adversary.stalls --together --longest 2   all at once, every few seconds
    python -m tests.adversary.stalls tests/client -k retry    part of the suite

Linux only. What a test stops itself is left alone. Prints pytest's last lines and how often something stood still;
exits as pytest does.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Dict, Iterator, List

import click

from synap.testing.reaper import kill_at_exit

TICK = 0.1
SHARE = 0.015
"""How likely a process is stopped at a tick: with half a second at a time, it stands still for 7 % of the time."""
APART = (3.0, 8.0)
"""Seconds between two moments at which all stand still."""
STILL = "TtZX"
"""States in /proc of processes that are stopped or gone."""


def family(pid: int) -> Iterator[int]:
    """Yield the descendants of a process."""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in path.read_text("ascii").split():
                yield int(child)
                yield from family(int(child))


def runs(pid: int) -> bool:
    """Return whether a process exists and isn't stopped."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0] not in STILL
    return False


def tell(number: int, processes: List[int]) -> None:
    """Send a signal to those that there still are."""
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def one_by_one(pytest: subprocess.Popen[bytes], until: float, longest: float) -> int:
    """Stop processes for a moment each; returns how often."""
    stopped: Dict[int, float] = {}  # until when
    count = 0
    while pytest.poll() is None and time.monotonic() < until:
        now = time.monotonic()
        for pid in [pid for pid, end in stopped.items() if end <= now]:
            del stopped[pid]
            tell(signal.SIGCONT, [pid])
        for pid in family(pytest.pid):
            if pid not in stopped and random.random() < SHARE and runs(pid):
                tell(signal.SIGSTOP, [pid])
                stopped[pid] = now + random.uniform(0.1, longest)
                count += 1
        time.sleep(TICK)
    tell(signal.SIGCONT, list(stopped))
    return count


def together(pytest: subprocess.Popen[bytes], until: float, longest: float) -> int:
    """Stop all processes for a moment; returns how often."""
    count = 0
    while pytest.poll() is None and time.monotonic() < until:
        time.sleep(random.uniform(*APART))
        stopped: List[int] = []
        for _ in range(2):  # the second time for children that were begun meanwhile
            found = [pid for pid in family(pytest.pid) if pid not in stopped and runs(pid)]
            tell(signal.SIGSTOP, found)
            stopped += found
        time.sleep(random.uniform(0.1, longest))
        tell(signal.SIGCONT, stopped)
        count += 1
    return count


def main() -> int:
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.adversary.stalls", description=description)
    parser.add_argument("--together", action="store_true", help="stop all processes at once")
    parser.add_argument("--longest", type=float, default=0.8, metavar="SECONDS", help="of a standstill (default: 0.8)")
    parser.add_argument("--minutes", type=float, default=60.0, help="after which pytest is ended (default: 60)")
    options, arguments = parser.parse_known_args()
    pytest = subprocess.Popen([sys.executable, "-m", "pytest", "--quiet", *arguments], start_new_session=True)
    kill_at_exit(pytest.pid)
    stall = together if options.together else one_by_one
    count = stall(pytest, time.monotonic() + options.minutes * 60, options.longest)
    if pytest.poll() is None:
        os.killpg(pytest.pid, signal.SIGINT)
    code = pytest.wait()
    click.echo(f"stood still {count:,} times")
    return code


if __name__ == "__main__":
    sys.exit(main())
