"""Deferred clean-up of large structures: a million messages that were purged, all that a client was subscribed to.

To callers they are gone at once. They are freed a little at a time, by the host, between requests. What an undo may
restore is left whole until its removal is durable.
"""

from __future__ import annotations

from collections import deque
from typing import Callable, Deque, List, Optional, Tuple

from synap.engine.callers import STEP, Steps, run
from synap.engine.journal import Journal, Undo


class Leftovers:
    """Clean-up in steps, which no caller waits for. Without `begun` it is done at once."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._steps: Deque[Steps] = deque()
        self._held: List[Tuple[List[Undo], object, Steps]] = []
        self._spare = STEP
        """Items that may still be freed at once, until `work` has done all there is."""
        self.begun: Optional[Callable[[], object]] = None
        """Called when the first steps are added, so that `work` gets called."""

    def add(self, steps: Steps) -> None:
        """Run steps soon."""
        if self.begun is None:
            run(steps)
            return
        self._steps.append(steps)
        if len(self._steps) == 1:
            self.begun()

    def free(self, steps: Steps, items: int) -> None:
        """Run steps that free so many items: at once where these are few, with those before; else soon."""
        self._spare -= items
        if self._spare < 0:
            self.add(steps)
        else:
            run(steps)

    def hold(self, what: object, steps: Steps) -> None:
        """Run the steps that take `what` apart once no undo can restore it."""
        if self._journal.keep_undo:
            self._held.append((self._journal.undos, what, steps))
        else:
            self.add(steps)

    def came_back(self, what: object) -> None:
        """Leave `what` whole, since its removal was undone."""
        self._held = [held for held in self._held if held[1] is not what]

    def committed(self, undos: List[Undo]) -> None:
        """Clean up what was removed by changes that are on disk now: those that came with `undos`."""
        if self._held:
            over = [steps for with_, _, steps in self._held if with_ is undos]
            self._held = [held for held in self._held if held[0] is not undos]
            for steps in over:
                self.add(steps)

    def work(self, ended: Callable[[], bool]) -> bool:
        """Run steps until `ended`; returns whether there are more. Steps that raise are dropped, and the rest stay."""
        steps = self._steps
        while steps:
            first = steps.popleft()
            if next(first, self) is not self:
                steps.appendleft(first)
            if ended():
                break
        if not steps:
            self._spare = STEP
        return bool(steps)
