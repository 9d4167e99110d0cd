"""The async half of `synap.lanes.io`: what waits, waits in an event loop.

Nothing here is bound to an event loop when it is made, so a client may be made before there is one.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from types import TracebackType
from typing import Any, Awaitable, Callable, Deque, Generic, Optional, Set, Type, TypeVar

__all__ = [
    "AsyncEvent",
    "AsyncLock",
    "AsyncMailbox",
    "AsyncPromise",
    "AsyncSemaphore",
    "AsyncStream",
    "AsyncWorker",
    "Closed",
    "async_home",
    "async_sleep",
    "async_spawn",
]

T = TypeVar("T")

log = logging.getLogger("synap")

BUFFER = 256 * 1024
"""Bytes a stream takes in before anybody asks for them."""
GOODBYE = 1.0
"""Seconds an orderly close may take before the connection is cut."""


class Closed(Exception):
    """A mailbox is closed and empty."""


class _Wire(asyncio.Protocol):
    """What the event loop tells about a connection, kept until somebody asks."""

    def __init__(self) -> None:
        self.transport: Optional[asyncio.Transport] = None
        self.loop = asyncio.get_running_loop()
        self.received = bytearray()
        self.ended = False
        self.failure: Optional[BaseException] = None
        self.reader: Optional[asyncio.Future[bool]] = None
        self.writer: Optional[asyncio.Future[bool]] = None
        self.gone: asyncio.Future[bool] = self.loop.create_future()
        self.held = False
        self.full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.received += data
        if len(self.received) > BUFFER and not self.held and self.transport is not None:
            self.held = True
            self.transport.pause_reading()
        _settle(self.reader)

    def eof_received(self) -> bool:
        self.ended = True
        _settle(self.reader)
        return False

    def connection_lost(self, exc: Optional[BaseException]) -> None:
        self.ended = True
        self.failure = exc
        _settle(self.reader)
        _settle(self.writer)
        _settle(self.gone)

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        _settle(self.writer)

    def resume(self) -> None:
        if self.held and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()
        self.held = False


class AsyncStream:
    """A TCP connection, or TLS on one. One caller at a time may send, and one receive."""

    __slots__ = ("_wire",)

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    @classmethod
    async def connect(
        cls,
        host: str,
        port: int,
        ssl_context: Optional[ssl.SSLContext] = None,
        timeout: Optional[float] = None,
    ) -> AsyncStream:
        """Connect within `timeout` seconds; raises `OSError` (`TimeoutError` and `ssl.SSLError` among them)."""
        loop = asyncio.get_running_loop()
        wire = _Wire()
        hostname = host if ssl_context is not None else None
        attempt = loop.create_task(
            loop.create_connection(lambda: wire, host, port, ssl=ssl_context, server_hostname=hostname)
        )
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = True
            attempt.cancel()

        alarm = None if timeout is None else loop.call_later(max(timeout, 0), expire)
        try:
            await attempt
        except BaseException as error:
            # Also when this task was cancelled in the very turn in which the connection came about.
            if wire.transport is not None:
                wire.transport.abort()
            if expired and isinstance(error, asyncio.CancelledError) and attempt.cancelled():
                raise TimeoutError(f"no connection within {timeout:g} seconds") from None
            raise
        finally:
            if alarm is not None:
                alarm.cancel()
        return cls(wire)

    async def send(self, data: bytes, timeout: Optional[float] = None) -> None:
        """Send all of `data`; waits while more than a buffer's worth is under way. Raises `OSError`."""
        wire = self._wire
        if wire.transport is None or wire.transport.is_closing():
            raise _lost(wire.failure)
        wire.transport.write(data)
        if wire.full:
            wire.writer = wire.loop.create_future()
            try:
                if not await _wait(wire.writer, timeout):
                    raise TimeoutError("the other side takes no more")
            finally:
                wire.writer = None
            if wire.failure is not None or wire.transport.is_closing():
                raise _lost(wire.failure)

    async def receive(self, max_bytes: int = 65536, timeout: Optional[float] = None) -> bytes:
        """Return what has come, at most `max_bytes`, waiting for the first; `b""` at the end. Raises `OSError`."""
        wire = self._wire
        received = wire.received
        if not received and not wire.ended:
            wire.reader = wire.loop.create_future()
            try:
                if not await _wait(wire.reader, timeout):
                    raise TimeoutError("nothing came in time")
            finally:
                wire.reader = None
        if received:
            data = bytes(received[:max_bytes])
            del received[:max_bytes]
            if wire.held and not received:
                wire.resume()
            return data
        if wire.failure is not None:
            raise _lost(wire.failure)
        return b""

    @property
    def stale(self) -> bool:
        """Whether an idle connection is no longer good: it ended, or something came that nobody asked for."""
        wire = self._wire
        return wire.ended or bool(wire.received) or wire.transport is None or wire.transport.is_closing()

    async def close(self) -> None:
        """Close in order; cut off where that takes longer than a second."""
        wire = self._wire
        if wire.transport is None:
            return
        wire.transport.close()
        if not wire.gone.done():
            gone: asyncio.Future[bool] = wire.loop.create_future()
            wire.gone.add_done_callback(lambda _: _settle(gone))
            if not await _wait(gone, GOODBYE):
                wire.transport.abort()

    def abort(self) -> None:
        """Cut the connection. Whoever waits on it gets an `OSError` or the end."""
        if self._wire.transport is not None and not self._wire.loop.is_closed():
            self._wire.transport.abort()

    def detach(self) -> None:
        """Forget the connection without a word on it: it belongs to the parent of this process."""
        _inherited.append(self._wire)


