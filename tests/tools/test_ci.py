"""What has to pass before anything lands leaves nothing behind, however it is ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import pytest

from tests.helpers.patience import PATIENCE

RUN = Path(__file__).resolve().parents[2] / ".ci" / "run"

PYTHON = """#!/bin/sh
case $0 in *3.8*) version=3.8 ;; *) version=3.15 ;; esac
case "$*" in
    *version_info*) echo $version ;;
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python$version"; ln -s python$version "$3/bin/python" ;;
    "-m pip "*)
        case $0 in */newest/*) [ "$WAITS" = newest ] || exit 0 ;; esac
        sleep 1000 & echo $! $$ >> "$PIDS"; wait ;;
esac
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextmanager
def interruptible() -> Iterator[None]:
    """Have what is started here not ignore SIGINT, as it does where these tests run in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("waits", "installs"), [("newest", 1), ("others", 2)])
def test_installs_end_with_the_run_that_began_them(
    tmp_path: Path, number: signal.Signals, waits: str, installs: int
) -> None:
    programs, written, pids = tmp_path / "programs", tmp_path / "written", tmp_path / "pids"
    for folder in (programs, written, tmp_path / ".ci", tmp_path / "console" / "node_modules"):
        folder.mkdir(parents=True)
    shutil.copy(RUN, tmp_path / ".ci" / "run")
    for name in ("python3.8", "python3.15"):
        (programs / name).write_text(PYTHON, encoding="utf-8")
        (programs / name).chmod(0o755)
    for name in ("ruff", "mypy", "lint-imports"):
        (programs / name).symlink_to("/bin/true")
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(tmp_path), "TMPDIR": str(written)}
    environment.update(PYENV_ROOT=str(tmp_path), PIDS=str(pids), WAITS=waits)
    with interruptible():
        run = subprocess.Popen(
            ["bash", str(tmp_path / ".ci" / "run")],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    try:
        end = time.monotonic() + PATIENCE
        while not pids.exists() or len(pids.read_text(encoding="utf-8").split()) < 2 * installs:
            assert time.monotonic() < end
            time.sleep(0.02)
        begun = [int(pid) for pid in pids.read_text(encoding="utf-8").split()]
        run.send_signal(number)
        run.wait(PATIENCE)
        while any(map(is_running, begun)) or list(written.iterdir()):
            assert time.monotonic() < end, (list(filter(is_running, begun)), list(written.iterdir()))
            time.sleep(0.02)
    finally:
        run.kill()
        run.wait()
