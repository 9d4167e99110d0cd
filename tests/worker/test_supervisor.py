"""The processes that `synap worker` starts: which are started again."""

from __future__ import annotations

import sys
from typing import List, Optional

import pytest

from synap.worker.supervisor import Supervisor

pytestmark = pytest.mark.skipif(sys.version_info < (3, 10), reason="the command line needs Python 3.10")


def test_processes_whose_code_changes_during_the_pause_before_their_restart_are_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    supervisor = Supervisor([], 2, 1.0, ["."])
    supervisor._command = [sys.executable, "-c", "raise SystemExit(1)"]
    pauses: List[Optional[float]] = []

    def changed(seconds: Optional[float] = None) -> bool:
        """Stand in for the pause, in which the thread that watches the code replaces all processes."""
        pauses.append(seconds)
        supervisor._processes = type(supervisor._processes)()
        return False

    supervisor._restart_ended()
    first = list(supervisor._processes)
    for process in first:
        process.wait()
    supervisor._failures = 1
    monkeypatch.setattr(supervisor._stopping, "wait", changed)
    supervisor._restart_ended()
    assert len(pauses) == 1
    assert len(supervisor._processes) == 2
    assert not set(first) & set(supervisor._processes)
    for process in (*first, *supervisor._processes):
        process.kill()
        process.communicate()
