"""The message as a handler sees it."""

from __future__ import annotations

import asyncio
from typing import Any, List, Optional, Sequence

from synap.client.recording import Recording
from synap.commands import BatchItem
from synap.errors import SynapError
from synap.results import QueueMessage


class Lost:
    """A flag, set once the lease of a message has ended before its handler. Safe to read from any thread."""

    __slots__ = ("_flag", "_waiter")

    def __init__(self) -> None:
        self._flag = False
        self._waiter: Optional[asyncio.Event] = None

    def is_set(self) -> bool:
        """Return whether the lease is lost. The message may be handled elsewhere as well then."""
        return self._flag

    def __bool__(self) -> bool:
        return self._flag

    async def wait(self) -> None:
        """Wait until the lease is lost; for coroutine functions."""
        if not self._flag:
            if self._waiter is None:
                self._waiter = asyncio.Event()
            await self._waiter.wait()

    def set(self) -> None:
        """Set the flag; called in the worker's event loop."""
        self._flag = True
        if self._waiter is not None:
            self._waiter.set()


class MessagePipeline:
    """Writes that take effect together with the acknowledgement of their message, or not at all.

    The methods are those of `client.pipeline()`. Nothing is sent before the handler returns. Used with `with` or
    `async with`, the commands of a block that raises are discarded.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._begun: List[int] = []
        self.kv = recording.kv
        self.queue = recording.queue
        self.stream = recording.stream
        self.pubsub = recording.pubsub

    def __enter__(self) -> MessagePipeline:
        self._begun.append(len(self._recording))
        return self

    def __exit__(self, kind: object, error: Optional[BaseException], trace: object) -> None:
        since = self._begun.pop()
        if error is not None:
            why = f"the pipeline's block was left by {type(error).__name__}: nothing of it was sent"
            self._recording.drop(SynapError("BATCH_ABORTED", why), since)

    async def __aenter__(self) -> MessagePipeline:
        return self.__enter__()

    async def __aexit__(self, kind: object, error: Optional[BaseException], trace: object) -> None:
        self.__exit__(kind, error, trace)


class Message(QueueMessage[Any]):
    """A leased message, as a handler gets it; the worker renews its lease and settles it. Times are seconds."""

    lost: Lost
    """Set once the lease has ended before the handler: the message may be redelivered to another worker."""
    expires: float = 0.0
    """When the lease ends (seconds of this process's monotonic clock), unless it is renewed."""
    _format = "json"
    _recording: Optional[Recording] = None
    _more: Sequence[BatchItem] = ()

    @classmethod
    def of(cls, leased: QueueMessage[Any], format: str) -> Message:
        """Convert `leased`, which `consume` returned; `format` is the client's."""
        message = cls.__new__(cls)
        message.__dict__.update(leased.__dict__)
        message.lost = Lost()
        message._format = format
        return message

    def pipeline(self) -> MessagePipeline:
        """Return the pipeline for writes that take effect together with the acknowledgement, or not at all.

        Returns the same commands each time: they are sent in one atomic batch once the handler has returned. If one
        of them fails, none has happened, and the message is tried again.
        """
        if self._recording is None:
            self._recording = Recording(self._format)
        return MessagePipeline(self._recording)

    def recorded(self) -> List[BatchItem]:
        """Return the commands in the pipeline."""
        found = list(self._more)
        if self._recording is not None:
            found[:0] = self._recording.items
        return found

    def add(self, items: Sequence[BatchItem]) -> None:
        """Add `items`, commands that were recorded in a process of the pool."""
        self._more = [*self._more, *items]

    def __getstate__(self) -> Any:
        """Return the state for a process of the pool, without this process's own."""
        own = ("lost", "_recording", "_more")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state)
        self.lost = Lost()
