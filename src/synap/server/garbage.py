"""When Python looks for garbage in cycles.

A full collection looks at all that is kept: a quarter of a second where there are 100,000 queues and rooms. Nothing of
what the service keeps ends in a cycle, and what connections leave is nearly always found young; so full collections are
made seldom, when there is reason to.
"""

from __future__ import annotations

import gc
import sys
import time

__all__ = ["Collections"]

NEVER = 1_000_000_000
"""A threshold that is not reached."""
WEBSOCKETS = 2_000
"""WebSockets after which a full collection is due: theirs are the only cycles that may outlive a young collection."""
AT_LEAST, AT_MOST = 60.0, 3600.0
"""Seconds between two full collections."""


class Collections:
    """Makes full collections seldom, from when it is made on. Python 3.14 makes none of that length by itself."""

    def __init__(self) -> None:
        self._ended = 0
        self._last = time.monotonic()
        self.on = sys.version_info < (3, 14)
        if self.on:
            young, middle, _ = gc.get_threshold()
            gc.collect()
            gc.freeze()
            gc.set_threshold(young, middle, NEVER)

    def look(self, websockets: int) -> None:
        """Make a full collection if one is due; `websockets`: how many there were since the start."""
        since = time.monotonic() - self._last
        if self.on and (since > AT_MOST or (since > AT_LEAST and websockets - self._ended >= WEBSOCKETS)):
            gc.collect()
            self._ended = websockets
            self._last = time.monotonic()
