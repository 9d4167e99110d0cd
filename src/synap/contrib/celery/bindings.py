"""Exchanges and bindings as keys, which all processes of an application share.

A binding is a key whose name holds all its fields, so that looking an exchange up is one scan. Temporary queues (of
replies, of remote control) have bindings that expire, and a key that expires unless their consumer renews it; declaring
another one deletes those that killed processes have left.
"""

from __future__ import annotations

import json
from typing import Iterator, List, Optional, Tuple

from synap import SynapClient

Binding = Tuple[str, Optional[str], str]
"""Routing key, pattern (of topic exchanges), queue."""

ALIVE = 120
"""Seconds that a temporary queue and its bindings are kept after the last renewal."""


def scan(client: SynapClient, prefix: str) -> Iterator[str]:
    """Yield all keys with a prefix, in order."""
    cursor = None
    while True:
        page = client.kv.scan(prefix, cursor, 1000)
        yield from page.keys
        if not page.has_more:
            return
        cursor = page.cursor


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
        """Remove a binding."""
        self._client.kv.delete(self._key(exchange, binding))

    def of(self, exchange: str) -> List[Binding]:
        """Return the bindings of an exchange."""
        prefix = self._exchange(exchange)
        fields = (json.loads(key[len(prefix) :]) for key in scan(self._client, prefix))
        return [(routing_key, pattern, queue) for routing_key, pattern, queue in fields]

    def keep_alive(self, queue: str) -> None:
        """Renew the key that says that a temporary queue has a consumer."""
        self._client.kv.set(f"{self._prefix}alive:{queue}", True, ttl=ALIVE)

    def register(self, queue: str) -> None:
        """Register a temporary queue, with a consumer."""
        self.keep_alive(queue)
        self._client.kv.set(f"{self._prefix}temporary:{queue}", True)

    def unregister(self, queue: str) -> None:
        """Unregister a temporary queue."""
        self._client.kv.delete(f"{self._prefix}temporary:{queue}", f"{self._prefix}alive:{queue}")

    def abandoned(self) -> List[str]:
        """Return the temporary queues whose consumer is gone."""
        queues = [key[len(f"{self._prefix}temporary:") :] for key in scan(self._client, f"{self._prefix}temporary:")]
        return [queue for queue in queues if not self._client.kv.exists(f"{self._prefix}alive:{queue}")]
