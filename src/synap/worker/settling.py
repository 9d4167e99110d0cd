"""Acknowledge and requeue messages, many with one request."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Set

from msgspec import Raw

from synap import commands as c
from synap.client._async.client import AsyncSynapClient
from synap.client.batches import error_of
from synap.errors import SynapError
from synap.results import QueueMessage
from synap.wire.codec import CODECS
from synap.worker.message import Message

log = logging.getLogger("synap.worker")

MAX_BATCH = 1000
"""Settlements, or renewals of leases, in one request: a service takes 10,000 commands."""


Done = Callable[[Optional[SynapError], Any], None]
"""Called with the error of a settlement, or None, and its answer."""


class Settlement(NamedTuple):
    """A message and its ack or nack."""

    message: Message
    item: c.BatchItem
    done: Done


Take = Callable[[Optional[QueueMessage[Any]]], None]


class Settler:
    """Sends settlements. Those of one turn of the event loop leave together.

    `wants_one` returns whether exactly one more message is wanted now, from the queue of the one that is settled;
    `on_leased` is called with it, or None. `on_answered` is called whenever fewer requests are in flight.
    """

    def __init__(
        self,
        client: AsyncSynapClient,
        lease: float,
        wants_one: Callable[[], bool],
        on_leased: Take,
        on_answered: Callable[[], None],
    ) -> None:
        self._client = client
        self._codec = CODECS[client.config.format]
        self._wants_one = wants_one
        self._on_leased = on_leased
        self._on_answered = on_answered
        self._lease = lease
        self._waiting: List[Settlement] = []
        self._flushes = False
        self._tasks: Set[asyncio.Task[None]] = set()

    @property
    def in_flight(self) -> int:
        """Requests that are not answered yet."""
        return len(self._tasks) + self._flushes

    @property
    def about_to_send(self) -> bool:
        """Whether settlements leave in a moment, when `wants_one` may be asked."""
        return self._flushes

    # ------------------------------------------------------------------------------------------ settling

    def ack(self, message: Message, done: Done) -> None:
        """Acknowledge a message."""
        self._add(Settlement(message, self._ack(message), done))

    def nack(self, message: Message, requeue: bool, delay: float, done: Done) -> None:
        """Requeue a message after `delay` seconds, or dead-letter it."""
        payload = c.QueueNack(message.queue, str(message.message_id), requeue, message.lease, delay)
        self._add(Settlement(message, c.BatchItem("queue.nack", Raw(self._codec.encode(payload))), done))

    async def ack_with(self, message: Message, items: Sequence[c.BatchItem]) -> Optional[SynapError]:
        """Acknowledge a message and execute `items` in one atomic batch.

        Returns the error of an item that was refused, or None. Raises that of the acknowledgement, or of the request.
        """
        request = c.BatchRequest([self._ack(message), *items], atomic=True)
        answer: c.BatchResults = await self._client._calls.call(c.BATCH, request)
        failed = {n: error_of(result) for n, result in enumerate(answer.results) if result.status != "success"}
        for number, error in failed.items():
            if error.code != "BATCH_ABORTED":
                if number == 0:
                    raise error
                return error
        return SynapError("BATCH_ABORTED", "the batch was not applied") if failed else None

    def _ack(self, message: Message) -> c.BatchItem:
        payload = c.QueueAck(message.queue, str(message.message_id), message.lease)
        return c.BatchItem("queue.ack", Raw(self._codec.encode(payload)))

    # ------------------------------------------------------------------------------------------ sending

    def _add(self, settlement: Settlement) -> None:
        self._waiting.append(settlement)
        if not self._flushes:
            self._flushes = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushes = False
        waiting, self._waiting = self._waiting, []
        if len(waiting) == 1 and waiting[0].item.command == "queue.ack" and self._wants_one():
            self._spawn(self._ack_and_take(waiting[0]))
            return
        for start in range(0, len(waiting), MAX_BATCH):
            self._spawn(self._send(waiting[start : start + MAX_BATCH]))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._on_answered()

    async def _send(self, settlements: Sequence[Settlement]) -> None:
        request = c.BatchRequest([settlement.item for settlement in settlements])
        try:
            answer: c.BatchResults = await self._client._calls.call(c.BATCH, request)
        except SynapError as error:
            for settlement in settlements:
                settlement.done(error, None)
            return
        for settlement, result in zip(settlements, answer.results):
            settlement.done(None if result.status == "success" else error_of(result), result.payload)

    async def _ack_and_take(self, settlement: Settlement) -> None:
        """Acknowledge a message and lease the next one with one request."""
        message = settlement.message
        leased: Optional[QueueMessage[Any]] = None
        failure: Optional[SynapError] = None
        try:
            leased = await self._client.queue.consume(message.queue, ack_deadline=self._lease, ack=message.message_id)
        except SynapError as error:
            failure = error
        settlement.done(failure, None)
        self._on_leased(leased)

    async def drain(self) -> None:
        """Wait until everything has been answered."""
        while self._tasks or self._flushes:
            if self._tasks:
                await asyncio.wait(set(self._tasks))
            else:
                await asyncio.sleep(0)
