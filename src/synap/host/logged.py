"""The side of a host that faces its log: what is committed, what waits for that, what happens when it fails.

With `fsync=always` the output of a turn, answers to reads included, is held until everything the engine did up to then
is on disk, so no caller sees what a crash could undo. When the disk refuses, all of it is undone, the last change
first; waiting callers get `SERVICE_UNAVAILABLE`, and writes are refused until the log works again.
"""

from __future__ import annotations

import functools
from collections import deque
from itertools import chain
from typing import Any, Callable, Deque, Dict, Iterable, List, Optional, TypeVar, cast

from synap.commands import BatchAnswer, Command, SubscribedToFigures
from synap.engine.callers import Number
from synap.engine.engine import MISSING, Engine
from synap.engine.journal import Journal
from synap.engine.replies import part
from synap.errors import SynapError
from synap.host.base import ANSWER, ENDED, PUSH, REFUSE, Host, Output, Session
from synap.host.jobs import Jobs
from synap.host.log import Batch, Held, Log

Function = TypeVar("Function", bound=Callable[..., Any])


def whole(method: Function) -> Function:
    """Call `Host.interrupted` where an exception from outside ends a method of a host."""

    @functools.wraps(method)
    def run(self: LoggedHost, *arguments: Any) -> Any:
        try:
            return method(self, *arguments)
        except BaseException:
            self.let_through()
            raise

    return cast(Function, run)


class LoggedHost(Host):
    """A host whose engine's changes go to a log, if there is one."""

    def __init__(self, engine: Engine, log: Optional[Log], clock: Optional[Callable[[], float]], jobs: Jobs) -> None:
        super().__init__(clock=clock)
        self.jobs = jobs
        self.engine = engine
        self.log = log
        self.holds = log is not None and log.holds
        """Whether output is held until it is on disk."""
        self.sparing = False
        """Whether writes that free space are accepted while others are refused."""
        self.pending: Deque[Batch] = deque()
        """Batches the log has not reported on yet, oldest first (only where output is held)."""
        self.fenced = False
        """Whether nothing may be written any more: a turn was interrupted, or the program ends."""
        engine.journal.keep_records = log is not None
        engine.journal.keep_undo = self.holds

    @property
    def stopped(self) -> bool:
        """Whether no change at all can be written now."""
        return self.unavailable is not None and not self.sparing

    def refuses(self, command: Command) -> bool:
        """Return whether a command is refused now."""
        if self.unavailable is None or not command.writes or command.bundle:
            return False
        return not (self.sparing and command.sparing)

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
        self.engine.release_waiters(self.clock(), self.refusal())
        if self.holds:
            self.jobs.end(lambda job: self.refusal(uncertain or self._in_part(job.session, job.number)))
        released = self._take()
        self._fail_held(waiting, self.refusal(uncertain))
        self._deliver(released)
        if self.holds:
            Journal.roll_back(self.engine.collect()[1])
        self.read_on()

    def interrupted(self) -> None:
        """Refuse writes until the directory is opened again: what the memory holds may contradict what the log does.

        Nothing of the turn is written or answered; what was submitted before is.
        """
        if self.log is not None and not self.fenced:
            self.fence(self.log.interrupted())
            self.engine.journal.take()
            self._fail_held(self._take(), self.refusal(may_have_happened=True))

    def fence(self, error: SynapError) -> None:
        """Refuse writes with `error` from now on, whatever the log reports."""
        self.fenced = True
        self.sparing = False
        self.unavailable = error

    def recovered(self) -> None:
        """Called by the log: it works again, so writes are accepted. A turn of its own."""
        if self.fenced:
            return
        self.unavailable = None
        self.sparing = False
        self.wake()
        self.read_on()

    def short(self, error: SynapError) -> None:
        """Called by the log: the disk is nearly full. Only commands that free space are accepted, others get `error`.

        A turn of its own.
        """
        if self.fenced:
            return
        self.unavailable = error
        self.sparing = True
        self.wake()
        self.read_on()

    # ------------------------------------------------------------------------------------------ turns

    def undelivered(self, session: Session) -> Iterable[Output]:
        held = (output for batch in self.pending for whose, output in batch.held if whose is session)
        return chain(*held, session.output)

    def _timed(self) -> None:
        """Record the durations of the timed requests that were answered in this turn."""
        self.timing.ended(self.samples)
        self.samples.clear()

    @whole
    def _commit(self) -> None:
        """Submit the changes of this turn. Its output waits for them, and for all that was submitted before."""
        log = self.log
        assert log is not None
        if not self.engine.journal.records and not self.engine.timeline.unrecorded:
            if self.touched:
                if self.holds and self.pending:
                    self.pending[-1].held += self._take()
                    self.pending[-1].samples += self.samples
                    self.samples = []
                else:
                    self.deliver()
            return
        now = self.engine.timeline.look(self.clock())
        if self.stopped and self.holds:
            # Reads are served. A caller that left may have changed something, which can't be written now: undo it.
            Journal.roll_back(self.engine.collect()[1])
            self.deliver()
            return
        journal = self.engine.complete(now)
        held, samples = (self._take(), self.samples) if self.holds else ([], [])
        batch = Batch(journal.records, journal.undos, held, samples)
        journal.said = None
        journal.records, journal.undos = [], []
        if not self.holds:
            try:
                log.submit(batch, False)
            except Exception:  # a bug: no write may be answered with success
                self._fail_held(self._take(), self.crashed("writing to the log"))
            self.deliver()
        else:
            self.samples = []
            self.pending.append(batch)
            alone = len(self.pending) == 1 and not self._unread
            try:
                safe = log.submit(batch, alone)
            except Exception:  # likewise
                error = self.crashed("writing to the log")
                self.pending.pop()
                Journal.roll_back(batch.undos)
                self._fail_held(batch.held, error)
            else:
                if safe:
                    self.committed(batch)

    def _take(self) -> List[Held]:
        """Take the output of this turn out of the sessions."""
        touched, self.touched = self.touched, []
        held = [(session, session.output) for session in touched]
        for session in touched:
            session.output = []
        return held

    def _deliver(self, held: List[Held]) -> None:
        for session, output in held:
            try:
                session.deliver(output)
            except Exception:
                self.undeliverable(session)

    def _in_part(self, session: Session, number: Number) -> bool:
        """Return whether slices of a batch are on disk, whose later ones were undone: a retry goes on behind them."""
        return self.engine.recall(session.session, part(number, 0)) is not MISSING

    def _fail_held(self, held: List[Held], error: SynapError) -> None:
        """Deliver `error` in place of each answer in `held`, and no pushes: the changes were undone."""
        losing: Dict[Session, int] = {}
        outputs: List[Held] = []
        for session, output in held:
            outcomes: List[Output] = []
            for what, number, content, weight in output:
                if what == ANSWER:
                    subscription_id = getattr(content, "subscription_id", None)
                    if type(content) is SubscribedToFigures:
                        self.unwatch(session, content)
                    elif subscription_id is not None:
                        self.unsubscribe(session, subscription_id)
                    refused = error.copy()
                    refused.may_have_happened |= type(content) is BatchAnswer and self._in_part(session, number)
                    outcomes.append((REFUSE, number, refused, weight))
                elif what == REFUSE or (what == ENDED and number not in session.subscriptions):
                    outcomes.append((what, number, content, weight))
                elif what == PUSH:
                    losing[session] = losing.get(session, 0) + weight
            outputs.append((session, outcomes))
        self._deliver(outputs)
        for session, weight in losing.items():
            session.lose_pushes(weight)
