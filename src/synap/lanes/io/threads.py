"""The sync half of `synap.lanes.io`: waiting blocks the thread."""

from __future__ import annotations

import logging
import os
import select
import socket
import ssl
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Callable, Deque, Generic, Optional, TypeVar

from synap.lanes.io.aio import Closed

T = TypeVar("T")

log = logging.getLogger("synap")
monotonic = time.monotonic

Raised = BaseException
"""What a callback may raise without ending its subscription: `SystemExit` and `KeyboardInterrupt` too, which would only
end the thread, silently."""
LONGEST = 1_000_000.0
"""Seconds of one wait at most: `poll` takes 24 days, locks on some systems 49."""
SLICE = 256 * 1024
"""Bytes that are encrypted at a time."""


class Stream:
    """A TCP connection, or TLS on one. One thread at a time may send, and one receive; any may `abort`.

    Deadlines are times of `time.monotonic`. The socket itself never blocks, so neither signals nor a
    library that replaces Python's sockets (gevent) can make a wait longer.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Wrap a connected, non-blocking socket."""
        self.socket = sock
        self._tls: Optional[_Tls] = None
        self._readable = _Readiness(sock, for_reading=True)
        self._writable = _Readiness(sock, for_reading=False)
        self._guard = threading.Lock()
        self._users = 0
        self._closed = False

    def shake_hands(self, context: ssl.SSLContext, host: str, deadline: float) -> None:
        """Speak TLS from now on. Raises `OSError`, `ssl.SSLError` among them."""
        tls = _Tls(context, host)
        while True:
            done = tls.handshake()
            self._flush(tls, deadline)
            if done:
                self._tls = tls
                return
            incoming = self._receive(65536, deadline)
            if not incoming:
                raise ConnectionResetError("the connection ended in the TLS handshake")
            tls.feed(incoming)

    @property
    def plain(self) -> bool:
        """Whether there is no TLS."""
        return self._tls is None

    def send(self, data: bytes, deadline: float) -> None:
        """Send all of `data`; waits while more than a buffer's worth is in flight. Raises `OSError`."""
        self._enter()
        try:
            tls = self._tls
            if tls is None:
                self._send(data, deadline)
                return
            with tls.sending:
                for start in range(0, len(data), SLICE):
                    tls.write(data[start : start + SLICE])
                    self._flush(tls, deadline)
        finally:
            self._leave()

    def receive(self, max_bytes: int, deadline: float) -> bytes:
        """Receive at most `max_bytes`, waiting for the first; `b""` at the end. Raises `OSError`."""
        self._enter()
        try:
            tls = self._tls
            if tls is None:
                return self._receive(max_bytes, deadline)
            while True:
                data = tls.read(max_bytes)
                # TLS may have data of its own to send. Where another thread is sending, it goes out with that.
                if tls.outgoing.pending and tls.sending.acquire(blocking=False):
                    try:
                        self._flush(tls, deadline)
                    finally:
                        tls.sending.release()
                if data is not None:
                    return data
                tls.feed(self._receive(65536, deadline))
        finally:
            self._leave()

    def receive_into(self, buffer: memoryview, deadline: float) -> int:
        """Receive into `buffer`; returns how many bytes came, 0 at the end. Raises `OSError`."""
        if self._tls is not None:
            data = self.receive(len(buffer), deadline)
            buffer[: len(data)] = data
            return len(data)
        self._enter()
        try:
            while True:
                try:
                    return self.socket.recv_into(buffer)
                except BlockingIOError:
                    self.wait(deadline)
        finally:
            self._leave()

    def wait(self, deadline: float) -> None:
        """Wait until data can be received; raises a builtin `TimeoutError` at `deadline`."""
        if not self._readable.wait(deadline):
            raise TimeoutError("nothing came in time")

    def close(self) -> None:
        """Close, with a TLS close-notify."""
        self._close(orderly=True)

    def abort(self) -> None:
        """Close at once. Threads that wait on it get an `OSError` or the end of data."""
        self._close(orderly=False)

    def interrupt(self) -> None:
        """Shut the connection down and keep its descriptor, which its owner may be using in another thread."""
        with suppress(OSError):  # ended already
            self.socket.shutdown(socket.SHUT_RDWR)

    def detach(self) -> None:
        """Close this process's descriptor without sending anything: the connection belongs to the parent."""
        self._closed = True
        self.socket.close()

    def _flush(self, tls: _Tls, deadline: float) -> None:
        outgoing = tls.take()
        while outgoing:
            self._send(outgoing, deadline)
            outgoing = tls.take()

    def _send(self, data: bytes, deadline: float) -> None:
        rest = memoryview(data)
        try:
            while True:
                try:
                    sent = self.socket.send(rest)
                except BlockingIOError:
                    sent = 0
                if sent == len(rest):
                    return
                rest = rest[sent:]
                if not self._writable.wait(deadline):
                    raise TimeoutError("the peer takes no more")
        except BaseException:  # a signal handler's, too
            self.interrupt()  # a part has left, maybe: what came behind it would be read as its rest
            raise

    def _receive(self, max_bytes: int, deadline: float) -> bytes:
        while True:
            try:
                return self.socket.recv(max_bytes)
            except BlockingIOError:
                self.wait(deadline)

    # A descriptor must not be closed while another thread waits on it: its number could be reused a moment later. So
    # closing shuts the connection down, which wakes waiters, and the last user closes the descriptor.

    def _enter(self) -> None:
        with self._guard:
            if self._closed:
                raise ConnectionResetError("the connection is closed")
            self._users += 1

    def _leave(self) -> None:
        with self._guard:
            self._users -= 1
            if self._closed and self._users == 0:
                self.socket.close()

    def _close(self, orderly: bool) -> None:
        with self._guard:
            if self._closed:
                return
            self._closed = True
            try:
                if orderly and self._tls is not None and self._users == 0:
                    self.socket.send(self._tls.goodbye())
                self.socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # ended already
            if self._users == 0:
                self.socket.close()


