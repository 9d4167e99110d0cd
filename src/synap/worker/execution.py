"""Run handlers in the event loop, in threads or in processes, each with its timeout."""

from __future__ import annotations

import asyncio
import inspect
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Container, Optional, Set, Tuple

from synap.errors import SynapError
from synap.wire.typed import fit
from synap.worker.handlers import Handler, Overrun, Reject
from synap.worker.message import Message
from synap.worker.pools import ProcessPool, in_thread
from synap.worker.results import result_key


class Execution:
    """The thread pool and the process pool of a worker, created on first use.

    `scheduled`: queues of periodic jobs, whose handlers take no value. `freed` is called when a thread returns after
    its handler had timed out.
    """

    def __init__(self, threads: int, processes: int, scheduled: Container[str], freed: Callable[[], None]) -> None:
        self._thread_count = threads
        self._process_count = processes
        self._scheduled = scheduled
        self._freed = freed
        self._threads: Optional[ThreadPoolExecutor] = None
        self._processes: Optional[ProcessPool] = None
        self.inline = False
        """Whether plain functions run in the event loop's thread, without a timeout."""
        self.overrunning: Set[asyncio.Future[Any]] = set()
        """Threads whose handler timed out. They can't be stopped, so they still count towards `concurrency`."""

    async def call(self, handler: Handler, message: Message) -> None:
        """Run a handler in its pool; raises what it raises, `Reject` for a value of the wrong type, and `Overrun`."""
        value = message.message
        if handler.type is not None:
            try:
                value = fit(value, handler.type, {"queue": message.queue, "message_id": message.message_id})
            except SynapError as error:
                raise Reject(error.message) from error
        arguments: Tuple[Any, ...] = (value, message) if handler.takes_message else (value,)
        if message.queue in self._scheduled:
            arguments = (message,) if handler.takes_message else ()
        if handler.pool == "loop" or self.inline:
            result = handler.function(*arguments)
        elif handler.pool == "thread":
            result = await self._in_thread(handler, arguments)
        else:
            if self._processes is None:
                self._processes = ProcessPool(self._process_count)
            result = await self._processes.run(handler.function, arguments, handler.timeout)
        if inspect.isawaitable(result):  # of a coroutine function, or of a plain one around it, such as a decorator's
            result = await (result if handler.timeout is None else _within(result, handler.timeout))
        if handler.result_ttl is not None:
            message.pipeline().kv.set(result_key(message.queue, message.message_id), result, ttl=handler.result_ttl)

    async def _in_thread(self, handler: Handler, arguments: Any) -> Any:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._thread_count, thread_name_prefix="synap-worker")
        running = in_thread(self._threads, handler.function, *arguments)
        try:
            done, _ = await asyncio.wait({running}, timeout=handler.timeout)
        except asyncio.CancelledError:
            self._linger(running)
            raise
        if not done:
            self._linger(running)
            raise Overrun(f"{handler.name} took longer than {handler.timeout:g} seconds; its thread goes on")
        return running.result()

    def _linger(self, running: asyncio.Future[Any]) -> None:
        self.overrunning.add(running)
        running.add_done_callback(self._lingered)

    def _lingered(self, running: asyncio.Future[Any]) -> None:
        self.overrunning.discard(running)
        if not running.cancelled():
            running.exception()  # retrieve it: an unretrieved one would be logged
        self._freed()

    def close(self) -> None:
        """Shut the thread pool down without waiting, and kill the processes."""
        if self._threads is not None:
            self._threads.shutdown(wait=False)
        if self._processes is not None:
            self._processes.close()


async def _within(call: Any, timeout: float) -> Any:
    """Await `call`, cancelling it after `timeout` seconds; raises `Overrun` then."""
    task = asyncio.current_task()
    assert task is not None
    over = False

    def overrun() -> None:
        nonlocal over
        over = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(timeout, overrun)
    try:
        return await call
    except asyncio.CancelledError:
        if not over:
            raise
        if hasattr(task, "uncancel"):  # Python 3.11 and newer count
            task.uncancel()
        raise Overrun(f"took longer than {timeout:g} seconds, so it was cancelled") from None
    finally:
        timer.cancel()
