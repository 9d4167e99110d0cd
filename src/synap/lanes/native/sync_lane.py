"""The native lane for threads: a small pool of blocking connections, one call at a time on each.

A call is one `send` and, nearly always, one `recv`. No event loop and no other thread stands between. A connection on
which anything went wrong (a timeout, an interrupt) is never used again, so an answer can't reach the wrong call.

Each place in the pool has a session of its own, and keeps it when it has to connect again. A request keeps its place
over all attempts at it.
"""

from __future__ import annotations

import itertools
import socket
import ssl
import struct
import sys
import threading
import uuid
from time import monotonic
from typing import Any, Callable, Dict, List, Optional, Set, Tuple, TypeVar

import msgspec
from msgspec import Struct

from synap.commands import QUEUE_CONSUME, Command
from synap.config import ClientConfig, Target
from synap.errors import ConnectionError, SynapError
from synap.lanes import errors
from synap.lanes._sync.base import Lane, Listener
from synap.lanes.native.pending import UNREADABLE
from synap.lanes.native.pushes import Pushes
from synap.lanes.native.upgrade import Upgrade, tls_context
from synap.wire.codec import Codec
from synap.wire.compression import WORTH, compress, decompress
from synap.wire.frames import GZIP, HEADER, MAX_ANSWER, RETRY, Frame, FrameReader, Kind, frame

__all__ = ["NativeLane"]

T = TypeVar("T")

CONFIRM_EVERY = 64
"""Requests after which the service is told that the answers came."""
LAST_NUMBER = 2**32 - 1
KIN = 24
"""Digits of a session that all sessions of one client share."""
IDLE = 1.0
"""Seconds after which a connection is looked at before it is used again: it may have ended meanwhile."""
CHUNK = 64 * 1024
LEEWAY = 0.01
"""Seconds by which a limit may be too long before it is set anew, which costs two system calls."""

_pack = HEADER.pack
_unpack = HEADER.unpack_from
_HEADER = HEADER.size
_REQUEST, _ANSWER = Kind.REQUEST, Kind.ANSWER
_ANSWERS = (Kind.ANSWER, Kind.ERROR, Kind.PONG)
_CLOSED = "the other side closed the connection"
_KERNEL_TIMEOUTS = sys.platform != "win32"


class _Lost(Exception):
    """The connection ended, or is of no use any more; says why."""


