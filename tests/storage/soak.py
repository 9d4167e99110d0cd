"""Crashes by the thousand: `python -m tests.storage.soak [--rounds 5000] [--seed 1] [--keep DIRECTORY]`.

Each round starts a service on the directory that the one before left, lets callers work, kills it with SIGKILL, at a
moment of chance or at a named point (`synap.storage.crashpoints`), starts it again and compares with what the callers
were told.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from typing import List, Optional

from synap.storage.crashpoints import POINTS, VARIABLE
from tests.helpers.driver import Service
from tests.storage.crasher import CALLERS, SMALL, Ledger, Life, Note

__all__ = ["Rounds", "main"]

OPERATIONS = 400


class Rounds:
    """One directory through many crashes."""

    def __init__(self, directory: str, seed: int, commits: str = "thread") -> None:
        self.commits = commits
        self.directory = directory
        self.chance = random.Random(seed)
        self.ledger = Ledger()
        self.life = 0
        self.killed = 0
        environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.storage.crasher"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    def __enter__(self) -> Rounds:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()

    def run(self, point: Optional[str] = None, nth: Optional[int] = None) -> int:
        """Do one round; returns how many answers the callers got. Raises AssertionError for what must not be."""
        self.life += 1
        notes = self._live(point, nth)
        self.ledger.read(notes)
        with Service(self.directory, session="d" * 32, snapshot_minimum=SMALL) as service:
            self.ledger.check(service)
        return sum("number" in note and not note.get("sent") for note in notes)

    def _live(self, point: Optional[str], nth: Optional[int]) -> List[Note]:
        # How many answers are read before the kill; a named point kills by itself, usually earlier.
        answers = self.chance.randrange(1, 600) if point is None else 1_000_000
        where = f"{point}:{nth or self.chance.randrange(1, 30 if 'p' in point[1:] else 3)}" if point is not None else ""
        operations = OPERATIONS * CALLERS if self.commits == "inline" else OPERATIONS
        life = Life(self.directory, self.life, operations, self.commits, where)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(life).encode() + b"\n")
        self._process.stdin.flush()
        notes: List[Note] = []
        code = None
        for line in self._process.stdout:
            note = json.loads(line)
            if "code" in note:
                code = note["code"]
                break
            notes.append(note)
            if "number" in note and not note.get("sent"):
                answers -= 1
                if answers == 0:
                    os.kill(notes[0]["started"], signal.SIGKILL)
        assert code in (0, -signal.SIGKILL), f"the service ended with {code}"
        assert notes, "the service did not start"
        self.killed += code != 0
        return notes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", default=None, help="use this directory and leave it there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="synap-soak-") as scratch, Rounds(
        options.keep or os.path.join(scratch, "data"), options.seed
    ) as rounds:
        answered = 0
        for done in range(1, options.rounds + 1):
            point = rounds.chance.choice((None, None, *POINTS))
            rounds.commits = rounds.chance.choice(("thread", "inline"))
            try:
                answered += rounds.run(point)
            except BaseException:
                sys.stderr.write(f"round {done} (seed {options.seed}, {point or 'at random'}) failed\n")
                raise
            if done % 50 == 0:
                text = f"{done} rounds, {rounds.killed} killed, {answered} answers, nothing lost or done twice\n"
                sys.stdout.write(text)
                sys.stdout.flush()


if __name__ == "__main__":
    main()
