"""A machine as busy, and with as many CPUs, as a test says."""

from __future__ import annotations

from pathlib import Path

import pytest


def set_runnable(load: Path, threads: int) -> None:
    """Write into what stands for the system's file how many threads are runnable."""
    load.write_text(f"0.20 0.18 0.12 {threads}/80 11206\n")


def use_cpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let this process use so many CPUs."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(count)), raising=False)
