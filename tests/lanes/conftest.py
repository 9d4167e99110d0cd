"""Both colours, and machines with little or much to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from synap.lanes.native import cpus
from tests.helpers.cpus import set_runnable


@pytest.fixture(params=["async", "sync"])
def colour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Have an idle machine with two CPUs; tests write another load into the file."""
    load = tmp_path / "loadavg"
    set_runnable(load, 1)
    monkeypatch.setattr(cpus, "LOADAVG", str(load))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    return load
