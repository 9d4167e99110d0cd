"""What is over and is still to be taken apart: a million messages that were purged, a subscriber's 10,000 patterns.

To a caller it is gone at once. Only the work of letting it go is done a little at a time, by the host, between others'
requests. What an undo may restore is left whole until its removal is durable.
"""

from __future__ import annotations

from collections import deque
from typing import Callable, Deque, List, Optional, Tuple

from synap.engine.callers import Steps, run
from synap.engine.journal import Journal, Undo

__all__ = ["Leftovers"]


class Leftovers:
    """Steps that no caller waits for. Without `begun` they are run at once."""

    def __init__(self, journal: Optional[Journal] = None) -> None:
        self._journal = journal
        self._steps: Deque[Steps] = deque()
        self._held: List[Tuple[List[Undo], object, Steps]] = []
        self.begun: Optional[Callable[[], object]] = None
        """Called when there is something to do, and nothing was before: then `work` is to be called."""

    def add(self, steps: Steps) -> None:
        """Run steps soon."""
        if self.begun is None:
            run(steps)
            return
        self._steps.append(steps)
        if len(self._steps) == 1:
            self.begun()

    def hold(self, what: object, steps: Steps) -> None:
        """Run the steps that take `what` apart once no undo can restore it."""
        journal = self._journal
        if journal is not None and journal.keep_undo:
            self._held.append((journal.undos, what, steps))
        else:
            self.add(steps)

    def came_back(self, what: object) -> None:
        """Leave something whole: it was undone that it went."""
        self._held = [held for held in self._held if held[1] is not what]

    def committed(self, undos: List[Undo]) -> None:
        """Changes are on disk that these undos were made with."""
        if self._held:
            over = [steps for with_, _, steps in self._held if with_ is undos]
            self._held = [held for held in self._held if held[0] is not undos]
            for steps in over:
                self.add(steps)

    def work(self, ended: Callable[[], bool]) -> bool:
        """Run steps until `ended`; returns whether there are more. Raises what some raise; then those are over."""
        steps = self._steps
        while steps:
            first = steps.popleft()
            for _ in first:
                if ended():
                    steps.appendleft(first)
                    return True
        return False