class _Slot:
    """A place in the pool: a session, and its connection where there is one."""

    __slots__ = ("attempted", "max_body", "number", "reader", "session", "sock", "timeout", "tls", "used")

    def __init__(self, session: str) -> None:
        self.session = session
        self.number = 0
        self.attempted = False
        """Whether the request under way may have been done by an earlier attempt."""
        self.sock: Optional[socket.socket] = None
        self.tls = False
        self.timeout: Optional[float] = None
        self.max_body = 0
        self.used = 0.0
        self.reader = FrameReader(MAX_ANSWER)

    def limit(self, timeout: Optional[float]) -> None:
        """Let each send and receive take `timeout` seconds at most. The kernel counts, which saves a `poll` for
        each."""
        sock = self.sock
        assert sock is not None
        if self.tls or not _KERNEL_TIMEOUTS:
            sock.settimeout(timeout)
        else:
            micros = 0 if timeout is None else max(int(timeout * 1_000_000), 1)
            value = struct.pack("ll", micros // 1_000_000, micros % 1_000_000)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
        self.timeout = timeout

    def hurry(self, deadline: Optional[float]) -> None:
        """Let the next send or receive end by `deadline`; raises `socket.timeout` where that has passed."""
        if deadline is not None:
            left = _left(deadline)
            if self.timeout is None or self.timeout - left > LEEWAY:
                self.limit(left)

    def arrived(self) -> Optional[bytes]:
        """Return what has come meanwhile, `b""` where the connection has ended, None where nothing has.

        TLS has messages of its own, so that it is asked itself: that a socket can be read from says little about it.
        """
        sock = self.sock
        assert sock is not None
        try:
            if not self.tls and _KERNEL_TIMEOUTS:
                return sock.recv(CHUNK, socket.MSG_DONTWAIT)
            sock.settimeout(0)
            try:
                return sock.recv(CHUNK)
            finally:
                sock.settimeout(self.timeout)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None

    def discard(self) -> None:
        """Close the connection; what may still come on it will never be read."""
        sock, self.sock = self.sock, None
        if sock is not None:
            sock.close()


def _left(deadline: float) -> float:
    """Return the seconds until `deadline`; raises `socket.timeout` where that has passed."""
    left = deadline - monotonic()
    if left <= 0:
        raise socket.timeout
    return left


def _cut(take: Callable[[T], List[Frame]], received: T) -> List[Frame]:
    """Let a `FrameReader` take what was received."""
    try:
        return take(received)
    except SynapError as error:
        raise _Lost(f"the service sent what can't be read: {error.message}") from None


def _inflated(received: Frame) -> Frame:
    if not received.flags & GZIP:
        return received
    try:
        return received._replace(body=decompress(received.body, MAX_ANSWER))
    except SynapError as error:
        raise _Lost(f"the service sent what can't be read: {error.message}") from None


class NativeLane(Lane):
    """Speaks frames with a service, from any number of threads.

    At most `pool_size` requests are under way at once, consumes that wait not counted: those have connections
    beyond that, so that waiting for messages never keeps anybody from publishing them.
    """

    def __init__(self, config: ClientConfig, target: Target, codec: Codec) -> None:
        super().__init__(config, target, codec)
        self._context = tls_context(config, target)
        self._up = False
        self._begin()

    def _begin(self) -> None:
        self._kin = uuid.uuid4().hex[:KIN]
        self._sessions = itertools.count()
        self._idle: List[_Slot] = []
        self._slots: Set[_Slot] = set()
        self._lent = 0
        """Slots whose requests wait at the service for a message."""
        self._queued = 0
        """Threads that wait for a slot."""
        self._freed = threading.Condition(threading.Lock())
        self._pushes = Pushes(self.config, self.target, self.codec, self._context, self._opened, self._lost)

    def _session(self) -> str:
        """Name a session as kin of the client's others: what one of them leased, all may settle."""
        return f"{self._kin}{next(self._sessions):08x}"

    # ------------------------------------------------------------------------------------------ the pool

    def ticket(self) -> _Slot:
        """Take a place in the pool for one request; waits where all are taken, the last one used comes first."""
        try:
            slot = self._idle.pop()
        except IndexError:
            slot = self._wait_for_slot()
        if slot.number >= LAST_NUMBER:
            slot.discard()
            slot.session = self._session()
            slot.number = 0
        slot.number += 1
        slot.attempted = False
        return slot

    def _wait_for_slot(self) -> _Slot:
        deadline = monotonic() + self.config.timeout
        with self._freed:
            self._queued += 1
            try:
                while True:
                    if self._idle:
                        return self._idle.pop()
                    if len(self._slots) - self._lent < self.config.pool_size:
                        slot = _Slot(self._session())
                        self._slots.add(slot)
                        return slot
                    left = deadline - monotonic()
                    if left <= 0:
                        raise errors.out_of_room(None, self.config.timeout)
                    self._freed.wait(left)
            finally:
                self._queued -= 1

    def drop(self, ticket: Any) -> None:
        slot: _Slot = ticket
        if len(self._slots) - self._lent > self.config.pool_size and self._removed(slot):
            return
        if not self.config.keep_alive:
            slot.discard()
        if slot not in self._slots:
            slot.discard()  # the lane was closed meanwhile
            return
        slot.used = monotonic()
        self._idle.append(slot)
        if self._queued:
            with self._freed:
                self._freed.notify()

    def _removed(self, slot: _Slot) -> bool:
        """Give up a place that was beyond the pool's size while others waited; False where it isn't any more."""
        with self._freed:
            if len(self._slots) - self._lent <= self.config.pool_size or slot not in self._slots:
                return False
            self._slots.remove(slot)
        slot.discard()
        return True

    def _lend(self, by: int) -> None:
        """Count one slot more, or less, that only waits."""
        with self._freed:
            self._lent += by
            self._freed.notify()

    # ------------------------------------------------------------------------------------------ requests

    def connect(self) -> None:
        slot = self.ticket()
        try:
            sock = slot.sock
            if sock is None or self._ended(slot, sock):
                slot.discard()
                self._open(slot, self.config.timeout)
        finally:
            self.drop(slot)

    def call(self, command: Command, payload: Struct, *, ticket: Any, timeout: Optional[float]) -> Any:
        slot: _Slot = ticket
        body = self.codec.encode_payload(command, payload)
        began = monotonic()
        sock = slot.sock
        if sock is None or (began - slot.used > IDLE and self._ended(slot, sock)):
            slot.discard()
            sock = self._open(slot, timeout)
        elif timeout != slot.timeout:
            slot.limit(timeout)
        number = slot.number
        length = len(body)
        flags = RETRY if slot.attempted else 0
        if length >= WORTH:
            body, flags, length = self._large(slot, body, flags)
        request = _pack(length, _REQUEST, flags, command.code, number) + body
        if number % CONFIRM_EVERY == 0:
            request = frame(Kind.DONE, number) + request
        waits = command is QUEUE_CONSUME and bool(payload.timeout)  # type: ignore[attr-defined]
        if waits:
            self._lend(1)
        try:
            sent = False
            if len(request) < WORTH:  # the kernel has room for that
                sock.sendall(request)
                sent = slot.attempted = True
            else:
                deadline = None if timeout is None else began + timeout
                self._send(slot, sock, request, deadline)
                sent = slot.attempted = True
                slot.hurry(deadline)
            data = sock.recv(CHUNK)
            if len(data) >= _HEADER:
                length, kind, flags, _, answered = _unpack(data)
                if answered == number and kind == _ANSWER and not flags and len(data) == _HEADER + length:
                    return self.codec.decode_result(command, data[_HEADER:])
            answer = self._receive(slot, sock, data, number, None if timeout is None else began + timeout)
            if answer.kind != _ANSWER:
                raise self.codec.decode_error(answer.body)
            return self.codec.decode_result(command, answer.body)
        except SynapError as error:
            if isinstance(error, ConnectionError):
                slot.discard()
            raise
        except BaseException as error:
            # Whatever happened, this connection may still bring an answer that nobody waits for any more.
            slot.discard()
            failure = self._failure(command, error, sent, timeout)
            if failure is None:
                raise
            raise failure from None
        finally:
            if waits:
                self._lend(-1)

    def _large(self, slot: _Slot, body: bytes, flags: int) -> Tuple[bytes, int, int]:
        """Check, and where that is wanted compress, a body that isn't small."""
        if len(body) > slot.max_body:
            raise errors.too_large(len(body), slot.max_body)
        if self.config.compression:
            body = compress(body)
            flags |= GZIP
        return body, flags, len(body)

    def _send(self, slot: _Slot, sock: socket.socket, request: bytes, deadline: Optional[float]) -> None:
        """Send a request that may have to wait for room. One `send` may take all the time there is, and `sendall` is
        any number of them."""
        rest = memoryview(request)
        while rest:
            slot.hurry(deadline)
            rest = rest[sock.send(rest) :]

    def _receive(self, slot: _Slot, sock: socket.socket, data: bytes, number: int, deadline: Optional[float]) -> Frame:
        """Return the answer to a request that didn't come alone and in one piece; `data` is what came first."""
        if not data:
            raise _Lost(_CLOSED)
        reader = slot.reader
        frames = _cut(reader.feed, data)
        drains = False
        while True:
            for position, received in enumerate(frames):
                if received.id == number and received.kind in _ANSWERS:
                    if drains or not self._goes_on(sock, frames[position + 1 :]):
                        slot.discard()
                    return _inflated(received)
                if received.kind == Kind.GOAWAY:
                    drains = True  # what is under way will still be answered
                else:
                    self._hear(sock, received)
            slot.hurry(deadline)
            count = sock.recv_into(reader.buffer())
            if not count:
                raise _Lost(_CLOSED)
            frames = _cut(reader.filled, count)

    def _hear(self, sock: socket.socket, received: Frame) -> None:
        """Take what the service says unasked; raises `_Lost` where the connection takes no further requests."""
        kind = received.kind
        if kind == Kind.PING:
            sock.sendall(frame(Kind.PONG, received.id))
        elif kind == Kind.ERROR and received.id == 0:
            try:
                reason = self.codec.decode_error(received.body).message
            except UNREADABLE as error:
                reason = f"the service sent what can't be read: {error}"
            raise _Lost(reason)
        elif kind == Kind.GOAWAY:
            raise _Lost("the service said that it drains")
        elif kind != Kind.PONG:
            raise _Lost(f"the service sent a frame of kind {kind} that nothing explains")

    def _goes_on(self, sock: socket.socket, frames: List[Frame]) -> bool:
        """Take what the service says unasked, and say whether the connection takes further requests."""
        try:
            for received in frames:
                self._hear(sock, received)
        except (OSError, _Lost):
            return False
        return True

    def _ended(self, slot: _Slot, sock: socket.socket) -> bool:
        """Say whether an idle connection has ended, or takes no further requests."""
        try:
            while True:
                data = slot.arrived()
                if data is None:
                    return False
                if not data or not self._goes_on(sock, _cut(slot.reader.feed, data)):
                    return True
        except (OSError, _Lost):
            return True

    def _failure(
        self, command: Command, error: BaseException, sent: bool, timeout: Optional[float]
    ) -> Optional[SynapError]:
        """Say how a call failed; None where it was interrupted by something of the caller's."""
        if isinstance(error, (BlockingIOError, socket.timeout)):
            return errors.timed_out(command, sent, timeout)
        if isinstance(error, (OSError, _Lost)):
            self._lost(errors.why(error))
            return errors.lost(command, sent, error)
        if isinstance(error, UNREADABLE):
            return errors.lost(command, sent, f"the answer is not one to {command.name}: {error}")
        return None

    def health(self) -> Dict[str, Any]:
        slot = self.ticket()
        timeout = self.config.timeout
        deadline = monotonic() + timeout
        try:
            sock = slot.sock
            if sock is None or self._ended(slot, sock):
                slot.discard()
                sock = self._open(slot, timeout)
            try:
                slot.limit(_left(deadline))
                sock.sendall(frame(Kind.PING, slot.number))
                answer = self._receive(slot, sock, sock.recv(CHUNK), slot.number, deadline)
                figures = self.codec.decode(answer.body) if answer.body else {}
            except BaseException as error:
                slot.discard()
                if isinstance(error, (BlockingIOError, socket.timeout)):
                    raise errors.no_sign(timeout) from None
                if isinstance(error, (OSError, _Lost, SynapError, msgspec.MsgspecError)):
                    self._lost(errors.why(error))
                    raise errors.failed(self.target.authority, errors.why(error)) from None
                raise
        finally:
            self.drop(slot)
        return figures if isinstance(figures, dict) else {}

    # ------------------------------------------------------------------------------------------ connections

    def _open(self, slot: _Slot, timeout: Optional[float]) -> socket.socket:
        """Connect and shake hands within the client's timeout, and `timeout` seconds, of which the first request gets
        what is left."""
        limit = self.config.timeout if timeout is None else min(timeout, self.config.timeout)
        began = monotonic()
        deadline = began + limit
        place = self.target.authority
        upgrade = Upgrade(self.config, self.target, slot.session)
        sock: Optional[socket.socket] = None
        try:
            sock = socket.create_connection((self.target.host, self.target.port), limit)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._context is not None:
                sock.settimeout(_left(deadline))
                sock = self._context.wrap_socket(sock, server_hostname=self.target.host)
            rest = self._shake_hands(sock, upgrade, deadline)
            slot.sock, slot.tls = sock, self._context is not None
            slot.max_body = upgrade.max_body
            slot.reader = FrameReader(MAX_ANSWER)
            if not slot.tls and _KERNEL_TIMEOUTS:
                sock.settimeout(None)
            slot.limit(None if timeout is None else _left(began + timeout))
            for received in _cut(slot.reader.feed, rest):
                self._hear(sock, received)
            slot.used = monotonic()
        except BaseException as error:
            slot.sock = None
            if sock is not None:
                sock.close()
            if isinstance(error, socket.timeout):
                raise errors.unanswered(place, limit) from None
            if isinstance(error, (OSError, ValueError, _Lost)) and not isinstance(error, SynapError):
                raise errors.failed(place, error) from None
            raise
        self._opened()
        return sock

    def _shake_hands(self, sock: socket.socket, upgrade: Upgrade, deadline: float) -> bytes:
        sock.sendall(upgrade.request)
        while True:
            sock.settimeout(_left(deadline))
            data = sock.recv(CHUNK)
            if not data:
                raise upgrade.ended()
            rest = upgrade.feed(data)
            if rest is not None:
                return rest

    def _opened(self) -> None:
        if not self._up:
            self._up = True
            self.connected()

    def _lost(self, reason: str) -> None:
        if self._up:
            self._up = False
            self.disconnected(reason)

    # ------------------------------------------------------------------------------------------ subscriptions

    def subscribe(self, command: Command, payload: Struct, listener: Listener) -> Tuple[Any, Any]:
        return self._pushes.subscribe(command, payload, listener)

    def unsubscribe(self, handle: Any) -> None:
        self._pushes.unsubscribe(handle)

    # ------------------------------------------------------------------------------------------ the end

    def close(self) -> None:
        with self._freed:
            slots, self._slots = self._slots, set()
            idle, self._idle = self._idle, []
        for slot in idle:
            slot.discard()
        for slot in slots:
            sock = slot.sock
            if sock is not None:  # somebody is using it: they get the end of the connection
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        self._pushes.close()
        self._lost("the client was closed")

    def abandon(self) -> None:
        for slot in self._slots:
            slot.discard()  # this closes the child's copy only, nothing is sent
        self._pushes.abandon()
        self._up = False
        self._begin()
