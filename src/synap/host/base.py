"""What lanes talk to: hosts, and the sessions that take what hosts say.

Work comes in *turns* (all that one read of a socket brought, one call of a client in this process, one alarm):
`execute` any number of times, then `end_turn` once. What is said in a turn, answers, errors and pushed items, is
collected in each session and handed to it in one piece with `Session.deliver`: at the end of the turn, or later where
the host has to wait for a disk or for other machines.

A host belongs to one thread at a time; whoever shares it brings the lock.
"""

from __future__ import annotations

import logging
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from typing_extensions import Protocol

from synap.commands import (
    ADMIN_HEALTH,
    ADMIN_STATS,
    Command,
    Figures,
    Item,
)
from synap.engine.callers import Caller, Number, Steps
from synap.engine.figures import MOST_NAMED
from synap.errors import SynapError
from synap.host.clock import Clock
from synap.host.timing import Sample, Timing
from synap.wire.codec import Codec

__all__ = ["ANSWER", "ENDED", "PUSH", "REFUSE", "Host", "Permit", "Said", "Session", "figures"]

log = logging.getLogger("synap.host")

ANSWER, REFUSE, PUSH, ENDED = range(4)

Said = Tuple[int, Any, Any, int]
"""(what, number of the request or subscription, answer or error or item, bytes that it counts as)."""


def figures(survey: Steps) -> Steps:
    """Make the answer to `admin.stats` of a look at everything."""
    return Figures((yield from survey))


class Permit(Protocol):
    """What a key may do. Lanes check requests before they execute them; hosts check what is in a batch."""

    def check(self, command: Command, payload: Any) -> None:
        """Refuse what it may not; raises `FORBIDDEN`."""

    def visible(self, answer: Any) -> Any:
        """Return of an answer what it may see."""


class Session(Caller):
    """A caller on some lane. The lane implements `deliver` and `has_room`, and `abort` where there is a connection."""

    __slots__ = ("codec", "host", "permit", "said")

    def __init__(self, host: Host, codec: Codec, session: str = "") -> None:
        super().__init__(session)
        self.host = host
        self.codec = codec
        self.permit: Optional[Permit] = None
        """What the caller's key may do; None where that is everything."""
        self.said: List[Said] = []
        """What was said in this turn, in order."""

    # ---- what hosts and engines say
    def answer(self, number: Any, answer: Any) -> None:
        self._say((ANSWER, number, answer, 0))

    def refuse(self, number: Any, error: SynapError) -> None:
        self._say((REFUSE, number, error, 0))

    def push(self, subscription_id: int, item: Item) -> bool:
        if not self.has_room():
            return False
        self._say((PUSH, subscription_id, item, 0))
        return True

    def ended(self, subscription_id: int, error: SynapError) -> None:
        self._say((ENDED, subscription_id, error, 0))

    def broken(self) -> None:
        self.host.undeliverable(self)

    def _say(self, what: Said) -> None:
        if not self.said:
            self.host.touched.append(self)
        self.said.append(what)

    # ---- what the lane does with it
    def deliver(self, said: List[Said]) -> None:
        """Send what was said, in order. Called once a turn, with everything.

        An answer that can't be encoded becomes an error to its own caller, and what comes behind it is sent as ever.
        The same item object goes to all its subscribers: encode it once.
        """
        raise NotImplementedError

    def has_room(self) -> bool:
        """Return whether a push fits what may be in flight to this caller."""
        raise NotImplementedError

    def go_on(self) -> None:
        """Learn that a request which was executed in slices is done, so that what came behind it may be."""

    def lane_name(self) -> str:
        """Return the word for the lane in metrics."""
        return "local"

    def lose_pushes(self) -> None:
        """Learn that items which `push` took will not be sent. Events of the past may be among them, so a lane that
        pushes ends the connection: its client subscribes anew where it had got to, without a gap.
        """

    def abort(self) -> None:
        """End the conversation at once, since something that was to be said can't be. Never raises."""


