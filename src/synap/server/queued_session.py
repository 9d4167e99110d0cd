"""A session whose output is sent by a task, as ASGI requires."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from synap.commands import Item
from synap.errors import SynapError
from synap.host import ANSWER, PUSH, REFUSE, Output
from synap.server.flow import SLICE, FlowSession
from synap.server.service import Service
from synap.wire.codec import Codec
from synap.wire.large import LARGE


class QueuedSession(FlowSession):
    """Queues output; the connection's task takes it with `take` and sends it."""

    __slots__ = ("_end", "_queue", "_something", "sending", "unsent")

    def __init__(self, service: Service, codec: Codec, end: Callable[[], None]) -> None:
        super().__init__(service, codec)
        self._end = end
        """Ends the connection at once."""
        self._queue: deque[Any] = deque()
        self._something = asyncio.Event()
        self.unsent = 0
        """Bytes that wait to be sent."""
        self.sending = 0
        """Bytes that the task has taken from the queue, and has not sent while the peer doesn't read."""

    # ---- for the lane
    def render_answer(self, number: Any, answer: Any) -> Any:
        """Encode an answer to a message; returns something with a length, or None where nothing is to be sent."""
        raise NotImplementedError

    def render_error(self, number: Any, error: SynapError) -> Any:
        """Encode an error to a message."""
        raise NotImplementedError

    def render_push(self, subscription_id: int, item: Item) -> Any:
        """Encode a pushed item to a message."""
        raise NotImplementedError

    def render_ended(self, subscription_id: int, error: SynapError) -> Any:
        """Encode the end of a subscription to a message."""
        raise NotImplementedError

    def put(self, message: Any) -> None:
        """Queue a message."""
        self._queue.append(message)
        self.unsent += len(message)
        self.stalled = self.unsent > SLICE
        if self.stalled:
            self._transit.add(len(message))
        self._something.set()

    def finish(self) -> None:
        """Let the task end once the queue is sent."""
        self.closed = True
        self._something.set()

    async def take(self, timeout: float | None = None) -> list[Any]:
        """Wait for messages and return them all; an empty list after `timeout` seconds, or at the end."""
        self.sending = 0
        if not self._queue and not self.closed:
            self.catch_up()
        if not self._queue and not self.closed:
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
        self.sending, self.unsent = self.unsent, 0
        self.stalled = False
        return messages

    def queued(self) -> int:
        """Estimated bytes held."""
        return self.unsent + self.sending + self.promised - self.elsewhere

    # ---- for the host
    def buffered(self) -> int:
        return self.unsent

    def deliver(self, output: list[Output]) -> None:
        for entry in output:
            what, number, content, weight = entry
            self.promised -= weight
            try:
                if what in (ANSWER, PUSH) and (weight > LARGE or self._behind) and self.put_off(entry):
                    continue
                if what == ANSWER:
                    message = self.render_answer(number, content)
                elif what == PUSH:
                    message = self.render_push(number, content)
                elif what == REFUSE:
                    message = self.render_error(number, content)
                else:
                    message = self.render_ended(number, content)
            except Exception as failure:  # it is an error to its own caller, and the rest is sent
                error = self.undeliverable(what, number, failure)
                message = self.render_ended(number, error) if what == PUSH else self.render_error(number, error)
            if message is not None:
                self.put(message)
        if self._lagging:
            self._something.set()

    def lose_pushes(self, weight: int) -> None:
        self.promised -= weight
        self.abort()

    def abort(self) -> None:
        self._queue.clear()
        self.unsent = 0
        self.finish()
        if self.sending:  # the task may wait for a peer that doesn't read
            self._end()
