"""What the command line and the service import before they do anything, each in an interpreter of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
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


def test_what_imports_leave_is_not_searched_for_garbage() -> None:
    program = """
        import gc, sys
        from synap.cli import main
        full = []
        gc.callbacks.append(lambda phase, about: full.append(about["generation"]))
        try:
            main()
        finally:
            print(gc.isenabled(), gc.get_freeze_count(), 2 in full)
    """
    kept = []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for arguments in (["--version"], ["serve", "--memory", "--port", str(taken.getsockname()[1])]):
            command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
            ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=PATIENCE, check=False)
            enabled, count, searched = ended.stdout.split()[-3:]
            assert (enabled, searched) == ("True", "False")
            kept.append(int(count))
    assert 10_000 < kept[0] < kept[1] - 10_000
