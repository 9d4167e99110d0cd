"""Eviction: where memory is full, keys with a ttl are removed, the least recently used first.

Approximated LRU as in Redis (`volatile-lru`): a few keys are sampled, and the one that was used longest ago is removed.
The sample is taken from the heap of deadlines, a list that holds each key with a ttl once, beside stale entries, which
are skipped.
"""

from __future__ import annotations

from random import Random
from typing import Any, Dict, Optional

from synap import commands as c
from synap.engine.callers import STEP, Steps
from synap.engine.keystore import KEY_COST, TTL_COST
from synap.engine.keyvalue import Keys
from synap.engine.limits import Crowded

SAMPLE = 10
"""Keys that are sampled for each eviction."""
AT_ONCE = 250
"""Keys that are evicted at once."""


class EvictingKeys(Keys):
    """The key-value facility with eviction; one without doesn't pay for it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.used: Dict[str, int] = {}
        """When each key with a ttl was used last, counted in uses of any such key."""
        self.uses = 0
        self.pick = Random(self.ids()).random
        self.budget.evict = self.evict

    def _read(self, key: str, now: float) -> c.GetAnswer:
        answer = super()._read(key, now)
        if answer.ttl is not None:
            self._use(key)
        return answer

    def _set_deadline(self, key: str, due: float) -> None:
        super()._set_deadline(key, due)
        self._use(key)

    def _drop_deadline(self, key: str) -> None:
        super()._drop_deadline(key)
        self.used.pop(key, None)

    def _remove(self, key: str) -> None:
        super()._remove(key)
        self.used.pop(key, None)

    def _put_back(self, key: str, value: Optional[bytes], due: Optional[float]) -> None:
        super()._put_back(key, value, due)
        if due is not None:
            self._use(key)

    def _use(self, key: str) -> None:
        self.uses += 1
        self.used[key] = self.uses

    def evict(self, growth: int) -> None:
        """Evict keys until `growth` bytes fit. Raises `Crowded` where that takes long, or may not be enough."""
        if not self.expires:
            return
        budget = self.budget
        enough = budget.used + growth - budget.limit <= len(self.expires) * (KEY_COST + TTL_COST)
        if not (enough and self.evict_some(growth)):
            crowded = Crowded("SERVICE_UNAVAILABLE", "keys with a ttl are making room", {"retry_after": 0.1})
            crowded.growth = growth
            raise crowded

    def evict_some(self, growth: int) -> bool:
        """Evict keys until `growth` bytes fit, or so many; returns whether they do."""
        budget = self.budget
        for _ in range(AT_ONCE):
            key = self._oldest_of_some() if budget.used + growth > budget.limit else None
            if key is None:
                break
            self._expire(key)
            self.evicted += 1
        return budget.used + growth <= budget.limit

    def evict_in_steps(self, growth: int) -> Steps:
        """Evict keys until `growth` bytes fit. Raises `MEMORY_LIMIT`, and none goes, where all were not enough.

        Other commands may be executed in between. The room that is made is withheld from them until the end, so each
        makes its own.
        """
        budget, expires = self.budget, self.expires
        left = budget.limit - budget.used - growth
        for done, key in enumerate(list(expires), 1):
            if left >= 0:
                break
            if key in expires:
                left += KEY_COST + TTL_COST + len(key) + len(self.values[key])
            if not done % STEP:
                yield
        if left < 0:
            raise budget.full(growth)
        made = 0
        try:
            while expires:
                before = budget.used
                if self.evict_some(growth - made):
                    return
                made += before - budget.used
                budget.limit -= before - budget.used
                yield
        finally:
            budget.limit += made

    def _oldest_of_some(self) -> Optional[str]:
        """Return the least recently used key of a sample; None where no key has a ttl."""
        if not self.expires:
            return None
        expires, used, pick = self.expires, self.used, self.pick
        entries = max(self.deadlines.entries, self.deadlines.unswept, key=len)
        size = len(entries)
        found: Optional[str] = None
        oldest = seen = 0
        for _ in range(4 * SAMPLE):  # half of the entries may be stale, and some more
            due, key = entries[int(pick() * size)]
            if expires.get(key) != due:
                continue
            last = used.get(key, 0)
            if found is None or last < oldest:
                found, oldest = key, last
            seen += 1
            if seen == SAMPLE:
                break
        return found or next(iter(expires))
