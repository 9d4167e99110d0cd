"""Dispatches commands to the facilities, runs atomic batches, processes what is due, and collects the journal.

A host calls `execute` (for batches `execute_item` or `execute_atomic`) with what came in and the time, `advance` when
`next_deadline` is reached, and `collect` for what is to be made durable. The engine calls back through `Caller`
only, and has no locks: one call at a time.
"""

from __future__ import annotations

import itertools
from math import inf
from operator import itemgetter
from types import GeneratorType
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, Type, Union

from msgspec import Struct

from synap import commands as c
from synap.commands import Shape
from synap.engine import queuelog
from synap.engine import records as r
from synap.engine.callers import MISSING, STEP, WAITING, Caller, Number, Signal, Steps, run, until
from synap.engine.core import WORK, Core
from synap.engine.deliveries import Deliveries
from synap.engine.eviction import EvictingKeys
from synap.engine.figures import survey
from synap.engine.idle import Idle
from synap.engine.journal import Journal, Record, Undo
from synap.engine.keyvalue import Keys
from synap.engine.limits import Limits
from synap.engine.queues import Queues
from synap.engine.queuestore import QueueStore
from synap.engine.remembered import Delivery
from synap.engine.replies import Replies
from synap.engine.rooms import RoomSubscription
from synap.engine.streams import Streams
from synap.engine.timeline import NOTED
from synap.engine.topics import Topics, TopicSubscription
from synap.errors import SynapError

__all__ = ["MISSING", "WAITING", "Answered", "Engine", "Limits", "aborted", "failed", "unbatchable"]

Answered = Union[c.Answer, Signal, Steps, None]
"""What `Engine.execute` returns: an answer; None where the command found nothing; WAITING; or, for a long command,
steps: a generator that returns the answer. No other command may be executed until it has."""

Executor = Callable[[Any, float, Caller, Number], Answered]
"""Executes one command: (payload, now, caller, number)."""

SLICE_BYTES = 256 * 1024
"""Bytes after which a slice of `Engine.dump` ends."""

_READ, _SUBSCRIBE, _WAIT, _WRITE, _SETTLE = Shape.READ, Shape.SUBSCRIBE, Shape.WAIT, Shape.WRITE, Shape.SETTLE

_kind = itemgetter(0)
"""The kind of a record."""

MOST_STEPS = 2_000
"""The most steps that the commands of an atomic batch take: each goes over 500 items or so, and all are one turn."""
MOST_RECIPIENTS = 100_000
"""The most pushes of an atomic batch: one for each subscription, or waiting consumer, that a command reaches."""


