"""The client's side of a native connection, without I/O: requests in flight, subscriptions, PING, DONE, GOAWAY.

The owner of the socket sends what `take_out` returns and passes received bytes to `feed` (or receives into
`reader.buffer()` and calls `filled`). Answers go to calls and pushed items to listeners from within these methods.

No answer reaches the wrong call: numbers are not reused on a connection, a withdrawn request is forgotten, and an
answer to a number that isn't in flight is dropped.
"""

from __future__ import annotations

from typing import Any, Callable, Container, Dict, List, Optional, Protocol, Tuple

import msgspec

from synap.commands import PUBSUB_SUBSCRIBE, STREAM_SUBSCRIBE, Command
from synap.errors import ConnectionError, SynapError
from synap.wire.codec import Codec
from synap.wire.compression import compress, decompress
from synap.wire.frames import GZIP, HEADER, MAX_ANSWER, MAX_BODY, Frame, FrameReader, Kind, frame
from synap.wire.outcomes import UNREADABLE, lost, too_large, unreadable, why
from synap.wire.values import too_deep

CONFIRM_EVERY = 64
"""Received answers after which they are confirmed with DONE, so that the service forgets them."""
UNREAD = 2**32 - 1
"""The number of requests whose answer is ignored."""
LAST_NUMBER = UNREAD - 1
"""The last number of a session's requests."""
SILENCE = 30.0
"""Seconds without received data after which a connection in use is pinged."""
MISSED = 3
"""Unanswered pings in a row after which the connection counts as dead."""

_unpack = HEADER.unpack_from
_HEADER = HEADER.size
_REQUEST, _ANSWER, _EVENT, _MESSAGE = Kind.REQUEST, Kind.ANSWER, Kind.EVENT, Kind.MESSAGE
_PUSHED = (_EVENT, _MESSAGE)


class Fault(Exception):
    """The connection can't be used any more; the argument says why."""


class Waiter(Protocol):
    """Something in flight: `answer` or `fail` is called once."""

    @property
    def answered(self) -> bool:
        """Whether the outcome is known."""

    def answer(self, body: bytes) -> None:
        """Receive the body of the answer."""

    def fail(self, error: BaseException) -> None:
        """Receive an error in place of an answer."""


class Call(Waiter, Protocol):
    """A request in flight."""

    @property
    def command(self) -> Command:
        """The command."""

    def expect_large(self) -> None:
        """Learn that what `answer` gets next was received in place: it is a `memoryview`, for `Codec.decode_large`."""


class Listener:
    """The receiver of a subscription's items. Called by the reader of the connection; must not block."""

    def push(self, item: Any) -> None:
        """Receive a `StreamEvent` or a `TopicMessageResult`."""
        raise NotImplementedError

    def ended(self, error: SynapError) -> None:
        """Called when the service ended the subscription (`SLOW_CONSUMER`, the room was deleted)."""
        raise NotImplementedError

    def lost(self, error: SynapError) -> None:
        """Called when the connection was lost, and the subscription with it."""
        raise NotImplementedError


class Numbers:
    """The numbers of one session's requests, across all its consecutive connections."""

    __slots__ = ("__weakref__", "number", "parked", "session")

    def __init__(self, session: str) -> None:
        self.session = session
        """32 hexadecimal digits, under which the service remembers answers."""
        self.number = 0
        """The last number given out."""
        self.parked: Dict[int, bool] = {}
        """Requests that will be sent (again), and whether they were sent before, whatever the outcome: a restarted
        service may find on its disk a request it had refused. Also consumes, until the caller has the message. Answers
        to these are not confirmed."""

    def confirmed(self, in_flight: Dict[int, Any]) -> int:
        """Return the number below which all requests are finished, for DONE."""
        below = self.number + 1
        if in_flight:
            below = min(below, next(iter(in_flight)))
        if self.parked:
            below = min(below, min(self.parked))
        return below


