"""Plant each bug in a copy of the project, run the tests that should notice, and say which did.

    python -m tests.seeded                   all of them, one after another (an hour)
    python -m tests.seeded mark redrive      those whose name holds one of these words
    python -m tests.seeded --list            name them and run nothing

The same tests run without the bug first: a bug is caught by tests that pass without it and of which one fails with it.
One that only makes a test hang is not caught. Exits with 1 where a bug is not, or was planted in code that has changed.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List

from tests.seeded import SEEDS
from tests.seeded.seed import Seed, copy_project, plant

PATIENCE = 30
"""Seconds that the copy's tests wait for what must happen, instead of their own `PATIENCE`."""
HANGS = 150
"""Seconds after which one test hangs."""
LIMIT = 600
"""Seconds for all the tests of one seed."""


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def hurry(project: Path) -> None:
    """Have the copy's tests give up sooner: with a bug, what they wait for often never happens."""
    path = project / "tests" / "helpers" / "patience.py"
    text, found = re.subn(r"^PATIENCE = .*$", f"PATIENCE = {PATIENCE}.0", path.read_text("utf-8"), flags=re.MULTILINE)
    assert found == 1
    path.write_text(text, encoding="utf-8")


def run_tests(project: Path, arguments: str) -> str:
    """Run pytest in the copy, on the copy's sources; returns 'passed', 'failed', 'hung' or what went wrong."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(project / "src"), str(project)))}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", f"--timeout={HANGS}"]
    command += shlex.split(arguments)
    try:
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return "hung"
    if done.returncode == 1:
        found = re.search(r"^FAILED (\S+) - .*from pytest-timeout\.", done.stdout, re.MULTILINE)
        if found is not None:
            say(f"hangs: {found[1]}")
        return "hung" if "from pytest-timeout." in done.stdout else "failed"
    if done.returncode:
        sys.stderr.write(done.stdout[-2000:] + done.stderr[-2000:])
        return f"pytest exited with {done.returncode}"
    return "passed"


def follow(seed: Seed, project: Path) -> None:
    """Write the sync twin anew where the seed's file has one."""
    if "/_async/" in f"/{seed.file}":
        subprocess.run([sys.executable, "tools/async_to_sync.py"], cwd=project, check=True, capture_output=True)


def judge(seed: Seed, project: Path, sound: Dict[str, str]) -> str:
    """Return 'caught', 'survived', or what is wrong with the seed. Leaves the copy as it was.

    `sound`: how tests ended without any bug, by their arguments; filled in.
    """
    if seed.tests not in sound:
        sound[seed.tests] = run_tests(project, seed.tests)
    if sound[seed.tests] != "passed":
        return f"broken: without the bug, tests {sound[seed.tests]}"
    try:
        text = plant(seed, project)
    except ValueError as error:
        return f"stale: {error}"
    follow(seed, project)
    outcome = run_tests(project, seed.tests)
    (project / "src" / "synap" / seed.file).write_text(text, encoding="utf-8")
    follow(seed, project)
    return {"passed": "SURVIVED", "failed": "caught", "hung": "HUNG"}.get(outcome, f"broken: {outcome}")


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
    sound: Dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="synap-seed-") as folder:
        project = Path(folder) / "project"
        copy_project(project)
        hurry(project)
        for place, seed in enumerate(chosen, 1):
            began = time.monotonic()
            outcome = judge(seed, project, sound)
            outcomes.append(outcome)
            say(f"{place:3}/{len(chosen)}  {outcome:9} {time.monotonic() - began:5.1f} s  {seed.name}")
    caught = outcomes.count("caught")
    say(f"{caught} of {len(outcomes)} planted bugs were caught")
    return 0 if caught == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
