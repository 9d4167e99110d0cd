"""The events of a worker, and the hooks that are called for them: for metrics, tracing, logs."""

from __future__ import annotations

import asyncio
import inspect
import logging
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Set

from synap.client.handlers import unknown_event
from synap.errors import SynapError
from synap.worker.message import Message

EVENTS = ("started", "begin", "done", "retried", "rejected", "lost", "stopping", "stopped")
"""`Worker.on` says when each comes."""

log = logging.getLogger("synap.worker")


@dataclass
class WorkerEvent:
    """An event, by `name`, of a handler: its name in `handler`, its `queue` and the `message`.

    `seconds`: how long the handler took. `delay`: seconds until the message is retried. `error`: what was raised.
    """

    name: str
    handler: str = ""
    queue: str = ""
    message: Optional[Message] = None
    seconds: float = 0.0
    delay: float = 0.0
    error: Optional[BaseException] = None


Hook = Callable[[WorkerEvent], Any]


class Events:
    """Hooks by event name."""

    def __init__(self) -> None:
        self._hooks: Dict[str, List[Hook]] = {name: [] for name in EVENTS}
        self._tasks: Set[asyncio.Future[Any]] = set()

    def add(self, name: str, hook: Hook) -> None:
        """Call `hook` for an event from now on; raises `INVALID_REQUEST` for an event that doesn't exist."""
        if name not in self._hooks:
            raise unknown_event(name, EVENTS)
        if not callable(hook):
            raise SynapError("INVALID_REQUEST", f"a hook must be callable, got {hook!r}")
        self._hooks[name].append(hook)

    def wanted(self, name: str) -> bool:
        """Return whether an event has hooks."""
        return bool(self._hooks[name])

    def emit(self, event: WorkerEvent) -> None:
        """Call the hooks of an event. Exceptions are logged; coroutines run as tasks."""
        for hook in self._hooks[event.name]:
            try:
                outcome = hook(event)
            except Exception:
                log.exception("a hook of %r raised", event.name)
                continue
            if inspect.isawaitable(outcome):
                task = asyncio.ensure_future(outcome)
                self._tasks.add(task)
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a hook raised", exc_info=task.exception())

    async def close(self) -> None:
        """Wait for the tasks of hooks, a second at most."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=1)
