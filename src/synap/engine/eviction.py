"""Eviction: where memory is full, keys with a ttl are removed, the least recently used first.

Approximated LRU as in Redis (`volatile-lru`): a few keys are sampled, and the one that was used longest ago is removed.
The sample is taken from the heap of deadlines, a list that holds each key with a ttl once, beside stale entries, which
are skipped.
"""

from __future__ import annotations

from random import Random
from typing import Any, Dict, Optional

from synap import commands as c
from synap.engine.keyvalue import Keys
from synap.errors import SynapError

SAMPLE = 10
"""Keys that are sampled for each eviction."""
MOST = 20_000
"""Keys that are evicted for one request at most."""


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
        """Evict keys until `growth` bytes fit, or no key has a ttl.

        Raises `SERVICE_UNAVAILABLE` where that would take long: those that went make room for the next try.
        """
        budget = self.budget
        for _ in range(MOST):
            if budget.used + growth <= budget.limit:
                return
            key = self._oldest_of_some()
            if key is None:
                return
            self._expire(key)
            self.evicted += 1
        if budget.used + growth > budget.limit and self.expires:
            text = f"{MOST:,} keys with a ttl went, as many as may at once: too few; nothing else was done"
            raise SynapError("SERVICE_UNAVAILABLE", text, {"retry_after": 0.1})

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
