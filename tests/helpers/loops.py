"""The event loops a service runs on: uvloop where it is installed, else asyncio's own."""

from __future__ import annotations

import os
from typing import Dict

import pytest

__all__ = ["LOOPS", "loop_environment"]

LOOPS = ["uvloop", "asyncio"]


def loop_environment(loop: str, folders: pytest.TempPathFactory) -> Dict[str, str]:
    """Return the environment of a service that is to run on one of `LOOPS`."""
    if loop == "uvloop":
        return {}
    folder = folders.mktemp("no_uvloop")
    (folder / "uvloop.py").write_text("raise ImportError('hidden')\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}
