"""Which commits are made on the host's thread instead of the writing thread.

Handing a commit to another thread and its report back costs two wake-ups, on a fast disk about as long as the commit
takes. A caller that writes alone, one request after the other, waits for both. But whatever else the host's thread
could do waits for an inline commit, so one is made only where there is little else to do: the few requests since the
commit before came in one read, or each in a turn of the event loop of its own, and the disk has been fast for a while.
So it is for a caller that has several requests under way on one connection: they come together, are committed together
and are answered together, and the next ones come after that.

A disk, or the machine, is slow now and then: one commit in a hundred takes longer than it should on an ordinary virtual
machine. So what follows a slow inline commit is in proportion to it, and only where that happens often it becomes long.
"""

from __future__ import annotations

import weakref
from time import monotonic
from typing import Callable, Optional, Sequence

from synap.host.jobs import SLICE

CAP = SLICE
"""Seconds that a commit may take: as long as others wait for a long request. After one that took longer, the writing
thread commits for a while."""
PROVEN = 16
"""Commits in a row that were of a lone caller, and within the cap, before one is made inline."""
REQUESTS = 16
"""Requests since the commit before, at most, that still are a lone caller's.

The writing thread would commit while further ones are executed. So many take about as long as the wake-ups cost that an
inline commit spares.
"""
SIZE = 32 * 1024
"""Bytes of a commit that is made inline, at most."""
PAUSE = 10.0
"""How many times as long as it took there are no inline commits after one that took longer than the cap; doubled each
time. So the host's thread spends at most a tenth of its time in such commits."""
LONGEST_PAUSE = 60.0
"""Seconds."""
TRUSTED = 20
"""Inline commits within the cap after which the next pause is the shortest again."""


def _nobody() -> None:
    """A reference to no session."""


class InlineCommits:
    """Decides commit by commit. `soon` has a function called on the host's thread, after what is ready there now."""

    def __init__(self, soon: Optional[Callable[[Callable[[], None]], object]]) -> None:
        self._soon = soon
        self._proven = 0
        self._requests = 0
        self._in_turn = False
        """Whether something was committed in this turn of the event loop, by another session than before."""
        self._last: Callable[[], Optional[object]] = _nobody
        """Refers to who committed last, weakly."""
        self._paused_until = 0.0
        self._pause = PAUSE
        self._good = 0
        """Inline commits since the last one that took longer than the cap."""
        self.count = 0
        """Commits that were made inline."""

    def allowed(self, alone: bool, requests: Sequence[int], size: int, who: Optional[object] = None) -> bool:
        """Return whether this commit may be made inline.

        `alone`: nothing submitted before is still to be reported. `requests`: how many the host has had so far, by
        command. `who`: the only session that waits for this commit. While it is always the same one,
        the event loop isn't asked to tell a turn's end, which would take a turn more; so where a second one joins, one
        commit too many may be made inline.
        """
        if self._soon is None:
            return False
        if not alone or self._in_turn:
            self._proven = 0
            self._last = _nobody
            return False
        before, self._requests = self._requests, sum(requests)
        if self._requests - before > REQUESTS:
            self._proven = 0
        if who is None or who is not self._last():
            self._last = _nobody if who is None else weakref.ref(who)
            self._in_turn = True
            self._soon(self._turn_over)
        self._proven += 1
        return self._proven > PROVEN and size <= SIZE and monotonic() >= self._paused_until

    def _turn_over(self) -> None:
        self._in_turn = False

    def took(self, seconds: float, inline: bool) -> None:
        """Record how long a commit took."""
        if inline:
            self.count += 1
        if seconds <= CAP:
            if inline:
                self._good += 1
                if self._good == TRUSTED:
                    self._pause = PAUSE
            return
        self._proven = 0
        if inline:
            self._good = 0
            self._paused_until = monotonic() + min(self._pause * seconds, LONGEST_PAUSE)
            self._pause = min(2 * self._pause, LONGEST_PAUSE / CAP)
