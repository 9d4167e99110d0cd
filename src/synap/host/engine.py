"""A host for one engine in this process: passes it time and requests, and its journal to a log (`logged`)."""

from __future__ import annotations

import functools
import logging
import time
from types import GeneratorType
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from synap.commands import Command
from synap.engine.callers import Caller, Number, Steps
from synap.engine.deliveries import sent_again
from synap.engine.engine import MISSING, WAITING, Engine
from synap.engine.figures import survey
from synap.errors import SynapError
from synap.host.base import Session
from synap.host.batches import execute_batch
from synap.host.clock import Clock
from synap.host.jobs import SHORT, SLICE, Job, Jobs, crowded
from synap.host.jobs import TURN as JOBS_TURN
from synap.host.log import Log
from synap.host.logged import LoggedHost, whole
from synap.host.timing import EVERY
from synap.shapes import value_fields
from synap.wire.codec import MALFORMED
from synap.wire.counting import bounds
from synap.wire.frames import HELD
from synap.wire.large import LARGE

log = logging.getLogger("synap.host")

PATIENCE = 10.0
"""Seconds after which a silent log, or an alarm that is late, makes the host `degraded`."""


def _may_be_long(command: Command) -> bool:
    """Return whether the payload of a command may be long: it holds values or lists."""
    return not command.admin and bool(value_fields(command.payload) or bounds(command.payload))


