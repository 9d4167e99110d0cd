"""Records commands now, to be sent together later.

A group's method of the async client is a coroutine that makes one request and processes its answer. Recording runs it
up to that request, keeps the request, and resumes it with the answer, so that checks, payloads and results are those of
the client's own methods. No event loop is involved, so the async and the sync client both use it.
"""

from __future__ import annotations

import types
from typing import Any, Coroutine, Generator, List, Optional, Sequence, Tuple, TypeVar, cast

from msgspec import Raw

from synap.client._async.calls import AsyncCalls
from synap.client._async.kv import AsyncKeyValue
from synap.client._async.pubsub import AsyncPubSub
from synap.client._async.queue import AsyncQueue
from synap.client._async.stream import AsyncStreams
from synap.client._pipeline.kv import PipelineKeyValue
from synap.client._pipeline.pubsub import PipelinePubSub
from synap.client._pipeline.queue import PipelineQueue
from synap.client._pipeline.stream import PipelineStreams
from synap.client.handles import Handle
from synap.commands import BATCH, READ_BATCH, BatchItem, BatchRequest, Command
from synap.errors import SynapError
from synap.wire.codec import CODECS

R = TypeVar("R")


class _YieldingCalls:
    """Stands in for a client's calls: yields each request to the caller that runs the method."""

    @types.coroutine
    def call(self, command: Command, payload: Any, wait: float = 0) -> Generator[Tuple[Command, Any], Any, Any]:
        return (yield command, payload)


class Recording:
    """An ordered list of commands, and the four groups of methods that add to it."""

    def __init__(self, format: str) -> None:
        self._codec = CODECS[format]
        self._handles: List[Handle[Any]] = []
        self.items: List[BatchItem] = []
        """The commands, encoded."""
        self._writes = False
        self._closed: Optional[str] = None
        calls = cast(AsyncCalls, _YieldingCalls())
        self.kv = PipelineKeyValue(self._record, AsyncKeyValue(calls))
        self.queue = PipelineQueue(self._record, AsyncQueue(calls))
        self.stream = PipelineStreams(self._record, AsyncStreams(calls))
        self.pubsub = PipelinePubSub(self._record, AsyncPubSub(calls))

    def __len__(self) -> int:
        return len(self.items)

    def _record(self, method: Coroutine[Any, Any, R]) -> Handle[R]:
        """Record a method's request; raises for invalid arguments, and for commands that a batch can't hold."""
        if self._closed is not None:
            method.close()
            raise SynapError("INVALID_REQUEST", self._closed)
        command, payload = method.send(None)
        if not command.batchable:
            method.close()
            raise SynapError("INVALID_REQUEST", f"{command.name} can't be part of a pipeline")
        try:
            body = self._codec.encode_payload(command, payload)
        except BaseException:
            method.close()
            raise
        handle = Handle(command, method)
        self.items.append(BatchItem(command.name, Raw(body)))
        self._handles.append(handle)
        self._writes = self._writes or command.has_effects
        return handle

    def close(self, why: str) -> None:
        """Accept no more commands; `why` is the message of the error for a further one."""
        self._closed = why

    def drop(self, error: BaseException, since: int = 0) -> None:
        """Drop the commands from index `since` on: their results raise this error."""
        for handle in self._handles[since:]:
            handle.fail(error)
        del self._handles[since:], self.items[since:]

    def request(self, atomic: bool) -> Tuple[Command, BatchRequest]:
        """Build the batch of all recorded commands."""
        return BATCH if self._writes else READ_BATCH, BatchRequest(self.items, atomic)

    def answered(self, results: Sequence[Any]) -> None:
        """Hand each command its result."""
        for handle, result in zip(self._handles, results):
            handle.take(result)