class Engine:
    """All four facilities over one journal.

    `ids` gives random 64-bit integers. `journal` says whether records and undos are kept; `secret` signs the cursors
    of scans, and where it is left out one is made and journaled.
    """

    def __init__(
        self,
        *,
        ids: Callable[[], int],
        limits: Optional[Limits] = None,
        journal: Optional[Journal] = None,
        secret: Optional[bytes] = None,
    ) -> None:
        core = Core(ids, limits, journal)
        self.limits, self.journal, self.budget, self.effects = core.limits, core.journal, core.budget, core.effects
        self.timeline, self.horizon, self.leftovers = core.timeline, core.horizon, core.leftovers
        self.replies = Replies(core)
        self.keys = (EvictingKeys if core.limits.evict else Keys)(core, secret, self._finish)
        self.store = QueueStore(core)
        self.deliveries = Deliveries(core, self.store, self.replies)
        self.queues = Queues(self.store, self.deliveries)
        self.streams = Streams(core)
        self.topics = Topics(core)
        self.idle = Idle(core, self.store, self.streams)
        self._restored_last = "", 0.0
        """The session and time of the last record that was restored and holds them."""
        self._batchable: Dict[Type[Struct], Tuple[Callable[..., Any], bool]] = {}
        """The method of each command that can be part of a batch, and whether it takes the caller."""
        self.runs: List[Any] = [None] * 128
        """By a command's code: the function that does what `execute` does. None: the host executes the command."""
        facilities = {"kv": self.keys, "queue": self.queues, "stream": self.streams, "pubsub": self.topics}
        for command in c.COMMANDS.values():
            if not command.hosted:
                method = getattr(facilities[command.group], command.method)
                self.runs[command.code] = self._executor(method, command.shape)
                if command.shape not in (_SUBSCRIBE, _WAIT):
                    self._batchable[command.payload] = method, command.shape == _SETTLE

    def _executor(self, method: Callable[..., Any], shape: int) -> Executor:
        """Build the function that executes a command, with nothing left to look up for each request."""
        keep, kept = self.replies.keep, self._kept

        def read(payload: Any, now: float, caller: Caller, number: Number) -> Answered:
            answer: Answered = method(payload, now)
            return answer

        def write(payload: Any, now: float, caller: Caller, number: Number) -> Answered:
            answer: Any = method(payload, now)
            if type(answer) is GeneratorType:
                return kept(answer, now, caller, number)
            if caller.session:
                keep(caller.session, number, answer, now)
            return answer  # type: ignore[no-any-return]  # see `Answered`

        def set_key(payload: Any, now: float, caller: Caller, number: Number) -> Answered:
            session = caller.session
            if not session:
                return method(payload, now)  # type: ignore[no-any-return]  # see `Answered`
            answer: Any = method(payload, now, (session, number, now))
            keep(session, number, answer, now, answer.success)
            return answer  # type: ignore[no-any-return]  # see `Answered`

        def settle(payload: Any, now: float, caller: Caller, number: Number) -> Answered:
            answer: Any = method(payload, now, caller)
            if caller.session:
                keep(caller.session, number, answer, now)
            return answer  # type: ignore[no-any-return]  # see `Answered`

        def subscribe(payload: Any, now: float, caller: Caller, number: Number) -> Answered:
            answer: Answered = method(payload, now, caller)
            return answer

        by_shape = {_READ: read, _WRITE: write, _SETTLE: settle, _SUBSCRIBE: subscribe, _WAIT: method}
        return set_key if method == self.keys.set else by_shape[shape]

    # ------------------------------------------------------------------------------------------ requests

    def execute(self, payload: Any, now: float, caller: Caller, number: Number = 0) -> Answered:
        """Run one command; its payload says which. Raises `SynapError`, and then nothing changed.

        WAITING is returned for a consume that waits: its answer comes through the caller. What wrote is remembered
        under the caller's session and `number` of the request, where there is a session. A new subscription to a room
        gets its history once the host calls `resume`.
        """
        command = c.BY_PAYLOAD.get(type(payload))
        if command is None or command.hosted:
            raise _unknown(payload)
        executor: Executor = self.runs[command.code]
        return executor(payload, now, caller, number)

    def execute_atomic(
        self,
        items: List[Any],
        now: float,
        caller: Caller,
        number: Number = 0,
        check: Callable[[Any], None] = lambda answer: None,
    ) -> c.BatchAnswer:
        """Run decoded payloads in order, all or none; an item that is a `SynapError` (it could not be decoded) fails.

        The first that fails undoes those before it, nothing has changed and nothing went out; it has its error and all
        others `BATCH_ABORTED`. So does one whose answer `check` raises for, or with which the batch takes too long.
        """
        answer = self._run_atomic(items, now, caller, check)
        if caller.session and any(
            outcome.error is None and c.BY_PAYLOAD[type(item)].shape != _READ
            for item, outcome in zip(items, answer.results)
        ):
            self.replies.keep(caller.session, number, answer, now)
        return answer

    def _run_atomic(self, items: List[Any], now: float, caller: Caller, check: Callable[[Any], None]) -> c.BatchAnswer:
        journal = self.journal
        keeps_undo, journal.keep_undo = journal.keep_undo, True
        undos, records = len(journal.undos), len(journal.records)
        outcomes: List[c.BatchOutcome] = []
        self.effects.hold()
        left = iter(range(MOST_STEPS))
        try:
            for item in items:
                answer = self.execute_item(item, now, caller)
                if isinstance(answer, GeneratorType):
                    answer = _finished(answer, left)
                check(answer)
                if self.effects.recipients > MOST_RECIPIENTS:
                    raise _too_much(f"push to more than {MOST_RECIPIENTS:,} subscriptions", MOST_RECIPIENTS)
                outcomes.append(c.BatchOutcome("success", answer))
        except BaseException as error:
            self.effects.drop()
            journal.keep_undo = keeps_undo
            journal.cut_back(undos, records)
            if not isinstance(error, SynapError):
                raise
            return aborted(len(items), len(outcomes), error)
        journal.keep_undo = keeps_undo
        if not keeps_undo:
            del journal.undos[undos:]
        self.effects.release()
        return c.BatchAnswer(outcomes)

    def execute_item(self, item: Any, now: float, caller: Caller) -> Any:
        """Run one command of a batch, which is remembered as a whole or in parts. Otherwise as `execute`."""
        found = self._batchable.get(type(item))
        if found is None:
            raise item if isinstance(item, SynapError) else unbatchable(item)
        method, settles = found
        return method(item, now, caller) if settles else method(item, now)

    def _kept(self, steps: Steps, now: float, caller: Caller, number: Number) -> Steps:
        """Run the steps of a write, and remember its answer."""
        answer = yield from steps
        if caller.session:
            self.replies.keep(caller.session, number, answer, now)
        return answer

    def _finish(self, callers: List[Caller], number: Number, answer: c.Answer, now: float) -> None:
        """Answer a request that was executed in slices, to all who sent it."""
        if callers[0].session:
            self.replies.keep(callers[0].session, number, answer, now)
        for caller in callers:
            caller.answer(number, answer)

    def recall(self, session: str, number: Number) -> Any:
        """Return what a request was answered before, or MISSING where that is not remembered.

        A consume whose lease is over counts as not answered.
        """
        return self.replies.recall(session, number)

    def confirm(self, session: str, below: int) -> None:
        """Forget the answers to a session's requests numbered below: its client has them."""
        self.replies.confirm(session, below)

    def cancel(self, caller: Caller, number: Number, now: Optional[float] = None) -> None:
        """Withdraw a request. A message that it was answered with goes back, and the try does not count."""
        self.deliveries.cancel(caller, number, now)
        self.keys.forget(caller, number)

    def forget(self, caller: Caller, now: Optional[float] = None) -> None:
        """Drop the waiting requests and subscriptions of a caller that is gone. Its leases run on."""
        self.deliveries.forget(caller, now)
        self.keys.forget(caller)
        for subscription_id in list(caller.subscriptions):
            self.unsubscribe(caller, subscription_id)

    def unsubscribe(self, caller: Caller, subscription_id: int) -> None:
        """End a subscription of a caller, if it exists."""
        subscription = caller.subscriptions.get(subscription_id)
        if isinstance(subscription, RoomSubscription):
            self.streams.drop(subscription)
        elif isinstance(subscription, TopicSubscription):
            self.topics.drop(subscription)

    def release_waiters(self, now: float, error: Optional[SynapError] = None) -> None:
        """Answer every waiting consume: as if its time were up, or with an error."""
        self.deliveries.latest = now
        self.deliveries.release(error)
        if error is not None:
            self.keys.refuse(error)

    def resume(self, caller: Caller, subscription_id: int) -> bool:
        """Push events from the room's log; returns True once the caller has all of them, False where it is full."""
        subscription = caller.subscriptions.get(subscription_id)
        return not isinstance(subscription, RoomSubscription) or self.streams.resume(subscription)

    # ------------------------------------------------------------------------------------------ time

    def advance(self, now: float) -> None:
        """Process what is due: expiries, ends of leases, delays and waits, retention.

        One call does a bounded amount of work; while more is due, `next_deadline` is in the past.
        """
        self.deliveries.advance(now, WORK)
        self.keys.advance(now, WORK)
        self.streams.advance(now, WORK)
        self.replies.advance(now, WORK)
        self.idle.advance(now, WORK)

    def next_deadline(self) -> Optional[float]:
        """Return when `advance` has something to do next; None: nothing is scheduled. Sets the horizon to it."""
        # One after the other, not in a loop: a call that always meets the same class costs a third of what it does.
        first = self.deliveries.next_deadline()
        for time in (
            self.keys.next_deadline(),
            self.streams.next_deadline(),
            self.replies.next_deadline(),
            self.idle.next_deadline(),
        ):
            if time is not None and (first is None or time < first):
                first = time
        self.horizon.at = inf if first is None else first
        return first

    # ------------------------------------------------------------------------------------------ durability

    def collect(self) -> Tuple[List[Record], List[Undo]]:
        """Take the records and undos since the last time, see `complete`."""
        return self.complete().take()

    def complete(self, now: float = 0.0) -> Journal:
        """Note totals of queues and steps of the wall clock in the journal, and return it.

        `now`: the time, which is noted once a second where no record says it.
        """
        self.store.collect()
        timeline = self.timeline
        if now >= timeline.latest + NOTED:
            timeline.latest = now
            if self.journal.said is None:
                self.journal.records.append((r.TIME, now))
        if timeline.unrecorded and self.journal.keep_records:
            self.journal.records += [(r.CLOCK, *step) for step in timeline.unrecorded]
            if self.journal.keep_undo:
                self.journal.undos.append((timeline.unrecord, (timeline.unrecorded,)))
            timeline.unrecorded = []
        return self.journal

    def restore_all(self, records: List[Record]) -> None:
        """Apply records in order, as `restore` does one by one. Many keys in a row take half the time."""
        for kind, alike in itertools.groupby(records, _kind):
            if kind == r.KEY:
                self.keys.restore_each(list(alike))
            elif kind == r.KEY_SET:
                self._restore_sets(list(alike))
            elif kind == r.KEY_SET_SAME:
                self._restore_same_sets(list(alike))
            else:
                for record in alike:
                    self.restore(record)

    def restore(self, record: Record) -> None:
        """Apply one record of a journal or a snapshot; call `restored` after the last."""
        kind = record[0]
        if kind < r.QUEUE:
            self.keys.restore(record)
        elif kind < r.ROOM:
            queuelog.restore(self.store, record)
            if kind == r.LEASE and record[6] is not None:
                _, name, number, lease, _, session, request, time, *many = record
                self.timeline.latest = max(self.timeline.latest, time)
                queue = self.store.queues.get(name)
                if queue is not None and number in queue.messages:
                    delivery = Delivery(queue, f"{queue.prefix}{number:x}", lease)
                    self.replies.restore_lease(session, request, time, delivery, bool(many))
        elif kind < r.REPLY:
            self.streams.restore(record)
        elif kind < r.CLOCK:
            self._restore_reply(record)
        elif kind == r.CLOCK:
            self.timeline.add(record[1], record[2])
            self.timeline.latest = max(self.timeline.latest, record[1])
        elif kind == r.KEY_SET:
            self._restore_sets([record])
        elif kind == r.KEY_SET_SAME:
            self._restore_same_sets([record])
        elif kind == r.KEYS:
            self.keys.restore_keys(record[1], record[2])
        elif kind == r.TIME:
            self.timeline.latest = max(self.timeline.latest, record[1])
        else:
            raise ValueError(f"there is no record of kind {kind}")

    def _restore_sets(self, records: List[Record]) -> None:
        """Apply records of kind `KEY_SET`."""
        self.keys.restore_each([record[:4] for record in records])
        timeline, keep = self.timeline, self.replies.keep
        for _, key, _, _, session, number, time in records:
            timeline.latest = max(timeline.latest, time)
            keep(session, number, c.SetAnswer(True, key), time, recorded=True)
            self._restored_last = session, time

    def _restore_same_sets(self, records: List[Record]) -> None:
        """Apply records of kind `KEY_SET_SAME`."""
        self.keys.restore_each([record[:4] for record in records])
        keep = self.replies.keep
        session, time = self._restored_last
        for _, key, _, _, number in records:
            keep(session, number, c.SetAnswer(True, key), time, recorded=True)

    def _restore_reply(self, record: Record) -> None:
        """Apply a record of kind `REPLY` or `REPLY_SAME`."""
        if record[0] == r.REPLY:
            _, session, number, time, kind, data = record
            self.timeline.latest = max(self.timeline.latest, time)
            self._restored_last = session, time
        else:
            _, number, kind, data = record
            session, time = self._restored_last
        self.replies.restore(session, number, time, kind, data, self.store)

    def restored(self, now: float) -> None:
        """Build the derived state (indexes, deadlines, sizes). Call it once, also when there were no records."""
        self.keys.restored()
        queuelog.restored(self.store)
        self.streams.restored()
        self.replies.restored(now)
        self.idle.restored()
        self.journal.undos = []
        self.deliveries.latest = now

    def dump(self, slice_size: int = 1000) -> Iterator[List[Record]]:
        """Yield records of the whole state, in slices. Changes between two slices must be journaled and replayed."""
        latest = max(self.deliveries.latest, self.timeline.latest)
        if latest:
            yield [*((r.CLOCK, *step) for step in self.timeline.steps), (r.TIME, latest)]
        yield from self.keys.dump(slice_size, SLICE_BYTES)
        yield from queuelog.dump(self.store, slice_size, SLICE_BYTES)
        yield from self.streams.dump(slice_size, SLICE_BYTES)
        yield from self.replies.dump(slice_size)

    # ------------------------------------------------------------------------------------------ figures

    def waits(self) -> Iterator[Tuple[Caller, str]]:
        """Yield (caller, queue's name) of the requests that wait for a message."""
        for waiter in self.deliveries.waiting.values():
            for queue in waiter.queues:
                yield waiter.caller, queue.name

    def stats(self, most: Optional[int] = None) -> Dict[str, Any]:
        """Return all figures at once, as `survey` does in steps."""
        figures: Dict[str, Any] = run(survey(self, most))
        return figures


