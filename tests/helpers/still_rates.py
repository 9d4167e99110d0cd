"""A service whose rate limits give nothing back until a test says so: how long requests take doesn't matter then."""

from __future__ import annotations

import os
from pathlib import Path

SHIM = """
import os
from synap.server import rates

_make = rates.Bucket.__init__

def _still(self, rate, clock, *more):
    began = clock()
    _make(self, rate, lambda: began if os.path.exists(os.environ["STILL_RATES"]) else clock(), *more)

rates.Bucket.__init__ = _still
"""


class StillRates:
    """The environment of such a service, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._there = folder / "still"
        self._there.touch()
        (folder / "sitecustomize.py").write_text(SHIM)
        paths = [os.fspath(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = {"PYTHONPATH": os.pathsep.join(paths), "STILL_RATES": os.fspath(self._there)}

    def go_on(self) -> None:
        """Let buckets fill up from now on."""
        self._there.unlink()
