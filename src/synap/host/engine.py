"""A host for one engine in this process: passes it time and requests, hands its journal to a log, delivers answers.

With `fsync=always` the output of a turn, answers to reads included, is held until everything the engine did up to then
is on disk, so nobody ever sees what a crash could undo. When the disk refuses, all of it is undone, the last change
first; whoever waited gets `SERVICE_UNAVAILABLE`, and writes are refused until the log works again.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import deque
from types import GeneratorType
from typing import Any, Callable, Deque, Dict, Iterator, List, Optional, Tuple

from synap.commands import COMMANDS, BatchRequest, Command
from synap.engine.callers import Caller, Number, Steps
from synap.engine.engine import MISSING, WAITING, Engine
from synap.engine.figures import survey
from synap.engine.journal import Journal
from synap.errors import SynapError
from synap.host.base import ANSWER, PUSH, REFUSE, Host, Session
from synap.host.batches import Batching
from synap.host.jobs import SLICE, Job, Jobs
from synap.host.jobs import TURN as JOBS_TURN
from synap.host.log import Batch, Held, Log
from synap.host.timing import EVERY
from synap.shapes import value_fields
from synap.wire.codec import find
from synap.wire.large import LARGE

__all__ = ["EngineHost"]

log = logging.getLogger("synap.host")

MAX_ATOMIC = 5_000
"""The most commands of an atomic batch, which can't be interrupted."""
PATIENCE = 10.0
"""Seconds after which a silent log, or an alarm that is late, makes the host `degraded`."""

_VALUED = frozenset(command for command in COMMANDS.values() if value_fields(command.payload))
"""Commands whose payloads hold values."""


