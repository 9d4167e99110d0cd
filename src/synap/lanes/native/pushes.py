"""The connection of the sync client on which subscriptions come, with a thread that reads it."""

from __future__ import annotations

import ssl
import threading
import uuid
from time import monotonic
from typing import Any, Callable, Dict, Optional, Tuple

from msgspec import Struct

from synap.commands import PUBSUB_UNSUBSCRIBE, STREAM_SUBSCRIBE, STREAM_UNSUBSCRIBE, Command
from synap.config import ClientConfig, Target
from synap.errors import SynapError
from synap.lanes import errors
from synap.lanes._sync.base import Listener
from synap.lanes.io import Promise, Stream
from synap.lanes.native.connection import MISSED, SILENCE, UNREAD
from synap.lanes.native.pending import UNREADABLE
from synap.lanes.native.upgrade import Upgrade
from synap.wire.codec import Codec
from synap.wire.compression import decompress
from synap.wire.frames import GZIP, MAX_ANSWER, FrameReader, Kind, frame

__all__ = ["Pushes"]


_FAILURES = (OSError, SynapError, *UNREADABLE)
"""What ends a connection."""


def _why(error: BaseException) -> str:
    if isinstance(error, UNREADABLE):
        return f"the service sent what can't be read: {error}"
    return errors.why(error)


class _Asked:
    """A request that is under way, with the listener where it is one to subscribe."""

    def __init__(self, command: Command, listener: Optional[Listener]) -> None:
        self.command = command
        self.listener = listener
        self.promise: Promise[Tuple[int, Any]] = Promise()


class _Wire:
    """One connection, from its handshake to its end."""

    def __init__(self, stream: Stream, codec: Codec, lost: Callable[[_Wire, str], None]) -> None:
        self.stream = stream
        self.open = True
        self.codec = codec
        self.listeners: Dict[int, Listener] = {}
        self._asked: Dict[int, _Asked] = {}
        self._lost = lost
        self._sending = threading.Lock()
        self._reader = FrameReader(MAX_ANSWER)

    def begin(self) -> None:
        """Read from now on."""
        threading.Thread(target=self._read, name="synap-reader", daemon=True).start()

    def send(self, data: bytes, timeout: float) -> None:
        with self._sending:
            self.stream.send(data, timeout)

    def subscribe(self, command: Command, number: int, body: bytes, listener: Listener, timeout: float) -> Any:
        """Subscribe; returns the id and the answer."""
        asked = self._asked[number] = _Asked(command, listener)
        try:
            self.send(frame(Kind.REQUEST, number, body, command.code), timeout)
            if not self.open and not asked.promise.settled:  # the reader may have ended before it saw the request
                raise errors.lost(command, True, None)
            return asked.promise.wait(timeout)
        except BaseException as error:
            asked.listener = None  # the answer may still come, and is then taken back
            if isinstance(error, SynapError):
                raise
            if isinstance(error, TimeoutError):
                raise errors.timed_out(command, True, timeout) from None
            if isinstance(error, OSError):
                raise errors.lost(command, False, error) from None
            raise

    def unsubscribe(self, command: Command, number: int, subscription_id: int, timeout: float) -> None:
        """End a subscription; its listener hears nothing more."""
        self.listeners.pop(subscription_id, None)
        if self.open:
            ending = STREAM_UNSUBSCRIBE if command is STREAM_SUBSCRIBE else PUBSUB_UNSUBSCRIBE
            body = self.codec.encode(ending.payload(subscription_id))
            asked = self._asked[number] = _Asked(ending, None)
            try:
                self.send(frame(Kind.REQUEST, number, body, ending.code), timeout)
                if number != UNREAD and (self.open or asked.promise.settled):
                    asked.promise.wait(timeout)
            except (OSError, SynapError):
                pass  # the connection is gone, and the subscription with it

    # ------------------------------------------------------------------------------------------ the reading thread

    def _read(self) -> None:
        reason = "the other side closed the connection"
        missed = 0
        try:
            while True:
                try:
                    data = self.stream.receive(256 * 1024, SILENCE)
                except TimeoutError:
                    missed += 1
                    if missed > MISSED:
                        reason = "the service has fallen silent"
                        break
                    self.send(frame(Kind.PING), SILENCE)
                    continue
                if not data:
                    break
                missed = 0
                self.take_in(data)
        except _FAILURES as error:
            reason = _why(error)
        self._end(reason)

    def take_in(self, data: bytes) -> None:
        """Take what came. Raises `OSError`, `SynapError` and what decoding does."""
        for kind, flags, _, number, body in self._reader.feed(data):
            self._take(kind, number, decompress(body, MAX_ANSWER) if flags & GZIP else body)

    def _take(self, kind: int, number: int, body: bytes) -> None:
        if kind == Kind.EVENT:
            listener = self.listeners.get(number)
            if listener is not None:
                listener.push(self.codec.decode_event(body))
        elif kind == Kind.MESSAGE:
            listener = self.listeners.get(number)
            if listener is not None:
                listener.push(self.codec.decode_message(body))
        elif kind == Kind.ENDED:
            listener = self.listeners.pop(number, None)
            if listener is not None:
                listener.ended(self.codec.decode_error(body))
        elif kind == Kind.ANSWER:
            asked = self._asked.pop(number, None)
            if asked is not None:
                self._answered(asked, body)
        elif kind == Kind.ERROR:
            error = self.codec.decode_error(body)
            if number == 0:
                raise error
            asked = self._asked.pop(number, None)
            if asked is not None:
                asked.promise.fail(error)
        elif kind == Kind.PING:
            self.send(frame(Kind.PONG, number), SILENCE)
        elif kind == Kind.GOAWAY:
            self.open = False  # what is subscribed goes on until the service ends the connection
        elif kind != Kind.PONG:
            raise SynapError("INVALID_REQUEST", f"the service sent a frame of kind {kind}, which is a client's")

    def _answered(self, asked: _Asked, body: bytes) -> None:
        answer = self.codec.decode_result(asked.command, body)
        if not asked.command.pushes:
            asked.promise.resolve((0, answer))
            return
        listener = asked.listener
        if listener is not None:
            self.listeners[answer.subscription_id] = listener
        else:  # whoever asked for it has gone
            self.unsubscribe(asked.command, UNREAD, answer.subscription_id, SILENCE)
        asked.promise.resolve((answer.subscription_id, answer))

    def _end(self, reason: str) -> None:
        self.open = False
        self.stream.close()
        self._lost(self, reason)
        asked, self._asked = list(self._asked.values()), {}
        for request in asked:
            request.promise.fail(errors.lost(request.command, True, reason))
        listeners, self.listeners = list(self.listeners.values()), {}
        for listener in listeners:
            listener.lost(errors.failed("the service", reason))