_inherited: Deque[object] = deque()
"""Connections of the parent process. They stay referenced, so that no destructor says anything on them."""


def _settle(future: Optional[asyncio.Future[bool]]) -> None:
    if future is not None and not future.done():
        future.set_result(True)


def _expire(future: asyncio.Future[bool]) -> None:
    if not future.done():
        future.set_result(False)


async def _wait(future: asyncio.Future[bool], timeout: Optional[float]) -> bool:
    """Wait for a future nobody else waits for; False where it took longer than `timeout`.

    Running out of time is a result and not a cancellation, so that it can't be taken for one, nor hide one.
    """
    if timeout is None:
        return await future
    alarm = asyncio.get_running_loop().call_later(max(timeout, 0), _expire, future)
    try:
        return await future
    finally:
        alarm.cancel()


def _lost(failure: Optional[BaseException]) -> OSError:
    return failure if isinstance(failure, OSError) else ConnectionResetError("the connection is closed")


class AsyncSemaphore:
    """A number of places, given out first come, first served."""

    __slots__ = ("_free", "_waiters")

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiters: Deque[asyncio.Future[bool]] = deque()

    async def acquire(self, timeout: Optional[float] = None) -> bool:
        """Take a place; False where none was to be had within `timeout` seconds."""
        if self._free and not self._waiters:
            self._free -= 1
            return True
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters.append(turn)
        try:
            return await _wait(turn, timeout)
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.result():
                self.release()  # it was handed to us while we were being cancelled
            raise
        finally:
            if turn in self._waiters:
                self._waiters.remove(turn)

    def release(self) -> None:
        """Hand a place to who waits longest."""
        while self._waiters:
            turn = self._waiters.popleft()
            if not turn.done():
                turn.set_result(True)
                return
        self._free += 1


class AsyncLock(AsyncSemaphore):
    """Mutual exclusion, first come, first served."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(1)

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.release()


class AsyncEvent:
    """A flag that can be waited for."""

    __slots__ = ("_set", "_waiters")

    def __init__(self) -> None:
        self._set = False
        self._waiters: Set[asyncio.Future[bool]] = set()

    def is_set(self) -> bool:
        """Return whether the flag is set."""
        return self._set

    def set(self) -> None:
        """Set the flag and wake who waits for it."""
        self._set = True
        for waiter in self._waiters:
            _settle(waiter)

    def clear(self) -> None:
        """Take the flag back."""
        self._set = False

    async def wait(self, timeout: Optional[float] = None) -> bool:
        """Wait until the flag is set; False where it wasn't within `timeout` seconds."""
        if self._set:
            return True
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            return await _wait(waiter, timeout)
        finally:
            self._waiters.discard(waiter)


