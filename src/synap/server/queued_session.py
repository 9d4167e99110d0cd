"""A session whose messages a task sends, as ASGI wants it.

What waits to be sent is bounded: events that don't fit wait in their room, messages that don't fit end their
subscription.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from synap.commands import EventAnswer, Item
from synap.errors import SynapError
from synap.host import PUSH, Session
from synap.server.service import Service
from synap.wire.codec import Codec

__all__ = ["QueuedSession"]

SLICE = 64 * 1024
"""Bytes of events taken from rooms before they are sent."""


class QueuedSession(Session):
    """Collects what is to be sent; the connection's task takes it with `take` and sends it."""

    __slots__ = ("_lagging", "_promised", "_pubsub_buffer", "_queue", "_size", "_something", "over")

    def __init__(self, service: Service, codec: Codec) -> None:
        super().__init__(service.host, codec)
        self._queue: deque[Any] = deque()
        self._size = 0
        self._promised = 0
        self._lagging: set[int] = set()
        self._pubsub_buffer = service.config.pubsub_buffer
        self._something = asyncio.Event()
        self.over = False
        """Nothing more will be said."""

    # ---- for the lane
    def render_push(self, subscription_id: int, item: Item) -> Any:
        """Write a pushed item; returns something with a length."""
        raise NotImplementedError

    def put(self, message: Any) -> None:
        """Add a message."""
        self._queue.append(message)
        self._size += len(message)
        self._something.set()

    def finish(self) -> None:
        """Let the task end once it has sent what there is."""
        self.over = True
        self._something.set()

    async def take(self, timeout: float | None = None) -> list[Any]:
        """Wait for messages and return them all; none where `timeout` seconds passed, or nothing more will come."""
        if not self._queue and not self.over:
            self._catch_up()
        if not self._queue and not self.over:
            self._something.clear()
            if timeout is None:
                await self._something.wait()
            else:
                try:
                    await asyncio.wait_for(self._something.wait(), timeout)
                except asyncio.TimeoutError:
                    return []
        messages = list(self._queue)
        self._queue.clear()
        self._size = 0
        return messages

    @property
    def unsent(self) -> int:
        """Bytes that wait to be sent."""
        return self._size

    def _catch_up(self) -> None:
        """Go on with subscriptions that wait for room. A turn of its own."""
        if not self._lagging:
            return
        lagging, self._lagging = self._lagging, set()
        for subscription_id in lagging:
            if subscription_id in self.subscriptions:
                self.host.engine.resume(self, subscription_id, self.host.clock())
        self.host.end_turn()

    # ---- for the host
    def push(self, subscription_id: int, item: Item) -> bool:
        unsent = self._size + self._promised
        if type(item) is EventAnswer:
            if unsent > SLICE or self.over:
                self._lagging.add(subscription_id)
                self._something.set()
                return False
        elif unsent > self._pubsub_buffer or self.over:
            return False
        held = self.host.held
        if held is None:
            self.send_push(subscription_id, item)
        else:
            self._promised += _weight(item)
            held.append((self, PUSH, subscription_id, item))
        return True

    def send_push(self, subscription_id: int, item: Item) -> None:
        if self._promised:
            self._promised -= _weight(item)
        self.put(self.render_push(subscription_id, item))

    def lose_pushes(self) -> None:
        self._queue.clear()
        self.finish()

    def has_room(self) -> bool:
        return self._size + self._promised <= SLICE

    def flush(self) -> None:
        raise AssertionError("an outbox is emptied by its task")

    def send_answer(self, number: Any, answer: Any) -> None:
        raise NotImplementedError

    def send_error(self, number: Any, error: SynapError) -> None:
        raise NotImplementedError


def _weight(item: Item) -> int:
    return 128 + len(item.data if isinstance(item, EventAnswer) else item.message)
