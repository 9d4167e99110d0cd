"""Clients on systems that lack what Linux has, as far as that can be shown on Linux."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from synap.config import local_path
from tests.helpers.patience import PATIENCE


def test_memory_and_file_need_nothing_that_windows_has_not(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.helpers.other_systems", str(tmp_path / "data")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 50


@pytest.mark.parametrize(
    ("path", "there", "here"),
    [
        ("/C:/data", "C:/data", "/C:/data"),
        ("/d%3A/my%20data", "d:/my data", "/d:/my data"),
        ("/data/x:y", "/data/x:y", "/data/x:y"),
    ],
)
def test_a_drive_has_no_slash_before_it(path: str, there: str, here: str) -> None:
    assert local_path(path, windows=True) == there
    assert local_path(path, windows=False) == here
