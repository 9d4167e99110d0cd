"""Requests and pings in flight on a connection in an event loop, and the tasks that wait for their answers."""

from __future__ import annotations

import asyncio
import sys
from contextvars import Context
from functools import partial
from types import MethodType, coroutine
from typing import TYPE_CHECKING, Any, Callable, Dict, Generator, Optional

from synap.commands import Command
from synap.errors import SynapError
from synap.lanes.errors import ping_timed_out
from synap.wire.conversation import Waiter
from synap.wire.outcomes import UNREADABLE, unreadable

if TYPE_CHECKING:
    from synap.lanes.native.connection import Connection

RESUMES_AT_ONCE = (
    sys.implementation.name == "cpython" and sys.version_info < (3, 16) and "free-threading" not in sys.version
)
"""Whether tasks of this Python are known to accept a `Pending` as a future. Otherwise they await one of asyncio's own,
and resume in the event loop's next iteration."""


class Pending:
    """A request that was sent; its `outcome` is what the caller awaits.

    To the task that waits for it, it is a future (where `RESUMES_AT_ONCE`): an object with `_asyncio_future_blocking`
    (see `asyncio.isfuture`). But an answer resumes the task at once, where an `asyncio.Future` would ask the loop to do
    so on its next round. That round costs as much as the rest of a call, for a call that is alone a look at all sockets
    besides. It is sound because answers are only processed in callbacks of the event loop, when no task runs. Errors
    may be raised while a task runs, so they are scheduled on the loop. So are answers where tasks are not asyncio's
    own, written in C: nest_asyncio, which notebooks use, replaces them to run the loop within itself, and no task may
    do that from a callback of a socket that the inner loop needs.
    """

    def __init__(
        self,
        connection: Connection,
        number: int,
        command: Command,
        deadline: float,
        began: float,
        decode: Callable[[bytes], Any],
        parked: Optional[Dict[int, bool]],
    ) -> None:
        self.connection = connection
        self.number = number
        self.command = command
        self.deadline = deadline
        """When it is too late, in seconds of `time.monotonic`."""
        self.began = began
        self.decode = decode
        self.parked = parked
        """Set to True for its number when it fails: a retry must carry the RETRY flag."""
        self.answered = False
        """Whether the outcome is known."""
        self._loop = connection.loop
        self._asyncio_future_blocking = False
        self._body = b""
        self._failure: Optional[BaseException] = None
        self._resume: Optional[Callable[[Pending], Any]] = None
        self._context: Optional[Context] = None
        self._future: Optional[asyncio.Future[None]] = None
        """What the task awaits where `RESUMES_AT_ONCE` is false."""

    # ---- for the caller
    @coroutine  # awaiting a generator takes half as long as asking an object's `__await__` for one
    def outcome(self) -> Generator[Any, None, Any]:
        """Wait for the answer and return it decoded, or raise its error. Awaited once."""
        number = self.number
        try:
            if not self.answered:
                if RESUMES_AT_ONCE:
                    self._asyncio_future_blocking = True
                    yield self
                else:
                    self._future = self._loop.create_future()
                    yield from self._future
            if self._failure is not None:
                try:
                    raise self._failure
                finally:
                    self._failure = None  # else only the garbage collector frees the error, and with it the payload
        except SynapError:
            self._park()
            raise
        except BaseException:
            self.connection.withdraw(number)
            raise
        finally:
            self.connection.pending.pop(number, None)
        try:
            return self.decode(self._body)
        except UNREADABLE as error:
            self._park()
            raise unreadable(self.command, error) from None

    def _park(self) -> None:
        if self.parked is not None:
            self.parked[self.number] = True

    # ---- for the connection
    def expect_large(self) -> None:
        self.decode = partial(self.connection.conversation.codec.decode_large, self.command)

    def answer(self, body: bytes) -> None:
        """Resume the waiting task. Only call it from a callback of the event loop."""
        self.answered = True
        self._body = body
        resume, context = self._resume, self._context
        if resume is None or context is None:
            self._settle()
            return
        if type(resume) is MethodType:
            self._loop.call_soon(resume, self, context=context)
            return
        try:
            context.run(resume, self)
        except RuntimeError:  # a task is running after all, as in nested event loops: resume it the usual way
            self._loop.call_soon(resume, self, context=context)
        except BaseException as error:
            # The task raised SystemExit or the like, which belongs to the event loop, not to the connection.
            self._loop.call_soon(_raise, error)

    def fail(self, error: BaseException) -> None:
        """Raise an error in the waiting task, in the event loop's next iteration."""
        self.answered = True
        self._failure = error
        if self._resume is not None:
            self._loop.call_soon(self._resume, self, context=self._context)
        else:
            self._settle()

    def _settle(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    # ---- for the task
    def add_done_callback(self, resume: Callable[[Pending], Any], *, context: Optional[Context] = None) -> None:
        """Called by the task: how to resume it."""
        self._resume = resume
        self._context = context

    def cancel(self, msg: Optional[Any] = None) -> bool:
        """Raise `CancelledError` in the task; returns False where the outcome is known already."""
        if self.answered:
            return False
        self.fail(asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))
        return True

    result = [].clear
    """Called by the task before it resumes. It need return nothing, as `outcome` gives the answer; any function in C
    that takes no arguments will do. A method in Python would add a fortieth to the time that a request takes a client.
    """


def _raise(error: BaseException) -> None:
    raise error


class Ping(Waiter):
    """A ping in flight, and the future of its answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[bytes] = loop.create_future()
        self.future.add_done_callback(seen)

    @property
    def answered(self) -> bool:
        return self.future.done()

    def answer(self, body: bytes) -> None:
        self.future.set_result(body)

    def fail(self, error: BaseException) -> None:
        self.future.set_exception(error)

    def expire(self, seconds: float) -> None:
        """Fail with `TIMEOUT`."""
        if not self.future.done():
            self.future.set_exception(ping_timed_out(seconds))


def seen(future: asyncio.Future[Any]) -> None:
    """Mark an exception as retrieved, since nobody may await this future."""
    if not future.cancelled():
        future.exception()
