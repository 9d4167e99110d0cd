"""The async half of `synap.lanes.io`: waiting suspends a task.

Nothing here is bound to an event loop when it is made, so a client may be made before there is one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from typing import Any, Awaitable, Callable, Deque, Generic, Optional, Set, TypeVar

from synap.errors import SynapError

T = TypeVar("T")

log = logging.getLogger("synap")


AsyncRaised = BaseException
"""What a callback may raise without its subscription ending, unless it is meant for the task (`cancels_task`)."""


def cancels_task(error: BaseException) -> bool:
    """Return whether `error` cancels the current task, and not just something that it awaited, or ends the event loop.

    Before Python 3.11 tasks don't tell of a `CancelledError`, and it is taken for that.
    """
    if isinstance(error, (GeneratorExit, KeyboardInterrupt, SystemExit)):
        return True
    task: Any = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and (not hasattr(task, "cancelling") or task.cancelling() > 0)


class Closed(Exception):
    """A mailbox is closed and empty."""


def _settle(future: asyncio.Future[bool], result: bool = True) -> None:
    if not future.done():
        future.set_result(result)


def _settle_anywhere(future: asyncio.Future[bool]) -> None:
    """Settle a future from any thread: a client may be closed in another event loop than it is used in."""
    loop = future.get_loop()
    if loop is asyncio._get_running_loop():
        _settle(future)
    else:
        with suppress(RuntimeError):  # that loop is closed
            loop.call_soon_threadsafe(_settle, future)


def _wake_one(waiters: Deque[asyncio.Future[bool]]) -> bool:
    """Wake the longest waiter that still waits; returns False where there is none."""
    while waiters:
        waiter = waiters.popleft()
        if not waiter.done():
            waiter.set_result(True)
            return True
    return False


async def _wait(future: asyncio.Future[bool], timeout: Optional[float]) -> bool:
    """Wait for a future that has no other waiter; returns False after `timeout` seconds.

    A timeout is a result and not a cancellation, so it can neither be mistaken for one nor hide one.
    """
    if timeout is None:
        return await future
    alarm = asyncio.get_running_loop().call_later(max(timeout, 0), _settle, future, False)
    try:
        return await future
    finally:
        alarm.cancel()


class AsyncLock:
    """Mutual exclusion for `async with`, first come, first served."""

    __slots__ = ("_free", "_waiters")

    def __init__(self) -> None:
        self._free = True
        self._waiters: Deque[asyncio.Future[bool]] = deque()

    async def __aenter__(self) -> None:
        if self._free and not self._waiters:
            self._free = False
            return
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters.append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._release()  # it was handed to us while we were being cancelled
            raise
        finally:
            if turn in self._waiters:
                self._waiters.remove(turn)

    async def __aexit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        self._free = not _wake_one(self._waiters)


class AsyncEvent:
    """A flag that can be waited for. Any thread may set it."""

    __slots__ = ("_set", "_waiters")

    def __init__(self) -> None:
        self._set = False
        self._waiters: Set[asyncio.Future[bool]] = set()

    def is_set(self) -> bool:
        """Return whether the flag is set."""
        return self._set

    def set(self) -> None:
        """Set the flag and wake all waiters."""
        self._set = True
        for waiter in list(self._waiters):
            _settle_anywhere(waiter)

    async def wait(self, timeout: Optional[float] = None) -> bool:
        """Wait until the flag is set; returns False after `timeout` seconds."""
        if self._set:
            return True
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            return self._set or await _wait(waiter, timeout)
        finally:
            self._waiters.discard(waiter)


class AsyncMailbox(Generic[T]):
    """A bounded queue. `put` never waits; `get` serves waiters first come, first served. Any thread may close it."""

    __slots__ = ("_closed", "_items", "_size", "_waiters")

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: Deque[T] = deque()
        self._closed = False
        self._waiters: Deque[asyncio.Future[bool]] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> bool:
        """Put an item; False where the mailbox is full or closed."""
        if self._closed or len(self._items) >= self._size:
            return False
        self._items.append(item)
        if self._waiters:
            _wake_one(self._waiters)
        return True

    def poll(self) -> Optional[T]:
        """Remove and return the oldest item; None where there is none."""
        if self._items:
            try:
                return self._items.popleft()
            except IndexError:  # another thread has just closed it
                pass
        return None

    async def get(self) -> T:
        """Wait for the oldest item; raises `Closed` where the mailbox is closed and empty."""
        while True:
            item = self.poll()
            if item is not None:
                return item
            waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                if self._closed:  # looked at last: another thread may close it
                    raise Closed
                await waiter
            except BaseException:
                if self._items:  # it may have been this waiter that was woken for them
                    _wake_one(self._waiters)
                raise
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)

    def close(self, *, discard: bool = False) -> None:
        """Accept no more items; those in it can still be taken, unless `discard`. Wakes all waiters."""
        self._closed = True
        if discard:
            self._items.clear()
        for waiter in list(self._waiters):
            _settle_anywhere(waiter)


_running: Set[asyncio.Task[None]] = set()
"""Tasks that were spawned; the event loop itself holds them weakly."""


def async_spawn(
    function: Callable[..., Awaitable[None]],
    *args: Any,
    name: str,
    or_here: bool = False,
    cancelled: Callable[[], None] = lambda: None,
) -> None:
    """Run `function` as a background task; its exceptions are logged. `or_here` is for threads, see `spawn`.

    `cancelled` is called where the task is cancelled, as all are when their event loop ends.
    """

    async def run() -> None:
        try:
            await function(*args)
        except Exception:
            log.exception("%s ended with an error", name)

    def over(task: asyncio.Task[None]) -> None:
        _running.discard(task)
        if task.cancelled() or task.exception():  # one that ends the event loop
            cancelled()

    task = async_home().create_task(run())
    if hasattr(task, "set_name"):
        task.set_name(name)
    _running.add(task)
    task.add_done_callback(over)


async def async_sleep(seconds: float) -> None:
    """Sleep."""
    await asyncio.sleep(seconds)


def async_home() -> asyncio.AbstractEventLoop:
    """Return the owner of new connections: the running event loop. They can't be used in another one.

    Raises `INVALID_REQUEST` where none runs.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise SynapError(
            "INVALID_REQUEST",
            "AsyncSynapClient needs a running asyncio event loop, as in asyncio.run(main()); under trio, or where "
            "there is none, use SynapClient, in a thread if need be (trio.to_thread.run_sync, anyio.to_thread)",
        ) from None