class Conversation:
    """One connection after its handshake. Not locked: `feed` and `filled` are for one thread at a time."""

    __slots__ = (
        "_pings",
        "_subscribing",
        "answered",
        "calls",
        "codec",
        "compression",
        "heard",
        "listeners",
        "max_body",
        "missed",
        "open",
        "out",
        "reader",
    )

    def __init__(self, codec: Codec, *, max_body: int = MAX_BODY, compression: bool = False) -> None:
        self.codec = codec
        self.max_body = max_body
        """The service's limit for the body of a request."""
        self.compression = compression
        self.open = True
        """Whether requests can be sent: until the service drains, or the connection ends."""
        self.calls: Dict[int, Call] = {}
        """Calls by number, each until its caller has resumed: until then it may be cancelled, so it must not be
        confirmed."""
        self.listeners: Dict[int, Listener] = {}
        """Listeners by subscription."""
        self.answered = 0
        """Answers since the last DONE."""
        self.out: List[bytes] = []
        """Frames, or parts of frames, that wait to be sent."""
        self.heard = 0.0
        """When data was last received, by the owner's clock."""
        self.missed = 0
        """Pings sent since then."""
        self.reader = FrameReader(MAX_ANSWER)
        self._subscribing: Dict[int, Tuple[Command, Optional[Listener]]] = {}
        self._pings: Dict[int, Waiter] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight and nothing subscribed. Something may still wait to be sent."""
        return not self.calls and not self.listeners and not self._pings

    # ------------------------------------------------------------------------------------------ sending

    def fit(self, body: bytes, flags: int) -> Tuple[bytes, int]:
        """Check the size of a body, and compress it where that is on; returns body and flags."""
        if len(body) > self.max_body:
            raise too_large(len(body), self.max_body)
        return (compress(body), flags | GZIP) if self.compression else (body, flags)

    def withdraw(self, number: int) -> None:
        """Cancel a request, also one whose answer has come: the service takes back a message it may have leased."""
        self.calls.pop(number, None)
        if number in self._subscribing:  # where its answer still comes, the subscription is ended
            self._subscribing[number] = self._subscribing[number][0], None
        self.out.append(frame(Kind.CANCEL, number))

    def confirm(self, below: int) -> None:
        """Confirm the answers to all requests numbered below `below`."""
        self.answered = 0
        self.out.append(frame(Kind.DONE, below))

    def ping(self, number: int, waiter: Waiter) -> None:
        """Send a PING; `waiter` is answered with the service's health."""
        self._pings[number] = waiter
        self.out.append(frame(Kind.PING, number))

    def forget_ping(self, number: int) -> None:
        """Forget a ping that nobody waits for any more."""
        self._pings.pop(number, None)

    def subscribing(self, command: Command, number: int, listener: Listener) -> None:
        """Register a subscribe request before it is sent; `listener` gets the items after its answer."""
        self._subscribing[number] = command, listener

    def unsubscribing(self, command: Command, subscription_id: int) -> Tuple[Command, bytes]:
        """Remove the listener of a subscription that `command` made; returns the request to unsubscribe."""
        self.listeners.pop(subscription_id, None)
        ending = command.ended_by
        assert ending is not None, "it makes subscriptions"
        return ending, self.codec.encode(ending.payload(subscription_id))

    def take_out(self) -> bytes:
        """Return and clear the data that waits to be sent. Other threads may add to it meanwhile."""
        pieces = list(self.out)
        del self.out[: len(pieces)]
        return b"".join(pieces)

    def unsent(self) -> Container[int]:
        """Return the numbers of requests that wait to be sent. Every header in `out` starts a piece."""
        heads = (_unpack(data) for data in self.out if len(data) >= _HEADER)
        return {number for _, kind, _, _, number in heads if kind == _REQUEST}

    # ------------------------------------------------------------------------------------------ receiving

    def take_alone(self, received: Any, count: int) -> bool:
        """Process received data that is exactly the answer to the only call in flight; returns False otherwise."""
        if len(self.calls) != 1 or not self.reader.empty or count < _HEADER:
            return False
        length, kind, flags, _, number = _unpack(received)
        if kind != _ANSWER or length + _HEADER != count or flags or self._subscribing:
            return False
        call = self.calls.get(number)
        if call is not None and not call.answered:
            self.answered += 1
            call.answer(bytes(received[_HEADER:count]))
        return True

    def feed(self, data: bytes) -> None:
        """Process received bytes. Raises `Fault`."""
        try:
            frames = self.reader.feed(data)
        except SynapError as error:
            raise Fault(_unreadable(error)) from None
        self.receive(frames)

    def filled(self, count: int) -> None:
        """Process bytes that were received into `reader.buffer()`. Raises `Fault`."""
        try:
            frames = self.reader.filled(count)
        except SynapError as error:
            raise Fault(_unreadable(error)) from None
        if frames and type(frames[0][4]) is not bytes:
            kind, flags, _, number, _ = frames[0]
            call = self.calls.get(number)
            if call is not None and kind == _ANSWER and not flags:
                call.expect_large()
        self.receive(frames)

    def receive(self, frames: List[Frame]) -> None:
        """Process frames in order. Raises `Fault` where the connection can't be used any more."""
        calls, listeners = self.calls, self.listeners
        decode_event, decode_message = self.codec.decode_event, self.codec.decode_message
        try:
            for kind, flags, _, number, body in frames:
                if kind == _ANSWER and not flags and not self._subscribing:
                    call = calls.get(number)
                    if call is not None and not call.answered:
                        call.answer(body)
                elif kind in _PUSHED:
                    listener = listeners.get(number)
                    if listener is not None:
                        if flags & GZIP:
                            body = decompress(body, MAX_ANSWER)
                        try:
                            item: Any = decode_message(body) if kind == _MESSAGE else decode_event(body)
                        except RecursionError:
                            self._end(listener, kind, number)
                        else:
                            listener.push(item)
                else:
                    self._receive(kind, flags, number, body)
        except (SynapError, *UNREADABLE) as error:
            raise Fault(_unreadable(error)) from None
        finally:
            self.answered += len(frames)

    def _receive(self, kind: int, flags: int, number: int, body: bytes) -> None:
        """Process a frame of a less frequent kind."""
        if kind == _ANSWER:
            self._answered(number, flags, body)
        elif kind == Kind.ERROR:
            self._failed(number, body)
        elif kind == Kind.ENDED:
            listener = self.listeners.pop(number, None)
            if listener is not None:
                listener.ended(self.codec.decode_error(body))
        elif kind == Kind.PING:
            self.out.append(frame(Kind.PONG, number))
        elif kind == Kind.PONG:
            ping = self._pings.pop(number, None)
            if ping is not None and not ping.answered:
                ping.answer(body)
        elif kind == Kind.GOAWAY:
            self.open = False
        else:
            raise SynapError("INVALID_REQUEST", f"frames of kind {kind} are a client's")

    def _end(self, listener: Listener, kind: int, subscription_id: int) -> None:
        """End a subscription whose next item is nested deeper than this Python reads."""
        self._unsubscribe(PUBSUB_SUBSCRIBE if kind == _MESSAGE else STREAM_SUBSCRIBE, subscription_id)
        listener.ended(too_deep())

    def _unsubscribe(self, command: Command, subscription_id: int) -> None:
        """End a subscription that `command` made, whether or not the service still has it."""
        ending, request = self.unsubscribing(command, subscription_id)
        self.out.append(frame(_REQUEST, UNREAD, request, ending.code))

    def _answered(self, number: int, flags: int, body: bytes) -> None:
        """Process an answer that is compressed, or came with a subscribe request in flight. It may fail its call."""
        call = self.calls.get(number)
        try:
            if flags & GZIP:
                body = decompress(body, MAX_ANSWER)
            if number in self._subscribing:
                self._subscribed(number, body)
        except (SynapError, *UNREADABLE) as error:
            if call is not None and not call.answered:
                call.fail(unreadable(call.command, error))
            return
        if call is not None and not call.answered:
            call.answer(body)

    def _subscribed(self, number: int, body: bytes) -> None:
        """Register the listener with the answer: the next frame may be its first item."""
        command, listener = self._subscribing.pop(number)
        subscription_id = _SUBSCRIBED[self.codec.format](body).subscription_id
        if listener is not None:
            self.listeners[subscription_id] = listener
        else:  # the request was withdrawn
            self._unsubscribe(command, subscription_id)

    def _failed(self, number: int, body: bytes) -> None:
        """Process an error: of one request, or (number 0) of the connection."""
        if number == 0:
            raise Fault(self.codec.decode_error(body).message)
        self._subscribing.pop(number, None)
        call = self.calls.get(number)
        if call is None or call.answered:
            return
        try:
            error: SynapError = self.codec.decode_error(body)
        except UNREADABLE as fault:
            error = unreadable(call.command, fault)
        call.fail(error)

    # ------------------------------------------------------------------------------------------ keepalive and end

    def watch(self, now: float) -> float:
        """Ping a silent peer; returns when to call this again. Raises `Fault` for one that stays silent."""
        due = self.heard + SILENCE * (self.missed + 1)
        if due > now:
            return due
        if self.missed >= MISSED:
            raise Fault("the service has fallen silent")
        self.missed += 1
        self.out.append(frame(Kind.PING))
        return now + SILENCE

    def end(self, reason: str) -> List[Listener]:
        """Fail everything in flight; returns the listeners, which the owner tells."""
        self.open = False
        unsent = self.unsent()
        self.out.clear()
        calls = list(self.calls.items())
        self.calls.clear()
        for number, call in calls:
            if not call.answered:
                call.fail(lost(call.command, number not in unsent, reason))
        pings, self._pings = list(self._pings.values()), {}
        for ping in pings:
            if not ping.answered:
                ping.fail(ConnectionError("CONNECTION_FAILED", f"no connection to the service: {reason}", {}))
        self._subscribing.clear()
        listeners, self.listeners = self.listeners, {}
        return list(listeners.values())


class _Subscribed(msgspec.Struct):
    """The common field of the answers to both subscribe commands."""

    subscription_id: int


_SUBSCRIBED: Dict[str, Callable[[bytes], _Subscribed]] = {
    "json": msgspec.json.Decoder(_Subscribed).decode,
    "msgpack": msgspec.msgpack.Decoder(_Subscribed).decode,
}


def _unreadable(error: BaseException) -> str:
    return f"the service sent unreadable data: {why(error)}"
