"""Fetch messages in a thread, for a worker whose event loop must not block.

The event loop of Celery's prefork workers polls registered file descriptors. So for each kind of queue (remote control,
tasks) one call waits for messages in a thread, and a socket becomes readable when a call has returned some. A call
whose queues have changed is cancelled, which loses no message.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Coroutine, Deque, Dict, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple, Union

from synap import AsyncSynapClient, ConnectionError, QueueMessage, QueueNotFoundError, SynapError
from synap.client.retry import is_transient
from synap.contrib.celery.leases import Leases
from synap.contrib.sharing import WAIT

log = logging.getLogger("synap.contrib.celery")

CLOSE_TIMEOUT = 5.0
"""Seconds that closing waits for messages to be requeued."""


class Fetched(NamedTuple):
    """A leased message, with its delivery tag."""

    queue: str
    tag: str
    message: QueueMessage[Any]


def as_outage(error: SynapError) -> SynapError:
    """Return the error that Celery reconnects after, for one that passes; any other error as it is."""
    if is_transient(error) and not isinstance(error, ConnectionError):
        return ConnectionError(error.code, error.message, error.details)
    return error


@dataclass(eq=False)
class _Call:
    """A call that waits for messages of some queues; `done` from its return until its messages are taken."""

    queues: Tuple[str, ...]
    most: int
    done: bool = False
    task: Optional[asyncio.Task[None]] = None


class Fetcher:
    """Calls that wait for messages, in a thread, and a socket that is readable when one has returned some."""

    def __init__(self, configuration: Mapping[str, Any], leases: Leases) -> None:
        self._configuration = dict(configuration)
        self._leases = leases
        self._lock = threading.Lock()
        self._calls: Dict[str, _Call] = {}
        self._found: Deque[Union[Fetched, SynapError]] = collections.deque()
        self._tasks: Set[asyncio.Task[None]] = set()
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._loop = asyncio.new_event_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="synap fetcher", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Return the descriptor that is readable while `take` has something."""
        return self._reader.fileno()

    def wake(self) -> None:
        """Make the socket readable."""
        with suppress(OSError):  # full, so it is readable; or closed
            self._writer.send(b"\0")

    def ask(self, kind: str, queues: Sequence[str], most: int) -> None:
        """Keep one call of this kind in flight, for at most `most` messages of `queues`; without queues, none.

        Does nothing while messages of an earlier call are not taken.
        """
        with self._lock:
            before = self._calls.get(kind)
            if before is None:
                if not queues:
                    return
            elif before.done or (before.queues == tuple(queues) and before.most <= most):
                return
            else:
                del self._calls[kind]
            call = _Call(tuple(queues), most) if queues else None
            if call is not None:
                self._calls[kind] = call
        self._loop.call_soon_threadsafe(self._replace, kind, before, call)

    def take(self) -> List[Fetched]:
        """Return the messages that have arrived; raises the error of a call once they are taken."""
        with suppress(OSError):  # nothing to read
            self._reader.recv(4096)
        taken: List[Fetched] = []
        error: Optional[SynapError] = None
        with self._lock:
            while self._found and error is None:
                found = self._found.popleft()
                if isinstance(found, Fetched):
                    taken.append(found)
                elif not taken:
                    error = found
                else:
                    self._found.appendleft(found)
                    break
            if self._found:
                self.wake()
            else:  # also where an error is raised: whoever goes on in spite of it asks again
                self._calls = {kind: call for kind, call in self._calls.items() if not call.done}
        if error is not None:
            raise error
        return taken

    def close(self) -> None:
        """Cancel all calls, requeue messages that were not taken, and end the thread."""
        self._loop.call_soon_threadsafe(self._ended.set_result, None)
        self._thread.join()
        self._reader.close()
        self._writer.close()

    # ------------------------------------------------------------------------------------------ in the thread

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._client = AsyncSynapClient(**self._configuration)
        try:
            await self._ended
            with self._lock:
                calls, self._calls = list(self._calls.values()), {}
                found = [message for message in self._found if isinstance(message, Fetched)]
                self._found.clear()
            for call in calls:
                if call.task is not None:
                    call.task.cancel()
            for message in found:
                self._leases.release(message.tag)
            self._start(self._requeue([message.message for message in found]))
            await asyncio.wait(self._tasks, timeout=CLOSE_TIMEOUT)
        finally:
            await self._client.close()

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _replace(self, kind: str, before: Optional[_Call], call: Optional[_Call]) -> None:
        if before is not None and before.task is not None:
            before.task.cancel()
        if call is not None:
            call.task = self._start(self._consume(kind, call))

    async def _consume(self, kind: str, call: _Call) -> None:
        found: List[QueueMessage[Any]] = []
        error: Optional[SynapError] = None
        while not found and error is None:
            try:
                found = await self._client.queue.consume_many(
                    call.queues, max=call.most, timeout=WAIT, ack_deadline=self._leases.seconds
                )
            except QueueNotFoundError:  # it was deleted; the next call creates it again
                if self._calls.get(kind) is not call:
                    return
            except SynapError as raised:
                error = as_outage(raised)
        with self._lock:
            wanted = self._calls.get(kind) is call
            if wanted:
                call.done = True
                for message in found:
                    tag = self._leases.hold(message.queue, message.message_id)
                    self._found.append(Fetched(message.queue, tag, message))
                if error is not None:
                    self._found.append(error)
        if wanted:
            self.wake()
        elif found:  # replaced meanwhile; a task of its own, since this one may be cancelled
            self._start(self._requeue(found))

    async def _requeue(self, messages: List[QueueMessage[Any]]) -> None:
        for message in messages:
            try:
                await self._client.queue.nack(message.queue, message.message_id)
            except SynapError as error:
                log.debug("a message is redelivered when its lease ends: %s", error)
