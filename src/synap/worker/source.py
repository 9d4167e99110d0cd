"""Lease messages for a worker, several at once and from several queues."""

from __future__ import annotations

import asyncio
from typing import Any, List, Optional, Sequence, Tuple

from synap.client._async.client import AsyncSynapClient
from synap.results import QueueMessage
from synap.worker.message import Message

__all__ = ["Source"]

Leased = Tuple[str, QueueMessage[Any]]
"""A message and the queue it came from."""


class Source:
    """Where a worker's messages come from. Each is leased for `lease` seconds."""

    def __init__(self, client: AsyncSynapClient, lease: float) -> None:
        self._queue = client.queue
        self._lease = lease

    async def take(self, queues: Sequence[str], most: int, timeout: float) -> List[Leased]:
        """Lease up to `most` messages, from the first queues where they have some; wait for one where there is none."""
        found: List[Leased] = []
        for queue in queues:
            found += await self._ready(queue, most - len(found))
            if len(found) >= most:
                break
        if found or timeout <= 0:
            return found
        return await self._wait(queues, timeout)

    async def _ready(self, queue: str, most: int) -> List[Leased]:
        first = await self._queue.consume(queue, ack_deadline=self._lease)
        if first is None:
            return []
        rest = await asyncio.gather(*(self._queue.consume(queue, ack_deadline=self._lease) for _ in range(most - 1)))
        return [(queue, message) for message in (first, *rest) if message is not None]

    async def _wait(self, queues: Sequence[str], timeout: float) -> List[Leased]:
        waits = {
            asyncio.ensure_future(self._queue.consume(queue, timeout, ack_deadline=self._lease)): queue
            for queue in queues
        }
        try:
            await asyncio.wait(set(waits), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        outcomes = await asyncio.gather(*waits, return_exceptions=True)
        found: List[Leased] = []
        for outcome, queue in zip(outcomes, waits.values()):
            if isinstance(outcome, QueueMessage):
                found.append((queue, outcome))
            elif isinstance(outcome, Exception):
                raise outcome
        return found

    async def ack_and_take(self, message: Message) -> Optional[QueueMessage[Any]]:
        """Acknowledge a message and lease the next one of its queue."""
        await self._queue.ack(message.queue, message.message_id)
        return await self._queue.consume(message.queue, ack_deadline=self._lease)
