"""taskiq: brokers and a result backend.

broker = SynapBroker("http://localhost:15500").with_result_backend(SynapResultBackend("http://localhost:15500"))
"""

from __future__ import annotations

import asyncio
import logging
import math
from contextlib import suppress
from typing import Any, AsyncGenerator, Callable, Dict, Optional, TypeVar, Union

from taskiq import AckableMessage, AsyncBroker, AsyncResultBackend, BrokerMessage, TaskiqResult
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.depends.progress_tracker import TaskProgress
from taskiq.serializers import PickleSerializer

from synap import AsyncSynapClient, GetResult, MessageNotFoundError, QueueMessage, QueueNotFoundError, SynapError
from synap.contrib.sharing import WAIT, Outage, keep_leased, persistently, topic_messages

__all__ = ["ResultIsMissingError", "SynapBroadcastBroker", "SynapBroker", "SynapResultBackend"]

log = logging.getLogger("synap.contrib.taskiq")

T = TypeVar("T")

PROGRESS = "__progress"


class ResultIsMissingError(LookupError):
    """Raised by `get_result` for a task without a result, or whose result has expired."""


class _SynapBroker(AsyncBroker):
    """The part that both brokers share: a client, and the name of a queue or topic."""

    def __init__(
        self,
        url: Optional[str] = None,
        queue_name: str = "taskiq",
        *,
        task_id_generator: Optional[Callable[[], str]] = None,
        options: Optional[Dict[str, Any]] = None,
    ) -> None:
        super().__init__()
        if task_id_generator is not None:
            self.id_generator = task_id_generator
        self.queue_name = queue_name
        self.client = AsyncSynapClient(url=url, **{**(options or {}), "format": "msgpack"})

    def _name(self, message: BrokerMessage) -> str:
        return str(message.labels.get("queue_name") or self.queue_name)

    async def shutdown(self) -> None:
        """Close the broker and its client."""
        await super().shutdown()
        await self.client.close()


class SynapBroker(_SynapBroker):
    """A broker whose tasks go through an acknowledged queue, each to one worker.

    `url`, `options` (fields of `ClientConfig`): of the client. `queue_name`: the queue, by default 'taskiq'. `lease`:
    seconds until a task is redelivered when its worker is gone (a running worker renews it), by default 60.
    `task_id_generator`: returns the ids of new tasks. Labels of a task: `queue_name`, `priority` (0..9, 9 first) and
    `delay` (seconds).

    Delivery is at least once: a task whose worker died runs again, and becomes a dead letter in `<queue>.dlq` after
    `max_retries` redeliveries (see `queue.create`).
    """

    def __init__(
        self,
        url: Optional[str] = None,
        queue_name: str = "taskiq",
        *,
        lease: float = 60.0,
        task_id_generator: Optional[Callable[[], str]] = None,
        options: Optional[Dict[str, Any]] = None,
    ) -> None:
        super().__init__(url, queue_name, task_id_generator=task_id_generator, options=options)
        self.lease = lease
        self._held: Dict[str, str] = {}
        """Messages that this process has leased and not acknowledged: each id, with its newest lease."""
        self._renewal: Optional[asyncio.Future[None]] = None

    async def kick(self, message: BrokerMessage) -> None:
        """Publish a task."""
        await self.client.queue.publish(
            self._name(message),
            message.message,
            int(message.labels.get("priority", 5)),
            {"task_id": message.task_id, "task_name": message.task_name},
            delay=float(message.labels.get("delay", 0)),
        )

    async def listen(self) -> AsyncGenerator[Union[bytes, AckableMessage], None]:
        """Yield tasks, each leased until it is acknowledged."""
        if self._renewal is None or self._renewal.done():
            outage = Outage(log, f"renewing leases in queue {self.queue_name}")
            renewing = keep_leased(self.client, self.queue_name, self.lease, self._held, outage)
            self._renewal = asyncio.ensure_future(renewing)
        outage = Outage(log, f"consuming from queue {self.queue_name}")
        while True:
            try:
                found = await persistently(outage, self.client.queue.consume, self.queue_name, WAIT, self.lease)
            except QueueNotFoundError:  # it was deleted; the next call creates it again
                continue
            except SynapError:
                return  # the client was closed
            if found is None:
                continue
            task = found.message.encode() if isinstance(found.message, str) else found.message
            if not isinstance(task, bytes):  # anybody may publish anything
                log.error("message %s of queue %s is no task and is rejected", found.message_id, self.queue_name)
                with suppress(SynapError):  # else it comes again
                    await self.client.queue.nack(self.queue_name, found.message_id, requeue=False)
                continue
            self._held[found.message_id] = found.message_id
            yield AckableMessage(data=task, ack=self._acknowledge(found))

    async def shutdown(self) -> None:
        """Close the broker and its client. Until then leases are renewed: a worker that ends finishes its tasks."""
        if self._renewal is not None:
            self._renewal.cancel()
        await super().shutdown()

    def _acknowledge(self, found: QueueMessage) -> Callable[[], Any]:
        async def acknowledge() -> None:
            outage = Outage(log, f"acknowledging task {found.headers.get('task_id')}")
            try:
                await persistently(outage, self.client.queue.ack, self.queue_name, found.message_id)
            except QueueNotFoundError:
                log.warning("the queue %s was deleted while a task of it ran", self.queue_name)
            except MessageNotFoundError:
                log.warning("task %s was not acknowledged in time and runs again", found.headers.get("task_id"))
            finally:
                self._held.pop(found.message_id, None)

        return acknowledge


