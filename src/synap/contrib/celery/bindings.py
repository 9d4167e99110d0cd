"""Where exchanges and bindings are: keys that all processes of an application share.

A binding is a key whose name says it all, so that looking an exchange up is one scan. Queues that live as long as who
reads them (for replies, for remote control) leave bindings that expire, and a key that says who is alive; the next one
of their kind deletes what a process that was killed has left.
"""

from __future__ import annotations

import json
from typing import Iterator, List, Optional, Tuple

from synap import SynapClient

__all__ = ["ALIVE", "Binding", "Bindings"]

Binding = Tuple[str, Optional[str], str]
"""Routing key, pattern (of topic exchanges), queue."""

ALIVE = 120
"""Seconds that a temporary queue outlives its last sign of life."""


class Bindings:
    """The bindings and temporary queues under a prefix."""

    def __init__(self, client: SynapClient, prefix: str) -> None:
        self._client = client
        self._prefix = prefix

    def _exchange(self, exchange: str) -> str:
        return f"{self._prefix}binding:{json.dumps(exchange)}"

    def _key(self, exchange: str, binding: Binding) -> str:
        return self._exchange(exchange) + json.dumps(binding, separators=(",", ":"))

    def add(self, exchange: str, binding: Binding, *, temporary: bool) -> None:
        """Bind a queue to an exchange, for `ALIVE` seconds where it is temporary."""
        self._client.kv.set(self._key(exchange, binding), True, ttl=ALIVE if temporary else None)

    def remove(self, exchange: str, binding: Binding) -> None:
        """Take a binding away."""
        self._client.kv.delete(self._key(exchange, binding))

    def of(self, exchange: str) -> List[Binding]:
        """Return the bindings of an exchange."""
        prefix = self._exchange(exchange)
        found = []
        for key in self._scan(prefix):
            routing_key, pattern, queue = json.loads(key[len(prefix) :])
            found.append((routing_key, pattern, queue))
        return found

    def live(self, queue: str) -> None:
        """Say that a temporary queue is read."""
        self._client.kv.set(f"{self._prefix}alive:{queue}", True, ttl=ALIVE)

    def begin(self, queue: str) -> None:
        """Enter a temporary queue."""
        self.live(queue)
        self._client.kv.set(f"{self._prefix}temporary:{queue}", True)

    def end(self, queue: str) -> None:
        """Strike out a temporary queue."""
        self._client.kv.delete(f"{self._prefix}temporary:{queue}", f"{self._prefix}alive:{queue}")

    def abandoned(self) -> List[str]:
        """Return temporary queues that nobody has read for a while."""
        queues = [key[len(f"{self._prefix}temporary:") :] for key in self._scan(f"{self._prefix}temporary:")]
        return [queue for queue in queues if not self._client.kv.exists(f"{self._prefix}alive:{queue}")]

    def _scan(self, prefix: str) -> Iterator[str]:
        cursor = None
        while True:
            page = self._client.kv.scan(prefix, cursor, 1000)
            yield from page.keys
            if not page.has_more:
                return
            cursor = page.cursor
