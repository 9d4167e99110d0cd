"""Where no signal handler interrupts: Python runs them on the main thread, after any step, and they may raise."""

from __future__ import annotations

import sys
import threading
import weakref
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Callable, List, Optional, Tuple


class _Errand:
    """A call that another thread makes."""

    __slots__ = ("_arguments", "_done", "_error", "_function", "_result")

    def __init__(self, function: Callable[..., Any], arguments: Tuple[Any, ...]) -> None:
        self._function = function
        self._arguments = arguments
        self._result: Any = None
        self._error: Optional[BaseException] = None
        self._done = threading.Lock()
        self._done.acquire()

    def do(self) -> None:
        try:
            self._result = self._function(*self._arguments)
        except BaseException as error:
            self._error = error
        self._done.release()

    def outcome(self) -> Any:
        """Wait for the outcome."""
        self._done.acquire()
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
            return self._result
        finally:
            del error  # its traceback refers to this frame


class Uninterrupted:
    """Makes calls of the main thread on a thread of its own, whole and in order, and calls of other threads on those.

    An exception of a signal handler ends the main thread's wait for a call, not the call; what is called next comes
    behind it. The thread begins with the first call, and ends with `end`, or with `owner`.
    """

    def __init__(self, owner: object) -> None:
        self._errands: SimpleQueue[Optional[_Errand]] = SimpleQueue()
        self._threads: List[threading.Thread] = []
        """One, or several where an exception came as one was started."""
        self._over = False
        weakref.finalize(owner, self._tell).atexit = False

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if threading.current_thread() is not threading.main_thread() or self._over or not self._runs():
            return function(*arguments)
        errand = _Errand(function, arguments)
        self._errands.put(errand)
        if self._over:  # by another thread, just now
            self._do_rest()
        return errand.outcome()

    def _runs(self) -> bool:
        if sys.is_finalizing():  # other threads stand still
            return False
        if not (self._threads and self._threads[-1].is_alive()):
            thread = threading.Thread(target=self._do_all, name="synap-engine", daemon=True)
            self._threads.append(thread)
            try:
                thread.start()
            except RuntimeError:  # there are as many as there may be
                return False
        return True

    def _do_all(self) -> None:
        while True:
            errand = self._errands.get()
            if errand is None:
                break
            errand.do()
            del errand  # and what it refers to, while this waits for the next one
        self._do_rest()

    def _do_rest(self) -> None:
        with suppress(Empty):
            while True:
                errand = self._errands.get_nowait()
                if errand is not None:
                    errand.do()

    def _tell(self) -> None:
        for _ in self._threads:
            self._errands.put(None)

    def end(self) -> None:
        """End the thread. From now on every call is made on its caller's thread."""
        self._over = True
        self._tell()
        for thread in self._threads:
            if thread is not threading.current_thread() and thread.is_alive():
                thread.join()
