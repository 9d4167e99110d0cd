"""The native lane for threads: a small pool of blocking connections, one call at a time on each.

A call is one `send` and, nearly always, one `recv`. No event loop and no other thread is involved. A connection on
which anything went wrong (a timeout, an interrupt) is never used again, so an answer can't reach the wrong call.

Each slot of the pool has its own session, and keeps it when it reconnects. A request keeps its slot for all attempts.
"""

from __future__ import annotations

import itertools
import logging
import threading
import uuid
import warnings
import weakref
from contextlib import suppress
from time import monotonic
from typing import Any, Callable, Dict, List, Optional, Set, Tuple, cast

from msgspec import Struct

from synap.commands import ADMIN_HEALTH, CLIENT_PREFIX, Command
from synap.config import ClientConfig, Target
from synap.errors import ConnectionError, SynapError
from synap.lanes import errors
from synap.lanes._sync.base import Lane
from synap.lanes.io.network import Network, network
from synap.lanes.native.blocking import BlockingConnection, Outcome, open_connection
from synap.lanes.native.pushes import Pushes
from synap.lanes.opening import Open, Upgrade, tls_for
from synap.wire.codec import Codec
from synap.wire.compression import WORTH
from synap.wire.conversation import CONFIRM_EVERY, LAST_NUMBER, Fault, Listener
from synap.wire.frames import HEADER, RETRY, Kind, frame
from synap.wire.outcomes import UNREADABLE, lost, timed_out, unreadable, why

log = logging.getLogger("synap.client")

RECHECK = 1.0
"""Seconds after which a thread that waits for a slot looks again: nobody tells of one that was lost."""
IDLE = 1.0
"""Seconds of idleness after which a connection is checked before it is used again: it may have ended."""

_pack = HEADER.pack
_unpack = HEADER.unpack_from
_HEADER = HEADER.size
_REQUEST, _ANSWER = Kind.REQUEST, Kind.ANSWER


class _Slot:
    """A slot of the pool: a session, and its connection where there is one."""

    __slots__ = ("__weakref__", "_close", "attempted", "connection", "number", "place", "session", "used")

    def __init__(self, session: str, slots: Set[weakref.ref[_Slot]]) -> None:
        self.connection: Optional[BlockingConnection] = None
        self._close: Optional[weakref.finalize[Any, _Slot]] = None
        """Closes the connection, also where nobody has the slot any more. No `__del__` of this class: Python discards
        what a signal handler raises within one, and most slots end without a connection."""
        self.session = session
        self.place = weakref.ref(self, slots.discard)
        """Its place in the pool, free again when nobody has the slot any more: an exception of a signal handler may
        come just after a call took it, or just before it gives it back."""
        self.number = 0
        self.attempted = False
        """Whether the current request may have been executed by an earlier attempt."""
        self.used = 0.0

    def take(self, connection: BlockingConnection) -> None:
        """Use a connection from now on."""
        self.connection = connection
        self._close = weakref.finalize(self, connection.close)
        self._close.atexit = False

    def discard(self) -> None:
        """Close the connection: what may still arrive on it must never be read."""
        self.connection = None
        if self._close is not None:
            self._close()

    def abandon(self) -> None:
        """Leave the connection to the parent of this process."""
        if self.connection is not None and self._close is not None:
            self._close.detach()
            self.connection.stream.detach()  # this closes the child's copy only, nothing is sent
            self.connection = None