class EngineHost(Host):
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
        super().__init__(clock=clock)
        self.jobs = Jobs(soon)
        self.engine = engine
        engine.timeline.wall = getattr(self.clock, "wall", None)
        self.log = log
        self.alarm = alarm
        self.holds = log is not None and log.holds
        """Whether output is held until it is on disk."""
        self.sparing = False
        """Whether writes that free space are accepted while others are refused."""
        self.pending: Deque[Batch] = deque()
        """Batches the log has not reported on yet, oldest first (only where output is held)."""
        self._alarm_at: Optional[float] = None
        self._rescheduled = True
        """Whether deadlines may have changed since the alarm was set. Reads change none."""
        self._now: Optional[float] = None
        """The time of this turn, once a request has asked for it."""
        self._undos = self._records = 0
        """The journal's length when the current request began."""
        engine.journal.keep_records = log is not None
        engine.journal.keep_undo = self.holds
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
        *,
        decoded: bool = False,
        waited: bool = False,
    ) -> None:
        """Execute a request as `Host.execute` says. `waited`: it has waited for an exclusive job already."""
        if self.busy and not waited and self.jobs.hold_back((session, number, command, body, retried, decoded)):
            return
        requests, code = self.requests, command.code
        requests[code] = count = requests[code] + 1
        began = None if count % EVERY != 1 else time.perf_counter()
        if command.flags:
            self._rescheduled = True
            if self.holds:
                journal = self.engine.journal
                self._undos, self._records = len(journal.undos), len(journal.records)
        try:
            if retried and command.writes and session.session:
                answer = self.engine.recall(session.session, number)
                if answer is not MISSING:
                    session.answer(number, answer)
                    return
                job = self.jobs.of_request(session.session, number)
                if job is not None:  # it is being executed: the answer goes to the newest connection
                    job.session = session
                    return
            if not decoded and len(body) > LARGE and command in _VALUED:
                self._begin(session, number, command, self._execute_large(session, number, command, body))
                return
            payload = body if decoded else session.codec.decode_payload(command, body)
            if self.unavailable is not None and self.refuses(command):
                raise self.refusal()
            if command.hosted:
                if command.admin:
                    answer = self.administer(command, payload, session)
                    if isinstance(answer, GeneratorType):
                        self._begin(session, number, command, answer)
                        return
                else:
                    self._begin(session, number, command, self._batch(session, number, payload, retried))
                    return
            else:
                now = self._now
                if now is None:
                    now = self._now = self.clock()
                answer = self.engine.execute(payload, now, session, number)
                if type(answer) is GeneratorType:
                    self._begin(session, number, command, self.jobs.alone(answer))
                    return
            if answer is not WAITING:
                session.answer(number, answer)
                if began is not None:
                    self.samples.append((code, session.lane_name(), began))
                if command.pushes:
                    self.engine.resume(session, answer.subscription_id, self.clock())
        except SynapError as error:
            self.count_error(error.code)
            session.refuse(number, error)
        except Exception:
            session.refuse(number, self.crashed(command.name))
            if command.flags and self.holds:
                self.engine.journal.cut_back(self._undos, self._records)

    def _execute_large(self, session: Session, number: Number, command: Command, body: Any) -> Steps:
        """Execute a request with large values, which are decoded in steps."""
        payload = yield from session.codec.decode_in_steps(command, body)
        if self.refuses(command):
            raise self.refusal()
        answer = self.engine.execute(payload, self.clock(), session, number)
        return (yield from self.jobs.alone(answer)) if isinstance(answer, GeneratorType) else answer

    def _begin(self, session: Session, number: Number, command: Command, steps: Steps) -> None:
        """Execute a request in slices, the first one at once, so that most are done without waiting."""
        job = Job(session, number, command, steps)
        jobs = self.jobs
        jobs.running.append(job)
        if len(jobs.running) > 1 or not self._go_on(job):
            self.busy = True
            jobs.ask(self.work)

    def _go_on(self, job: Job) -> bool:
        """Run one slice of a job; returns whether it is done."""
        jobs = self.jobs
        journal = self.engine.journal
        if self.holds:
            self._undos, self._records = len(journal.undos), len(journal.records)
        self._rescheduled = True
        try:
            done, answer = jobs.slice(job)
        except SynapError as error:
            self.count_error(error.code)
            job.session.refuse(job.number, error)
        except Exception:
            job.session.refuse(job.number, self.crashed(job.command.name))
            if self.holds:
                journal.cut_back(self._undos, self._records)
        else:
            if not done:
                return False
            job.session.answer(job.number, answer)
        jobs.running.remove(job)
        return True

    def work(self) -> None:
        """Continue jobs, and execute requests that had to wait for one. A turn of its own."""
        jobs = self.jobs
        end = time.perf_counter() + JOBS_TURN
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
                self.execute(session, number, command, body, retried, decoded=decoded, waited=True)
                done.append(session)
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
        if self._rescheduled and not self.stopped:
            self._rescheduled = False
            due = self.engine.next_deadline()
            if due != self._alarm_at:
                self._alarm_at = due
                self.alarm(due)

    def resume(self, session: Session, subscription_id: int) -> bool:
        return self.engine.resume(session, subscription_id, self.clock())

    def unsubscribe(self, session: Session, subscription_id: int) -> None:
        self.engine.unsubscribe(session, subscription_id)

    def cancel(self, session: Session, number: Number) -> None:
        self._rescheduled = True
        self.jobs.forget(session, number)
        self.engine.cancel(session, number)

    def confirm(self, session: Session, below: int) -> None:
        self.engine.confirm(session.session, below)

    def leave(self, session: Session) -> None:
        self._rescheduled = True
        self.jobs.forget(session)
        self.engine.forget(session, self.clock())
        self.end_turn()

    def drain(self) -> None:
        self._rescheduled = True
        self.engine.release_waiters()
        self.end_turn()

    def inherited(self) -> bool:
        if self.log is not None:
            return False
        self.engine.release_waiters()
        self.rearm()  # the child has no timekeeper thread yet
        return True

    def _let_go(self) -> None:
        """Take apart some of what is over. No turn: nobody sees it."""
        end = time.perf_counter() + SLICE
        leftovers = self.engine.leftovers
        if leftovers.work(lambda: time.perf_counter() >= end) and leftovers.begun is not None:
            leftovers.begun()

    # ------------------------------------------------------------------------------------------ time

    def rearm(self) -> None:
        """Set the alarm again at the end of the next turn, since it has fired or was lost."""
        self._alarm_at = None
        self._rescheduled = True

    def wake(self) -> None:
        """Process what is due by now. A turn of its own."""
        self.rearm()
        if not self.stopped:
            self.engine.advance(self.clock())
        self.end_turn()

    # ------------------------------------------------------------------------------------------ state

    @property
    def stalled(self) -> bool:
        return (self.log is not None and self.log.stalled) or (self.busy and self.jobs.full)

    @property
    def memory_limit(self) -> Optional[int]:
        return self.engine.limits.memory

    def set_aside(self, growth: int) -> None:
        self.engine.budget.set_aside(growth)

    @property
    def stopped(self) -> bool:
        """Whether no change at all can be written now."""
        return self.unavailable is not None and not self.sparing

    def refuses(self, command: Command) -> bool:
        """Return whether a command is refused now."""
        if self.unavailable is None or not command.writes or command.bundle:
            return False
        return not (self.sparing and command.sparing)

    def working_for(self, session: Session) -> bool:
        jobs = self.jobs
        return bool(jobs.running or jobs.waiting) and jobs.of(session)

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

    # ------------------------------------------------------------------------------------------ the log's reports

    def committed(self, batch: Batch) -> None:
        """Called by the log: `batch` is on disk. Delivers the output it held. A turn of its own."""
        if self.pending and self.pending[0] is batch:
            self.pending.popleft()
        self._deliver(batch.held)
        self.engine.leftovers.committed(batch.undos)
        if batch.samples:
            self.timing.ended(batch.samples)
        if self._unread and not self.stalled:
            self.read_on()

    def failed(self, error: SynapError, *, uncertain: bool = False) -> None:
        """Called by the log: it could not write. Undoes the pending batches and refuses writes until `recovered`.

        `uncertain`: some of them may be found on disk after a restart. Only where output is held is anything undone; a
        log that doesn't hold it keeps the changes and tries again. Waiting consumers are refused like new ones, since
        nothing can be leased now. A turn of its own.
        """
        self.unavailable = error
        self.sparing = False
        waiting: List[Held] = []
        if self.holds:
            _, undos = self.engine.collect()
            waiting = self._take()
            for batch in reversed(self.pending):
                Journal.roll_back(undos)
                undos = batch.undos
                waiting = batch.held + waiting
            Journal.roll_back(undos)
            self.pending.clear()
        self.engine.release_waiters(self.refusal())
        self.jobs.end(self.refusal)
        released = self._take()
        self._fail_held(waiting, self.refusal(uncertain))
        self._deliver(released)
        if self.holds:
            self.engine.collect()
        self.read_on()

    def recovered(self) -> None:
        """Called by the log: it works again, and writes are accepted. A turn of its own."""
        self.unavailable = None
        self.sparing = False
        self.wake()
        self.read_on()

    def short(self, error: SynapError) -> None:
        """Called by the log: the disk is nearly full. Only commands that free space are accepted, others get `error`.

        A turn of its own.
        """
        self.unavailable = error
        self.sparing = True
        self.wake()
        self.read_on()

    # ------------------------------------------------------------------------------------------ turns and batches

    def _timed(self) -> None:
        """Record the durations of the timed requests that were answered in this turn."""
        self.timing.ended(self.samples)
        self.samples.clear()

    def _commit(self) -> None:
        """Submit the changes of this turn. Its output waits for them, and for all that was submitted before."""
        log = self.log
        assert log is not None
        if not self.engine.journal.records:
            if self.touched:
                if self.holds and self.pending:
                    self.pending[-1].held += self._take()
                    self.pending[-1].samples += self.samples
                    self.samples = []
                else:
                    self.deliver()
            return
        self.engine.timeline.shown(self.clock())  # notes a step of the wall clock
        records, undos = self.engine.collect()
        if not self.holds:
            try:
                log.submit(Batch(records, undos, [], []), False)
            except Exception:
                self._fail_held(self._take(), self.crashed("writing to the log"))
            self.deliver()
        elif self.stopped:
            # Reads go on. A caller that left may have changed something, which can't be written now: undo it.
            Journal.roll_back(undos)
            self.deliver()
        else:
            batch = Batch(records, undos, self._take(), self.samples)
            self.samples = []
            self.pending.append(batch)
            alone = len(self.pending) == 1 and not self._unread
            try:
                safe = log.submit(batch, alone)
            except Exception:
                self.pending.pop()
                error = self.crashed("writing to the log")
                Journal.roll_back(undos)
                self._fail_held(batch.held, error)
            else:
                if safe:
                    self.committed(batch)

    def _take(self) -> List[Held]:
        """Take the output of this turn out of the sessions."""
        touched, self.touched = self.touched, []
        held = [(session, session.said) for session in touched]
        for session in touched:
            session.said = []
        return held

    def _deliver(self, held: List[Held]) -> None:
        for session, said in held:
            try:
                session.deliver(said)
            except Exception:
                self.undeliverable(session)

    def _fail_held(self, held: List[Held], error: SynapError) -> None:
        """Deliver `error` in place of each answer in `held`, and no pushes: the changes were undone."""
        losing: List[Session] = []
        outputs: List[Held] = []
        for session, said in held:
            if any(entry[0] == PUSH for entry in said):
                losing.append(session)
            outcomes = [
                (REFUSE, number, error.copy() if what == ANSWER else content, weight)
                for what, number, content, weight in said
                if what in (ANSWER, REFUSE)
            ]
            outputs.append((session, outcomes))
        self._deliver(outputs)
        for session in losing:
            session.lose_pushes()

    def guarded(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the engine for one command of several, and undo its changes where it raises an unexpected exception."""
        journal = self.engine.journal
        undos, records = len(journal.undos), len(journal.records)
        try:
            return function(*arguments)
        except SynapError:
            raise
        except Exception:
            if self.holds:
                journal.cut_back(undos, records)
            raise

    def _batch(self, session: Session, number: Number, request: BatchRequest, retried: bool) -> Steps:
        """Execute the commands of a batch in order."""
        numbered = any(item.number is not None for item in request.commands)
        if numbered and (request.atomic or any(item.number is None for item in request.commands)):
            raise SynapError("INVALID_REQUEST", "a batch has numbers on all commands and isn't atomic, or on none")
        if not numbered and self.unavailable is not None and not self._accepts(request):
            raise self.refusal()
        if request.atomic:
            return (yield from self._atomic(session, number, request))
        return (yield from Batching(self, session, number, request, numbered).steps(retried))

    def _accepts(self, request: BatchRequest) -> bool:
        """Return whether a batch holds only commands that are accepted now."""
        known = (COMMANDS.get(item.command) for item in request.commands)
        return self.sparing and not any(command is not None and self.refuses(command) for command in known)

    def _atomic(self, session: Session, number: Number, request: BatchRequest) -> Steps:
        if len(request.commands) > MAX_ATOMIC:
            text = f"an atomic batch may have at most {MAX_ATOMIC:,} commands, this one has {len(request.commands):,}"
            raise SynapError("INVALID_REQUEST", text, {"limit": MAX_ATOMIC})
        items: List[Any] = []
        for item in request.commands:
            try:
                payload = session.codec.decode_item(item)
                if session.permit is not None:
                    session.permit.check(find(item.command), payload)
                items.append(payload)
            except SynapError as error:
                items.append(error)
            if time.perf_counter() > self.jobs.until:
                yield
        return self.engine.execute_atomic(items, self.clock(), session, number)
