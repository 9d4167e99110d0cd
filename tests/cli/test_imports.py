"""What the command line and the service import before they do anything, each in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys
from typing import Tuple

import pytest

from tests.helpers.patience import PATIENCE


@pytest.mark.parametrize(
    ("what", "without"),
    [
        ("synap.cli.app", ("synap.client", "synap.server", "synap.engine", "uvicorn")),
        ("synap.cli.serve", ("synap.client", "synap.server.run", "synap.engine", "uvicorn")),
        ("synap.server.run", ("synap.client", "synap.lanes", "prometheus_client", "websockets")),
    ],
)
def test_nobody_waits_for_the_import_of_what_is_not_used(what: str, without: Tuple[str, ...]) -> None:
    command = [sys.executable, "-c", f"import sys, {what}; print(*sys.modules)"]
    loaded = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout.split()
    assert not set(without) & set(loaded)
