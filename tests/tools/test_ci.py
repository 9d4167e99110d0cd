"""What has to pass before anything lands says at its end what failed, and leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator

import pytest

from tests.helpers.patience import PATIENCE

RUN = Path(__file__).resolve().parents[2] / ".ci" / "run"

PYTHON = """#!/bin/sh
case $0 in *3.8*) version=3.8 ;; *) version=3.15 ;; esac
case "$*" in
    *version_info*) echo $version ;;
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python$version"; ln -s python$version "$3/bin/python" ;;
    "-m pip "*)
        [ "$WAITS" != nobody ] || exit 0
        case $0 in */newest/*) [ "$WAITS" = newest ] || exit 0 ;; esac
        sleep 1000 & echo $! $$ >> "$PIDS"; wait ;;
esac
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def beside(programs: Path, **scripts: str) -> Dict[str, str]:
    """Put what `.ci/run` runs in a folder, most of which only ends well, and return an environment with it.

    `.ci/run` is put beside it.
    """
    programs.mkdir()
    (programs.parent / ".ci").mkdir()
    shutil.copy(RUN, programs.parent / ".ci" / "run")
    scripts = {"python3_8": PYTHON, "python3_15": PYTHON, **scripts}
    for name in ("ruff", "mypy", "lint-imports", "chromium", "nginx", "npm", "systemd-analyze"):
        scripts.setdefault(name, "#!/bin/sh\n")
    for name, script in scripts.items():
        program = programs / name.replace("_", ".")
        program.write_text(script, encoding="utf-8")
        program.chmod(0o755)
    home = str(programs.parent)
    return {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": home, "PYENV_ROOT": home}


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
    written, pids = tmp_path / "written", tmp_path / "pids"
    for folder in (written, tmp_path / "console" / "node_modules"):
        folder.mkdir(parents=True)
    environment = beside(tmp_path / "programs")
    environment.update(TMPDIR=str(written), PIDS=str(pids), WAITS=waits)
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


def test_what_failed_is_told_at_the_end(tmp_path: Path) -> None:
    lines = ["FAILED tests/a.py::test_b - assert 1 == 2", "ERROR tests/c.py::test_d - ResourceWarning"]
    closing = "1 failed, 7 passed, 1 error in 0.10s"
    pytests = "\n".join(["#!/bin/sh", *(f"echo '{line}'" for line in [*lines, closing]), "exit 1"])
    environment = beside(tmp_path / "programs", pytest=pytests)
    environment.update(TMPDIR=str(tmp_path), WAITS="nobody")
    ended = subprocess.run(
        ["bash", str(tmp_path / ".ci" / "run")], env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert ended.returncode == 1
    assert ended.stdout.splitlines()[-3:] == [*lines, closing], ended.stdout[-2000:]
    assert "FAILED: pytest" in ended.stdout
