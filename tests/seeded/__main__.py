"""Plant each bug in a copy of the project, run the tests that should notice, and say which did.

    python -m tests.seeded                   all of them, one after another (some minutes)
    python -m tests.seeded mark redrive      those whose name holds one of these words
    python -m tests.seeded --list            name them and run nothing

Exits with 1 where a bug survived, was planted in code that has changed, or the tests fail without any bug.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import List

from tests.seeded import SEEDS
from tests.seeded.seed import Seed, copy_project, plant

TIMEOUT = 300
"""Seconds for the tests of one seed; a bug that makes them hang that long counts as caught."""


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def run_tests(project: Path, arguments: str) -> int:
    """Run pytest in the copy, on the copy's sources; returns its exit code, 1 where it hangs."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(project / "src"), str(project)))}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", *shlex.split(arguments)]
    try:
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return 1
    if done.returncode not in (0, 1):
        sys.stderr.write(done.stdout[-2000:] + done.stderr[-2000:])
    return done.returncode


def follow(seed: Seed, project: Path) -> None:
    """Write the sync twin anew where the seed's file has one."""
    if "/_async/" in f"/{seed.file}":
        subprocess.run([sys.executable, "tools/async_to_sync.py"], cwd=project, check=True, capture_output=True)


def judge(seed: Seed, project: Path) -> str:
    """Return 'caught', 'survived', or what is wrong with the seed. Leaves the copy as it was."""
    try:
        sound = plant(seed, project)
    except ValueError as error:
        return f"stale: {error}"
    follow(seed, project)
    code = run_tests(project, seed.tests)
    (project / "src" / "synap" / seed.file).write_text(sound, encoding="utf-8")
    follow(seed, project)
    return {0: "SURVIVED", 1: "caught"}.get(code, f"broken: pytest exited with {code}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.seeded", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="*", help="only seeds whose name holds one of these")
    parser.add_argument("--list", action="store_true", help="name the seeds and run nothing")
    arguments = parser.parse_args()
    chosen: List[Seed] = [
        seed for seed in SEEDS if not arguments.words or any(word in seed.name for word in arguments.words)
    ]
    if arguments.list:
        for seed in chosen:
            say(f"{seed.file:32} {seed.name}")
        return 0
    outcomes: List[str] = []
    with tempfile.TemporaryDirectory(prefix="synap-seed-") as folder:
        project = Path(folder) / "project"
        copy_project(project)
        for place, seed in enumerate(chosen, 1):
            began = time.monotonic()
            outcome = judge(seed, project)
            outcomes.append(outcome)
            say(f"{place:3}/{len(chosen)}  {outcome:9} {time.monotonic() - began:5.1f} s  {seed.name}")
    caught = outcomes.count("caught")
    say(f"{caught} of {len(outcomes)} planted bugs were caught")
    return 0 if caught == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
