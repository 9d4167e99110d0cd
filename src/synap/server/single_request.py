"""One request over HTTP or a WebSocket: its identity, and its answer."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import re
import secrets
from collections.abc import Iterable
from typing import Any, NamedTuple

from synap.commands import Command
from synap.engine.callers import Number, Steps
from synap.errors import SynapError
from synap.host import ANSWER, Output, Session
from synap.server.apart import APART, STEPS, Encoded
from synap.server.rates import Bucket
from synap.server.service import Principal, Service
from synap.server.sizes import estimate, too_large
from synap.wire.codec import Codec
from synap.wire.envelope import WIRES
from synap.wire.frames import HELD, MAX_ANSWER
from synap.wire.large import LARGE
from synap.wire.translate import foreign

_START = secrets.token_hex(4)
_count = itertools.count(1)
_NUMBERED = re.compile(r"([0-9a-f]{32}):(\d{1,18})")


class Identity(NamedTuple):
    """The key under which a request is remembered: a client's session and number, or a text id of the caller's.

    `session` is empty where the request has no id, and then it is not remembered.
    """

    request_id: str
    session: str
    number: int | str


def new_request_id() -> str:
    """Make an id for a request without one. It is not remembered."""
    return f"{_START}-{next(_count):x}"


def identify(request_id: str | None, body: bytes, owner: str = "") -> Identity:
    """Return the identity of a request.

    `owner`: the caller's key. Text ids are scoped to it, and remembered together with a fingerprint of the whole
    request, so that another request with the same id is executed, and not answered like the first.
    """
    if not request_id:
        return Identity(new_request_id(), "", 0)
    numbered = _NUMBERED.fullmatch(request_id)
    if numbered:
        return Identity(request_id, numbered[1], int(numbered[2]))
    fingerprint = hashlib.blake2b(body, digest_size=12).hexdigest()
    session = f"http-{hashlib.blake2b(owner.encode(), digest_size=12).hexdigest()}" if owner else "http"
    return Identity(request_id, session, f"{fingerprint} {request_id}")


class SingleRequest(Session):
    """A request in flight. `outcome` is its answer or error once `done`."""

    __slots__ = (
        "_command", "_finished", "_gone", "_held", "_identity", "_principal", "_service", "_waiter", "_wire", "done",
        "number", "outcome", "translating",
    )  # fmt: skip

    def __init__(self, service: Service, codec: Codec, identity: Identity, format: str | None = None) -> None:
        super().__init__(service.host, codec, identity.session)
        self._service = service
        self._wire = WIRES[codec.format if format is None else format]
        """The format of the answer."""
        self._identity = identity
        self.number = identity.number
        self.done = False
        self.translating = False
        """Whether the outcome is there, and being translated or encoded in turns."""
        self._gone = False
        """Whether nobody waits for the outcome any more."""
        self._held = 0
        """Steps that are worked off before it is told the outcome (`hold`)."""
        self._finished = False
        self.outcome: Any = None
        self._waiter: asyncio.Future[None] | None = None

    def begin(
        self, service: Service, command: Command, payload: Any, principal: Principal, bucket: Bucket | None, size: int
    ) -> None:
        """Execute the request, of `size` bytes; its answer may come later. Raises where it is refused before that."""
        service.allow(command, payload, principal)
        self._principal = principal
        service.check_quota(command, principal.access, 0, self.beside())
        if bucket is not None and command.bundle:
            bucket.charge(len(payload.commands) - 1)
        self.permit = principal.access.permit
        if command.pushes or command.ends is not None:
            raise SynapError(
                "INVALID_COMMAND",
                f"{command.name} belongs to a connection that events can be pushed on: "
                "the WebSocket (GET /api/v1/ws) or the native lane",
            )
        self._command = command
        service.execute(self, self.number, command, payload, command.writes, principal)
        if not self.done:
            if size > LARGE:
                service.transit.working[self] = size * HELD
            if self.session:
                service.under_way[self.session, self.number] = self

    async def settled(self) -> None:
        """Wait for the outcome."""
        while not self.done:
            await self.moved()

    async def moved(self) -> None:
        """Wait for the outcome, or for its translation or encoding to begin."""
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def abandon(self) -> None:
        """Withdraw the request, whose caller is gone. A turn of its own."""
        self._gone = True
        self._unlist()
        if self.waiting:
            self._service.record_withdrawn(self)
            self.host.leave(self)

    def withdraw(self) -> None:
        """Withdraw the request, as its caller asked by another one: what waits is refused, a message goes back.

        Whatever else is being executed is answered all the same.
        """
        self._service.record_withdrawn(self)
        withdrawn = self.host.cancel(self, self.number)
        if not self._finished and (withdrawn or self._command.leases):
            self._gone = True
            self._give_up(SynapError("INVALID_REQUEST", "this request was withdrawn"))

    def fail(self, error: SynapError) -> None:
        """Answer with an error, unless there is an outcome already."""
        if not self._finished:
            self._finish(error)

    def take_back(self, error: SynapError) -> None:
        """Refuse a request that waits, whose caller has lost the right to it, to the rest of a batch too. A turn of its
        own.
        """
        if self._finished:
            return
        self.permit = self._principal.access = self._principal.access.emptied()
        if not self.waiting:
            withdrawn = self.host.cancel(self, self.number)
            self.host.end_turn()
            if not (withdrawn or self.translating or self._command.leases):
                return
        self.abandon()
        self._give_up(error)

    def _give_up(self, error: SynapError) -> None:
        """Finish with an error before the request is done: it may have had some of its effects, or all."""
        error.may_have_happened = self._command.has_effects
        self._refuse(error)

    def _refuse(self, error: SynapError) -> None:
        """Finish with an error of this request's own, which is counted here."""
        self.host.count_error(error.code)
        self._finish(error)

    def _unlist(self) -> None:
        under_way, key = self._service.under_way, (self.session, self.number)
        if under_way.get(key) is self:
            del under_way[key]

    @property
    def owner(self) -> Any:
        """The connection that it came over, as far as that may have several requests under way."""
        return self

    def beside(self) -> Iterable[Session]:
        """Return what may wait at the same time, over all connections of its key: each has one request at a time."""
        name = self._principal.access.name
        return (one for one, caller in self._service.waiting.items() if caller.access.name == name)

    def wanted(self) -> bool:
        """Return whether its answer is still waited for."""
        return not self._gone

    def translated(self, outcome: Any) -> None:
        """Take the translated answer, or the encoded one."""
        if not self._finished:
            self._take(outcome)

    # ---- called by the host
    def check(self, command: Command, payload: Any) -> None:
        self._service.check(command, payload, self._principal)

    def check_again(self, command: Command, payload: Any, made: int = 0) -> None:
        self.check(command, payload)
        self._service.check_quota(command, self._principal.access, 0, self.beside())

    def dropped(self, number: Number) -> None:
        self._service.awaited.pop((self, number), None)
        self._service.transit.working.pop(self, None)

    def repeated(self, number: Number, place: int | None = None) -> None:
        self._service.record_repeated(self, number, place)

    def lane_name(self) -> str:
        return "http"

    def deliver(self, output: list[Output]) -> None:
        if self._service.awaited:
            self._service.record_outcomes(self, output)
        if self._finished:  # it was given up
            return
        for what, _, content, _ in output:
            if what == ANSWER:
                if self.permit is not None:
                    content = self.permit.visible(content)
                self._take(content)
            else:
                self._finish(content)

    def hold(self, steps: Steps) -> None:
        self._held += 1

        def rest() -> Steps:
            try:
                yield from steps
            except Exception:  # of a bug; the request is answered
                self.host.crashed("what a request waits for")
            self._held -= 1
            if self._finished and not self.done:
                self._finish(self.outcome)

        self._service.turns.run(self._principal.access.name, rest())

    def _take(self, answer: Any) -> None:
        """Finish with an answer, or an error, once it is translated, and encoded where that takes long."""
        size = 0 if isinstance(answer, (SynapError, Encoded)) else estimate(answer)
        if size <= LARGE:
            self._finish(answer)
        elif size > MAX_ANSWER:
            self._refuse(too_large(size, answer))
        elif not self._service.transit.has_room(size):
            self._refuse(self._service.transit.refusal(size, answer))
        else:
            steps, format = None, self._wire.codec.format
            if foreign(answer, format) < LARGE:
                wrap = functools.partial(self._wire.enveloped, self._identity.request_id)
                steps = APART[format].in_steps(answer, wrap) if size > STEPS else None
                if steps is None:
                    self._finish(answer)
                    return
            key = self._principal.access.name
            self._service.translations.begin(key, self.owner, answer, format, self, size, steps=steps)
            self.translating = True
            self._wake()

    def _finish(self, outcome: Any) -> None:
        """Tell the outcome, once nothing holds the request."""
        self.outcome = outcome
        self._finished = True
        if not self._held:
            self.done = True
            working = self._service.transit.working
            if working:
                working.pop(self, None)
            self._unlist()
            self._tell(outcome)

    def _tell(self, outcome: Any) -> None:
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def has_room(self) -> bool:
        return False

    def abort(self) -> None:
        if not self._finished:
            error = SynapError("INTERNAL_ERROR", "the answer can't be sent; the service's log says why")  # is counted
            error.may_have_happened = self._command.has_effects
            self._finish(error)
