"""The interface between lanes and engines: `Host`, which executes requests, and `Session`, which receives the output.

Work comes in *turns* (all requests of one read of a socket, one call of a client in this process, one alarm): `execute`
any number of times, then `end_turn` once. The output of a turn (answers, errors, pushed items) is collected in each
session and handed to it at once with `Session.deliver`: at the end of the turn, or later where the host has to wait for
a disk or for other machines.

A host is used by one thread at a time; sharing it among threads needs a lock.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple

from typing_extensions import Protocol

from synap.commands import ADMIN_HEALTH, ADMIN_STATS, Command, Figures, Item, SubscribedToFigures
from synap.engine.callers import Caller, Number, Steps
from synap.engine.figures import MOST_NAMED
from synap.errors import SynapError
from synap.host.clock import Clock
from synap.host.handlers import raised_by_handler
from synap.host.timing import Sample, Timing
from synap.wire.codec import MALFORMED, Codec

log = logging.getLogger("synap.host")

ANSWER, REFUSE, PUSH, ENDED = range(4)

Output = Tuple[int, Any, Any, int]
"""One output: (kind, number of the request or subscription, answer or error or item, its estimated bytes)."""


def figures(survey: Steps) -> Steps:
    """Wrap the figures of a survey as the answer to `admin.stats`."""
    return Figures((yield from survey))


class Permit(Protocol):
    """The permissions of a key. Lanes check requests before they execute them; hosts check the commands of a batch."""

    readable: Tuple[str, ...]
    """Keys with one of these prefixes may be read; others are looked at by `visible`."""

    def check(self, command: Command, payload: Any) -> None:
        """Raise `FORBIDDEN` where the key may not do this."""

    def visible(self, answer: Any) -> Any:
        """Return an answer without what the key may not see."""

    def show(self, answer: Any) -> Steps:
        """Do that in steps, for an answer with names."""


class Session(Caller):
    """A caller on some lane. The lane implements `deliver` and `has_room`, and `abort` where there is a connection."""

    __slots__ = ("__weakref__", "codec", "decoders", "host", "output", "permit")

    def __init__(self, host: Host, codec: Codec, session: str = "") -> None:
        super().__init__(session)
        self.host = host
        self.codec = codec
        self.decoders = codec.decoders
        """By a command's code: decodes and checks a payload; where a lane leaves it to them, the permissions too."""
        self.permit: Optional[Permit] = None
        """The permissions of the caller's key; None: it may do everything."""
        self.output: List[Output] = []
        """The output of this turn, in order."""

    # ---- called by hosts and engines
    def answer(self, number: Any, answer: Any) -> None:
        self._emit((ANSWER, number, answer, 0))

    def refuse(self, number: Any, error: SynapError) -> None:
        self._emit((REFUSE, number, error, 0))

    def push(self, subscription_id: int, item: Item) -> bool:
        if not self.has_room():
            return False
        self._emit((PUSH, subscription_id, item, 0))
        return True

    def ended(self, subscription_id: int, error: SynapError) -> None:
        self._emit((ENDED, subscription_id, error, 0))

    def broken(self) -> None:
        self.host.undeliverable(self)

    def _emit(self, what: Output) -> None:
        if not self.output:
            self.host.touched.append(self)
        self.output.append(what)

    def decode(self, command: Command, body: Any) -> Any:
        """Decode and check the payload of a request."""
        try:
            return self.decoders[command.code](body)
        except MALFORMED as error:
            raise self.codec.refusal(command, body, error) from None

    def check(self, command: Command, payload: Any) -> None:
        """Raise `FORBIDDEN` where the caller may not do this. Called for payloads that `decode` has not decoded."""
        if self.permit is not None:
            self.permit.check(command, payload)

    def check_again(self, command: Command, payload: Any, made: int = 0) -> None:
        """Check what had to wait since it was checked. Raises where the right to it is gone, or the quota used up.

        `made`: the id of the subscription that it has made already.
        """
        self.check(command, payload)

    # ---- implemented by lanes
    def deliver(self, output: List[Output]) -> None:
        """Send the output of a turn, in order. Called once a turn.

        An answer that can't be encoded becomes an error to its own caller, and the rest is sent as usual. The same item
        object goes to all its subscribers: encode it once.
        """
        raise NotImplementedError

    def has_room(self) -> bool:
        """Return whether the buffer of this caller takes one more push."""
        raise NotImplementedError

    def go_on(self) -> None:
        """Called when a request that was executed in slices is done, so that those behind it can be executed."""

    def hold(self, steps: Steps) -> None:
        """Work off steps in turns before the caller's next requests, or its answer. Servers' lanes of batches do."""
        raise NotImplementedError

    def wanted(self) -> bool:
        """Return whether a request that had to wait is still to be executed, and answered."""
        return True

    def dropped(self, number: Number) -> None:
        """Called when a request that had to wait for its turn is dropped: nothing of it was done."""

    def repeated(self, number: Number, place: Optional[int] = None) -> None:
        """Called when a write isn't executed, since it was before: it is answered as that is. `place`: in a batch."""

    def lane_name(self) -> str:
        """Return the name of the lane in metrics."""
        return "local"

    def lose_pushes(self, weight: int) -> None:
        """Called when items that `push` accepted are not sent, since the disk refused the change they came with.

        `weight`: their estimated bytes together.

        A lane that pushes ends the connection: its client subscribes again from its last event, without a gap.
        """

    def abort(self) -> None:
        """End the connection at once, since its output can't be delivered. Never raises."""


