"""Event handlers of a client: `client.on('connected')` and the like."""

from __future__ import annotations

import asyncio
import difflib
import inspect
import logging
import threading
from typing import Any, Awaitable, Callable, Coroutine, Dict, List, Optional, Sequence, Set

from synap.errors import SynapError
from synap.lanes.io.threads import apart, spawn

EVENTS = ("connected", "disconnected", "error")
"""Handlers of 'connected' take nothing, of 'disconnected' the reason (a text), of 'error' the exception."""

ENDING = 1.0
"""Seconds within which an event loop has ended that is ending."""

log = logging.getLogger("synap")


def unknown_event(event: object, known: Sequence[str]) -> SynapError:
    """Build the error for an event that doesn't exist, with the nearest of those that do."""
    near = difflib.get_close_matches(str(event), known, 1)
    hint = f", did you mean {near[0]!r}?" if near else f"; there are {', '.join(map(repr, known))}"
    return SynapError("INVALID_REQUEST", f"there is no event {event!r}{hint}", {"event": event})


class _Handlers:
    """Handlers by event."""

    def __init__(self) -> None:
        self._functions: Dict[str, List[Callable[..., Any]]] = {event: [] for event in EVENTS}

    def add(self, event: str, function: Callable[..., Any]) -> None:
        """Add a handler of `event`, one of `EVENTS`; raises `INVALID_REQUEST` for one that can't be called."""
        if not callable(function):
            raise SynapError("INVALID_REQUEST", f"a handler must be callable, got {function!r}", {"event": event})
        self._functions[event].append(function)

    def check(self, event: str) -> None:
        """Raise `INVALID_REQUEST` for an event that doesn't exist."""
        if event not in EVENTS:
            raise unknown_event(event, EVENTS)

    def emit(self, event: str, *about: object) -> None:
        """Call the handlers of an event. Their exceptions are logged."""
        for function in list(self._functions[event]):
            try:
                self._settle(event, function(*about))
            except self._raised():
                log.exception("a handler of %r raised", event)

    def _raised(self) -> Any:
        """Return what a handler may raise without disturbing whoever the event happens to."""
        return Exception, asyncio.CancelledError

    def report(self, what: str, error: BaseException) -> None:
        """Log an error that reaches no caller, and call the handlers of 'error'."""
        log.error("%s: %s", what, error, exc_info=error)
        self.emit("error", error)

    def report_aside(self, what: str, error: BaseException, then: Optional[Callable[[], None]] = None) -> None:
        """Do what `report` does, and `then`, without keeping the caller, who reads a connection, from reading on."""
        raise NotImplementedError

    def _settle(self, event: str, outcome: Any) -> None:
        """Run what a handler returned, where it is a coroutine function."""
        raise NotImplementedError


class AsyncHandlers(_Handlers):
    """Handlers of the async client. Coroutine functions run as background tasks."""

    def __init__(self) -> None:
        super().__init__()
        self._tasks: Set[asyncio.Task[None]] = set()

    def report_aside(self, what: str, error: BaseException, then: Optional[Callable[[], None]] = None) -> None:
        self.report(what, error)  # a handler that waits is a task
        if then is not None:
            then()

    def report_orphan(self, what: str, error: BaseException) -> None:
        """Report what was ended with its task; the log has it where the event loop goes on, not as a program ends."""
        asyncio.get_running_loop().call_later(ENDING, log.error, "%s: %s", what, error)
        self.emit("error", error)

    def _settle(self, event: str, outcome: Any) -> None:
        if inspect.isawaitable(outcome):
            task = asyncio.get_running_loop().create_task(self._finish(event, outcome))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _finish(self, event: str, outcome: Awaitable[Any]) -> None:
        try:
            await outcome
        except Exception:
            log.exception("a handler of %r raised", event)


class Handlers(_Handlers):
    """Handlers of the sync client. They run on the thread where the event happens, coroutine functions to their end.

    Errors that a thread finds which reads a connection are reported on another one: a handler may make requests whose
    answers the first has to read.
    """

    def _raised(self) -> Any:
        main = threading.current_thread() is threading.main_thread()
        return super()._raised() if main else BaseException  # another thread that reads would end, silently

    def report_aside(self, what: str, error: BaseException, then: Optional[Callable[[], None]] = None) -> None:
        def run() -> None:
            try:
                self.report(what, error)
            finally:
                if then is not None:
                    then()

        spawn(run, name="synap on error", or_here=True)

    def _settle(self, event: str, outcome: Any) -> None:
        finish(outcome)


async def async_finish(outcome: Any) -> None:
    """Await what a callback returned, where it is awaitable."""
    if outcome is not None and inspect.isawaitable(outcome):
        await outcome


def finish(outcome: Any) -> None:
    """Run what a callback returned, where it is a coroutine, in a new event loop.

    Where this thread has a running event loop already (a notebook's), it runs on another thread.
    """
    if outcome is None or not inspect.iscoroutine(outcome):
        return
    coroutine: Coroutine[Any, Any, Any] = outcome
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(coroutine)
        return
    apart(asyncio.run, coroutine, name="synap-callback").result()
