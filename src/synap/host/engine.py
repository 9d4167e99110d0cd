"""An engine with a clock, a disk and callers.

The engine decides, the host carries: it hands time and requests to the engine, gives what changed to the log, and
lets answers go out. Work comes in *turns* (all that one read of a socket brought, one call of a client in this process,
one alarm): `execute` any number of times, then `end_turn` once.

With a log that must be safe before anybody hears of it (`fsync=always`), what a turn says is held back until everything
the engine did up to then is on disk, reads included, so nobody ever sees what a crash could take back. When the disk
refuses, all of it is taken back, the last change first; whoever waited gets `SERVICE_UNAVAILABLE`, and writes are
refused at the door until the log works again.

A host belongs to one thread at a time; whoever shares it brings the lock.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Callable, Deque, Dict, Iterator, List, Optional, Tuple

from synap.commands import (
    ADMIN_HEALTH,
    ADMIN_STATS,
    BATCH,
    BatchAnswer,
    BatchItem,
    BatchOutcome,
    BatchRequest,
    Command,
    ErrorAnswer,
    Figures,
)
from synap.engine.callers import Caller
from synap.engine.engine import MISSING, WAITING, Engine
from synap.engine.journal import Journal
from synap.errors import SynapError
from synap.host.base import ANSWER, PUSH, REFUSE, Batch, Held, Log, Session
from synap.wire.codec import find

__all__ = ["Host"]


class Host:
    """Runs one engine for any number of sessions.

    `alarm` is told when `wake` must be called next (Unix seconds, None: not at all).
    """

    def __init__(
        self,
        engine: Engine,
        *,
        log: Optional[Log] = None,
        clock: Callable[[], float] = time.time,
        alarm: Callable[[Optional[float]], None] = lambda when: None,
    ) -> None:
        self.engine = engine
        self.log = log
        self.clock = clock
        self.alarm = alarm
        self.held: Optional[List[Held]] = [] if log is not None and log.holds else None
        self.pending: Deque[Batch] = deque()
        """Batches the log has and has not yet reported on, oldest first (only where answers are held)."""
        self.touched: List[Session] = []
        """Sessions with something to flush at the end of this turn. Lanes add themselves."""
        self.unavailable: Optional[SynapError] = None
        """Why writes are refused, while they are."""
        self.started = clock()
        self.requests: List[int] = [0] * 128
        self.errors: Dict[str, int] = {}
        self.admin: Dict[Command, Callable[[Any, Session], Any]] = {
            ADMIN_STATS: self._stats,
            ADMIN_HEALTH: self._health,
        }
        self._alarm_at: Optional[float] = None
        self._moved = True
        """Whether something may be due at another time than `_alarm_at`. Reads move nothing."""
        self._unread: List[Callable[[], None]] = []
        engine.journal.keep_records = log is not None
        engine.journal.keep_undo = self.held is not None

    # ------------------------------------------------------------------------------------------ requests

    def execute(
        self,
        session: Session,
        number: int,
        command: Command,
        body: Any,
        retried: bool = False,
        *,
        decoded: bool = False,
    ) -> None:
        """Do a request: `body` is its encoded payload (or, `decoded`, the payload). The answer goes to `session`.

        `retried` says that it may have been done before; then it is answered as it was then.
        """
        self.requests[command.code] += 1
        if command.flags:
            self._moved = True
        try:
            if retried and command.writes and session.session:
                answer = self.engine.recall(session.session, number)
                if answer is not MISSING:
                    session.answer(number, answer)
                    return
            payload = body if decoded else session.codec.decode_payload(command, body)
            if self.unavailable is not None and command.writes and command is not BATCH:
                raise self._refusal()
            if command.hosted:
                answer = (
                    self._admin(command, payload, session) if command.admin else self._batch(session, number, payload)
                )
            else:
                answer = self.engine.execute(payload, self.clock(), session, number)
        except SynapError as error:
            self.errors[error.code] = self.errors.get(error.code, 0) + 1
            session.refuse(number, error)
        else:
            if answer is not WAITING:
                if self.held is None:
                    session.send_answer(number, answer)
                else:
                    session.answer(number, answer)
                if command.pushes:
                    self.engine.resume(session, answer.subscription_id, self.clock())

    def end_turn(self) -> None:
        """Hand what changed to the log, let out what may go out, and set the alarm."""
        if self.log is not None:
            self._commit()
        if self.touched:
            self._flush()
        if self._moved and self.unavailable is None:
            self._moved = False
            due = self.engine.next_deadline()
            if due != self._alarm_at:
                self._alarm_at = due
                self.alarm(due)

    def rearm(self) -> None:
        """Tell `alarm` anew at the end of the next turn: what it was told is lost."""
        self._alarm_at = None
        self._moved = True

    def wake(self) -> None:
        """Let everything happen that is due by now. A turn of its own."""
        self.rearm()
        if self.unavailable is None:
            self.engine.advance(self.clock())
        self.end_turn()

    def cancel(self, session: Session, number: int) -> None:
        """Forget a request nobody waits for; a message it may have leased goes back."""
        self._moved = True
        self.engine.cancel(session, number)

    def confirm(self, session: Session, below: int) -> None:
        """Forget the answers to a session's requests numbered below: its client has them."""
        self.engine.confirm(session.session, below)

    @property
    def stalled(self) -> bool:
        """Whether the log has so much to do that lanes should stop reading; `when_flowing` tells them to go on."""
        return self.log is not None and self.log.stalled

    def when_flowing(self, callback: Callable[[], None]) -> None:
        """Call `callback` once the log has caught up."""
        self._unread.append(callback)

    def leave(self, session: Session) -> None:
        """A session is gone: what it waited for and was subscribed to ends. A turn of its own."""
        self._moved = True
        self.engine.forget(session, self.clock())
        self.end_turn()

    def drain(self) -> None:
        """Answer all who wait as if their time were up. A turn of its own."""
        self._moved = True
        self.engine.release_waiters()
        self.end_turn()

    # ------------------------------------------------------------------------------------------ the log's reports

    def committed(self, batch: Batch) -> None:
        """The log has `batch` safe: say what waited for it. A turn of its own."""
        if self.held is not None:
            if self.pending and self.pending[0] is batch:
                self.pending.popleft()
            self._say(batch.held)
        if self.touched:
            self._flush()
        if self._unread and not self.stalled:
            self._read_on()

    def failed(self, error: SynapError, *, uncertain: bool = False) -> None:
        """The log could not keep what it was given: take it all back, refuse writes until `recovered`.

        `uncertain` says that some of it may be found on disk after a restart. Only where answers are held is anything
        taken back; a log that answers first keeps what it has and tries again. Consumers that wait are refused like new
        ones, since nothing can be leased now. A turn of its own.
        """
        self.unavailable = error
        waiting: List[Held] = []
        if self.held is not None:
            _, undos = self.engine.collect()
            waiting, self.held = self.held, []
            for batch in reversed(self.pending):
                Journal.roll_back(undos)
                undos = batch.undos
                waiting = batch.held + waiting
            Journal.roll_back(undos)
            self.pending.clear()
        self.engine.release_waiters(self._refusal())
        released, self.held = self.held, None if self.held is None else []
        for session, what, number, thing in waiting:
            if what == ANSWER:
                session.send_error(number, self._refusal(uncertain))
            elif what == REFUSE:
                session.send_error(number, thing)
        # What was pushed never happened.
        for session in {id(entry[0]): entry[0] for entry in waiting if entry[1] == PUSH}.values():
            session.lose_pushes()
        if released:
            self._say(released)
        if self.held is not None:
            self.engine.collect()
        if self.touched:
            self._flush()
        self._read_on()

    def recovered(self) -> None:
        """The log works again: writes are welcome. A turn of its own."""
        self.unavailable = None
        self.wake()
        self._read_on()

    # ------------------------------------------------------------------------------------------ inside

    def _refusal(self, may_have_happened: bool = False) -> SynapError:
        """Build the error for a write that can't be done now: each its own, as an exception carries its traceback."""
        why = self.unavailable
        assert why is not None
        error = SynapError(why.code, why.message, dict(why.details))
        error.may_have_happened = may_have_happened
        return error

    def _commit(self) -> None:
        assert self.log is not None
        held = self.held
        if self.engine.journal.records:
            records, undos = self.engine.collect()
            if held is not None and self.unavailable is not None:
                # Reads go on, and a caller that leaves may have moved something; nothing may move that can't be kept.
                Journal.roll_back(undos)
                self._say(held)
                self.held = []
                return
            batch = Batch(records, undos, held if held is not None else [])
            if held is not None:
                self.held = []
                self.pending.append(batch)
            self.log.submit(batch)
        elif held:
            if self.pending:
                self.pending[-1].held.extend(held)
            else:
                self._say(held)
            self.held = []

    def _say(self, held: List[Held]) -> None:
        for session, what, number, thing in held:
            if what == ANSWER:
                session.send_answer(number, thing)
            elif what == PUSH:
                session.send_push(number, thing)
            elif what == REFUSE:
                session.send_error(number, thing)
            else:
                session.send_ended(number, thing)

    def _read_on(self) -> None:
        unread, self._unread = self._unread, []
        for callback in unread:
            callback()

    def _flush(self) -> None:
        touched, self.touched = self.touched, []
        for session in touched:
            session.flush()

    def _batch(self, session: Session, number: int, request: BatchRequest) -> Any:
        if any(item.number is not None for item in request.commands):
            return self._bundle(session, request)
        if self.unavailable is not None:
            raise self._refusal()
        items: List[Any] = []
        for item in request.commands:
            try:
                items.append(session.codec.decode_item(item))
            except SynapError as error:
                items.append(error)
        return self.engine.execute_batch(items, request.atomic, self.clock(), session, number)

    def _bundle(self, session: Session, request: BatchRequest) -> BatchAnswer:
        """Do requests that travelled together, each as if it had come by itself."""
        if request.atomic or any(item.number is None for item in request.commands):
            raise SynapError("INVALID_REQUEST", "a batch has numbers on all commands and isn't atomic, or on none")
        outcomes = []
        for item in request.commands:
            try:
                outcomes.append(BatchOutcome("success", self._bundled(session, item)))
            except SynapError as error:
                self.errors[error.code] = self.errors.get(error.code, 0) + 1
                outcomes.append(BatchOutcome("error", None, ErrorAnswer.of(error)))
        return BatchAnswer(outcomes)

    def _bundled(self, session: Session, item: BatchItem) -> Any:
        command = find(item.command)
        self.requests[command.code] += 1
        if not command.batchable:
            raise SynapError("INVALID_REQUEST", f"{command.name} can't be part of a batch")
        payload = session.codec.decode_item(item)
        if command.writes:
            if session.session:
                answer = self.engine.recall(session.session, item.number or 0)
                if answer is not MISSING:
                    return answer
            if self.unavailable is not None:
                raise self._refusal()
        return self.engine.execute(payload, self.clock(), session, item.number or 0)

    def _admin(self, command: Command, payload: Any, session: Session) -> Any:
        handler = self.admin.get(command)
        if handler is None:
            raise SynapError("INVALID_COMMAND", f"{command.name} is not to be had here: it needs a server")
        return handler(payload, session)

    def waits(self) -> Iterator[Tuple[Caller, str]]:
        """Go through the requests that wait for a message: whose each is, and the queue's name."""
        return self.engine.waits()

    def _stats(self, payload: Any, session: Any = None, most: Optional[int] = None) -> Figures:
        figures = self.engine.stats(most)
        figures["uptime_secs"] = round(self.clock() - self.started, 3)
        figures["requests_total"] = sum(self.requests)
        return Figures(figures)

    def _health(self, payload: Any = None, session: Any = None) -> Figures:
        status = "ok" if self.unavailable is None else "degraded"
        figures: Dict[str, Any] = {
            "status": status,
            "uptime_secs": round(self.clock() - self.started, 3),
            "durable": self.log is not None,
        }
        if self.unavailable is not None:
            figures["reason"] = self.unavailable.message
        return Figures(figures)
