"""Places where a test can have the process killed: `SYNAP_CRASH_AT=name:nth`.

Does nothing unless that variable is set when the log is opened. Then the process gets SIGKILL, which no code of ours
sees, at the nth passing of the named point (the first where no number is given).

    before-append    a commit is about to be written
    after-append     it is written, and not yet in the database for good
    after-fsync      it is on disk, its mark is not written and nobody has an answer
    after-mark       its mark is written and nobody has an answer
    inside-snapshot  a slice of a snapshot is written
    before-swap      all slices are written, the snapshot doesn't count yet
    after-swap       the snapshot counts, what it replaces is still there
    inside-cleanup   some of what it replaces is removed
"""

from __future__ import annotations

import os
import signal
from typing import Mapping

from synap.errors import SynapError

VARIABLE = "SYNAP_CRASH_AT"
POINTS = (
    "before-append",
    "after-append",
    "after-fsync",
    "after-mark",
    "inside-snapshot",
    "before-swap",
    "after-swap",
    "inside-cleanup",
)


class CrashPoints:
    """What is called with the name of each point that is passed.

    Raises `INVALID_REQUEST` for a point that doesn't exist.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        wanted = environ.get(VARIABLE, "")
        self.point, _, nth = wanted.partition(":")
        if wanted and (self.point not in POINTS or not (nth.isdigit() or not nth)):
            known = ", ".join(POINTS)
            raise SynapError("INVALID_REQUEST", f"{VARIABLE} must be one of {known}, then :number, got {wanted!r}")
        self._left = int(nth or 1)

    def __call__(self, point: str) -> None:
        if point == self.point:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)
