"""The processes that `synap worker` starts: which are started again, and when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import pytest

from synap.worker.supervisor import Supervisor
from tests.helpers.patience import PATIENCE

pytestmark = pytest.mark.skipif(sys.version_info < (3, 10), reason="the command line needs Python 3.10")


@contextmanager
def failed() -> Iterator[Supervisor]:
    """Make a supervisor of two processes that have failed, as others had before them."""
    supervisor = Supervisor([], 2, 1.0, ["."])
    supervisor._command = [sys.executable, "-c", "raise SystemExit(1)"]
    supervisor._restart_ended()
    first = list(supervisor._processes)
    for process in first:
        process.wait()
    supervisor._failures = 8
    try:
        yield supervisor
    finally:
        for process in (*first, *supervisor._processes):
            process.kill()
            process.communicate()


def test_processes_that_fail_again_and_again_are_started_after_a_pause_or_once_code_changes() -> None:
    with failed() as supervisor:
        for _ in range(2):
            supervisor._restart_ended()
            assert not supervisor._processes
        supervisor._replace()
        supervisor._restart_ended()
        assert len(supervisor._processes) == 2


def test_processes_that_end_while_they_are_replaced_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    with failed() as supervisor:
        process, other = supervisor._processes
        poll = process.poll

        def poll_meanwhile() -> object:
            supervisor._processes = type(supervisor._processes)()  # by the thread that watches the code
            return poll()

        monkeypatch.setattr(process, "poll", poll_meanwhile)
        supervisor._restart_ended()
        assert len(supervisor._processes) == 2
        assert not {process, other} & set(supervisor._processes)


def test_a_program_that_a_process_starts_finds_its_standard_input_empty(tmp_path: Path) -> None:
    """It would wait for the supervisor, which says nothing before it ends."""
    (tmp_path / "reads.py").write_text(
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', 'import sys; sys.stdin.read()'], check=True)\n"
        "sys.exit(7)\n"
    )
    command = [sys.executable, "-m", "synap.worker", "reads:worker", "--lifeline"]
    process = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, start_new_session=True)
    try:
        assert process.wait(PATIENCE) == 7
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
