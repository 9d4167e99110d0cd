"""The requests of a connection on the native lane: what its key may send, and what comes before they are executed."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, cast

from synap.commands import BY_CODE, Command
from synap.engine.callers import Steps, until
from synap.errors import SynapError
from synap.host import ANSWER, REFUSE
from synap.host.jobs import crowded
from synap.server.audit import Own
from synap.server.grants import Access
from synap.server.native_output import BUSY, REFUSED, NativeOutput
from synap.server.preparation import Garbled, growth, lasts, prepare
from synap.server.service import Principal, Service
from synap.wire.frames import GZIP, HELD, RETRY, Frame
from synap.wire.handshake import Hello
from synap.wire.large import LARGE

MAX_WAITING = 10_000
"""Waiting requests of one connection."""

_COMMANDS: list[Command | None] = [BY_CODE.get(code) for code in range(128)]
_PLAIN: list[Command | None] = [
    None if command is None or command.audited or command.pushes else command for command in _COMMANDS
]
"""Commands that need no check of the caller."""
_SINGLE: list[Command | None] = [None if command is None or command.bundle else command for command in _PLAIN]
"""The same without batches, whose commands have to be counted."""
NO_COMMANDS: list[Command | None] = [None] * len(_PLAIN)


class NativeRequests(NativeOutput):
    """The part of a native session that checks requests and has them executed, between its input and its output."""

    __slots__ = (
        "_bucket", "_commands", "_deferred", "_fault", "_held", "_metered", "_preparing", "_unread", "principal",
    )  # fmt: skip

    def __init__(self, service: Service, hello: Hello, principal: Principal) -> None:
        super().__init__(service, hello)
        self.principal = principal
        self._bucket = service.meter(principal.access)
        self._commands: list[Command | None]
        self._use_permissions()
        self._metered = False
        """Whether each request takes its own token, because there are too few for all requests of this read."""
        self._deferred: list[Frame] = []
        """Received frames that wait until earlier answers are sent."""
        self._unread = b""
        """Received bytes after those, not parsed yet."""
        self._preparing = 0
        """Bytes of a request that is being prepared, and of what it becomes."""
        self._held = 0
        """Steps that are worked off before its next requests (`hold`)."""
        self._fault: SynapError | None = None
        """The error of a malformed frame, to be reported once all frames before it are executed."""

    def _request(self, flags: int, code: int, id: int, body: bytes) -> bool:
        """Execute a request with all checks; returns False where the connection can't go on."""
        command = _COMMANDS[code] if code < 128 else None
        try:
            if id == 0:
                raise malformed("a request needs an id from 1 to 4294967295")
            if self._service.awaited and (self, id) in self._service.awaited:
                raise Garbled(malformed(f"request {id} is under way, and in the audit log under this id"))
            if self._commands is NO_COMMANDS and not (self._service.awaited or self._service.draining):
                self._commands = self._unchecked()
            paid = 0 if self._metered else len(body)
            if lasts(command, flags, body):
                self._prepare(code, flags, id, body, paid)
            elif command is None:
                raise _unknown(code)
            else:
                self._admit(command, flags, id, body, paid, self._metered)
        except Garbled as garbled:
            self._fault = garbled.fault
            return False
        except SynapError as error:
            if id == 0:
                self._fault = error
                return False
            self._decline(id, error)
        return True

    def _decline(self, id: int, error: SynapError) -> None:
        self.host.count_error(error.code)
        self.refuse(id, error)

    def _prepare(self, code: int, flags: int, id: int, body: bytes, paid: int) -> None:
        """Execute a request that takes long before it can be, in turns where it does; what follows it here waits."""
        command = _COMMANDS[code] if code < 128 else None
        transit, limit = self._service.transit, self._service.config.max_body
        grown = growth(body, limit) if flags & GZIP else 0
        if grown > LARGE and not transit.has_room(grown):
            raise crowded()
        steps = prepare(self.codec, command, flags, body, limit)
        metered = self._metered

        def execute(body: bytes) -> None:
            if command is None:
                raise _unknown(code)
            self._admit(command, flags, id, body, paid, metered)
            if len(body) > LARGE and self.host.busy and self.host.working_for(self):
                transit.working[self] = len(body) * HELD

        try:
            next(steps)
        except StopIteration as done:
            execute(done.value)
            return

        self._preparing = len(body) + grown
        transit.add(self._preparing)

        def go_on() -> Steps:
            fault: SynapError | None = None
            try:
                ready = yield from until(steps, lambda: not self.wanted())
                self._preparing = 0  # the host counts it from now on
                if self.wanted():
                    execute(ready)
            except SynapError as error:
                self._decline(id, error)
            except Garbled as garbled:
                fault = garbled.fault
            except Exception:  # a bug is an error to its own caller
                self.refuse(id, self.host.crashed("preparing a request"))
            self._preparing = 0
            if fault is not None:
                self._deferred, self._unread = [], b""
                self._refuse_connection(fault)
            self.host.end_turn()

        self.hold(go_on())

    def hold(self, steps: Steps) -> None:
        self._held += 1
        self._stop(BUSY)

        def rest() -> Steps:
            try:
                yield from steps
            except Exception:  # of a bug; the connection goes on
                self.host.crashed("what a connection waits for")
            self._held -= 1
            self.go_on()

        self._service.turns.run(self.principal.access.name, rest())

    def _admit(self, command: Command, flags: int, id: int, body: bytes, paid: int, metered: bool) -> None:
        """Check a request, of whose bytes `paid` are counted already, and execute it."""
        principal, service = self.principal, self._service
        quota = principal.access.quota
        if quota is not None:
            service.count_bytes(principal.access, len(body) - paid)
        payload = None
        decoded = self.permit is not None or command.bundle
        if decoded and len(body) > LARGE and not command.bundle and not flags & RETRY:
            decoded = False  # the host decodes it in steps, and checks it then
            if service.draining:
                raise service.closing()
        else:
            if decoded:
                payload = self.codec.decode_payload(command, body)
            service.allow(command, payload, principal)
        if quota is not None:
            service.check_quota(command, principal.access, len(self.subscriptions), (self,))
        if metered and self._bucket is not None:
            self._bucket.take()
        if self._bucket is not None and command.bundle and payload is not None:
            self._bucket.charge(len(payload.commands) - 1)
        noted = service.audit is not None and (command.audited or command.bundle)
        if (command.waits and len(self.waiting) >= MAX_WAITING) or ((command.waits or noted) and id in self.waiting):
            raise SynapError("INVALID_REQUEST", f"request {id} waits already, or {MAX_WAITING} others do")
        # Subscribing is executed again on a new connection, whatever was answered on the old one.
        retried = bool(flags & RETRY) and not command.pushes
        before = len(self.output)
        if noted and self.host.remembers:  # others with its id may be under way at a cluster
            id = Own(id)
        if noted:
            with suppress(SynapError):  # which will be its answer
                whole = self.codec.decode_payload(command, body, hint=False) if payload is None else payload
                service.note(self, id, command, whole, principal)
        self.host.execute(self, id, command, payload if decoded else body, retried, decoded=decoded)
        if service.awaited:
            service.record_outcomes(self, self.output[before:], delivered=False)
            entry = service.awaited.get((self, id))
            if entry is not None:
                told = [number for what, number, _, _ in self.host.undelivered(self) if what in (ANSWER, REFUSE)]
                entry.earlier = told.count(id)
                self._commands = NO_COMMANDS  # nothing else may have its id

    def _refuse_connection(self, fault: SynapError) -> None:
        """End the connection because of what its peer sent: report the error after all earlier output, and close."""
        self._fault = None
        self._stops |= REFUSED
        self.host.count_error(fault.code)
        # Waiting requests could lease messages that nobody receives.
        self._service.record_withdrawn(self)
        for number in tuple(self.waiting):
            self.host.cancel(self, cast(int, number))
        self.refuse(0, fault)

    # ------------------------------------------------------------------------------------------ permissions

    def check(self, command: Command, payload: Any) -> None:
        self._service.check(command, payload, self.principal)

    def _use_permissions(self) -> None:
        """Apply the permissions of the connection's key to what it sends from now on."""
        access = self.principal.access
        self.permit = access.permit
        codec = self.codec
        self.decoders = codec.decoders if access.permit is None else access.guarded(codec, self.check)
        self._commands = self._unchecked()

    def _unchecked(self) -> list[Command | None]:
        """Return the commands that this connection's key may use without further checks than those of `decode`."""
        access = self.principal.access
        quota = access.quota
        plain = _PLAIN if self._bucket is None and self._service.audit is None else _SINGLE
        if access.permit is None and quota is None:
            return plain
        counted = quota is not None and quota.waiting is not None
        return [
            None if one is None or not access.covered(one) or one.bundle or (counted and one.waits) else one
            for one in plain
        ]

    def adopt(self, access: Access) -> None:
        """Apply changed permissions of the key."""
        self.principal.access = access
        self._bucket = self._service.meter(access)
        self._use_permissions()
        if self._service.draining:
            self._commands = NO_COMMANDS


def _unknown(code: int) -> SynapError:
    return SynapError("INVALID_COMMAND", f"there is no command number {code}", {"command": code})


def malformed(message: str) -> SynapError:
    """Build the error of a frame that no client sends."""
    return SynapError("INVALID_REQUEST", message)
