"""Acknowledged queues: `client.queue`."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Type, TypeVar, overload

from synap import commands as c
from synap.client._async.calls import AsyncCalls
from synap.client.checks import as_list, default, given, text, texts
from synap.errors import invalid
from synap.results import MessageId, NackResult, PeekResult, PublishResult, QueueMessage, QueueStats, leased_id
from synap.wire.typed import as_type, check_type

T = TypeVar("T")


class _QueuesOwn(int):
    """Sentinel default: reads as 30 in `help()`, is sent as 'not given', so that the queue's own deadline applies."""


_QUEUES_OWN = _QueuesOwn(30)


def _held(message: Any) -> c.Held:
    """Return the reference to a message's lease."""
    if not isinstance(message, QueueMessage) or message.queue is None:
        raise invalid("ack", "a list of messages as `consume_many` gives them", message)
    return c.Held(message.queue, text("ack", message.message_id), _lease(message.message_id, message.lease or None))


class AsyncQueue:
    """Queues whose messages stay until they are acknowledged."""

    __slots__ = ("_call",)

    def __init__(self, calls: AsyncCalls) -> None:
        self._call = calls.call

    async def publish(
        self, queue: str, message: Any, priority: int = 5, headers: Optional[Dict[str, str]] = None, *, delay: float = 0
    ) -> PublishResult:
        """Add `message` to `queue`; the first one makes the queue.

        `priority`: 0..9, 9 is consumed first; among equals, first in, first out. `headers`: up to 128 strings named by
        strings. `delay`: seconds it is held back, 0 to 31,536,000. The result's `position` counts from 1, which is next
        out. Raises `QUEUE_FULL` where the queue holds its `max_depth`, `MEMORY_LIMIT` where the service is full.
        """
        if type(queue) is not str:
            queue = text("queue", queue)
        payload = c.QueuePublish(
            queue, message, priority, headers if headers is None else texts("headers", headers), delay
        )
        result: PublishResult = await self._call(c.QUEUE_PUBLISH, payload)
        return result

    @overload
    async def consume(
        self, queue: str, timeout: float = ..., ack_deadline: float = ..., *, ack: Optional[str] = ..., type: Type[T]
    ) -> Optional[QueueMessage[T]]: ...

    @overload
    async def consume(
        self,
        queue: str,
        timeout: float = ...,
        ack_deadline: float = ...,
        *,
        ack: Optional[str] = ...,
        type: object = ...,
    ) -> Optional[QueueMessage]: ...

    async def consume(
        self,
        queue: str,
        timeout: float = 0,
        ack_deadline: float = _QUEUES_OWN,
        *,
        ack: Optional[str] = None,
        type: Any = None,
    ) -> Optional[QueueMessage]:
        """Lease the next message of `queue`, waiting up to `timeout` seconds (at most 3600) for one; None if none came.

        It has to be acknowledged within `ack_deadline` seconds, else it goes back to its place in the queue; where that
        is left out, the queue's own deadline applies (30 unless `create` set another). The longest waiter is served
        first. A call that is cancelled takes no message with it.

        With `ack`, the id of a leased message of the same queue, that one is acknowledged in the same step, whether or
        not another is there; where its lease is over, `MessageNotFoundError` is raised and nothing is taken.

        With a `type` the message is checked and comes back as an object of it. One that doesn't fit is `WRONG_TYPE`;
        it stays leased, and the error's `details['message_id']` is what `nack` and `ack` take.

        Raises `QueueNotFoundError` where the queue is deleted while it waits.
        """
        if queue.__class__ is not str:
            queue = text("queue", queue)
        if type is not None:
            check_type(type)
        lasts = None if ack_deadline is _QUEUES_OWN else ack_deadline
        if ack is None:
            payload = c.QueueConsume(queue, timeout, lasts)
        else:
            payload = c.QueueConsume(queue, timeout, lasts, text("ack", ack), _lease(ack))
        waits = isinstance(timeout, (int, float)) and 0 < timeout <= 3600
        message: Optional[QueueMessage] = await self._call(c.QUEUE_CONSUME, payload, timeout if waits else 0)
        if message is not None:
            message.message_id = leased_id(message.message_id, message.lease)
            message.queue = queue
            if type is not None:
                as_type(message, "message", type, queue=queue, message_id=message.message_id)
        return message

    @overload
    async def consume_many(
        self,
        queues: Sequence[str],
        *,
        max: int = ...,
        timeout: float = ...,
        ack_deadline: float = ...,
        ack: Sequence[QueueMessage] = ...,
        type: Type[T],
    ) -> List[QueueMessage[T]]: ...

    @overload
    async def consume_many(
        self,
        queues: Sequence[str],
        *,
        max: int = ...,
        timeout: float = ...,
        ack_deadline: float = ...,
        ack: Sequence[QueueMessage] = ...,
        type: object = ...,
    ) -> List[QueueMessage]: ...

    async def consume_many(
        self,
        queues: Sequence[str],
        *,
        max: int = 10,
        timeout: float = 0,
        ack_deadline: float = _QUEUES_OWN,
        ack: Sequence[QueueMessage] = (),
        type: Any = None,
    ) -> List[QueueMessage]:
        """Lease up to `max` (1..1000) messages from `queues` (1 to 100 names), the first queues first.

        There are fewer, but at least one, where the next one would pass 8 MiB of values and headers. Where none has
        any, waits up to `timeout` seconds (at most 3600) for one; an empty list where none came. Each message says its
        `queue`. `ack_deadline` as for `consume`. With `ack`, messages that were consumed before are acknowledged in the
        same step: all of them, or `MessageNotFoundError` is raised and nothing is taken.

        With a `type` the messages are checked and come back as objects of it. One that doesn't fit is `WRONG_TYPE`; all
        stay leased, and the error's `details['messages']` has queue and id of each.
        """
        names = [text("queues", name) for name in as_list("queues", queues)]
        if type is not None:
            check_type(type)
        held = [_held(one) for one in as_list("ack", ack, "a list of messages")]
        lasts = None if ack_deadline is _QUEUES_OWN else ack_deadline
        payload = c.QueueConsumeMany(names, max, timeout, lasts, held or None)
        waits = isinstance(timeout, (int, float)) and 0 < timeout <= 3600
        answer: c.ConsumedMany = await self._call(c.QUEUE_CONSUME_MANY, payload, timeout if waits else 0)
        for message in answer.messages:
            message.message_id = leased_id(message.message_id, message.lease)
        if type is not None:
            taken = [{"queue": message.queue, "message_id": message.message_id} for message in answer.messages]
            for message in answer.messages:
                as_type(message, "message", type, queue=message.queue, message_id=message.message_id, messages=taken)
        return answer.messages

    async def peek(
        self, queue: str, *, state: str = "ready", after: Optional[str] = None, limit: int = 100
    ) -> PeekResult:
        """Look at messages of `queue` without changing anything: no lease, no `retry_count`.

        `state` is 'ready' (next out first), 'leased' or 'delayed' (due first). `limit`: 1..1000 messages a page,
        which ends earlier after 8 MiB of values and headers, with one message at least; pass the last `message_id` of a
        page as `after` while `has_more`. Raises `QueueNotFoundError`, and
        `MessageNotFoundError` where the message `after` has left that state: begin again then.
        """
        after = after if after is None else text("after", after)
        payload = c.QueuePeek(text("queue", queue), text("state", state), after, limit)  # type: ignore[arg-type]  # checked by the service
        result: PeekResult = await self._call(c.QUEUE_PEEK, payload)
        return result

    async def ack(self, queue: str, message_id: str, *, lease: Optional[int] = None) -> None:
        """Acknowledge a message of `queue`: it is done, and removed.

        `message_id` is that of a consumed message, which knows its lease. An id that was stored or sent as text does
        not: give `lease=message.lease` with it. Raises `MessageNotFoundError` where the caller's lease is over, with
        the reason in `details['reason']`, and `QueueNotFoundError`.
        """
        if type(queue) is not str:
            queue = text("queue", queue)
        payload = c.QueueAck(queue, text("message_id", message_id), _lease(message_id, lease))
        await self._call(c.QUEUE_ACK, payload)

    async def nack(
        self, queue: str, message_id: str, requeue: bool = True, *, delay: float = 0, lease: Optional[int] = None
    ) -> NackResult:
        """Requeue a message of `queue` at its place, or (not `requeue`, or out of retries) move it to `<queue>.dlq`.

        The result's `action` says which. It is redelivered after `delay` seconds; with 0, the default, after the
        queue's `retry_delay`. A queue without dead letters requeues without limit, and drops the message with
        `requeue=False`. `message_id` and `lease` as for `ack`. Raises `MessageNotFoundError` where the caller's
        lease is over, `QueueNotFoundError`.
        """
        held = _lease(message_id, lease)
        payload = c.QueueNack(text("queue", queue), text("message_id", message_id), requeue, held, delay)
        result: NackResult = await self._call(c.QUEUE_NACK, payload)
        return result

    async def extend(self, queue: str, message_id: str, ack_deadline: float, *, lease: Optional[int] = None) -> None:
        """Let the lease of a message of `queue` end `ack_deadline` seconds from now (at most 86,400).

        `message_id` and `lease` as for `ack`. Raises `MessageNotFoundError` where the caller's lease is over,
        `QueueNotFoundError`.
        """
        held = _lease(message_id, lease)
        payload = c.QueueExtend(text("queue", queue), text("message_id", message_id), ack_deadline, held)
        await self._call(c.QUEUE_EXTEND, payload)

    async def create(
        self,
        queue: str,
        *,
        max_retries: int = default(3),
        ack_deadline: float = default(30),
        max_depth: int = default(100_000),
        dead_letter: bool = default(True),
        retry_delay: float = default(0),
        retry_backoff: float = default(2.0),
        retry_max_delay: float = default(3600),
    ) -> bool:
        """Make `queue`; of one that exists, change what is given. Returns whether it was made now.

        `max_retries`: times a message goes back before it is a dead letter. `ack_deadline`: seconds a lease lasts.
        `max_depth`: messages it holds. `dead_letter`: whether dead letters are kept, in `<queue>.dlq`. A message that
        is given back waits `retry_delay` seconds before it can be taken again, `retry_backoff` times as long after
        each further try, and at most `retry_max_delay` seconds.
        """
        config = c.QueueConfig(
            given(max_retries),
            given(ack_deadline),
            given(max_depth),
            given(dead_letter),
            given(retry_delay),
            given(retry_backoff),
            given(retry_max_delay),
        )
        answer: c.CreatedAnswer = await self._call(c.QUEUE_CREATE, c.QueueCreate(text("queue", queue), config))
        return answer.created

    async def delete(self, queue: str) -> bool:
        """Delete `queue` and what is in it; returns True. Raises `QueueNotFoundError`.

        Waiting consumers get that error too. Its dead letters stay: they are a queue of their own.
        """
        answer: c.QueueDeletedAnswer = await self._call(c.QUEUE_DELETE, c.QueueDelete(text("queue", queue)))
        return answer.deleted

    async def purge(self, queue: str) -> int:
        """Drop all messages of `queue`, leased ones too; returns how many. Raises `QueueNotFoundError`."""
        answer: c.PurgedAnswer = await self._call(c.QUEUE_PURGE, c.QueuePurge(text("queue", queue)))
        return answer.purged

    async def redrive(
        self, queue: str, limit: Optional[int] = None, *, message_ids: Optional[Sequence[str]] = None
    ) -> int:
        """Put dead letters of `queue` back in it, at most `limit` (default: all); returns how many.

        `message_ids`: the letters to put back, by the ids they have in the dead-letter queue (`peek` lists them), 1 to
        1,000. Raises `QueueNotFoundError`, and `QUEUE_FULL` where there is room for none.
        """
        ids = None if message_ids is None else list(map(str, as_list("message_ids", message_ids, "a list of ids")))
        answer: c.RedrivenAnswer = await self._call(c.QUEUE_REDRIVE, c.QueueRedrive(text("queue", queue), limit, ids))
        return answer.redriven

    async def stats(self, queue: str) -> QueueStats:
        """Read the figures of `queue`. Raises `QueueNotFoundError`."""
        result: QueueStats = await self._call(c.QUEUE_STATS, c.QueueStats(text("queue", queue)))
        return result

    async def list(self) -> List[str]:
        """List the names of all queues."""
        answer: c.QueuesAnswer = await self._call(c.QUEUE_LIST, c.QueueList())
        return answer.queues


def _lease(message_id: str, given: Optional[int] = None) -> Optional[int]:
    """Return the lease that was given, or else came with a message id; a plain string has none."""
    return message_id.lease if given is None and isinstance(message_id, MessageId) else given
