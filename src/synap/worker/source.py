"""Lease messages for a worker, several at once and from several queues."""

from __future__ import annotations

from typing import Any, List, Optional, Sequence

from synap.client._async.client import AsyncSynapClient
from synap.results import QueueMessage
from synap.worker.message import Message

__all__ = ["Source"]


class Source:
    """Consumes messages. Each is leased for `lease` seconds."""

    def __init__(self, client: AsyncSynapClient, lease: float) -> None:
        self._queue = client.queue
        self._lease = lease

    async def take(self, queues: Sequence[str], most: int, timeout: float) -> List[QueueMessage]:
        """Lease up to `most` messages, from the first queues before the others, waiting up to `timeout` seconds."""
        return await self._queue.consume_many(queues, max=most, timeout=timeout, ack_deadline=self._lease)

    async def ack_and_take(self, message: Message) -> Optional[QueueMessage[Any]]:
        """Acknowledge a message and lease the next one of its queue, with one request."""
        return await self._queue.consume(message.queue, ack_deadline=self._lease, ack=message.message_id)