class Pushes:
    """Makes and keeps that connection, when somebody subscribes."""

    def __init__(
        self,
        config: ClientConfig,
        target: Target,
        codec: Codec,
        context: Optional[ssl.SSLContext],
        opened: Callable[[], None],
        lost: Callable[[str], None],
    ) -> None:
        self._config = config
        self._target = target
        self._codec = codec
        self._context = context
        self._opened = opened
        self._lost = lost
        self._guard = threading.Lock()
        self._session = uuid.uuid4().hex
        self._number = 0
        self._wire: Optional[_Wire] = None

    def subscribe(self, command: Command, payload: Struct, listener: Listener) -> Tuple[Any, Any]:
        """Subscribe; returns a handle and the answer."""
        body = self._codec.encode_payload(command, payload)
        with self._guard:
            wire = self._wire
            if wire is None or not wire.open:
                wire = self._wire = self._connect()
            self._number += 1
            number = self._number
        subscription_id, answer = wire.subscribe(command, number, body, listener, self._config.timeout)
        return (wire, command, subscription_id), answer

    def unsubscribe(self, handle: Any) -> None:
        """End a subscription."""
        wire, command, subscription_id = handle
        with self._guard:
            self._number += 1
            number = self._number
        wire.unsubscribe(command, number, subscription_id, self._config.timeout)

    def close(self) -> None:
        """Close the connection; the reading thread ends."""
        with self._guard:
            wire, self._wire = self._wire, None
        if wire is not None:
            wire.stream.close()

    def abandon(self) -> None:
        """Forget the connection: it is the parent's."""
        if self._wire is not None:
            self._wire.stream.detach()
            self._wire = None

    def _connect(self) -> _Wire:
        timeout = self._config.timeout
        deadline = monotonic() + timeout
        place = self._target.authority
        upgrade = Upgrade(self._config, self._target, self._session)
        stream: Optional[Stream] = None
        try:
            stream = Stream.connect(self._target.host, self._target.port, self._context, timeout)
            stream.send(upgrade.request, timeout)
            rest: Optional[bytes] = None
            while rest is None:
                data = stream.receive(65536, max(deadline - monotonic(), 0))
                if not data:
                    raise upgrade.ended()
                rest = upgrade.feed(data)
        except BaseException as error:
            if stream is not None:
                stream.close()
            if isinstance(error, SynapError):
                raise
            if isinstance(error, TimeoutError):
                raise errors.unanswered(place, timeout) from None
            if isinstance(error, (OSError, ValueError)):
                raise errors.failed(place, error) from None
            raise
        wire = _Wire(stream, self._codec, self._ended)
        try:
            wire.take_in(rest)
            if not wire.open:
                raise ConnectionResetError("the service said that it drains")
        except _FAILURES as error:
            stream.close()
            raise errors.failed(place, _why(error)) from None
        self._opened()
        wire.begin()
        return wire

    def _ended(self, wire: _Wire, reason: str) -> None:
        if self._wire is wire:
            self._wire = None
            self._lost(reason)
