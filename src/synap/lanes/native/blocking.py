"""A native connection of the sync client: a blocking stream, its framing, and the conversation over it."""

from __future__ import annotations

import os
import ssl
import threading
from _socket import socket as plain_socket
from time import monotonic
from typing import Callable, Optional

from synap.commands import Command
from synap.config import ClientConfig, Target
from synap.errors import SynapError
from synap.lanes import errors
from synap.lanes.io.network import Network
from synap.lanes.io.threads import Stream
from synap.lanes.native.busy_poll import BusyPoll
from synap.lanes.native.cpus import has_cpus
from synap.lanes.opening import Framing, Opening
from synap.wire.codec import Codec
from synap.wire.conversation import Conversation, Fault

CHUNK = 64 * 1024

_yield: Callable[[], object] = getattr(os, "sched_yield", lambda: None)


class Outcome:
    """A request in flight, or a ping, and its outcome once that is known."""

    __slots__ = ("answered", "body", "command", "error")

    def __init__(self, command: Command) -> None:
        self.command = command
        self.answered = False
        self.body = b""
        self.error: Optional[BaseException] = None

    def expect_large(self) -> None:
        pass

    def answer(self, body: bytes) -> None:
        self.body = body
        self.answered = True

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.answered = True


class BlockingConnection:
    """One connection after its handshake. Raises `OSError`, a builtin `TimeoutError` at a deadline, and `Fault`."""

    __slots__ = ("_busy_poll", "_framing", "_sending", "conversation", "direct", "stream")

    def __init__(self, stream: Stream, conversation: Conversation, framing: Optional[Framing], spin: float) -> None:
        self.stream = stream
        self.conversation = conversation
        self._framing = framing
        self._sending = threading.Lock()
        """Held while the framing has something to send, so that it leaves whole and in order."""
        sock = stream.socket
        plain = framing is None and stream.plain and isinstance(sock, plain_socket)
        self.direct = sock if plain else None
        """The socket, where there is no layer (TLS, WebSocket) above it and it is Python's own (not gevent's)."""
        self._busy_poll = BusyPoll(spin) if spin and plain and has_cpus() else None

    def send(self, data: bytes, deadline: float) -> None:
        """Send bytes of frames, from any thread."""
        with self._sending:
            self.stream.send(data if self._framing is None else self._framing.wrap(data), deadline)

    def receive_first(self, deadline: float, *, spin: bool) -> bytes:
        """Return the first data after a request on a `direct` socket, `b""` at the end of the connection."""
        sock = self.direct
        assert sock is not None
        busy_poll = self._busy_poll
        if busy_poll is not None and spin and busy_poll.allowed():
            for _ in range(busy_poll.polls):
                try:
                    data = sock.recv(CHUNK)
                except BlockingIOError:
                    _yield()
                else:
                    busy_poll.hit()
                    return data
            busy_poll.miss()
        while True:
            self.stream.wait(deadline)  # the answer is hardly ever there yet, and a `recv` in vain costs as much
            try:
                return sock.recv(CHUNK)
            except BlockingIOError:
                pass

    def receive(self, deadline: float) -> None:
        """Wait for bytes and process them."""
        if self._framing is None:
            count = self.stream.receive_into(self.conversation.reader.buffer(), deadline)
            if not count:
                raise ConnectionResetError("the peer closed the connection")
            self.conversation.filled(count)
        else:
            data = self.stream.receive(CHUNK, deadline)
            with self._sending:
                frames = self._framing.unwrap(data)
                out = self._framing.take_out()
                if out:
                    self.stream.send(out, deadline)
            self.conversation.feed(frames)
            if not data:
                raise ConnectionResetError("the peer closed the connection")
        self.conversation.heard = monotonic()
        self.conversation.missed = 0
        self.flush(deadline)

    def flush(self, deadline: float) -> None:
        """Send the conversation's own frames (PONG, DONE, CANCEL)."""
        if self.conversation.out:
            self.send(self.conversation.take_out(), deadline)

    def ended(self) -> bool:
        """Process what was received meanwhile; returns whether the connection has ended or is draining."""
        try:
            while self.conversation.open:
                self.receive(0.0)
        except TimeoutError:
            return False  # nothing more has come
        except (OSError, Fault):
            pass
        return True

    def close(self) -> None:
        """Close, with the framing's goodbye."""
        if self._framing is not None:
            try:
                with self._sending:
                    self.stream.send(self._framing.goodbye(), 0.0)
            except OSError:
                pass  # gone already, or it takes no more
        self.stream.close()


def open_connection(
    config: ClientConfig,
    target: Target,
    codec: Codec,
    opening: Opening,
    network: Network,
    context: Optional[ssl.SSLContext],
    deadline: float,
    unwanted: Callable[[], bool],
) -> BlockingConnection:
    """Connect and shake hands.

    Raises `CONNECTION_FAILED`, `TIMEOUT` at `deadline` or soon after `unwanted()` is true, and the service's refusals.
    """
    place = target.authority
    stream: Optional[Stream] = None
    try:
        stream = Stream(network.connect(target.host, target.port, deadline, unwanted))
        if context is not None:
            stream.shake_hands(context, target.host, deadline)
        stream.send(opening.request, deadline)
        rest: Optional[bytes] = None
        while rest is None:
            data = stream.receive(CHUNK, deadline)
            if not data:
                raise opening.ended()
            rest = opening.feed(data)
        conversation = Conversation(codec, max_body=opening.max_body, compression=config.compression)
        connection = BlockingConnection(stream, conversation, opening.framing, config.spin)
        conversation.heard = monotonic()
        conversation.feed(rest)
        connection.flush(deadline)
        if not conversation.open:
            raise Fault("the service is draining")
        return connection
    except BaseException as error:
        if stream is not None:
            stream.close()
        if isinstance(error, SynapError):
            raise
        if isinstance(error, TimeoutError):
            raise errors.client_closed() if unwanted() else errors.connect_timed_out(place, config.timeout) from None
        if isinstance(error, (OSError, ValueError, Fault)):
            raise errors.connect_failed(place, error, target=target) from None
        raise