class SynapBroadcastBroker(_SynapBroker):
    """A broker whose tasks go to every connected worker, by pub/sub: at most once."""

    async def kick(self, message: BrokerMessage) -> None:
        """Publish a task."""
        await self.client.pubsub.publish(self._name(message), message.message)

    async def listen(self) -> AsyncGenerator[Union[bytes, AckableMessage], None]:
        """Yield the tasks that are published from now on."""
        outage = Outage(log, f"receiving from topic {self.queue_name}")
        async for message in topic_messages(self.client, self.queue_name, outage):
            yield message


class SynapResultBackend(AsyncResultBackend[T]):
    """A result backend: each result is a key.

    `url`, `options` (fields of `ClientConfig`): of the client. `keep_results`: False deletes a result once it is read,
    by default True. `ttl`: seconds until a result expires, by default never. `prefix`: of the keys, by default
    'taskiq:'. `serializer`: by default pickle, so use a service you trust. Raises `INVALID_REQUEST` for a `ttl` of 0 or
    less.
    """

    def __init__(
        self,
        url: Optional[str] = None,
        *,
        keep_results: bool = True,
        ttl: Optional[float] = None,
        prefix: str = "taskiq:",
        serializer: Optional[TaskiqSerializer] = None,
        options: Optional[Dict[str, Any]] = None,
    ) -> None:
        if ttl is not None and ttl <= 0:
            raise SynapError("INVALID_REQUEST", f"ttl must be more than 0 seconds, got {ttl}", {"option": "ttl"})
        self.client = AsyncSynapClient(url=url, **{**(options or {}), "format": "msgpack"})
        self.keep_results = keep_results
        self.ttl = None if ttl is None else math.ceil(ttl)
        self.prefix = prefix
        self.serializer = serializer or PickleSerializer()

    async def shutdown(self) -> None:
        """Close the client."""
        await self.client.close()
        await super().shutdown()

    async def set_result(self, task_id: str, result: TaskiqResult[T]) -> None:
        """Store a result."""
        await self.client.kv.set(
            self.prefix + task_id, self.serializer.dumpb(result.model_dump(mode="json")), ttl=self.ttl
        )

    async def is_result_ready(self, task_id: str) -> bool:
        """Return whether a task has a result."""
        return await self.client.kv.exists(self.prefix + task_id)

    async def get_result(self, task_id: str, with_logs: bool = False) -> TaskiqResult[T]:
        """Return a result; raises `ResultIsMissingError`."""
        key = self.prefix + task_id
        found: GetResult[Any] = await self.client.kv.get(key)
        if not found.found or (not self.keep_results and not await self.client.kv.delete(key)):
            raise ResultIsMissingError(f"there is no result of task {task_id}")
        result: TaskiqResult[T] = TaskiqResult.model_validate(self.serializer.loadb(found.value or b""))
        if not with_logs:
            result.log = None
        return result

    async def set_progress(self, task_id: str, progress: TaskProgress[Any]) -> None:
        """Store the progress of a task."""
        value = self.serializer.dumpb(progress.model_dump(mode="json"))
        await self.client.kv.set(self.prefix + task_id + PROGRESS, value, ttl=self.ttl)

    async def get_progress(self, task_id: str) -> Optional[TaskProgress[Any]]:
        """Return the progress of a task, None if it has reported none."""
        found: GetResult[Any] = await self.client.kv.get(self.prefix + task_id + PROGRESS)
        if not found.found:
            return None
        progress: TaskProgress[Any] = TaskProgress.model_validate(self.serializer.loadb(found.value or b""))
        return progress
