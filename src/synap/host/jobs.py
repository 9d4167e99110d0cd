"""Long requests, executed in slices, with everybody else's requests in between.

A job is a generator that yields where it may be interrupted and returns its answer. A slice ends after `SLICE` seconds.
A job that nobody may see half done is *exclusive* while it runs: other requests wait until it is done, in order, and
only what asks no engine (a ping, the service's health) is answered meanwhile.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Callable, Deque, Optional, Tuple

from synap.commands import Command
from synap.engine.callers import Number, Steps
from synap.errors import SynapError

if TYPE_CHECKING:
    from synap.host.base import Session

__all__ = ["SLICE", "TURN", "Job", "Jobs"]

SLICE = 0.002
"""Seconds that a job runs before others have their turn."""
TURN = 0.004
"""Seconds that all jobs run, and requests that had to wait for one, before the event loop looks at its sockets."""
MOST_WAITING = 4 * 1024 * 1024
"""Bytes of requests that wait for an exclusive job from which on connections are not read."""
REQUEST = 200
"""Bytes that a waiting request counts as beside its body."""

Request = Tuple[Any, Number, Command, Any, bool, bool]
"""(session, number, command, body, retried, decoded), as `Host.execute` takes them."""


class Job:
    """A request that is executed in slices."""

    __slots__ = ("command", "number", "session", "steps")

    def __init__(self, session: Session, number: Number, command: Command, steps: Steps) -> None:
        self.session = session
        self.number = number
        self.command = command
        self.steps = steps


class Jobs:
    """The jobs of one host. `soon` has a function called after everybody else's turn; without it jobs run at once."""

    def __init__(self, soon: Optional[Callable[[Callable[[], None]], object]]) -> None:
        self._soon = soon
        self._asked = False
        self.running: Deque[Job] = deque()
        """Jobs in progress, whose turn is next first."""
        self.exclusive = False
        """Whether the first job is not to be seen half done."""
        self.waiting: Deque[Request] = deque()
        """Requests that came while a job was exclusive, or that wait behind one that did."""
        self.bytes_waiting = 0
        self.until = 0.0
        """When the current slice ends (`time.perf_counter`)."""
        self.slices = 0
        """Slices so far, of all jobs."""

    def hold(self, request: Request) -> bool:
        """Have a request wait, where a job is exclusive or others wait for one; returns whether it does."""
        if not (self.exclusive or self.waiting):
            return False
        self._wait(request)
        return True

    def _wait(self, request: Request) -> None:
        self.waiting.append(request)
        body = request[3]
        self.bytes_waiting += REQUEST + (len(body) if isinstance(body, (bytes, memoryview)) else 0)

    def next_waiting(self) -> Request:
        """Take the request that has waited longest."""
        request = self.waiting.popleft()
        body = request[3]
        self.bytes_waiting -= REQUEST + (len(body) if isinstance(body, (bytes, memoryview)) else 0)
        return request

    def forget(self, session: Session, number: Optional[Number] = None) -> None:
        """Drop the requests of a session, or one of them, that wait for a job. A job that began goes on."""
        if not self.waiting:
            return
        kept = [one for one in self.waiting if one[0] is not session or (number is not None and one[1] != number)]
        self.waiting.clear()
        self.bytes_waiting = 0
        for request in kept:
            self._wait(request)

    @property
    def full(self) -> bool:
        """Whether so much waits that connections should not be read."""
        return self.bytes_waiting > MOST_WAITING

    def of(self, session: Session) -> bool:
        """Return whether a request of this session is executed in slices, or waits for one that is."""
        return any(job.session is session for job in self.running) or any(one[0] is session for one in self.waiting)

    def of_request(self, session: str, number: Number) -> Optional[Job]:
        """Find the job of a session's request."""
        for job in self.running:
            if job.number == number and job.session.session == session:
                return job
        return None

    def slice(self, job: Job) -> Tuple[bool, Any]:
        """Run a job for a slice; returns whether it is done, and its answer. Raises what it raises."""
        steps = job.steps
        self.slices += 1
        self.until = time.perf_counter() + SLICE if self._soon is not None else float("inf")
        try:
            while True:
                next(steps)
                if time.perf_counter() >= self.until:
                    return False, None
        except StopIteration as done:
            return True, done.value

    def alone(self, steps: Steps) -> Steps:
        """Run the steps of something that nobody may see half done."""
        self.exclusive = True
        try:
            return (yield from steps)
        finally:
            self.exclusive = False

    def ask(self, work: Callable[[], None]) -> None:
        """Have `work` called soon, once however often this is asked."""
        if not self._asked and self._soon is not None:
            self._asked = True

            def go() -> None:
                self._asked = False
                work()

            self._soon(go)

    def end(self, error: Callable[[], SynapError]) -> None:
        """End the exclusive job with an error: what it has changed was taken back."""
        if self.exclusive:
            job = self.running.popleft()
            job.steps.close()
            self.exclusive = False
            job.session.refuse(job.number, error())