class NativeLane(Lane):
    """Sends native frames, from any number of threads, over connections that `begin` opens.

    At most `pool_size` requests are in flight at once, consumes that wait not counted: those have connections beyond
    that, so that waiting for messages never keeps anybody from publishing them.
    """

    def __init__(
        self,
        config: ClientConfig,
        target: Target,
        codec: Codec,
        *,
        begin: Open = Upgrade,
        name: str = "native",
        network: Network = network,
    ) -> None:
        super().__init__(config, target, codec)
        self.begin = begin
        self.name = name
        self.network = network
        self._up = False
        self._reset()
        self._context = tls_for(config, target)

    def _reset(self) -> None:
        self._prefix = uuid.uuid4().hex[:CLIENT_PREFIX]
        self._sessions = itertools.count()
        self._idle: List[_Slot] = []
        self._slots: Set[weakref.ref[_Slot]] = set()
        self._waiting: Set[weakref.ref[_Slot]] = set()
        """Slots whose requests wait for a message, and don't count against `pool_size`."""
        self._queued = 0
        """Threads that wait for a free slot."""
        self._guard = threading.RLock()
        self._freed = threading.Condition(self._guard)
        """Entered by its lock: its own `__enter__`, which is Python code, may be interrupted once it has the lock."""
        self._pushes = Pushes(self)

    def _session(self) -> str:
        """Name a session: it begins as all of this client's, so that each may settle what another leased."""
        return f"{self._prefix}{next(self._sessions):08x}"

    # ------------------------------------------------------------------------------------------ the pool

    def ticket(self) -> _Slot:
        """Acquire a slot for one request, the most recently used first; waits where all are in use."""
        try:
            slot = self._idle.pop()
        except IndexError:
            slot = self._wait_for_slot()
        if slot.number >= LAST_NUMBER:
            slot.discard()
            with self._guard:
                slot.session = self._session()
            slot.number = 0
        slot.number += 1
        slot.attempted = False
        return slot

    def _wait_for_slot(self) -> _Slot:
        deadline = monotonic() + self.config.timeout
        with self._guard:
            self._queued += 1
            try:
                while True:
                    if self.closed:
                        raise errors.client_closed()
                    with suppress(IndexError):  # not looked at before: `ticket` takes slots without this lock
                        return self._idle.pop()
                    if len(self._slots) - len(self._waiting) < self.config.pool_size:
                        slot = _Slot(self._session(), self._slots)
                        self._slots.add(slot.place)
                        return slot
                    left = deadline - monotonic()
                    if left <= 0:
                        raise errors.all_busy(None, self.config.timeout)
                    self._freed.wait(min(left, RECHECK))
            finally:
                self._queued -= 1

    def drop(self, ticket: Any) -> None:
        slot: _Slot = ticket
        if self._waiting:
            self._waiting.discard(slot.place)
        if len(self._slots) - len(self._waiting) > self.config.pool_size and self._removed(slot):
            return
        if not self.config.keep_alive:
            slot.discard()
        slot.used = monotonic()
        self._idle.append(slot)
        # After the append: `close`, which discards idle slots, may have run before it.
        if slot.place not in self._slots:
            with suppress(ValueError):
                self._idle.remove(slot)
            slot.discard()
        elif self._queued:
            with self._guard:
                self._freed.notify()

    def _removed(self, slot: _Slot) -> bool:
        """Remove a slot if the pool has more than its size; returns False where it hasn't."""
        with self._guard:
            if len(self._slots) - len(self._waiting) <= self.config.pool_size or slot.place not in self._slots:
                return False
            self._slots.remove(slot.place)
        slot.discard()
        return True

    def _all(self) -> List[_Slot]:
        return [slot for slot in (place() for place in list(self._slots)) if slot is not None]

    # ------------------------------------------------------------------------------------------ requests

    def connect(self, deadline: float) -> None:
        slot = self.ticket()
        try:
            self._connected(slot, deadline)
        finally:
            self.drop(slot)

    def call(self, command: Command, payload: Struct, ticket: Any, began: float, timeout: float) -> Any:
        slot: _Slot = ticket
        body = self.codec.encode_payload(command, payload)
        connection = slot.connection
        deadline = began + timeout
        if connection is None or began - slot.used > IDLE:
            connection = self._connected(slot, deadline)
        number = slot.number
        flags = RETRY if slot.attempted else 0
        if len(body) >= WORTH:
            body, flags = connection.conversation.fit(body, flags)
        request = _pack(len(body), _REQUEST, flags, command.code, number) + body
        if number % CONFIRM_EVERY == 0:
            request = frame(Kind.DONE, number) + request
        waits = command.leases and bool(payload.timeout)  # type: ignore[attr-defined]
        if waits:  # until `drop`
            self._waiting.add(weakref.ref(slot, self._waiting.discard))
            with self._guard:
                self._freed.notify()
        sent = False
        try:
            sock = connection.direct
            if sock is None or len(request) >= WORTH:
                connection.send(request, deadline)
                sent = slot.attempted = True
                data = b""
            else:  # it fits the socket's buffer
                if sock.send(request) < len(request):
                    raise ConnectionResetError("the connection takes no more")
                sent = slot.attempted = True
                data = connection.receive_first(deadline, spin=not waits)
                if not data:
                    raise ConnectionResetError("the peer closed the connection")
                if len(data) >= _HEADER:
                    length, kind, flags, _, answered = _unpack(data)
                    if answered == number and kind == _ANSWER and not flags and len(data) == _HEADER + length:
                        return self.codec.decode_result(command, data[_HEADER:])
            answer = self._receive(slot, connection, command, data, deadline)
            if type(answer) is not bytes:
                return self.codec.decode_large(command, cast(memoryview, answer))
            return self.codec.decode_result(command, answer)
        except SynapError as error:
            if isinstance(error, ConnectionError):
                slot.discard()
            raise
        except BaseException as error:
            # The answer may still arrive on this connection: it must not be used again.
            slot.discard()
            failure = self._failure(slot, command, error, sent, timeout)
            if failure is None:
                raise
            raise failure from None

    def _receive(
        self, slot: _Slot, connection: BlockingConnection, command: Command, data: bytes, deadline: float
    ) -> bytes:
        """Return the body of an answer that didn't arrive alone and whole; `data` was received before."""
        conversation = connection.conversation
        call = Outcome(command)
        conversation.calls[slot.number] = call
        try:
            if data:
                conversation.feed(data)
                connection.flush(deadline)
            while not call.answered:
                connection.receive(deadline)
        except (OSError, Fault):
            slot.discard()  # even if the answer arrived before
            if not call.answered:
                raise
        finally:
            conversation.calls.pop(slot.number, None)
        if not conversation.open:
            slot.discard()
        if call.error is not None:
            try:
                raise call.error
            finally:
                del call  # else only the garbage collector frees the error, whose traceback has the payload
        return call.body

    def _failure(
        self, slot: _Slot, command: Command, error: BaseException, sent: bool, timeout: float
    ) -> Optional[SynapError]:
        """Return the error of a failed call; None where it was interrupted, as by `KeyboardInterrupt`."""
        if isinstance(error, TimeoutError):
            return timed_out(command, sent, timeout)
        if isinstance(error, (OSError, Fault)):
            self._aside(slot, self.ended, why(error))
            return lost(command, sent, why(error))
        if isinstance(error, UNREADABLE):
            return unreadable(command, error)
        return None

    def health(self, deadline: float) -> Dict[str, Any]:
        slot = self.ticket()
        try:
            connection = self._connected(slot, deadline)
            ping = Outcome(ADMIN_HEALTH)
            try:
                connection.conversation.ping(slot.number, ping)
                connection.flush(deadline)
                while not ping.answered:
                    connection.receive(deadline)
                figures = self.codec.decode(ping.body) if ping.body else {}
            except BaseException as error:
                slot.discard()
                if isinstance(error, TimeoutError):
                    raise errors.ping_timed_out(self.config.timeout) from None
                if isinstance(error, (OSError, Fault, *UNREADABLE)):
                    self._aside(slot, self.ended, why(error))
                    raise errors.connect_failed(self.target.authority, error, target=self.target) from None
                raise
        finally:
            self.drop(slot)
        return figures if isinstance(figures, dict) else {}

    # ------------------------------------------------------------------------------------------ connections

    def _connected(self, slot: _Slot, deadline: float) -> BlockingConnection:
        """Return a slot's connection; opens a new one where it has none or that has ended."""
        connection = slot.connection
        if connection is not None and not connection.ended():
            return connection
        slot.discard()
        connection, first = self.open(slot.session, deadline)
        slot.take(connection)
        if first:
            self._aside(slot, self.connected)
        if slot.place not in self._slots:
            slot.discard()
            raise errors.client_closed()
        return connection

    def open(self, session: str, deadline: float) -> Tuple[BlockingConnection, bool]:
        """Open a connection for `session`, within the client's timeout and by `deadline`.

        Returns also whether there was none: then `connected` is to be called, while no lock is held.
        """
        limit = min(deadline, monotonic() + self.config.timeout)
        opening = self.begin(self.config, self.target, session)
        connection = open_connection(
            self.config, self.target, self.codec, opening, self.network, self._context, limit, lambda: self.closed
        )
        log.debug("connected to %s (%s)", self.target.authority, self.name)
        return connection, self._changed(up=True)

    def _aside(self, slot: _Slot, tell: Callable[..., None], *about: object) -> None:
        """Tell of an event of a slot's connection. Meanwhile the slot doesn't count: a handler's call may need one."""
        self._waiting.add(weakref.ref(slot, self._waiting.discard))
        try:
            with self._guard:
                self._freed.notify()
            tell(*about)
        finally:
            self._waiting.discard(slot.place)

    def ended(self, reason: str) -> None:
        """Report that a connection was lost."""
        log.debug("a connection to %s ended: %s", self.target.authority, reason)
        if self._changed(up=False):
            self.disconnected(reason)

    def _changed(self, *, up: bool) -> bool:
        """Note whether there is a connection; returns whether that is new, to one thread only."""
        with self._guard:
            was, self._up = self._up, up
        return was is not up

    # ------------------------------------------------------------------------------------------ subscriptions

    def subscribe(self, command: Command, payload: Struct, listener: Listener, deadline: float) -> Tuple[Any, Any]:
        return self._pushes.subscribe(command, payload, listener, deadline)

    def unsubscribe(self, handle: Any) -> None:
        self._pushes.unsubscribe(handle)

    # ------------------------------------------------------------------------------------------ the end

    def close(self) -> None:
        with self._guard:
            self.closed = True
            slots, self._slots = self._all(), set()
            idle, self._idle = self._idle, []
            self._freed.notify_all()
        for slot in idle:
            slot.discard()
        for slot in slots:
            connection = slot.connection
            if connection is not None:  # in use by another thread, which sees the connection end
                connection.stream.interrupt()
        self._pushes.close()
        if self._changed(up=False):
            self.disconnected("the client was closed")

    def __del__(self) -> None:
        left = [slot for slot in self._idle if slot.connection is not None]
        if left or self._pushes.open:
            text = f"a connection to {self.target.authority} was left open: close the client"
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)
            for slot in left:
                slot.discard()
            self._pushes.close()

    def abandon(self) -> None:
        for slot in self._all():
            slot.abandon()
        self._pushes.abandon()
        self._up = False
        self._reset()
