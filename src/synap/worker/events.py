"""What a worker tells: for metrics, tracing, logs."""

from __future__ import annotations

import asyncio
import difflib
import inspect
import logging
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Set

from synap.errors import SynapError
from synap.worker.message import Message

__all__ = ["EVENTS", "Events", "WorkerEvent"]

EVENTS = ("started", "begin", "done", "retried", "rejected", "lost", "stopping", "stopped")
"""'begin' before a handler runs, in the same task, so that context variables set there reach it; then one of 'done'
(acknowledged), 'retried' (given back), 'rejected' (a dead letter) and 'lost' (another has it)."""

log = logging.getLogger("synap.worker")


@dataclass
class WorkerEvent:
    """What happened: `seconds` the handler took, `delay` until another try, `error` why."""

    name: str
    handler: str = ""
    queue: str = ""
    message: Optional[Message] = None
    seconds: float = 0.0
    delay: float = 0.0
    error: Optional[BaseException] = None


Hook = Callable[[WorkerEvent], Any]


class Events:
    """Functions by the event they want to hear of."""

    def __init__(self) -> None:
        self._hooks: Dict[str, List[Hook]] = {name: [] for name in EVENTS}
        self._tasks: Set[asyncio.Future[Any]] = set()

    def add(self, name: str, hook: Hook) -> None:
        """Let `hook` hear of an event; raises `INVALID_REQUEST` for one that doesn't exist."""
        if name not in self._hooks:
            near = difflib.get_close_matches(str(name), EVENTS, 1)
            hint = f", did you mean {near[0]!r}?" if near else f"; there are {', '.join(map(repr, EVENTS))}"
            raise SynapError("INVALID_REQUEST", f"there is no event {name!r}{hint}")
        if not callable(hook):
            raise SynapError("INVALID_REQUEST", f"a hook must be callable, got {hook!r}")
        self._hooks[name].append(hook)

    def wanted(self, name: str) -> bool:
        """Say whether anybody wants to hear of it."""
        return bool(self._hooks[name])

    def tell(self, event: WorkerEvent) -> None:
        """Call the hooks of an event. What they raise is logged and goes no further; coroutines run beside it all."""
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
        """Wait for what hooks still do, a second at most."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=1)
