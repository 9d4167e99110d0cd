"""Cooperative scheduling of long requests: they are executed in slices, with other requests in between.

A job is a generator that yields where it may be interrupted and returns its answer. A slice ends after `SLICE` seconds.
It ends after `SHORT` seconds while other callers send small requests, because each of those waits for a slice to end.

A job is *exclusive* while its intermediate states must not be visible. Other requests then wait, in order, until it is
done; only what doesn't need the engine (a ping, the service's health) is answered meanwhile.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Callable, Deque, Dict, List, Optional, Tuple

from synap.commands import Command
from synap.engine.callers import Number, Steps
from synap.errors import SynapError

if TYPE_CHECKING:
    from synap.host.base import Session

SLICE = 0.002
"""Seconds that a job runs before it is interrupted."""
SHORT = 0.0001
"""Seconds of a slice while small requests of others come."""
COMPANY = 25
"""Slices that are short after such a request."""
TURN = 0.004
"""Seconds that jobs, and requests that had to wait for one, run together before the event loop polls its sockets."""
MOST_WAITING = 4 * 1024 * 1024
"""Bytes of waiting requests from which on connections are not read (back-pressure)."""
REQUEST = 200
"""Bytes that a waiting request counts as beside its body."""

Request = Tuple[Any, Number, Command, Any, bool, bool]
"""(session, number, command, body, retried, decoded), as `Host.execute` takes them."""


def crowded() -> SynapError:
    """Build the error for a large request while too many bytes of such are being worked on."""
    text = "the large requests of all callers are too large together; nothing was done"
    return SynapError("SERVICE_UNAVAILABLE", text, {"retry_after": 1.0})


class Job:
    """A request that is executed in slices. `size`: the bytes it holds, where the host decodes it."""

    __slots__ = ("command", "earlier", "number", "session", "size", "steps")

    def __init__(self, session: Session, number: Number, command: Command, steps: Steps, size: int) -> None:
        self.session = session
        self.earlier: List[Session] = []
        """Who sent the request before, and is answered, too: the first one, and all who still wait for it."""
        self.number = number
        self.command = command
        self.steps = steps
        self.size = size

    def answer(self, answer: Any) -> None:
        """Answer all who wait for it."""
        for session in (*self.earlier, self.session):
            session.answer(self.number, answer)

    def refuse(self, error: SynapError) -> None:
        """Refuse it to all who wait for it."""
        for session in self.earlier:
            session.refuse(self.number, error.copy())
        self.session.refuse(self.number, error)


class Jobs:
    """The jobs of one host. `soon(function)` schedules a function after pending events; without it jobs run at once."""

    def __init__(self, soon: Optional[Callable[[Callable[[], None]], object]], *, may_hurry: bool = True) -> None:
        self._soon = soon
        self.scheduled = soon is not None
        """Whether they are executed in slices. Else each is executed at once, one that another begins within that."""
        self._asked = False
        self._may_hurry = may_hurry
        """Whether slices may be short. Where answers wait for the disk each slice is a commit."""
        self._company = 0
        """Slices that will be short."""
        self.running: Deque[Job] = deque()
        """Jobs in progress; the first one runs next."""
        self.exclusive = False
        """Whether the first job is exclusive."""
        self.waiting: Deque[Request] = deque()
        """Requests that came while a job was exclusive, or behind such a request."""
        self.bytes_waiting = 0
        self._whose: Dict[Session, int] = {}
        """How many of both each session has."""
        self.until = 0.0
        """When the current slice ends (`time.perf_counter`)."""
        self.slices = 0
        """Slices executed so far, of all jobs."""

    def hold_back(self, request: Request) -> bool:
        """Enqueue a request where a job is exclusive or other requests wait; returns whether it was enqueued.

        To be called for each request that comes while there are jobs.
        """
        if not request[2].hosted:
            self._company = COMPANY
        if not (self.exclusive or self.waiting):
            return False
        self._wait(request)
        return True

    def _wait(self, request: Request) -> None:
        self.waiting.append(request)
        self._count(request[0], 1)
        body = request[3]
        self.bytes_waiting += REQUEST + (len(body) if isinstance(body, bytes) else 0)

    def next_waiting(self) -> Request:
        """Dequeue the oldest waiting request."""
        request = self.waiting.popleft()
        self._count(request[0], -1)
        body = request[3]
        self.bytes_waiting -= REQUEST + (len(body) if isinstance(body, bytes) else 0)
        return request

    def begin(self, job: Job) -> None:
        """Enter a job, behind the others."""
        self.running.append(job)
        self._count(job.session, 1)

    def done(self, job: Job) -> None:
        """Remove a job."""
        self.running.remove(job)
        self._count(job.session, -1)

    def pass_to(self, job: Job, session: Session) -> None:
        """Go on for another session, which has sent the request again; the one before may still wait, too."""
        before, job.session = job.session, session
        if before is not session:
            self._count(session, 1)
            self._count(before, -1)
            session.repeated(job.number)
            if before.wanted() or not job.earlier:
                job.earlier.append(before)
            before.go_on()

    def _count(self, session: Session, change: int) -> None:
        count = self._whose.pop(session, 0) + change
        if count:
            self._whose[session] = count

    def forget(self, session: Session, number: Optional[Number] = None) -> bool:
        """Drop the waiting requests of a session, or one of them; returns whether any. A running job is not stopped."""
        if not (self.waiting and self.of(session)):
            return False
        before = len(self.waiting)
        for _ in range(before):
            request = self.next_waiting()
            if request[0] is session and (number is None or request[1] == number):
                session.dropped(request[1])
            else:
                self._wait(request)
        return len(self.waiting) < before

    @property
    def size(self) -> int:
        """Bytes of the requests that are executed, or wait."""
        return sum([job.size for job in self.running]) + self.bytes_waiting

    @property
    def full(self) -> bool:
        """Back-pressure: whether connections should not be read."""
        return self.bytes_waiting > MOST_WAITING

    @property
    def hurried(self) -> bool:
        """Whether slices are short now, and each is a turn."""
        return self._company > 0 and self._may_hurry and not self.exclusive

    def of(self, session: Session) -> bool:
        """Return whether a request of this session is a job, or waits for one."""
        return session in self._whose

    def of_request(self, session: str, number: Number) -> Optional[Job]:
        """Find the job of a session's request."""
        for job in self.running:
            if job.number == number and job.session.session == session:
                return job
        return None

    def slice(self, job: Job) -> Tuple[bool, Any]:
        """Run one slice of a job; returns (done, answer). Raises what the job raises."""
        steps = job.steps
        self.slices += 1
        length = SHORT if self.hurried else SLICE
        if self._company:
            self._company -= 1
        self.until = time.perf_counter() + length if self._soon is not None else float("inf")
        try:
            while True:
                if (next(steps) and self._soon is not None) or time.perf_counter() >= self.until:
                    return False, None
        except StopIteration as done:
            return True, done.value

    def alone(self, steps: Steps) -> Steps:
        """Run steps as an exclusive job."""
        self.exclusive = True
        try:
            return (yield from steps)
        finally:
            self.exclusive = False

    def ask(self, work: Callable[[], None]) -> None:
        """Schedule `work`, once however often this is called."""
        if not self._asked and self._soon is not None:
            self._asked = True

            def go() -> None:
                self._asked = False
                work()

            self._soon(go)

    def end(self, error: Callable[[Job], SynapError]) -> None:
        """End the exclusive job, and all batches, with an error: what they did or have seen was undone."""
        alone = self.running[0] if self.exclusive else None
        for job in [job for job in self.running if job is alone or job.command.bundle]:
            self.done(job)
            job.steps.close()
            job.refuse(error(job))
            job.session.go_on()
        self.exclusive = False