class _Readiness:
    """Waits until a socket is readable, or writable."""

    __slots__ = ("_for_reading", "_poll", "_socket")

    def __init__(self, sock: socket.socket, *, for_reading: bool) -> None:
        self._socket = sock
        self._for_reading = for_reading
        self._poll: Any = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(sock, select.POLLIN if for_reading else select.POLLOUT)

    def wait(self, deadline: float) -> bool:
        """Wait until it is, by `deadline`; returns False then."""
        while True:
            left = deadline - monotonic()
            if self._ready(min(max(left, 0.0), LONGEST)):
                return True
            if left <= LONGEST:
                return False

    def _ready(self, timeout: float) -> bool:
        if self._poll is not None:
            return bool(self._poll.poll(timeout * 1000))
        socks = [self._socket]
        readable, writable, failed = select.select(
            socks if self._for_reading else [], [] if self._for_reading else socks, socks, timeout
        )
        return bool(readable or writable or failed)


class _Tls:
    """TLS between two buffers of bytes, so that a sender and a receiver may share it.

    OpenSSL's state is used under a lock that is never held while waiting for the network. A thread that takes outgoing
    data holds `sending` until it is sent, so that it leaves in order.
    """

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.sending = threading.Lock()
        self._object = context.wrap_bio(self.incoming, self.outgoing, server_hostname=host)
        self._lock = threading.Lock()

    def handshake(self) -> bool:
        """Continue the handshake; returns True once it is done."""
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def feed(self, data: bytes) -> None:
        """Pass in data from the network, `b""` at its end."""
        with self._lock:
            if data:
                self.incoming.write(data)
            else:
                self.incoming.write_eof()

    def read(self, max_bytes: int) -> Optional[bytes]:
        """Return decrypted data, `b""` at the end, None where more must be received first."""
        with self._lock:
            try:
                return self._object.read(max_bytes)
            except ssl.SSLWantReadError:
                return None
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""  # with or without a close-notify: frames have lengths, so truncation is noticed

    def write(self, data: bytes) -> None:
        """Encrypt data to be sent."""
        with self._lock:
            self._object.write(data)

    def take(self) -> bytes:
        """Take the data to be sent to the network."""
        with self._lock:
            return self.outgoing.read()

    def goodbye(self) -> bytes:
        """Return a close-notify (half-close); the peer's own is not waited for."""
        with self._lock:
            with suppress(ssl.SSLError):
                self._object.unwrap()
            return self.outgoing.read()


Lock = threading.Lock
"""Mutual exclusion for `with`. No class of ours: a signal handler may raise within an `__enter__` in Python, once that
has the lock, which then stays locked."""


class Event(threading.Event):
    """A flag that can be waited for."""


class Mailbox(Generic[T]):
    """A bounded queue. `put` never waits; one thread takes."""

    __slots__ = ("_changed", "_closed", "_guard", "_items", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: Deque[T] = deque()
        self._closed = False
        self._guard = threading.RLock()
        self._changed = threading.Condition(self._guard)

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> bool:
        """Put an item; False where the mailbox is full or closed."""
        with self._guard:
            if self._closed or len(self._items) >= self._size:
                return False
            self._items.append(item)
            self._changed.notify()
        return True

    def poll(self) -> Optional[T]:
        """Remove and return the oldest item; None where there is none."""
        with self._guard:
            return self._items.popleft() if self._items else None

    def get(self) -> T:
        """Wait for the oldest item; raises `Closed` where the mailbox is closed and empty."""
        with self._guard:
            self._changed.wait_for(lambda: self._items or self._closed)
            if not self._items:
                raise Closed
            return self._items.popleft()

    def close(self, *, discard: bool = False) -> None:
        """Accept no more items; those in it can still be taken, unless `discard`."""
        with self._guard:
            self._closed = True
            if discard:
                self._items.clear()
            self._changed.notify_all()


def spawn(
    function: Callable[..., None],
    *args: Any,
    name: str,
    or_here: bool = False,
    cancelled: Callable[[], None] = lambda: None,
) -> None:
    """Run `function` on a daemon thread; its exceptions are logged.

    Raises `RuntimeError` where none can be started: there are as many as there may be. With `or_here` it runs at once
    then. `cancelled` is for tasks, see `async_spawn`.
    """

    def run() -> None:
        try:
            function(*args)
        except Exception:
            log.exception("%s ended with an error", name)

    try:
        threading.Thread(target=run, name=name, daemon=True).start()
    except RuntimeError:
        if not or_here:
            raise
        run()


def apart(function: Callable[..., T], *args: Any, name: str) -> Future[T]:
    """Run `function` on a daemon thread; returns a future of its outcome."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(function(*args))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return outcome


def sleep(seconds: float) -> None:
    """Sleep."""
    time.sleep(seconds)


def home() -> object:
    """Return the owner of new connections: this process. A fork must leave them to its parent."""
    return os.getpid()