class Host:
    """Executes requests for any number of sessions. `EngineHost` and `ClusterHost` implement it."""

    holds = False
    """Whether the output of a turn may be delivered after its end."""

    may_stall = True
    """Whether `stalled` may be true while no request is executed in slices; else lanes need not ask each turn."""

    partial = False
    """Whether refused writes are those of some of the data only: another service would take no more of them."""

    remembers = False
    """Whether a write may fail with its outcome open, so that callers in this process need a named session too."""

    def __init__(self, *, clock: Optional[Callable[[], float]] = None) -> None:
        self.clock = clock = Clock() if clock is None else clock
        self.started = clock()
        self.unavailable: Optional[SynapError] = None
        """Why writes are refused, while they are."""
        self.touched: List[Session] = []
        """Sessions with output in this turn. They add themselves."""
        self.requests: List[int] = [0] * 128
        """Requests counted by the command's code."""
        self.timing = Timing()
        self.samples: List[Sample] = []
        """Timed requests that were answered in this turn."""
        self.errors: Dict[str, int] = {}
        """Errors counted by their code."""
        self.admin: Dict[Command, Callable[[Any, Session], Any]] = {
            ADMIN_STATS: lambda payload, session: figures(self.survey(MOST_NAMED)),
            ADMIN_HEALTH: lambda payload, session: Figures(self.health()),
        }
        """Handlers of the commands of the admin group; servers add theirs."""
        self.unwatch: Callable[[Session, SubscribedToFigures], None] = lambda session, answer: None
        """Undoes an answer to `admin.watch`. A server sets it."""
        self.has_room: Callable[[int], bool] = lambda size: True
        """Whether so many bytes of a large request may be worked on now. A server sets it."""
        self.busy = False
        """Whether requests are being executed in slices; `working_for` says whose."""
        self._unread: List[Callable[[], None]] = []

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
    ) -> None:
        """Execute a request: `body` is its encoded payload (or, `decoded`, the payload). The answer goes to `session`.

        `retried` says that it may have been executed before; then it is answered as it was then. Never raises: an
        unexpected exception is logged and answered with `INTERNAL_ERROR`.
        """
        raise NotImplementedError

    def end_turn(self) -> None:
        """Make durable what changed, and deliver the output."""
        raise NotImplementedError

    def wake(self) -> None:
        """Process what is due by now: the host asked for this call through its alarm. A turn of its own."""
        self.end_turn()

    def rearm(self) -> None:
        """Set the alarm again at the end of the next turn, since it has fired or was lost."""

    def resume(self, session: Session, subscription_id: int) -> bool:
        """Push further events to a subscription; returns whether it is up to date."""
        raise NotImplementedError

    def unsubscribe(self, session: Session, subscription_id: int) -> None:
        """End a subscription, if it exists."""
        raise NotImplementedError

    def cancel(self, session: Session, number: Number) -> bool:
        """Withdraw a request; a message it may have leased is requeued. Returns whether it won't be answered.

        Only what waits, or has not begun, is not answered then. What a waiting request has done stays done.
        """
        raise NotImplementedError

    def confirm(self, session: Session, below: int) -> None:
        """Forget the answers to a session's requests numbered below `below`: its client has them."""
        raise NotImplementedError

    def leave(self, session: Session) -> None:
        """Drop the waiting requests and subscriptions of a session that is gone. A turn of its own."""
        raise NotImplementedError

    def drain(self) -> None:
        """Answer all waiting requests as if their time were up. A turn of its own."""
        raise NotImplementedError

    def inherited(self) -> bool:
        """Continue in a forked child; returns False where the child has no copy of the engine."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------ state

    @property
    def stalled(self) -> bool:
        """Back-pressure: whether lanes should stop reading; `when_flowing` tells them to resume."""
        return False

    def when_flowing(self, callback: Callable[[], None]) -> None:
        """Call `callback` once the host is no longer stalled."""
        self._unread.append(callback)

    @property
    def memory_limit(self) -> Optional[int]:
        """Bytes of memory that data and connections may take together; None: no limit."""
        return None

    @property
    def working_on(self) -> int:
        """Bytes of the requests that are executed in slices, as far as the host has them."""
        return 0

    def set_aside(self, growth: int) -> None:
        """Add bytes that the service holds beside the data (or, below 0, no longer) to the memory in use."""

    def working_for(self, session: Session) -> bool:
        """Return whether a request of this session is being executed in slices, so that its next ones have to wait."""
        return False

    def settled(self) -> bool:
        """Return whether there is no undelivered output."""
        return not self.touched

    def undelivered(self, session: Session) -> Iterable[Output]:
        """Return the output of a session that is not delivered yet, in order."""
        return session.output

    def waits(self) -> Iterator[Tuple[Caller, str]]:
        """Yield (caller, queue's name) of the requests that wait for a message."""
        raise NotImplementedError

    def stats(self, most: Optional[int] = None) -> Dict[str, Any]:
        """Return figures for people and for metrics; `most` queues, and rooms, have figures of their own."""
        return {"uptime_secs": round(self.clock() - self.started, 3), "requests_total": sum(self.requests)}

    def survey(self, most: Optional[int] = None, named: Optional[Callable[[str], bool]] = None) -> Steps:
        """Return figures as `stats` does, in steps: of the queues and rooms used most, and those `named` selects."""
        yield
        return self.stats(most)

    def health(self) -> Dict[str, Any]:
        """Return the health: `status` is 'ok', or 'degraded' with a `reason`."""
        trouble = self.trouble()
        status = "ok" if trouble is None else "degraded"
        figures: Dict[str, Any] = {"status": status, "uptime_secs": round(self.clock() - self.started, 3)}
        if trouble is not None:
            figures["reason"] = trouble
        return figures

    def trouble(self) -> Optional[str]:
        """Return what is wrong; None where all is well."""
        return None if self.unavailable is None else self.unavailable.message

    def wall(self) -> float:
        """Return wall time, in Unix seconds."""
        now: float = getattr(self.clock, "wall", self.clock)()
        return now

    # ------------------------------------------------------------------------------------------ for implementations

    def count_error(self, code: str) -> None:
        """Count an error answer, for metrics."""
        self.errors[code] = self.errors.get(code, 0) + 1

    def interrupted(self) -> None:
        """Called where an exception from outside ended a turn, and may have left it half done."""

    def let_through(self) -> None:
        """Raise the current exception again where it came from outside: its caller is to have what a handler raised."""
        error = sys.exc_info()[1]
        if error is not None and (not isinstance(error, Exception) or raised_by_handler(error)):
            self.interrupted()
            raise error

    def crashed(self, what: str) -> SynapError:
        """Log the current exception, and build the `INTERNAL_ERROR` for its caller."""
        self.let_through()
        log.exception("%s failed", what)
        self.count_error("INTERNAL_ERROR")
        error = SynapError("INTERNAL_ERROR", f"{what} failed inside the service, whose log says how")
        error.may_have_happened = True
        return error

    def refusal(self, may_have_happened: bool = False) -> SynapError:
        """Build the error for a write that is refused now. A new one each time, since exceptions carry a traceback."""
        assert self.unavailable is not None
        error = self.unavailable.copy()
        error.may_have_happened = may_have_happened
        return error

    def administer(self, command: Command, payload: Any, session: Session) -> Any:
        """Execute a command of the admin group."""
        handler = self.admin.get(command)
        if handler is None:
            raise SynapError("INVALID_COMMAND", f"{command.name} is not available here: it needs a server")
        return handler(payload, session)

    def deliver(self) -> None:
        """Deliver the output of this turn. A session that fails ends, and no other."""
        while True:
            touched, self.touched = self.touched, []
            for session in touched:
                output, session.output = session.output, []
                try:
                    session.deliver(output)
                except Exception:
                    self.undeliverable(session)
            if not self.touched:
                return

    def undeliverable(self, session: Session) -> None:
        """Log the current exception, and end a session whose output can't be delivered."""
        self.let_through()
        log.exception("the output of a session can't be delivered; its connection ends")
        self.count_error("INTERNAL_ERROR")
        session.output = []
        session.abort()

    def read_on(self) -> None:
        """Tell lanes that stopped reading to resume."""
        unread, self._unread = self._unread, []
        for callback in unread:
            try:
                callback()
            except Exception:  # the others have to read on too
                log.exception("a connection can't resume reading")
