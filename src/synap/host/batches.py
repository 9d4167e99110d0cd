"""Batches: atomic ones in one go, others in slices, with other callers' requests in between."""

from __future__ import annotations

import time
from types import GeneratorType
from typing import Any, List

from synap.commands import COMMANDS, BatchAnswer, BatchOutcome, BatchRequest, Command, ErrorAnswer, GetAnswer, SetAnswer
from synap.engine.callers import Number, Steps
from synap.engine.engine import MISSING
from synap.engine.replies import part
from synap.errors import SynapError
from synap.host.base import Session
from synap.host.logged import LoggedHost
from synap.shapes import SMALL, counter, estimator
from synap.wire.codec import MALFORMED, find
from synap.wire.frames import MAX_ANSWER
from synap.wire.large import LARGE

MAX_ATOMIC = 5_000
"""The most commands of an atomic batch, which can't be interrupted."""
MOST_LISTED = 200_000
"""Keys, messages, events and names in the answers of one batch: encoding so many takes some 30 ms."""
MOST_SECONDS = 2.0
"""Processor time that the commands of an atomic batch may take: nobody else is served meanwhile."""
REFUSAL, ROOM = 300, 128 * 1024
"""Bytes that are kept for each command, should it be refused, and for the answer of one more write."""
HINTS = 20
"""Errors in a batch that contain a 'did you mean', which takes time to find."""

MEASURES = {
    command.answer: (estimate, counter(command.answer))
    for command in COMMANDS.values()
    if (estimate := estimator(command.answer)) is not None
}
"""What estimates the bytes of an answer, and what counts the items of its lists, for answers that aren't `SMALL`."""
_UNLISTED = None, None


def execute_batch(host: LoggedHost, session: Session, number: Number, request: BatchRequest, retried: bool) -> Steps:
    """Execute the commands of a batch in order."""
    numbered = is_numbered(request)
    if not numbered:
        _check_accepted(host, request)
    if request.atomic:
        return (yield from _atomic(host, session, number, request))
    return (yield from Batching(host, session, number, request, numbered).steps(retried))


def is_numbered(request: BatchRequest) -> bool:
    """Return whether the commands of a batch have numbers. Raises `INVALID_REQUEST` where only some have."""
    numbers = [item.number for item in request.commands]
    missing = numbers.count(None)
    numbered = missing < len(numbers)
    if numbered and (request.atomic or missing):
        raise SynapError("INVALID_REQUEST", "a batch has numbers on all commands and isn't atomic, or on none")
    return numbered


def _check_accepted(host: LoggedHost, request: BatchRequest) -> None:
    """Raise where a batch holds commands that are refused now."""
    if host.unavailable is not None:
        known = (COMMANDS.get(item.command) for item in request.commands)
        if any(command is not None and host.refuses(command) for command in known):
            raise host.refusal()


def _atomic(host: LoggedHost, session: Session, number: Number, request: BatchRequest) -> Steps:
    if len(request.commands) > MAX_ATOMIC:
        text = f"an atomic batch may have at most {MAX_ATOMIC:,} commands, this one has {len(request.commands):,}"
        raise SynapError("INVALID_REQUEST", text, {"limit": MAX_ATOMIC})
    items: List[Any] = []
    hint = True  # for the first error, which is the one that is told
    for item in request.commands:
        try:
            command, body = find(item.command, hint=hint), bytes(item.payload) or session.codec.empty
            if len(body) > LARGE:
                payload = yield from session.codec.decode_in_steps(command, body, hint=hint)
            else:
                payload = session.codec.decode_payload(command, body, hint=hint)
            session.check(command, payload)
            items.append(payload)
        except SynapError as error:
            hint = False
            items.append(error)
        if time.perf_counter() > host.jobs.until:
            yield
    _check_accepted(host, request)  # decoding may have taken a while
    return host.engine.execute_atomic(items, host.clock(), session, number, _Uninterrupted().check)


