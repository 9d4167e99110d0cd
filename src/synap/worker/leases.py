"""Renew the leases of messages while they are being handled."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import Callable, Dict, Sequence

from synap.client._async.client import AsyncSynapClient
from synap.errors import MessageNotFoundError, QueueNotFoundError, SynapError
from synap.worker.message import Message
from synap.worker.settling import MAX_BATCH

log = logging.getLogger("synap.worker")


class Leases:
    """The messages a worker has leased. Each lease is renewed after a third of it, many with one request."""

    def __init__(self, client: AsyncSynapClient, seconds: float, lost: Callable[[Message], None]) -> None:
        self._client = client
        self.seconds = seconds
        self._lost = lost
        self._held: Dict[str, Message] = {}

    def __len__(self) -> int:
        return len(self._held)

    def add(self, message: Message) -> None:
        """Renew the lease of a message from now on."""
        message.expires = monotonic() + self.seconds
        self._held[message.message_id] = message

    def remove(self, message: Message) -> None:
        """Stop renewing: the message is settled, or about to be."""
        if self._held.get(message.message_id) is message:
            del self._held[message.message_id]

    def is_over(self, message: Message) -> bool:
        """Return whether a lease is lost, or has expired while the process was suspended."""
        if not message.lost and monotonic() >= message.expires:
            self._lose(message)
        return message.lost.is_set()

    async def run(self) -> None:
        """Renew, until cancelled."""
        while True:
            await asyncio.sleep(self.seconds / 3)
            renewing = asyncio.ensure_future(self.renew())
            try:
                while not renewing.done():  # the service may not answer, for longer than a lease
                    await asyncio.wait({renewing}, timeout=self._expire())
                renewing.result()
            except SynapError as error:  # tried again in a third of a lease, and then they are lost
                log.warning("leases could not be renewed: %s", error)
            finally:
                renewing.cancel()

    async def renew(self) -> None:
        """Renew leases of which a third has passed; mark expired ones as lost."""
        self._expire()
        now = monotonic()
        due = [message for message in self._held.values() if message.expires - now <= self.seconds * 2 / 3]
        for first in range(0, len(due), MAX_BATCH):
            await self._renew(due[first : first + MAX_BATCH])

    async def _renew(self, due: Sequence[Message]) -> None:
        now = monotonic()
        async with self._client.pipeline() as p:
            answers = [p.queue.extend(message.queue, message.message_id, self.seconds) for message in due]
        for message, answer in zip(due, answers):
            try:
                answer.result()
            except (MessageNotFoundError, QueueNotFoundError):
                if self._held.get(message.message_id) is message:  # else it was settled meanwhile
                    self._lose(message)
            except SynapError as error:
                log.warning("the lease of %s could not be renewed: %s", message.message_id, error)
            else:
                message.expires = now + self.seconds

    def _expire(self) -> float:
        """Mark expired leases as lost; returns the seconds until the next one may expire."""
        now = monotonic()
        for message in list(self._held.values()):
            if now >= message.expires:
                self._lose(message)
        return min((message.expires - now for message in self._held.values()), default=self.seconds)

    def _lose(self, message: Message) -> None:
        self.remove(message)
        message.lost.set()
        self._lost(message)
