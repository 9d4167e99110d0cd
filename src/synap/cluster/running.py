"""Run coroutines that await answers of nodes, without a task or a future for each.

A command on a cluster is a coroutine function that awaits `Pending` objects, mostly calls of the link. `Running`
resumes it in the callback that brings the answer, so several hundred commands under way cost no turns of the event
loop. A call is under way from the moment it is made: awaiting several one after the other waits for all of them at
once.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import closing
from inspect import CORO_RUNNING, getcoroutinestate
from typing import Any, Callable, Coroutine, Deque, Generator, Iterable, List, Optional, TypeVar

from synap.engine.callers import Steps
from synap.host.jobs import SLICE

T = TypeVar("T")
U = TypeVar("U")


class Pending:
    """Something that will have a result, awaited by one coroutine under `Running`."""

    __slots__ = ("_then", "done", "error", "value")

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self.error: Optional[BaseException] = None
        self._then: Optional[Callable[[], None]] = None

    def __await__(self) -> Generator[Pending, None, Any]:
        if not self.done:
            yield self
        if self.error is not None:
            raise self.error
        return self.value

    def finish(self, value: Any = None, error: Optional[BaseException] = None) -> None:
        """Take the result or the error, and resume the coroutine that awaits it. Further calls are ignored."""
        if self.done:
            return
        self.done = True
        self.value = value
        self.error = error
        then, self._then = self._then, None
        if then is not None:
            then()

    def cancel(self) -> None:
        """End without a result: what awaits it is never resumed."""
        self.done = True
        self._then = None

    def when_done(self, then: Callable[[], None]) -> None:
        """Call `then` once there is a result, at once where there is one already."""
        if self.done:
            then()
        else:
            self._then = then


class Running(Pending):
    """A coroutine that is under way; itself a `Pending` with what it returns."""

    __slots__ = ("_awaits", "_coroutine")

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        super().__init__()
        self._coroutine = coroutine
        self._awaits: Optional[Pending] = None

    def start(self) -> Running:
        """Run up to the first answer that isn't there yet."""
        self._step()
        return self

    def _step(self) -> None:
        if self.done:
            return
        try:
            awaited = self._coroutine.send(None)
        except StopIteration as stop:
            self.finish(stop.value)
        except Exception as error:  # raised where this is awaited
            self.finish(error=error)
        else:
            self._awaits = awaited
            awaited.when_done(self._step)

    def cancel(self) -> None:
        """Run the coroutine's `finally` blocks, which must not await, and end without a result."""
        if self.done:
            return
        self.done = True
        if self._awaits is not None:
            self._awaits._then = None
        if getcoroutinestate(self._coroutine) != CORO_RUNNING:  # what cancels itself ends by itself
            self._coroutine.close()


async def in_task(pending: Pending) -> Any:
    """Wait in a task of asyncio for something that is under way; returns its result, or raises its error."""
    done = asyncio.Event()
    pending.when_done(done.set)
    await done.wait()
    if pending.error is not None:
        raise pending.error
    return pending.value


async def in_slices(steps: Steps, soon: Callable[[Callable[[], None]], object]) -> Any:
    """Run steps, a slice of them in each turn of the event loop that `soon` schedules; returns what they return."""
    with closing(steps):
        try:
            while True:
                end = time.perf_counter() + SLICE
                next(steps)
                while time.perf_counter() < end:
                    next(steps)
                turn = Pending()
                soon(turn.finish)
                await turn
        except StopIteration as done:
            return done.value


async def begin_each(
    begin: Callable[[T], U], items: Iterable[T], soon: Callable[[Callable[[], None]], object]
) -> List[U]:
    """Begin something for each of many, in slices; returns what was begun."""
    begun: List[U] = []

    def steps() -> Steps:
        for item in items:
            begun.append(begin(item))
            yield

    await in_slices(steps(), soon)
    return begun


class Lock:
    """Held by one coroutine under `Running` at a time. Those that wait get it in the order in which they came."""

    __slots__ = ("_handing_over", "_waiting", "held")

    def __init__(self) -> None:
        self.held = False
        self._handing_over = False
        self._waiting: Deque[Pending] = deque()

    async def acquire(self) -> None:
        """Wait until it is free, and hold it."""
        if self.held:
            turn = Pending()
            self._waiting.append(turn)
            try:
                await turn
            except GeneratorExit:  # the coroutine is cancelled
                self._waiting.remove(turn)
                raise
        self.held = True

    def release(self) -> None:
        """Free it, and resume who waits. Those who release it at once are resumed by one loop, not by each other."""
        self.held = False
        if not self._handing_over:
            self._handing_over = True
            try:
                while self._waiting and not self.held:
                    self._waiting.popleft().finish()
            finally:
                self._handing_over = False
