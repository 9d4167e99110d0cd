"""What the facilities of one engine share."""

from __future__ import annotations

import itertools
from typing import Callable, Optional

from synap.engine.callers import Effects
from synap.engine.deadlines import Horizon
from synap.engine.journal import Journal
from synap.engine.leftovers import Leftovers
from synap.engine.limits import Budget, Limits
from synap.engine.timeline import Timeline

WORK = 250
"""The most that one call of `Engine.advance` processes, of each kind."""


class Core:
    """Journal, limits, memory budget and time of an engine. `ids` gives random 64-bit integers."""

    def __init__(
        self, ids: Callable[[], int], limits: Optional[Limits] = None, journal: Optional[Journal] = None
    ) -> None:
        self.ids = ids
        self.limits = Limits() if limits is None else limits
        self.journal = Journal() if journal is None else journal
        self.budget = Budget(self.limits.memory)
        self.effects = Effects()
        self.timeline = Timeline()
        self.horizon = Horizon()
        self.leftovers = Leftovers(self.journal)
        self.next_subscription = itertools.count(1).__next__
