"""The client's side of a native connection, without I/O: what is in flight, and what each frame means.

Whoever owns the socket sends what `take_out` returns and passes what it reads to `feed` (or to the buffer of `reader`
and `filled`). Answers go to calls and pushed items to listeners while the bytes that brought them are processed.

No answer reaches the wrong call: numbers are not reused on a connection, a request that was withdrawn is forgotten, and
an answer to a number that isn't in flight is dropped.
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

__all__ = [
    "CONFIRM_EVERY",
    "LAST_NUMBER",
    "MISSED",
    "SILENCE",
    "Call",
    "Conversation",
    "Fault",
    "Listener",
    "Numbers",
    "Waiter",
]

CONFIRM_EVERY = 64
"""Answers after which the service is told that they came, so that it may forget them."""
UNREAD = 2**32 - 1
"""Number of requests whose answer nobody reads."""
LAST_NUMBER = UNREAD - 1
"""The last number a session has for its requests."""
SILENCE = 30.0
"""Seconds without a byte after which a connection that is waited on is pinged."""
MISSED = 3
"""Pings in a row without an answer after which the connection counts as dead."""

_unpack = HEADER.unpack_from
_HEADER = HEADER.size
_REQUEST, _ANSWER, _EVENT, _MESSAGE = Kind.REQUEST, Kind.ANSWER, Kind.EVENT, Kind.MESSAGE
_PUSHED = (_EVENT, _MESSAGE)


class Fault(Exception):
    """The connection can't go on; the argument says why."""


class Waiter(Protocol):
    """Something in flight: `answer` or `fail` is called, once."""

    @property
    def answered(self) -> bool:
        """Whether the outcome is known."""

    def answer(self, body: bytes) -> None:
        """Take the body of the answer."""

    def fail(self, error: BaseException) -> None:
        """Take an error in place of an answer."""


class Call(Waiter, Protocol):
    """A request in flight."""

    @property
    def command(self) -> Command:
        """What was asked for."""


class Listener:
    """A subscriber, as the connection sees it. Called by whatever reads the connection; must not block."""

    def push(self, item: Any) -> None:
        """Take a `StreamEvent` or a `TopicMessageResult`."""
        raise NotImplementedError

    def ended(self, error: SynapError) -> None:
        """Learn that the service ended the subscription (`SLOW_CONSUMER`, the room was deleted)."""
        raise NotImplementedError

    def lost(self, error: SynapError) -> None:
        """Learn that the connection is gone: nothing comes any more until somebody subscribes anew."""
        raise NotImplementedError


