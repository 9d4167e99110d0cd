"""Batches that are not atomic, executed in slices, with other callers' requests in between."""

from __future__ import annotations

import time
from types import GeneratorType
from typing import TYPE_CHECKING, Any, List

from synap.commands import COMMANDS, BatchAnswer, BatchItem, BatchOutcome, BatchRequest, Command, ErrorAnswer
from synap.engine.callers import Number, Steps
from synap.engine.engine import MISSING
from synap.engine.replies import part
from synap.errors import SynapError
from synap.shapes import SMALL, counter, estimator
from synap.wire.codec import find
from synap.wire.frames import MAX_ANSWER
from synap.wire.large import LARGE

if TYPE_CHECKING:
    from synap.host.base import Session
    from synap.host.engine import EngineHost

__all__ = ["Batching"]

MOST_PARTS = 200_000
"""Keys, messages, events and names in the answers of one batch: encoding so many takes some 30 ms."""
HINTS = 20
"""Errors in a batch that contain a 'did you mean', which takes time to find."""


COUNTERS = {command.answer: count for command in COMMANDS.values() if (count := counter(command.answer)) is not None}


class Batching:
    """One batch that isn't atomic. Its commands are `numbered` where they come from several requests of the session.

    The outcomes of each slice that wrote are remembered, so that a retry after a crash continues where it stopped.
    """

    def __init__(
        self, host: EngineHost, session: Session, number: Number, request: BatchRequest, numbered: bool
    ) -> None:
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
        self.weight = 0
        self.listed = 0
        """Items of lists in the answers so far."""
        self.errors = 0

    def steps(self, retried: bool) -> Steps:
        """Execute the commands, continuing where an earlier attempt stopped; returns the answer."""
        if retried and not self.numbered:
            self._recall()
        jobs = self.host.jobs
        for place in range(len(self.outcomes), len(self.items)):
            if place and time.perf_counter() > jobs.until:
                self._remember()
                yield
            item = self.items[place]
            try:
                answer = yield from self._execute(item)
                if isinstance(answer, GeneratorType):
                    answer = yield from jobs.alone(answer)
                self.outcomes.append(BatchOutcome("success", answer))
                estimate = estimator(type(answer))
                self.weight += SMALL if estimate is None else estimate(answer)
                if estimate is not None:
                    count = COUNTERS.get(type(answer))
                    self.listed += 0 if count is None else count(answer)
            except SynapError as error:
                self._failed(error)
            except Exception:
                self._failed(self.host.crashed(item.command[:80]), counted=True)
        self._remember(last=True)
        return BatchAnswer(self.outcomes)

    def _failed(self, error: SynapError, *, counted: bool = False) -> None:
        self.errors += 1
        self.weight += SMALL + len(error.message)
        if self.numbered and not counted:
            self.host.count_error(error.code)
        self.outcomes.append(BatchOutcome("error", None, ErrorAnswer.of(error)))

    def _execute(self, item: BatchItem) -> Steps:
        """Execute one command; returns its answer, or the steps of one that takes several. Raises `SynapError`."""
        host, session = self.host, self.session
        hints = self.errors < HINTS
        command = find(item.command, hint=hints)
        body = bytes(item.payload) or session.codec.empty
        if len(body) > LARGE:
            payload = yield from session.codec.decode_in_steps(command, body, hint=hints)
        else:
            payload = session.codec.decode_payload(command, body, hint=hints)
        if session.permit is not None:
            session.permit.check(command, payload)
        if self.weight > MAX_ANSWER:
            text = f"the answers before this one have about {self.weight:,} bytes, more than {MAX_ANSWER:,} together"
            raise SynapError("PAYLOAD_TOO_LARGE", f"{text}; this command was not executed", {"limit": MAX_ANSWER})
        if self.listed > MOST_PARTS:
            text = f"the answers before this one list {self.listed:,} items, more than {MOST_PARTS:,} together"
            raise SynapError("PAYLOAD_TOO_LARGE", f"{text}; this command was not executed", {"limit": MOST_PARTS})
        if self.numbered:
            return self._execute_numbered(command, payload, item.number or 0)
        answer = host.guarded(host.engine.execute_item, payload, host.clock(), session)
        if command.writes:
            self.wrote = True
        return answer

    def _execute_numbered(self, command: Command, payload: Any, number: int) -> Any:
        host, session = self.host, self.session
        host.requests[command.code] += 1
        if not command.batchable:
            raise SynapError("INVALID_REQUEST", f"{command.name} can't be part of a batch")
        if command.writes:
            if session.session:
                answer = host.engine.recall(session.session, number)
                if answer is not MISSING:
                    return answer
            if host.refuses(command):
                raise host.refusal()
        return host.guarded(host.engine.execute, payload, host.clock(), session, number)

    # ---- remembered slices
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
            self.outcomes += done.results
            self.parts += 1
            self.remembered = len(self.outcomes)