def failed(error: SynapError) -> c.BatchOutcome:
    """Return the outcome of a command of a batch that failed."""
    return c.BatchOutcome("error", None, c.ErrorAnswer.of(error))


def _finished(steps: Steps, left: Iterator[int]) -> Any:
    """Run the steps of one command of an atomic batch, as long as some are `left`; returns its answer."""
    answer = run(until(steps, lambda: next(left, None) is None))
    if answer is None:
        limit = MOST_STEPS * STEP
        raise _too_much(f"go over about {limit:,} items, the most of an atomic batch", limit)
    return answer


def _too_much(what: str, limit: int) -> SynapError:
    """Build the error for an atomic batch whose commands do too much together."""
    return SynapError("PAYLOAD_TOO_LARGE", f"the commands up to this one {what}; nothing was done", {"limit": limit})


def aborted(count: int, place: int, error: SynapError) -> c.BatchAnswer:
    """Return the answer to an atomic batch of `count` commands, of which the one at `place` failed."""
    text = f"command {place} of the atomic batch failed, so nothing changed"
    others = SynapError("BATCH_ABORTED", text, {"failed": place})
    return c.BatchAnswer([failed(error if each == place else others) for each in range(count)])


def _name_of(payload: Any) -> str:
    command = c.BY_PAYLOAD.get(type(payload))
    return command.name if command else type(payload).__name__


def _unknown(payload: Any) -> SynapError:
    name = _name_of(payload)
    return SynapError("INVALID_COMMAND", f"the engine has no command {name}", {"command": name})


def unbatchable(item: Any) -> SynapError:
    """Build the error for a command that a batch can't hold."""
    name = _name_of(item)
    kinds = "commands that wait, subscribe, administer or are executed in slices"
    text = f"{name} can't be in a batch: {kinds} are sent on their own"
    return SynapError("INVALID_COMMAND", text, {"command": name})