class Measured:
    """How much the answers of one batch are together."""

    def __init__(self) -> None:
        self.weight = 0
        """Their estimated bytes."""
        self.most = MAX_ANSWER
        """The most of these."""
        self.listed = 0
        """Items of their lists."""

    def add(self, answer: Any) -> None:
        """Count an answer."""
        estimate, count = MEASURES.get(type(answer), _UNLISTED)
        self.weight += SMALL if estimate is None else estimate(answer)
        if count is not None:
            self.listed += count(answer)

    @property
    def passed(self) -> bool:
        """Whether they are too large together."""
        return self.weight > self.most or self.listed > MOST_LISTED

    def check(self, answer: Any) -> None:
        """Count an answer; raises where they are too large together."""
        self.add(answer)
        if self.passed:
            raise self.too_large("up to this one", "nothing was done")

    def too_large(self, which: str, done: str) -> SynapError:
        """Build the error for too much."""
        limit, have = self.most, f"have about {self.weight:,} bytes"
        if self.weight <= limit:
            limit, have = MOST_LISTED, f"list {self.listed:,} items"
        text = f"the answers {which} {have}, more than {limit:,} together; {done}"
        return SynapError("PAYLOAD_TOO_LARGE", text, {"limit": limit})


class _Uninterrupted(Measured):
    """How much an atomic batch has answered, and how long it took, not counting when other processes ran."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = time.thread_time() + MOST_SECONDS
        self.soonest = time.perf_counter() + MOST_SECONDS
        """Before this, the other clock need not be read, which takes ten times as long."""

    def check(self, answer: Any) -> None:
        """Count an answer; raises where they are too large together, or have taken too long."""
        super().check(answer)
        if time.perf_counter() > self.soonest and time.thread_time() > self.ends:
            text = f"the commands up to this one took more than {MOST_SECONDS:g} s; nothing was done"
            raise SynapError("PAYLOAD_TOO_LARGE", text, {"limit": MOST_SECONDS})


class Batching(Measured):
    """One batch that isn't atomic. Its commands are `numbered` where they come from several requests of the session.

    The outcomes of each slice that wrote are remembered, so that a retry after a crash continues where it stopped.
    """

    def __init__(
        self, host: LoggedHost, session: Session, number: Number, request: BatchRequest, numbered: bool
    ) -> None:
        super().__init__()
        self.host = host
        self.session = session
        self.number = number
        self.items = request.commands
        self.numbered = numbered
        self.outcomes: List[BatchOutcome] = []
        self.parts = 0
        """Slices that are remembered."""
        self.remembered = 0
        """Outcomes in those slices."""
        self.wrote = False
        """Whether a command since the last remembered slice had effects."""
        self.errors = 0
        self.most -= ROOM + REFUSAL * len(self.items)  # what was executed can be told, whatever comes behind it

    def steps(self, retried: bool) -> Steps:
        """Execute the commands, continuing where an earlier attempt stopped; returns the answer."""
        if retried and not self.numbered:
            self._recall()
        host, session, outcomes = self.host, self.session, self.outcomes
        jobs, codec, decoders = host.jobs, session.codec, session.codec.decoders
        execute, journal = host.engine.execute_item, host.engine.journal
        now = host.clock()
        for place in range(len(outcomes), len(self.items)):
            if place and time.perf_counter() > jobs.until:
                self._remember()
                yield
                now = host.clock()
            item = self.items[place]
            begun = None
            try:
                if self.passed:
                    raise self.too_large("before this one", "this command was not executed")
                command = COMMANDS.get(item.command) or find(item.command, hint=self.errors < HINTS)
                body = bytes(item.payload) or codec.empty
                if len(body) > LARGE:
                    payload = yield from self._in_slices(codec.decode_in_steps(command, body, hint=self.errors < HINTS))
                    now = host.clock()
                else:
                    try:  # as `Codec.decode_payload`, without a call for each command
                        payload = decoders[command.code](body)
                    except MALFORMED as malformed:
                        raise codec.refusal(command, body, malformed, self.errors < HINTS) from None
                if command.admin or session.permit is not None:
                    session.check(command, payload)
                if host.holds:
                    begun = len(journal.undos), len(journal.records)
                if self.numbered:
                    answer = self._execute_numbered(command, payload, now, item.number or 0)
                else:
                    if host.unavailable is not None and host.refuses(command):  # by now; what was done stays done
                        raise host.refusal()
                    answer = execute(payload, now, session)
                    if command.writes:
                        self.wrote = True
                begun = None
                kind, before = type(answer), (self.weight, self.listed)
                if kind is GeneratorType:
                    answer = yield from self._in_slices(answer) if command.sharing else jobs.alone(answer)
                    kind, now = type(answer), host.clock()
                if kind is GetAnswer:  # as in `MEASURES`, inlined for the most frequent answers
                    self.weight += SMALL + len(answer.value or b"")
                elif kind is SetAnswer:
                    self.weight += SMALL + len(answer.previous or b"")
                else:
                    self.add(answer)
                if self.weight > self.most and not command.has_effects:
                    refused = self.too_large("up to this one", "this command's is left out")
                    self.weight, self.listed = before
                    raise refused
                outcomes.append(BatchOutcome("success", answer))
            except SynapError as error:
                self._failed(error)
            except Exception:  # of one command: its changes are undone, and the others have outcomes of their own
                if begun is not None:
                    journal.cut_back(*begun)
                self._failed(host.crashed(item.command[:80]), counted=True)
        self._remember(last=True)
        return BatchAnswer(outcomes)

    def _count_error(self, message: str) -> None:
        self.errors += 1
        each = 2 if message.isascii() and message.isprintable() else 12  # else JSON may write it as six
        self.weight += SMALL + each * len(message)  # details may say it again

    def _failed(self, error: SynapError, *, counted: bool = False) -> None:
        self._count_error(error.message)
        if self.numbered and not counted:
            self.host.count_error(error.code)
        self.outcomes.append(BatchOutcome("error", None, ErrorAnswer.of(error)))

    def _execute_numbered(self, command: Command, payload: Any, now: float, number: int) -> Any:
        host, session = self.host, self.session
        host.requests[command.code] += 1
        if not command.batchable:
            raise SynapError("INVALID_REQUEST", f"{command.name} can't be part of a batch")
        if command.writes:
            if session.session:
                answer = host.engine.recall(session.session, number)
                if answer is not MISSING:
                    session.repeated(self.number, len(self.outcomes))
                    return answer
            if host.refuses(command):
                raise host.refusal()
        return host.engine.execute(payload, now, session, number)

    # ---- remembered slices
    def _in_slices(self, steps: Steps) -> Steps:
        """Run steps between which the changes so far may be committed, so that they must be remembered with them."""
        try:
            while True:
                pause = next(steps)
                self._remember()
                yield pause
        except StopIteration as done:
            return done.value
        finally:
            steps.close()

    def _remember(self, *, last: bool = False) -> None:
        """Remember the outcomes since the last remembered slice, if any of them had effects."""
        if not self.wrote or self.numbered or not self.session.session:
            return
        number: Number = self.number if last and not self.parts else part(self.number, self.parts)
        done = BatchAnswer(self.outcomes[self.remembered :])
        self.host.engine.replies.keep(self.session.session, number, done, self.host.clock())
        self.parts += 1
        self.remembered = len(self.outcomes)
        self.wrote = False

    def _recall(self) -> None:
        """Load the outcomes of an earlier attempt that was not finished."""
        if not self.session.session:
            return
        while True:
            done = self.host.engine.recall(self.session.session, part(self.number, self.parts))
            if done is MISSING:
                return
            for outcome in done.results:
                if outcome.error is None:
                    self.add(outcome.payload)
                else:
                    self._count_error(outcome.error.message)
            self.outcomes += done.results
            self.parts += 1
            self.remembered = len(self.outcomes)