class EngineHost(LoggedHost):
    """Runs one engine for any number of sessions.

    `alarm(when)` asks for the next call of `wake` (Unix seconds, None: none). `soon(function)` schedules a function on
    the host's thread, after all pending events; with it long requests are executed in slices, without it in one go.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        log: Optional[Log] = None,
        clock: Optional[Callable[[], float]] = None,
        alarm: Callable[[Optional[float]], None] = lambda when: None,
        soon: Optional[Callable[[Callable[[], None]], object]] = None,
    ) -> None:
        super().__init__(engine, log, clock, Jobs(soon, may_hurry=log is None or not log.holds))
        engine.timeline.wall = getattr(self.clock, "wall", None)
        self.alarm = alarm
        self._horizon = engine.horizon
        self._runs = engine.runs
        self._time = self.clock.now if type(self.clock) is Clock else self.clock
        self.may_stall = log is not None
        self._alarm_at: Optional[float] = None
        self._now: Optional[float] = None
        """The time of this turn, once a request has asked for it."""
        self._undos = self._records = 0
        """The journal's length when the current request began."""
        if soon is not None:
            engine.leftovers.begun = functools.partial(soon, self._let_go)

    # ------------------------------------------------------------------------------------------ requests

    def execute(
        self,
        session: Session,
        number: Number,
        command: Command,
        body: Any,
        retried: bool = False,
        decoded: bool = False,
        waited: bool = False,
    ) -> None:
        """Execute a request as `Host.execute` says. `waited`: it has waited for an exclusive job already."""
        if self.busy and not waited and self.jobs.hold_back((session, number, command, body, retried, decoded)):
            return
        requests, code = self.requests, command.code
        requests[code] = count = requests[code] + 1
        began = None if count % EVERY != 1 else time.perf_counter()
        if self.holds and command.flags:
            journal = self.engine.journal
            self._undos, self._records = len(journal.undos), len(journal.records)
        try:
            if retried and command.writes and session.session:
                answer = self.engine.recall(session.session, number)
                if answer is not MISSING:
                    session.repeated(number)
                    session.answer(number, answer)
                    return
                job = self.jobs.of_request(session.session, number)
                if job is not None:  # it is being executed
                    self.jobs.pass_to(job, session)
                    return
                if self.engine.keys.clearings and self.engine.keys.join(session, number):
                    session.repeated(number)
                    return
            if decoded:
                payload = body
            elif len(body) > LARGE and _may_be_long(command):
                size = len(body) * HELD
                if not self.has_room(size):
                    raise crowded()
                steps = self._execute_large(session, number, command, body, retried)
                self._begin(session, number, command, steps, size)
                return
            else:
                try:
                    payload = session.decoders[code](body)
                except MALFORMED as error:
                    raise session.codec.refusal(command, body, error) from None
            if waited:
                session.check_again(command, payload)
            if self.unavailable is not None and self.refuses(command):
                raise self.refusal()
            if command.hosted:
                if command.admin:
                    answer = self.administer(command, payload, session)
                    if isinstance(answer, GeneratorType):
                        self._begin(session, number, command, answer)
                        return
                else:
                    self._begin(session, number, command, execute_batch(self, session, number, payload, retried))
                    return
            else:
                now = self._now
                if now is None:
                    now = self._now = self._time()
                    if now >= self.engine.timeline.again:
                        self.engine.timeline.look(now)
                answer = self._runs[code](payload, now, session, number)
                if type(answer) is GeneratorType:
                    steps = answer if command.sharing else self.jobs.alone(answer)
                    if command.pushes:
                        steps = self._subscribe(session, number, command, payload, steps)
                    elif command.sharing and not command.has_effects:
                        steps = _show(session, steps)
                    self._begin(session, number, command, steps)
                    return
            if answer is not WAITING:
                session.answer(number, answer)
                if began is not None:
                    self.samples.append((code, session.lane_name(), began))
                if command.pushes:
                    self.engine.resume(session, answer.subscription_id)
        except SynapError as error:
            self.count_error(error.code)
            session.refuse(number, error)
        except Exception:
            session.refuse(number, self.crashed(command.name))
            if command.flags and self.holds:
                self.engine.journal.cut_back(self._undos, self._records)
        except BaseException:
            self.let_through()
            raise

    def _execute_large(self, session: Session, number: Number, command: Command, body: Any, retried: bool) -> Steps:
        """Execute a large request, which is decoded in steps."""
        payload = yield from session.codec.decode_in_steps(command, body)
        session.check(command, payload)
        if command.waits or command.pushes:
            self.requests[command.code] -= 1  # it is counted again
            job = self.jobs.of_request(session.session, number) if session.session else None
            if job is not None:  # another may have sent it meanwhile; a wait is for the last one
                for earlier in job.earlier:
                    earlier.refuse(number, sent_again())
                session = job.session
            if not session.wanted():
                session.dropped(number)
                return WAITING
            self.execute(session, number, command, payload, decoded=True, waited=True)
            return WAITING
        if command.bundle:
            return (yield from execute_batch(self, session, number, payload, retried))
        if self.refuses(command):
            raise self.refusal()
        answer = self.engine.execute(payload, self.clock(), session, number)
        return (yield from self.jobs.alone(answer)) if isinstance(answer, GeneratorType) else answer

    def _subscribe(self, session: Session, number: Number, command: Command, payload: Any, steps: Steps) -> Steps:
        """Make a subscription in steps, for a caller who is still there when they begin, and may when they are over."""
        if not session.wanted():
            session.dropped(number)
            return WAITING
        session.check_again(command, payload)  # others may have begun that were asked for at the same time
        answer = yield from steps
        try:
            session.check(command, payload)
        except SynapError:
            self.engine.unsubscribe(session, answer.subscription_id)
            raise
        return answer

    def _begin(self, session: Session, number: Number, command: Command, steps: Steps, size: int = 0) -> None:
        """Execute a request in slices, the first one at once, so that most are done without waiting."""
        job = Job(session, number, command, steps, size)
        jobs = self.jobs
        jobs.begin(job)
        if (jobs.scheduled and len(jobs.running) > 1) or not self._go_on(job):
            self.busy = True
            jobs.ask(self.work)

    def _go_on(self, job: Job) -> bool:
        """Run one slice of a job; returns whether it is done."""
        jobs = self.jobs
        journal = self.engine.journal
        if self.holds:
            self._undos, self._records = len(journal.undos), len(journal.records)
        done = True
        try:
            done, answer = jobs.slice(job)
            if done and answer is not WAITING:
                job.answer(answer)
        except SynapError as error:
            self.count_error(error.code)
            job.refuse(error)
        except Exception:
            job.refuse(self.crashed(job.command.name))
            if self.holds:
                journal.cut_back(self._undos, self._records)
        except BaseException:
            self.let_through()
            raise
        finally:
            if done:
                jobs.done(job)
        return done

    def work(self) -> None:
        """Continue jobs, and execute requests that had to wait for one. A turn of its own."""
        jobs = self.jobs
        end = time.perf_counter() + (SHORT if jobs.hurried else JOBS_TURN)
        done: List[Session] = []
        while time.perf_counter() < end:
            if jobs.running:
                job = jobs.running[0]
                if self._go_on(job):
                    done.append(job.session)
                elif not jobs.exclusive:
                    jobs.running.rotate(-1)
            if not jobs.exclusive and jobs.waiting:
                session, number, command, body, retried, decoded = jobs.next_waiting()
                if session.wanted():
                    self.execute(session, number, command, body, retried, decoded=decoded, waited=True)
                    done.append(session)
                else:
                    session.dropped(number)
            elif not jobs.running:
                break
        self.busy = bool(jobs.running or jobs.waiting)
        self.end_turn()
        for session in done:
            session.go_on()
        if self.busy:
            jobs.ask(self.work)
        elif self._unread and not self.stalled:
            self.read_on()

    def end_turn(self) -> None:
        """Submit the changes to the log, deliver the output that need not wait, and set the alarm."""
        self._now = None
        if self.busy and self.jobs.exclusive:
            # The changes of an exclusive job go to the log together, once it is done.
            if self.log is None or not self.holds:
                self.deliver()
        elif self.log is not None:
            self._commit()
        elif self.touched:
            self.deliver()
        if self.samples:
            self._timed()
        if self._horizon.moved and not self.stopped:
            self._horizon.moved = False
            due = self.engine.next_deadline()
            if due != self._alarm_at:
                self._alarm_at = due
                self.alarm(due)

    def resume(self, session: Session, subscription_id: int) -> bool:
        return self.engine.resume(session, subscription_id)

    def unsubscribe(self, session: Session, subscription_id: int) -> None:
        self.engine.unsubscribe(session, subscription_id)

    @whole
    def cancel(self, session: Session, number: Number) -> bool:
        dropped = self.jobs.forget(session, number) or number in session.waiting
        if not self.fenced:
            self.engine.cancel(session, number, self.clock())
        session.waiting.discard(number)
        return dropped

    def confirm(self, session: Session, below: int) -> None:
        self.engine.confirm(session.session, below)

    @whole
    def leave(self, session: Session) -> None:
        self.jobs.forget(session)
        if not self.fenced:
            self.engine.forget(session, self._look())
        self.end_turn()

    def drain(self) -> None:
        self.engine.release_waiters(self._look())
        self.end_turn()

    def inherited(self) -> bool:
        if self.log is not None:
            return False
        self.engine.release_waiters(self.clock())
        self.rearm()  # the child has no timekeeper thread yet
        return True

    def _let_go(self) -> None:
        """Free a part of what was deleted. Not a turn: it has no output."""
        end = time.perf_counter() + SLICE
        leftovers = self.engine.leftovers
        try:
            more = leftovers.work(lambda: time.perf_counter() >= end)
        except Exception:  # no caller waits for it, and the next steps must run
            self.crashed("letting go what was deleted")
            more = True
        if more and leftovers.begun is not None:
            leftovers.begun()

    # ------------------------------------------------------------------------------------------ time

    def _look(self) -> float:
        """Return the time, and note a step of the wall clock."""
        return self.engine.timeline.look(self.clock())

    def rearm(self) -> None:
        self._alarm_at = None
        self._horizon.moved = True

    @whole
    def wake(self) -> None:
        """Process what is due by now. A turn of its own."""
        self.rearm()
        now = self._look()
        if not self.stopped:
            self.engine.advance(now)
        self.end_turn()

    # ------------------------------------------------------------------------------------------ state

    @property
    def stalled(self) -> bool:
        return (self.log is not None and self.log.stalled) or (self.busy and self.jobs.full)

    @property
    def memory_limit(self) -> Optional[int]:
        return self.engine.limits.memory

    @property
    def working_on(self) -> int:
        return self.jobs.size if self.busy else 0

    def set_aside(self, growth: int) -> None:
        self.engine.budget.set_aside(growth)

    def working_for(self, session: Session) -> bool:
        return self.jobs.of(session)

    def settled(self) -> bool:
        return not (self.pending or self.touched or self.jobs.running or self.jobs.waiting)

    def waits(self) -> Iterator[Tuple[Caller, str]]:
        return self.engine.waits()

    def trouble(self) -> Optional[str]:
        if self.unavailable is not None:
            return self.unavailable.message
        if self.pending:
            silent = time.monotonic() - self.pending[0].since
            if silent > PATIENCE:
                return f"the log has not reported for {silent:.0f} s"
        if self._alarm_at is not None and self.clock() - self._alarm_at > PATIENCE:
            return f"what was due {self.clock() - self._alarm_at:.0f} s ago has not been done"
        return None

    def stats(self, most: Optional[int] = None) -> Dict[str, Any]:
        return {**self.engine.stats(most), **super().stats()}

    def survey(self, most: Optional[int] = None, named: Optional[Callable[[str], bool]] = None) -> Steps:
        figures = yield from survey(self.engine, most, named)
        return {**figures, **super().stats()}

    def health(self) -> Dict[str, Any]:
        return {**super().health(), "durable": self.log is not None}


def _show(session: Session, steps: Steps) -> Steps:
    """List names, of which the caller may not see all: so many that looking at each takes a while."""
    answer = yield from steps
    permit = session.permit
    return answer if permit is None else (yield from permit.show(answer))
