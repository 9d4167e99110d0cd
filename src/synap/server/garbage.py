"""The schedule of Python's full garbage collections.

A full collection traverses all data: a quarter of a second with 100,000 queues and rooms. None of the data is in
reference cycles, and cycles of connections are nearly always collected young; so full collections are made rarely.
"""

from __future__ import annotations

import gc
import time

NEVER = 1_000_000_000
"""A threshold that is never reached."""
WEBSOCKETS = 2_000
"""WebSockets after which a full collection is due: theirs are the only cycles that may outlive a young collection."""
AT_LEAST, AT_MOST = 60.0, 3600.0
"""Seconds between two full collections."""


class Collections:
    """Replaces Python's schedule of full collections. Does nothing where Python's is incremental (3.14.0 to 3.14.4).

    Between `hold`, before the data is read, and `begin` nothing is collected. What the imports left is a thousand
    objects, which are kept for good.
    """

    def __init__(self) -> None:
        self._ended = 0
        self._last = time.monotonic()
        self.on = gc.get_threshold()[2] != 0  # always 0 where collections are incremental

    def hold(self) -> None:
        if self.on:
            gc.disable()

    def begin(self) -> None:
        """Begin to collect. What there is by now stays: no collection looks at it again."""
        if self.on:
            gc.freeze()
            young, middle, _ = gc.get_threshold()
            gc.set_threshold(young, middle, NEVER)
            gc.enable()

    def look(self, websockets: int) -> None:
        """Make a full collection if one is due. `websockets`: connections so far."""
        since = time.monotonic() - self._last
        if self.on and (since > AT_MOST or (since > AT_LEAST and websockets - self._ended >= WEBSOCKETS)):
            gc.collect()
            self._ended = websockets
            self._last = time.monotonic()
