"""A lane's use of one engine in this process.

Payloads and answers are encoded and decoded as on every other lane, so the same values are accepted, refused and
copied; only `kv.get`, which is called in tight loops, skips the steps that could not change anything. Most requests are
answered within the call; those that wait (for a message, for the disk) are answered from the thread that produces the
answer.
"""

from __future__ import annotations

import uuid
import weakref
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from synap.commands import KV_GET, Command, GetAnswer
from synap.config import ClientConfig, Target
from synap.errors import SynapError
from synap.host.inprocess import LocalHost, drop, leave
from synap.lanes.errors import client_closed
from synap.lanes.inprocess.session import PENDING, LocalSession, PushedSession, Waiter
from synap.results import GetResult
from synap.wire.codec import Codec
from synap.wire.frames import MAX_BODY
from synap.wire.outcomes import too_large
from synap.wire.values import read


class Attachment:
    """A lane's use of one engine: its sessions."""

    def __init__(self, local: LocalHost, codec: Codec, owner: object) -> None:
        self.local = local
        self.loop = local.loop
        self.lock = local.lock
        self.host = local.host
        self.codec = codec
        self.session = LocalSession(local.host, codec, "")
        self.consumer = LocalSession(local.host, codec, uuid.uuid4().hex)
        """The named session for consumes, so that the engine can take back a message that was not received."""
        self.sessions: List[LocalSession] = [self.session, self.consumer]
        self.open: Set[int] = set()
        """Requests whose outcome is unknown. Repeated, they are answered as before if they were executed."""
        self._left = False
        """Whether the lane has left the engine, under the lock: nothing is executed for it any more."""
        self._dropped = weakref.finalize(owner, drop, local, self.sessions)
        self._dropped.atexit = False

    def begin(
        self,
        command: Command,
        payload: Any,
        number: int,
        make: Callable[[], Waiter],
        run: Optional[Callable[..., Any]] = None,
    ) -> Any:
        """Execute a request, the engine's part by `run`; returns its answer, or a waiter where it has to wait.

        Raises its error. Where the engine was left meanwhile, by a thread that closes the client, nothing is executed.
        """
        decoded = command is KV_GET and _is_plain(payload.key)
        body = payload if decoded else self.codec.encode_payload(command, payload)
        if not decoded and len(body) > MAX_BODY:
            raise too_large(len(body), MAX_BODY)
        session = self.session
        host = self.host
        if command.leases or (command.settles and payload.lease is None) or (host.remembers and command.has_effects):
            session = self.consumer
        if run is None:
            return self._turn(session, number, command, body, decoded, make)
        try:
            return run(self._turn, session, number, command, body, decoded, make)
        except SynapError:
            raise
        except BaseException:  # a signal handler's, which ends this wait for the turn, and not the turn
            run(self._withdraw, number)
            raise

    def _turn(
        self, session: LocalSession, number: int, command: Command, body: Any, decoded: bool, make: Callable[[], Waiter]
    ) -> Any:
        host = self.host
        with self.lock:
            if self._left:
                raise client_closed()
            session.outcome = PENDING
            if session.output and session not in host.touched:  # an exception of a signal handler ended a call there
                host.touched.append(session)
            host.execute(session, number, command, body, number in self.open, decoded=decoded)
            host.end_turn()
            outcome = session.outcome
            if outcome is PENDING:
                waiter = make()
                waiter.command = command
                session.waiters[number] = waiter
                return waiter
            error, session.error = session.error, None
            if command.writes and not host.holds and host.may_stall and host.stalled:
                # It is answered, and too much that was answered is not written: this caller's next request has to wait.
                waiter = make()
                host.when_flowing(lambda: waiter.settle(outcome, error))
                return waiter
        if error is not None:
            raise error
        return outcome

    def result(self, command: Command, answer: Any) -> Any:
        """Convert an answer to the client's result."""
        codec = self.codec
        if type(answer) is GetAnswer:
            # The same as encoding and decoding: JSON reads the same in both formats, MessagePack only in its own.
            value = answer.value
            if value is None:
                return GetResult(False)
            if value[0] < 0x80 or codec.format == "msgpack":
                return GetResult(True, read(value), answer.ttl)
        return codec.decode_result(command, codec.encode_answer(answer))

    def subscribe(self, session: PushedSession, command: Command, number: int, body: bytes, waiter: Waiter) -> None:
        """Request a subscription; `waiter`, which has the listener, gets the answer."""
        waiter.command = command
        with self.lock:
            if self._left:
                raise client_closed()
            session.waiters[number] = waiter
            self.host.execute(session, number, command, body)
            self.host.end_turn()

    def unsubscribe(self, session: PushedSession, subscription_id: int) -> None:
        """End a subscription; its listener gets only items that were in flight already."""
        with self.lock:
            session.listeners.pop(subscription_id, None)
            self.host.unsubscribe(session, subscription_id)
            self.host.end_turn()

    def unsubscribe_late(self, session: PushedSession, waiter: Waiter) -> None:
        """End a subscription whose request was abandoned: now, or as soon as it is made."""
        waiter.listener = None
        if waiter.subscribed is not None:
            self.unsubscribe(session, waiter.subscribed)

    def end(self, session: PushedSession) -> None:
        """End all subscriptions of a session, whose event loop has ended."""
        with self.lock:
            if not self._left and session in self.sessions:
                self.sessions.remove(session)
                self.host.leave(session)

    def failed(self, number: int, error: BaseException) -> None:
        """Withdraw an abandoned request, or remember that its outcome is unknown."""
        if not isinstance(error, SynapError) or error.code == "TIMEOUT":
            self._withdraw(number)
        elif error.may_have_happened:
            self.open.add(number)

    def _withdraw(self, number: int) -> None:
        """Withdraw a request, and the message it may have leased."""
        with self.lock:
            for session in (self.session, self.consumer):
                if session.waiters.pop(number, None) is not None or session is self.consumer:
                    self.host.cancel(session, number)
            self.host.end_turn()

    def health(self) -> Dict[str, Any]:
        """Return the health of the engine."""
        with self.lock:
            if self._left:
                raise client_closed()
            return self.host.health()

    def leave(self) -> None:
        """Leave the engine: waiting requests fail, subscriptions end."""
        if self._dropped.detach() is None:
            return
        with self.lock:
            self._left = True
            for session in self.sessions:
                session.fail_waiters("the client was closed")
        leave(self.local, self.sessions)

    def inherited(self) -> bool:
        """Return, in a forked child, whether it has a copy of the engine to use."""
        for session in self.sessions:
            session.waiters.clear()
            session.listeners.clear()
            if not self.local.durable:  # no other thread is here, and the lock is held while the process forks
                self.host.leave(session)
        if self.local.durable:
            self._dropped.detach()
        return not self.local.durable


def _is_plain(key: Any) -> bool:
    """Return whether a key survives encoding and decoding unchanged: a valid one in ASCII."""
    return type(key) is str and key.isascii() and 0 < len(key) <= 1024


def enter_arguments(config: ClientConfig, target: Target) -> Tuple[str, str, Dict[str, Any], Any]:
    """Return the arguments of `synap.host.inprocess.enter` for the engine of a client."""
    options = {"fsync": config.fsync, **(config.engine or {})}
    if target.scheme in ("valkeys", "rediss"):
        for own, its in _TLS.items():
            if getattr(config, own) is not None:
                options.setdefault(its, getattr(config, own))
    return target.scheme, target.path, options, config.clock


_TLS = {"ssl": "ssl", "tls_ca": "engine_ca", "tls_cert": "engine_cert", "tls_key": "engine_key"}
"""Options of a client, and what a cluster calls them."""