class Numbers:
    """The numbers of one session's requests, kept over all connections that it has one after the other."""

    __slots__ = ("__weakref__", "number", "parked", "session")

    def __init__(self, session: str) -> None:
        self.session = session
        """32 hexadecimal digits, by which the service remembers what it answered."""
        self.number = 0
        """The number given out last."""
        self.parked: Dict[int, bool] = {}
        """Requests that are not in flight and will be sent (again), and whether they have been sent before, whatever
        came of it: a service that was restarted may find on its disk what it had refused. Also consumes, until the
        caller has the message. The answers to all of these are not confirmed."""

    def confirmed(self, in_flight: Dict[int, Any]) -> int:
        """Return the number below which every request is answered and done with; DONE carries it."""
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
        """Bytes the service takes as one body."""
        self.compression = compression
        self.open = True
        """Whether it takes requests: until the service drains, or it is over."""
        self.calls: Dict[int, Call] = {}
        """Calls by number, each until its caller has the answer in hand: until then it may be cancelled, and so must
        not be confirmed."""
        self.listeners: Dict[int, Listener] = {}
        """Subscribers by subscription."""
        self.answered = 0
        """Answers since the last DONE."""
        self.out: List[bytes] = []
        """Frames, or parts of one, that wait to be sent."""
        self.heard = 0.0
        """When something was last received, by the owner's clock."""
        self.missed = 0
        """Pings sent since then."""
        self.reader = FrameReader(MAX_ANSWER)
        self._subscribing: Dict[int, Tuple[Command, Optional[Listener]]] = {}
        self._pings: Dict[int, Waiter] = {}

    # ------------------------------------------------------------------------------------------ what is sent

    def fit(self, body: bytes, flags: int) -> Tuple[bytes, int]:
        """Check the size of a body that isn't small, and compress it where that is wanted; returns body and flags."""
        if len(body) > self.max_body:
            raise too_large(len(body), self.max_body)
        return (compress(body), flags | GZIP) if self.compression else (body, flags)

    def withdraw(self, number: int) -> None:
        """Forget a request, also one whose answer has come; CANCEL makes the service take back what it gave."""
        self.calls.pop(number, None)
        if number in self._subscribing:  # the answer may still come, and is then undone
            self._subscribing[number] = self._subscribing[number][0], None
        self.out.append(frame(Kind.CANCEL, number))

    def confirm(self, below: int) -> None:
        """Tell the service that the answers to all requests numbered `below` that have come."""
        self.answered = 0
        self.out.append(frame(Kind.DONE, below))

    def ping(self, number: int, waiter: Waiter) -> None:
        """Ask for a sign of life; `waiter` is answered with the service's health."""
        self._pings[number] = waiter
        self.out.append(frame(Kind.PING, number))

    def unping(self, number: int) -> None:
        """Forget a ping that nobody waits for any more."""
        self._pings.pop(number, None)

    def subscribing(self, command: Command, number: int, listener: Listener) -> None:
        """Note, before it is sent, that request `number` subscribes; `listener` hears what comes from its answer on."""
        self._subscribing[number] = command, listener

    def unsubscribing(self, command: Command, subscription_id: int) -> Tuple[Command, bytes]:
        """Stop hearing a subscription that `command` made; returns the request that ends it at the service."""
        self.listeners.pop(subscription_id, None)
        ending = command.ended_by
        assert ending is not None, "it makes subscriptions"
        return ending, self.codec.encode(ending.payload(subscription_id))

    def take_out(self) -> bytes:
        """Return what waits to be sent, as one piece, and forget it. Others may add to it meanwhile."""
        pieces = list(self.out)
        del self.out[: len(pieces)]
        return b"".join(pieces)

    def unsent(self) -> Container[int]:
        """Return the numbers of requests that wait to be sent. Every header among `out` is a piece of its own."""
        heads = (_unpack(data) for data in self.out if len(data) >= _HEADER)
        return {number for _, kind, _, _, number in heads if kind == _REQUEST}

    # ------------------------------------------------------------------------------------------ what comes

    def take_alone(self, received: Any, count: int) -> bool:
        """Work off what was received where it is the one answer that is waited for, whole; False where it isn't."""
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
        """Work off what was received. Raises `Fault`."""
        try:
            frames = self.reader.feed(data)
        except SynapError as error:
            raise Fault(_nonsense(error)) from None
        self.receive(frames)

    def filled(self, count: int) -> None:
        """Work off what was received into `reader.buffer()`. Raises `Fault`."""
        try:
            frames = self.reader.filled(count)
        except SynapError as error:
            raise Fault(_nonsense(error)) from None
        self.receive(frames)

    def receive(self, frames: List[Frame]) -> None:
        """Work off frames in order. Raises `Fault` where the connection can't go on."""
        calls, listeners = self.calls, self.listeners
        decode_event, decode_message = self.codec.decode_event, self.codec.decode_message
        try:
            for kind, flags, _, number, body in frames:
                if kind == _ANSWER and not flags and not self._subscribing:
                    call = calls.get(number)
                    if call is not None and not call.answered:
                        call.answer(body)
                elif kind in _PUSHED and not flags:
                    listener = listeners.get(number)
                    if listener is not None:
                        try:
                            item: Any = decode_message(body) if kind == _MESSAGE else decode_event(body)
                        except RecursionError:
                            self._end(listener, kind, number)
                        else:
                            listener.push(item)
                else:
                    self._receive(kind, flags, number, body)
        except (SynapError, *UNREADABLE) as error:
            raise Fault(_nonsense(error)) from None
        finally:
            self.answered += len(frames)

    def _receive(self, kind: int, flags: int, number: int, body: bytes) -> None:
        """Work off a frame that isn't of the two kinds that come by the thousand."""
        if kind == _ANSWER:
            self._answered(number, flags, body)
        elif kind == Kind.ERROR:
            self._failed(number, body)
        elif kind in _PUSHED:
            listener = self.listeners.get(number)
            if listener is not None:
                body = decompress(body, MAX_ANSWER) if flags & GZIP else body
                decode: Any = self.codec.decode_message if kind == _MESSAGE else self.codec.decode_event
                try:
                    item = decode(body)
                except RecursionError:
                    self._end(listener, kind, number)
                else:
                    listener.push(item)
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
        subscribing = PUBSUB_SUBSCRIBE if kind == _MESSAGE else STREAM_SUBSCRIBE
        ending, request = self.unsubscribing(subscribing, subscription_id)
        self.out.append(frame(_REQUEST, UNREAD, request, ending.code))
        listener.ended(too_deep())

    def _answered(self, number: int, flags: int, body: bytes) -> None:
        """Take an answer that is compressed, or came while subscriptions begin. What is wrong with it is its call's."""
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
        """Hear a subscription from its answer on: the next frame may be its first item."""
        command, listener = self._subscribing.pop(number)
        subscription_id = _SUBSCRIBED[self.codec.format](body).subscription_id
        if listener is not None:
            self.listeners[subscription_id] = listener
        else:  # whoever asked for it has gone
            ending, request = self.unsubscribing(command, subscription_id)
            self.out.append(frame(_REQUEST, UNREAD, request, ending.code))

    def _failed(self, number: int, body: bytes) -> None:
        """Take an error: of one request, or (number 0) of the connection."""
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

    # ------------------------------------------------------------------------------------------ silence, and the end

    def watch(self, now: float) -> float:
        """Ping where nothing came for long; returns when to look again. Raises `Fault` for a peer that is silent."""
        due = self.heard + SILENCE * (self.missed + 1)
        if due > now:
            return due
        if self.missed >= MISSED:
            raise Fault("the service has fallen silent")
        self.missed += 1
        self.out.append(frame(Kind.PING))
        return now + SILENCE

    def end(self, reason: str) -> List[Listener]:
        """Fail all that is in flight; returns the listeners, to be told once the owner has noted the end."""
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
    """What the answers to both kinds of subscribing have in common."""

    subscription_id: int


_SUBSCRIBED: Dict[str, Callable[[bytes], _Subscribed]] = {
    "json": msgspec.json.Decoder(_Subscribed).decode,
    "msgpack": msgspec.msgpack.Decoder(_Subscribed).decode,
}


def _nonsense(error: BaseException) -> str:
    return f"the service sent what can't be read: {why(error)}"
