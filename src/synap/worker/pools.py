"""Run plain functions in threads, or in processes that can be killed."""

from __future__ import annotations

import asyncio
import contextvars
import multiprocessing
import os
import pickle
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Callable, List, Optional, Sequence, Set, Tuple

from synap.commands import BatchItem
from synap.lanes.native.pending import seen
from synap.worker.handlers import Overrun
from synap.worker.message import Message

LOADING = 60.0
"""Seconds that a process may take at least to start and to import a function that has a `timeout`, which counts from
then on."""
LOOK = 0.2
"""Seconds without an answer after which a process is looked at: what it has forked keeps its pipe open when it ends."""


class ProcessDied(RuntimeError):
    """Raised when a process of the pool ended while it ran a handler: killed, out of memory, or crashed."""


def in_thread(pool: ThreadPoolExecutor, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
    """Run a function on a thread of the pool, with the context variables of this task."""
    context = contextvars.copy_context()

    def call() -> Any:
        try:
            return context.run(function, *args)
        except StopIteration as error:  # which a future can't hold
            raise RuntimeError(f"{function!r} raised StopIteration") from error

    return asyncio.get_running_loop().run_in_executor(pool, call)


class _Child:
    """One process, and the pipe to it."""

    def __init__(self, context: multiprocessing.context.BaseContext) -> None:
        ours, theirs = context.Pipe()
        self.connection: Connection[Any, Any] = ours
        self.process: BaseProcess = context.Process(  # type: ignore[attr-defined]  # every concrete context has it
            target=_serve, args=(theirs,), name="synap-worker-process", daemon=True
        )
        self.process.start()
        theirs.close()
        self.loaded: Set[Callable[..., Any]] = set()
        """Functions that it has imported."""

    def run(self, job: bytes) -> Tuple[bool, Any]:
        """Send a job and wait for its outcome; blocks. Raises `ProcessDied`."""
        try:
            self.connection.send_bytes(job)
            while not self.connection.poll(LOOK):
                if not self.process.is_alive() and not self.connection.poll():
                    raise EOFError
            answer = self.connection.recv_bytes()
        except (EOFError, OSError):
            self.process.join(5)
            code = self.process.exitcode
            raise ProcessDied(f"the process that ran the handler ended with exit code {code}") from None
        outcome: Tuple[bool, Any] = pickle.loads(answer)
        return outcome

    def close(self) -> None:
        """Kill the process and free what belongs to it."""
        self.process.kill()
        self.process.join(5)
        self.connection.close()


class ProcessPool:
    """Processes for CPU-bound functions. One that times out is killed and replaced."""

    def __init__(self, count: int) -> None:
        # `fork` would copy the event loop and the connections of this process.
        self._context = multiprocessing.get_context("spawn")
        self._idle: List[_Child] = []
        self._all: List[_Child] = []
        self._slots = asyncio.Semaphore(count)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="synap-worker-pipe")

    async def run(self, function: Callable[..., Any], arguments: Sequence[Any], timeout: Optional[float]) -> Any:
        """Run a function in a process and return its result; raises what it raised, `ProcessDied` and `Overrun`.

        After `timeout` seconds (`Overrun`), and when this task is cancelled, the process is killed. What the function
        put into `message.pipeline()` comes back with its result.
        """
        job = pickle.dumps((function, arguments))
        async with self._slots:
            child = self._alive()
            while child is None:
                await asyncio.get_running_loop().run_in_executor(self._threads, self._start)
                child = self._idle.pop() if self._idle else None  # not looked at: one that always dies has to be told
            if function not in child.loaded:
                longest = None if timeout is None else max(LOADING, timeout)
                await self._outcome(child, pickle.dumps((_load, (function,))), longest)  # an error comes again
                child.loaded.add(function)
            succeeded, outcome = await self._outcome(child, job, timeout)
            self._idle.append(child)
        if not succeeded:
            raise outcome
        result, items = outcome
        for message in _messages(arguments):
            message.add(items)
        return result

    async def _outcome(self, child: _Child, job: bytes, timeout: Optional[float]) -> Tuple[bool, Any]:
        """Have a job done by a process, which is killed where that fails, or is cancelled."""
        waiting = asyncio.get_running_loop().run_in_executor(self._threads, child.run, job)
        waiting.add_done_callback(seen)
        try:
            done, _ = await asyncio.wait({waiting}, timeout=timeout)
            if not done:
                raise Overrun(f"took longer than {timeout:g} seconds, so it was killed")
            return waiting.result()
        except BaseException as error:
            child.process.kill()
            if not isinstance(error, ProcessDied):
                await asyncio.wait({waiting})
            self._all.remove(child)
            child.close()
            raise

    def _alive(self) -> Optional[_Child]:
        """Take an idle process; None where there is none. One may have been killed: the largest are, first of all."""
        while self._idle:
            child = self._idle.pop()
            if child.process.is_alive():
                return child
            self._all.remove(child)
            child.close()
        return None

    def _start(self) -> None:
        child = _Child(self._context)
        self._all.append(child)
        self._idle.append(child)  # also where the task that waited for it is cancelled meanwhile

    def close(self) -> None:
        """End all processes."""
        for child in self._all:
            child.close()
        self._all.clear()
        self._threads.shutdown(wait=False)


def _messages(arguments: Sequence[Any]) -> List[Message]:
    return [argument for argument in arguments if isinstance(argument, Message)]


def _load(function: Callable[..., Any]) -> None:
    """Do nothing: unpickling the argument has imported it."""


def _end_with_parent() -> None:
    """End this process once its parent has, in the middle of a handler too: nobody else would, nor take its result."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _serve(connection: Connection[Any, Any]) -> None:
    """Run jobs until the parent ends. Signals of a terminal are left to it."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        try:
            job = connection.recv_bytes()
        except (EOFError, OSError):
            os._exit(0)
        answer: Tuple[bool, Any]
        try:
            function, arguments = pickle.loads(job)
            result = function(*arguments)
            items: List[BatchItem] = [item for message in _messages(arguments) for item in message.recorded()]
            answer = True, (result, items)
        except BaseException as error:
            answer = False, error
        try:
            data = pickle.dumps(answer)
            if not answer[0]:
                pickle.loads(data)  # exceptions whose __init__ takes more than a text often can't be made again
            connection.send_bytes(data)
        except Exception as error:  # of what can't be pickled, whatever its own code raises
            succeeded, outcome = answer
            text = f"the result can't be sent back: {error}" if succeeded else f"{type(outcome).__name__}: {outcome}"
            connection.send_bytes(pickle.dumps((False, RuntimeError(text))))
