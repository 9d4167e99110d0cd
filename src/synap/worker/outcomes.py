"""How messages ended: counted, logged, and told to hooks."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, List, Mapping, Optional

from synap.errors import MessageNotFoundError, QueueNotFoundError, SynapError
from synap.worker.events import Events, WorkerEvent
from synap.worker.handlers import Handler, Retry
from synap.worker.message import Message
from synap.worker.presence import Presence

log = logging.getLogger("synap.worker")


@dataclass
class Drained:
    """The outcome of `run_once`: how many messages were `done`, `retried`, `rejected` and `lost`.

    `errors`: what their handlers raised.
    """

    done: int = 0
    retried: int = 0
    rejected: int = 0
    lost: int = 0
    errors: List[BaseException] = field(default_factory=list)


class Outcomes:
    """Makes the events of messages, and reports them once the service has answered how each is settled."""

    def __init__(self, handlers: Mapping[str, Handler], events: Events) -> None:
        self._handlers = handlers
        self._events = events
        self.drained: Optional[Drained] = None
        """The counts of `run_once`, where that runs."""
        self.presence: Optional[Presence] = None
        """The reports of a worker that runs."""

    def event(
        self,
        name: str,
        message: Message,
        seconds: float = 0.0,
        delay: float = 0.0,
        error: Optional[BaseException] = None,
    ) -> WorkerEvent:
        """Build an event of a message; `seconds`, `delay` and `error` as in `WorkerEvent`."""
        return WorkerEvent(name, self._handlers[message.queue].name, message.queue, message, seconds, delay, error)

    def raised(self, error: BaseException) -> None:
        """Keep what a handler raised, for the outcome of `run_once`."""
        if self.drained is not None:
            self.drained.errors.append(error)

    def settled(self, event: WorkerEvent, message: Message, failure: Optional[SynapError], answer: Any) -> None:
        """Report a message that is settled, or that this failed."""
        if failure is None:
            self._report(event)
        elif isinstance(failure, (MessageNotFoundError, QueueNotFoundError)):
            message.lost.set()
            self.lease_lost(message)
        else:  # it is redelivered when its lease is over
            log.warning("message %s of %s could not be settled: %s", message.message_id, message.queue, failure)

    def tried(self, event: WorkerEvent, message: Message, failure: Optional[SynapError], answer: Any) -> None:
        """Report a message that was given back: it is a dead letter after its last try."""
        if failure is not None:
            became = "could not be given back"
        elif answer["action"] == "dead_lettered":
            event.name, event.delay = "rejected", 0.0
            became = "it is a dead letter now"
        else:
            became = f"given back with a delay of {event.delay:g} seconds"
        self._log_try(event, message, became)
        self.settled(event, message, failure, answer)

    def lease_lost(self, message: Message) -> None:
        """Report a message whose lease has ended before it was settled."""
        event = self.event("lost", message)
        log.warning(
            "%s lost the lease of message %s of %s before it was done", event.handler, message.message_id, event.queue
        )
        self._report(event)

    def _log_try(self, event: WorkerEvent, message: Message, became: str) -> None:
        """Log a try that failed, and what `became` of its message; one that was put off only where it was the last."""
        retries, number = self._handlers[message.queue].retries, message.retry_count + 1
        tries = f"{number}" if retries is None else f"{number} of {retries + 1}"
        if event.error is not None and not isinstance(event.error, Retry):
            text = "%s failed on message %s of %s, try %s; %s"
            log.error(text, event.handler, message.message_id, event.queue, tries, became, exc_info=event.error)
        elif event.name == "rejected":
            text = "%s gave message %s of %s back, try %s; %s"
            log.warning(text, event.handler, message.message_id, event.queue, tries, became)

    def _report(self, event: WorkerEvent) -> None:
        """Count how a message ended, and call the hooks of the event."""
        if self.drained is not None:
            setattr(self.drained, event.name, getattr(self.drained, event.name) + 1)
        if self.presence is not None:
            self.presence.count(event.name)
        if self._events.wanted(event.name):
            self._events.emit(event)