class AsyncPromise(Generic[T]):
    """One value, or error, that one caller waits for. Only the first counts; later ones learn that they came late."""

    __slots__ = ("_error", "_settled", "_value", "_waiter")

    def __init__(self) -> None:
        self._settled = False
        self._value: Any = None
        self._error: Optional[BaseException] = None
        self._waiter: Optional[asyncio.Future[bool]] = None

    @property
    def settled(self) -> bool:
        """Whether the value, or the error, is there."""
        return self._settled

    def resolve(self, value: T) -> bool:
        """Give the value; False where it came too late."""
        if self._settled:
            return False
        self._settled = True
        self._value = value
        _settle(self._waiter)
        return True

    def fail(self, error: BaseException) -> bool:
        """Give an error, which `wait` raises; False where it came too late."""
        if self._settled:
            return False
        self._settled = True
        self._error = error
        _settle(self._waiter)
        return True

    async def wait(self, timeout: Optional[float] = None) -> T:
        """Wait for the value; raises the error, or a builtin `TimeoutError`."""
        if not self._settled:
            self._waiter = asyncio.get_running_loop().create_future()
            if not await _wait(self._waiter, timeout) and not self._settled:
                raise TimeoutError("nothing came in time")
        if self._error is not None:
            raise self._error
        value: T = self._value
        return value


class AsyncMailbox(Generic[T]):
    """A bounded queue. Whoever puts never waits; one caller takes."""

    __slots__ = ("_closed", "_items", "_size", "_waiter")

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: Deque[T] = deque()
        self._closed = False
        self._waiter: Optional[asyncio.Future[bool]] = None

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> bool:
        """Put an item; False where the mailbox is full or closed."""
        if self._closed or len(self._items) >= self._size:
            return False
        self._items.append(item)
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(True)
        return True

    def poll(self) -> Optional[T]:
        """Take the oldest item, if there is one."""
        return self._items.popleft() if self._items else None

    async def get(self, timeout: Optional[float] = None) -> T:
        """Take the oldest item; raises `Closed` where none is left and none will come, and `TimeoutError`."""
        while not self._items:
            if self._closed:
                raise Closed
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                if not await _wait(self._waiter, timeout):
                    raise TimeoutError("nothing came in time")
            finally:
                self._waiter = None
        return self._items.popleft()

    def close(self, *, discard: bool = False) -> None:
        """Take no more; what is in there can still be taken, unless `discard`."""
        self._closed = True
        if discard:
            self._items.clear()
        _settle(self._waiter)


class AsyncWorker:
    """Something that runs beside its caller."""

    __slots__ = ("_task",)

    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task

    @property
    def is_current(self) -> bool:
        """Whether it is this worker that asks."""
        return asyncio.current_task() is self._task

    async def join(self, timeout: Optional[float] = None) -> bool:
        """Wait until it has ended; False where it hasn't within `timeout` seconds."""
        if not self._task.done():
            ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            self._task.add_done_callback(lambda _: _settle(ended))
            return await _wait(ended, timeout)
        return True

    def cancel(self) -> None:
        """Stop it where it waits. (A thread can't be stopped: the sync twin leaves it be.)"""
        self._task.cancel()


_running: Set[asyncio.Task[None]] = set()
"""Tasks that were spawned; the event loop itself holds them weakly."""


def async_spawn(function: Callable[..., Awaitable[None]], *args: Any, name: str) -> AsyncWorker:
    """Run `function` beside the caller; what it raises is logged."""

    async def run() -> None:
        try:
            await function(*args)
        except Exception:
            log.exception("%s ended with an error", name)

    task = asyncio.get_running_loop().create_task(run())
    if hasattr(task, "set_name"):
        task.set_name(name)
    _running.add(task)
    task.add_done_callback(_running.discard)
    return AsyncWorker(task)


async def async_sleep(seconds: float) -> None:
    """Let time pass."""
    await asyncio.sleep(seconds)


def async_home() -> object:
    """Return what connections belong to: the running event loop. In another one they are of no use."""
    return asyncio.get_running_loop()