class Host:
    """Executes requests for any number of sessions. Engines in this process and clusters each have their own."""

    holds = False
    """Whether what is said in a turn may be delivered after it."""

    remembers = False
    """Whether a write may fail with its outcome open, so that callers in this process need a named session too."""

    def __init__(self, *, clock: Optional[Callable[[], float]] = None) -> None:
        self.clock = clock = Clock() if clock is None else clock
        self.started = clock()
        self.unavailable: Optional[SynapError] = None
        """Why writes are refused, while they are."""
        self.touched: List[Session] = []
        """Sessions to which something was said in this turn. Sessions add themselves."""
        self.requests: List[int] = [0] * 128
        """How often each command was asked for, by its code."""
        self.timing = Timing()
        self.samples: List[Sample] = []
        """Requests of this turn that are timed, and answered."""
        self.errors: Dict[str, int] = {}
        """How often each error was answered, by its code."""
        self.admin: Dict[Command, Callable[[Any, Session], Any]] = {
            ADMIN_STATS: lambda payload, session: figures(self.survey(MOST_NAMED)),
            ADMIN_HEALTH: lambda payload, session: Figures(self.health()),
        }
        """What executes the commands of the admin group; servers add theirs."""
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
        """Make durable what changed, and deliver what was said."""
        raise NotImplementedError

    def wake(self) -> None:
        """Let everything happen that is due by now, where the host asked to be woken. A turn of its own."""
        self.end_turn()

    def resume(self, session: Session, subscription_id: int) -> bool:
        """Push events from where a subscription has got to; returns whether it has got all there are."""
        raise NotImplementedError

    def unsubscribe(self, session: Session, subscription_id: int) -> None:
        """End a subscription, if there is such a one."""
        raise NotImplementedError

    def cancel(self, session: Session, number: Number) -> None:
        """Forget a request nobody waits for; a message it may have leased goes back."""
        raise NotImplementedError

    def confirm(self, session: Session, below: int) -> None:
        """Forget the answers to a session's requests numbered below: its client has them."""
        raise NotImplementedError

    def leave(self, session: Session) -> None:
        """End all that a session waits for and is subscribed to: it is gone. A turn of its own."""
        raise NotImplementedError

    def drain(self) -> None:
        """Answer all who wait as if their time were up. A turn of its own."""
        raise NotImplementedError

    def inherited(self) -> bool:
        """Go on in a forked child; returns False where the child has no copy to go on with."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------ its state

    @property
    def stalled(self) -> bool:
        """Whether so much is in flight that lanes should stop reading; `when_flowing` tells them to go on."""
        return False

    def when_flowing(self, callback: Callable[[], None]) -> None:
        """Call `callback` once the host has caught up."""
        self._unread.append(callback)

    @property
    def memory_limit(self) -> Optional[int]:
        """Bytes that all this process holds of others' may take; None where nothing is said."""
        return None

    def set_aside(self, growth: int) -> None:
        """Count bytes (or, below 0, no longer) that the service holds beside the data against the memory limit."""

    def working_for(self, session: Session) -> bool:
        """Return whether a request of this session is being executed in slices: what it asked next has to wait."""
        return False

    def settled(self) -> bool:
        """Return whether nothing waits to be said."""
        return not self.touched

    def waits(self) -> Iterator[Tuple[Caller, str]]:
        """Go through the requests that wait for a message: whose each is, and the queue's name."""
        raise NotImplementedError

    def stats(self, most: Optional[int] = None) -> Dict[str, Any]:
        """Return figures for people and for metrics; `most` queues, and rooms, have figures of their own."""
        return {"uptime_secs": round(self.clock() - self.started, 3), "requests_total": sum(self.requests)}

    def survey(self, most: Optional[int] = None, named: Optional[Callable[[str], bool]] = None) -> Steps:
        """Return figures as `stats` does, in steps: of the queues and rooms used most, and those `named` picks."""
        yield
        return self.stats(most)

    def health(self) -> Dict[str, Any]:
        """Return how the host is: `status` is 'ok' or 'degraded', and then `reason` says why."""
        trouble = self.trouble()
        status = "ok" if trouble is None else "degraded"
        figures: Dict[str, Any] = {"status": status, "uptime_secs": round(self.clock() - self.started, 3)}
        if trouble is not None:
            figures["reason"] = trouble
        return figures

    def trouble(self) -> Optional[str]:
        """Return what is wrong, None where all is well."""
        return None if self.unavailable is None else self.unavailable.message

    def wall(self) -> float:
        """Return the time that people are shown, in Unix seconds."""
        now: float = getattr(self.clock, "wall", self.clock)()
        return now

    # ------------------------------------------------------------------------------------------ for implementations

    def count_error(self, code: str) -> None:
        """Count an error that is answered."""
        self.errors[code] = self.errors.get(code, 0) + 1

    def crashed(self, what: str) -> SynapError:
        """Log the exception that is being handled, and build the `INTERNAL_ERROR` that its caller gets."""
        log.exception("%s failed", what)
        self.count_error("INTERNAL_ERROR")
        error = SynapError("INTERNAL_ERROR", f"{what} failed inside the service, whose log says how")
        error.may_have_happened = True
        return error

    def refusal(self, may_have_happened: bool = False) -> SynapError:
        """Build the error for a write that can't be done now: each its own, as an exception carries its traceback."""
        assert self.unavailable is not None
        error = self.unavailable.copy()
        error.may_have_happened = may_have_happened
        return error

    def administer(self, command: Command, payload: Any, session: Session) -> Any:
        """Execute a command of the admin group."""
        handler = self.admin.get(command)
        if handler is None:
            raise SynapError("INVALID_COMMAND", f"{command.name} is not to be had here: it needs a server")
        return handler(payload, session)

    def deliver(self) -> None:
        """Hand each session what was said to it in this turn. One that fails is ended, and harms no other."""
        while self.touched:
            touched, self.touched = self.touched, []
            for session in touched:
                said, session.said = session.said, []
                try:
                    session.deliver(said)
                except Exception:
                    self.undeliverable(session)

    def undeliverable(self, session: Session) -> None:
        """Log the exception that is being handled, and end a session that what was said can't be delivered to."""
        log.exception("what was to be said to a session can't be sent; its connection ends")
        self.count_error("INTERNAL_ERROR")
        session.said = []
        session.abort()

    def read_on(self) -> None:
        """Tell lanes that stopped reading to go on."""
        unread, self._unread = self._unread, []
        for callback in unread:
            try:
                callback()
            except Exception:
                log.exception("a connection can't be read on")
