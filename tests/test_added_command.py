"""A new command is an entry in the table, a method of the engine and one of the client, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from synap.testing.server import can_serve
from tests.helpers.added_command import plant


def test_an_added_command_works_everywhere_and_its_answers_outlive_a_crash(tmp_path: Path) -> None:
    copy, data = tmp_path / "copy", tmp_path / "data"
    copy.mkdir()
    plant(copy)
    ended = subprocess.run(
        [sys.executable, "-m", "tests.helpers.added_command", str(data)],
        env={**os.environ, "PYTHONPATH": str(copy / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    ways = 16 if can_serve() else 8
    assert ended.stdout == f"{ways} ways with {copy / 'src' / 'synap' / '__init__.py'}\n"
