"""Acknowledged queues: `client.queue`."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Type, TypeVar, overload

from synap import commands as c
from synap.client._async.calls import AsyncCalls
from synap.client.checks import text, texts
from synap.results import MessageId, NackResult, PublishResult, QueueMessage, QueueStats
from synap.wire.typed import as_type, check_type

__all__ = ["AsyncQueue"]

T = TypeVar("T")


class _QueuesOwn(int):
    """The number of seconds that nobody gave, so that the queue's own applies."""


_QUEUES_OWN = _QueuesOwn(30)


class AsyncQueue:
    """Queues whose messages stay until they are acknowledged."""

    __slots__ = ("_call",)

    def __init__(self, calls: AsyncCalls) -> None:
        self._call = calls.call

    async def publish(
        self,
        queue: str,
        message: Any,
        priority: int = 5,
        headers: Optional[Dict[str, str]] = None,
        *,
        delay: float = 0,
    ) -> PublishResult:
        """Add a message; the first one makes the queue.

        `priority` is 0..9, 9 first; equal ones are first in, first out. `delay`: seconds it is held back. The result's
        `position` counts from 1, which is next out. Raises `QUEUE_FULL`.
        """
        if type(queue) is not str:
            queue = text("queue", queue)
        payload = c.QueuePublish(
            queue, message, priority, headers if headers is None else texts("headers", headers), delay
        )
        result: PublishResult = await self._call(c.QUEUE_PUBLISH, payload)
        return result

    @overload
    async def consume(self, queue: str, timeout: float = ..., ack_deadline: float = ...) -> Optional[QueueMessage]: ...

    @overload
    async def consume(
        self, queue: str, timeout: float = ..., ack_deadline: float = ..., *, type: Type[T]
    ) -> Optional[QueueMessage[T]]: ...

    @overload
    async def consume(
        self, queue: str, timeout: float = ..., ack_deadline: float = ..., *, type: object
    ) -> Optional[QueueMessage]: ...

    async def consume(
        self, queue: str, timeout: float = 0, ack_deadline: float = _QUEUES_OWN, *, type: Any = None
    ) -> Optional[QueueMessage]:
        """Lease the next message, waiting up to `timeout` seconds (at most 3600) for one; None where none came.

        It has to be acknowledged within `ack_deadline` seconds, else it goes back to its place in the queue; where that
        is left out, the queue's own deadline applies (30 unless `create` set another). Whoever waits longest is served
        first. A call that is cancelled takes no message with it.

        With a `type` the message is checked and comes back as an object of it. One that doesn't fit is `WRONG_TYPE`;
        it stays leased, and the error's `details['message_id']` is what `nack` and `ack` take.
        """
        if queue.__class__ is not str:
            queue = text("queue", queue)
        if type is not None:
            check_type(type)
        payload = c.QueueConsume(queue, timeout, None if ack_deadline is _QUEUES_OWN else ack_deadline)
        waits = isinstance(timeout, (int, float)) and 0 < timeout <= 3600
        message: Optional[QueueMessage] = await self._call(c.QUEUE_CONSUME, payload, timeout if waits else 0)
        if message is not None:
            message.message_id = MessageId(message.message_id, message.lease)
            if type is not None:
                as_type(message, "message", type, queue=queue, message_id=message.message_id)
        return message

    async def ack(self, queue: str, message_id: str) -> None:
        """Acknowledge a message: it is done.

        Raises `MessageNotFoundError` where the caller's lease is over, `QueueNotFoundError`.
        """
        if type(queue) is not str:
            queue = text("queue", queue)
        await self._call(c.QUEUE_ACK, c.QueueAck(queue, text("message_id", message_id), _lease(message_id)))

    async def nack(self, queue: str, message_id: str, requeue: bool = True) -> NackResult:
        """Give a message back to its place in the queue, or (not `requeue`, or too often) to `<queue>.dlq`.

        Raises `MessageNotFoundError` where the caller's lease is over, `QueueNotFoundError`.
        """
        payload = c.QueueNack(text("queue", queue), text("message_id", message_id), requeue, _lease(message_id))
        result: NackResult = await self._call(c.QUEUE_NACK, payload)
        return result

    async def extend(self, queue: str, message_id: str, ack_deadline: float) -> None:
        """Let the lease of a message end `ack_deadline` seconds from now.

        Raises `MessageNotFoundError` where the caller's lease is over, `QueueNotFoundError`.
        """
        payload = c.QueueExtend(text("queue", queue), text("message_id", message_id), ack_deadline, _lease(message_id))
        await self._call(c.QUEUE_EXTEND, payload)

    async def create(
        self,
        queue: str,
        *,
        max_retries: int = 3,
        ack_deadline: float = 30,
        max_depth: int = 100_000,
        dead_letter: bool = True,
    ) -> bool:
        """Make a queue, or set the configuration of one that is there; returns whether it was made now.

        `max_retries`: times a message goes back before it is a dead letter. `ack_deadline`: seconds a lease lasts.
        `max_depth`: messages it holds. `dead_letter`: whether dead letters are kept, in `<queue>.dlq`.
        """
        config = c.QueueConfig(max_retries, ack_deadline, max_depth, dead_letter)
        answer: c.CreatedAnswer = await self._call(c.QUEUE_CREATE, c.QueueCreate(text("queue", queue), config))
        return answer.created

    async def delete(self, queue: str) -> bool:
        """Delete a queue and what is in it; raises `QueueNotFoundError`."""
        answer: c.QueueDeletedAnswer = await self._call(c.QUEUE_DELETE, c.QueueDelete(text("queue", queue)))
        return answer.deleted

    async def purge(self, queue: str) -> int:
        """Drop all messages of a queue; returns how many. Raises `QueueNotFoundError`."""
        answer: c.PurgedAnswer = await self._call(c.QUEUE_PURGE, c.QueuePurge(text("queue", queue)))
        return answer.purged

    async def redrive(self, queue: str, limit: Optional[int] = None) -> int:
        """Put dead letters back in `queue`, at most `limit`; returns how many. Raises `QueueNotFoundError`."""
        answer: c.RedrivenAnswer = await self._call(c.QUEUE_REDRIVE, c.QueueRedrive(text("queue", queue), limit))
        return answer.redriven

    async def stats(self, queue: str) -> QueueStats:
        """Read the figures of a queue; raises `QueueNotFoundError`."""
        result: QueueStats = await self._call(c.QUEUE_STATS, c.QueueStats(text("queue", queue)))
        return result

    async def list(self) -> List[str]:
        """List the names of all queues."""
        answer: c.QueuesAnswer = await self._call(c.QUEUE_LIST, c.QueueList())
        return answer.queues


def _lease(message_id: str) -> Optional[int]:
    """Return the lease that came with a message id; a plain string has none."""
    return message_id.lease if isinstance(message_id, MessageId) else None
