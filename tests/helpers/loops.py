"""Event loops: those a service runs on (uvloop where it is installed, else asyncio's own), and one of a test's own."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Dict

import pytest

__all__ = ["LOOPS", "loop_environment", "run"]

LOOPS = ["uvloop", "asyncio"]


def loop_environment(loop: str, folders: pytest.TempPathFactory) -> Dict[str, str]:
    """Return the environment of a service that is to run on one of `LOOPS`."""
    if loop == "uvloop":
        return {}
    folder = folders.mktemp("no_uvloop")
    (folder / "uvloop.py").write_text("raise ImportError('hidden')\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


def run(main: Any) -> Any:
    """Run a coroutine in an event loop of its own, and leave the test's where it is (`asyncio.run` would drop it)."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
