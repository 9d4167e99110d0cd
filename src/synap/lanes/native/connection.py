"""One multiplexed connection of the native lane, in an event loop.

Calls that are made in the same turn of the loop leave in one write at its end; a lone call leaves at once, and of many
the first ones don't wait for the last.
Answers are matched by number, and resume whoever waits while the read that brought them is being worked off: so what
they are answered with goes out in the same turn. A single timer serves all calls: it runs at the earliest deadline, so
a call costs no timer. What is received goes to one buffer, for a `recv` that makes room for itself maps and unmaps
memory each time.

What must not happen here is an answer for the wrong call. Numbers are never reused on a connection, what was cancelled
or timed out is forgotten, and an answer that nobody waits for is dropped.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any, Callable, Dict, List, Optional, Tuple, cast

import msgspec

from synap.commands import (
    PUBSUB_SUBSCRIBE,
    PUBSUB_UNSUBSCRIBE,
    QUEUE_CONSUME,
    STREAM_SUBSCRIBE,
    STREAM_UNSUBSCRIBE,
    Command,
)
from synap.errors import SynapError
from synap.lanes import errors
from synap.lanes._async.base import Listener
from synap.lanes.native.pending import UNREADABLE, Pending
from synap.lanes.native.upgrade import Upgrade
from synap.wire.codec import Codec
from synap.wire.compression import WORTH, compress, decompress
from synap.wire.frames import GZIP, HEADER, MAX_ANSWER, RETRY, Frame, FrameReader, Kind, frame

__all__ = ["CONFIRM_EVERY", "UNREAD", "Connection"]

HIGH_WATER = 256 * 1024
"""Bytes on their way out from which on new calls wait."""
LARGE = 64 * 1024
"""Bytes of a body from which on it leaves by itself, and at once."""
ENOUGH = 25
"""Requests that leave before the end of the turn, so that the service works on them while further ones are made. Where
fewer than twice as many are under way, half of them do; with very many, an eighth: a write has its price."""
FEW = 4
"""Requests that are too few to leave before the others of their turn."""
SILENCE = 30.0
"""Seconds without a sign of the service after which a connection that is waited on asks for one."""
MISSED = 3
"""Signs that may be missing in a row before the connection counts as dead."""
CONFIRM_EVERY = 64
"""Answers after which the service is told that they came."""
UNREAD = 2**32 - 1
"""Number of requests whose answer nobody reads."""
GRAIN = 0.01
"""Seconds between two looks at deadlines, at least."""
STALLED = 1.0
"""Seconds without a byte after which a call that timed out takes its connection with it."""

_pack = HEADER.pack
_unpack = HEADER.unpack_from
_HEADER = HEADER.size
_REQUEST, _ANSWER, _EVENT, _MESSAGE = Kind.REQUEST, Kind.ANSWER, Kind.EVENT, Kind.MESSAGE
_PUSHED = (_EVENT, _MESSAGE)
_FOREVER = float("inf")
_NEVER = 1e18
"""The deadline of a call that may take any time. Before `_FOREVER`, which is when nobody has to look."""
_ENDINGS = {STREAM_SUBSCRIBE: STREAM_UNSUBSCRIBE, PUBSUB_SUBSCRIBE: PUBSUB_UNSUBSCRIBE}


class Connection(asyncio.BufferedProtocol):
    """A connection whose handshake is done is `open` for calls until it ends or the service drains; `full` while
    it takes no more.
    """

    def __init__(
        self,
        codec: Codec,
        upgrade: Upgrade,
        compression: bool,
        confirm: Callable[[Connection], None],
        ended: Callable[[Connection, str], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.codec = codec
        self._results = codec.results
        self.open = False
        self.full = False
        self.pending: Dict[int, Pending] = {}
        """Calls by number, each until whoever made it has its answer in hand: till then it may be cancelled, and so
        must not be confirmed."""
        self.listeners: Dict[int, Listener] = {}
        self.gone: asyncio.Future[None] = self.loop.create_future()
        self.upgraded: asyncio.Future[None] = self.loop.create_future()
        self.upgraded.add_done_callback(_seen)
        self.answered = 0
        """Answers since the service was last told."""
        self._upgrade: Optional[Upgrade] = upgrade
        self._max_body = upgrade.max_body
        self._compression = compression
        self._confirm = confirm
        self._ended = ended
        self._transport: Optional[asyncio.Transport] = None
        self._reader = FrameReader(MAX_ANSWER)
        self._room = self._reader.buffer()
        self._subscribing: Dict[int, Tuple[Command, Optional[Listener]]] = {}
        self._pings: Dict[int, asyncio.Future[bytes]] = {}
        self._ping = 0
        self._out: List[bytes] = []
        self._enough = ENOUGH
        self._flushing = False
        self._drained: Dict[asyncio.Future[bool], float] = {}
        self._alarm: Optional[asyncio.TimerHandle] = None
        self._alarm_at = _FOREVER
        self._heard = monotonic()
        self._missed = 0
        self.reason: Optional[str] = None
        """Why it is over, where that is known."""

    # ------------------------------------------------------------------------------------------ requests

    def send(
        self,
        command: Command,
        number: int,
        body: bytes,
        timeout: Optional[float],
        parked: Optional[Dict[int, bool]] = None,
    ) -> Pending:
        """Send a request, and return what to await for its answer. The connection is open and not full.

        `parked` has the requests that may be sent again, and whether they have been sent before.
        """
        if self.answered >= CONFIRM_EVERY:
            self._confirm(self)
        flags = 0
        if parked is not None:
            if command is QUEUE_CONSUME:  # until the caller has it in hand, the service must be able to take it back
                parked.setdefault(number, False)
            if parked and parked.get(number):
                flags = RETRY
        if len(body) >= WORTH:
            body, flags = self._fit(body, flags)
        size = len(body)
        out = self._out
        pending = self.pending
        lone = not pending and not self._flushing and size < LARGE
        if lone:  # nobody to wait for: it leaves before it is entered in the books
            out.append(_pack(size, _REQUEST, flags, command.code, number) + body)
            self._write()
        began = monotonic()
        deadline = _NEVER if timeout is None else began + timeout
        call = pending[number] = Pending(
            self, number, command, deadline, began, self._results[command.name], parked, self.loop
        )
        if deadline < self._alarm_at:
            self._look_at(min(deadline, began + SILENCE), began)
        if lone:
            return call
        if size < LARGE:
            out.append(_pack(size, _REQUEST, flags, command.code, number) + body)
            if not self._flushing:
                self._flushing = True
                self.loop.call_soon(self._flush)
            elif len(out) >= self._enough:
                self._write_early()
        else:  # copying that much costs more than another write
            out.append(_pack(size, _REQUEST, flags, command.code, number))
            self._write()
            if self._transport is not None and not self._transport.is_closing():
                self._transport.write(body)
        return call

    def _fit(self, body: bytes, flags: int) -> Tuple[bytes, int]:
        """Check, and where that is wanted compress, a body that isn't small."""
        if len(body) > self._max_body:
            raise errors.too_large(len(body), self._max_body)
        return (compress(body), flags | GZIP) if self._compression else (body, flags)

    def withdraw(self, number: int) -> None:
        """Forget a request, also one whose answer has come; the service takes back what it may have given."""
        self.pending.pop(number, None)
        if self._transport is not None and not self._transport.is_closing():
            self._put(frame(Kind.CANCEL, number))

    def confirm(self, below: int) -> None:
        """Tell the service, with what is sent next, that all answers to requests numbered `below` that came."""
        self.answered = 0
        self._out.append(frame(Kind.DONE, below))

    async def ping(self, timeout: float) -> bytes:
        """Ask for a sign of the service; returns the body it comes with."""
        self._ping += 1
        number = self._ping
        future: asyncio.Future[bytes] = self.loop.create_future()
        self._pings[number] = future
        future.add_done_callback(_seen)
        self._put(frame(Kind.PING, number))
        alarm = self.loop.call_later(timeout, _expire, future, timeout)
        try:
            return await future
        finally:
            alarm.cancel()
            self._pings.pop(number, None)

    def subscribe(self, command: Command, number: int, body: bytes, listener: Listener, timeout: float) -> Pending:
        """Send a request to subscribe; `listener` hears what is pushed from the answer on."""
        call = self.send(command, number, body, timeout)
        self._subscribing[number] = command, listener
        return call

    def ignore(self, number: int) -> None:
        """Nobody wants the subscription any more that is under way."""
        if number in self._subscribing:
            self._subscribing[number] = self._subscribing[number][0], None

    def unsubscribe(self, command: Command, number: int, subscription_id: int, timeout: float) -> Optional[Pending]:
        """End a subscription that `command` made; its listener hears nothing more. None where the service knows."""
        self.listeners.pop(subscription_id, None)
        if not self.open:
            return None
        ending = _ENDINGS[command]
        return self.send(ending, number, self.codec.encode(ending.payload(subscription_id)), timeout)

    # ------------------------------------------------------------------------------------------ what goes out

    def _put(self, data: bytes) -> None:
        self._out.append(data)
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)
        elif len(self._out) >= self._enough:
            self._write_early()

    def _flush(self) -> None:
        self._flushing = False
        self._end_turn()

    def _end_turn(self) -> None:
        if self._out:
            self._write()
        under_way = len(self.pending)
        if under_way:
            self._enough = max(min(under_way >> 1, ENOUGH), under_way >> 3, FEW)
        else:  # what comes next comes all at once
            self._enough = ENOUGH

    def _write_early(self) -> None:
        self._write()
        if self._enough < ENOUGH:  # there are more of them than in the turn before
            self._enough *= 2

    def _write(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return  # what is in `_out` was never sent, which `connection_lost` will tell
        out = self._out
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        transport.write(data)

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        waiting, self._drained = self._drained, {}
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(True)

    async def drained(self, timeout: Optional[float]) -> bool:
        """Wait until the connection takes more, or is over; False where that took longer than `timeout` seconds."""
        waiter: asyncio.Future[bool] = self.loop.create_future()
        deadline = _FOREVER if timeout is None else monotonic() + timeout
        self._drained[waiter] = deadline
        if deadline < self._alarm_at:
            self._look_at(deadline, monotonic())
        try:
            return await waiter
        finally:
            self._drained.pop(waiter, None)

    # ------------------------------------------------------------------------------------------ what comes in

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(HIGH_WATER)
        if self._upgrade is not None:
            self._transport.write(self._upgrade.request)

    def get_buffer(self, sizehint: int) -> memoryview:
        reader = self._reader
        return self._room if reader.empty else reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        if self._upgrade is not None:
            self._heard = monotonic()
            self._shake_hands(self._upgrade, bytes(self._room[:nbytes]))
            return
        reader, pending = self._reader, self.pending
        if len(pending) == 1 and reader.empty and nbytes >= _HEADER:
            # A lone call's answer goes the short way; what its task says next leaves by itself.
            length, kind, flags, _, number = _unpack(self._room)
            if kind == _ANSWER and length + _HEADER == nbytes and not flags and not self._subscribing:
                call = pending.get(number)
                if call is not None and not call.answered:
                    self.answered += 1
                    call.answer(bytes(self._room[_HEADER:nbytes]))
                self._heard = monotonic()
                self._missed = 0
                return
        self._heard = monotonic()
        self._missed = 0
        try:
            frames = reader.filled(nbytes)
        except SynapError as error:
            self._unreadable(error)
        else:
            self._take_all(frames)

    def _take_all(self, frames: List[Frame]) -> None:
        """Take what one read brought. What is said meanwhile leaves at the end, but for what is much or alone."""
        pending, listeners = self.pending, self.listeners
        decode_event, decode_message = self.codec.decode_event, self.codec.decode_message
        flushed_later, self._flushing = self._flushing, True
        try:
            for kind, flags, _, number, body in frames:
                if kind == _ANSWER and not flags and not self._subscribing:
                    call = pending.get(number)
                    if call is not None and not call.answered:
                        call.answer(body)
                elif kind in _PUSHED and not flags:
                    listener = listeners.get(number)
                    if listener is not None:
                        listener.push(decode_message(body) if kind == _MESSAGE else decode_event(body))
                else:
                    self._take(kind, flags, number, body)
        except (SynapError, *UNREADABLE) as error:
            self._unreadable(error)
        finally:
            self.answered += len(frames)
            self._flushing = flushed_later
            self._end_turn()

    def _unreadable(self, error: Exception) -> None:
        self.abort(f"the service sent what can't be read: {errors.why(error)}")

    def _shake_hands(self, upgrade: Upgrade, data: bytes) -> None:
        try:
            rest = upgrade.feed(data)
        except SynapError as error:
            if not self.upgraded.done():
                self.upgraded.set_exception(error)
            self.abort("there was no handshake")
            return
        if rest is not None:
            self._upgrade = None
            self._max_body = upgrade.max_body
            self.open = True
            if not self.upgraded.done():
                self.upgraded.set_result(None)
            if rest:
                try:
                    frames = self._reader.feed(rest)
                except SynapError as error:
                    self._unreadable(error)
                else:
                    self._take_all(frames)

    def _take(self, kind: int, flags: int, number: int, body: bytes) -> None:
        if flags & GZIP:
            body = decompress(body, MAX_ANSWER)
        if kind == _ANSWER:
            if number in self._subscribing:
                self._subscribed(number, body)
            call = self.pending.get(number)
            if call is not None and not call.answered:
                call.answer(body)
        elif kind == Kind.ERROR:
            error = self.codec.decode_error(body)
            if number == 0:
                self.abort(error.message)
                return
            self._subscribing.pop(number, None)
            call = self.pending.get(number)
            if call is not None and not call.answered:
                call.fail(error)
        elif kind == _EVENT:
            listener = self.listeners.get(number)
            if listener is not None:
                listener.push(self.codec.decode_event(body))
        elif kind == _MESSAGE:
            listener = self.listeners.get(number)
            if listener is not None:
                listener.push(self.codec.decode_message(body))
        elif kind == Kind.ENDED:
            listener = self.listeners.pop(number, None)
            if listener is not None:
                listener.ended(self.codec.decode_error(body))
        elif kind == Kind.PING:
            self._put(frame(Kind.PONG, number))
        elif kind == Kind.PONG:
            ping = self._pings.pop(number, None)
            if ping is not None and not ping.done():
                ping.set_result(body)
        elif kind == Kind.GOAWAY:
            self.open = False
            self._wake_all()
        else:
            raise SynapError("INVALID_REQUEST", f"frames of kind {kind} are a client's")

    def _subscribed(self, number: int, body: bytes) -> None:
        """Hear a subscription from its answer on; the next frame may be its first item."""
        command, listener = self._subscribing.pop(number)
        subscription_id = _DECODERS[self.codec.format](body).subscription_id
        if listener is not None:
            self.listeners[subscription_id] = listener
        else:  # whoever asked for it has gone
            ending = _ENDINGS[command]
            self._put(frame(_REQUEST, UNREAD, self.codec.encode(ending.payload(subscription_id)), ending.code))

    # ------------------------------------------------------------------------------------------ time

    def _look_at(self, when: float, now: float) -> None:
        """Look at deadlines at `when`."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = when
        self._alarm = self.loop.call_later(max(when - now, 0), self._look)

    def _look(self) -> None:
        self._alarm = None
        self._alarm_at = _FOREVER
        now = monotonic()
        earliest = _FOREVER
        dead = False
        for number, call in list(self.pending.items()):
            if call.answered:
                continue
            if call.deadline <= now:
                self.withdraw(number)
                self.ignore(number)
                dead = dead or (self._heard < call.began and now - self._heard >= STALLED)
                waited = call.deadline - call.began
                call.fail(errors.timed_out(call.command, True, waited))
            elif call.deadline < earliest:
                earliest = call.deadline
        for waiter, deadline in list(self._drained.items()):
            if deadline <= now and not waiter.done():
                waiter.set_result(False)
            earliest = min(earliest, deadline) if deadline > now else earliest
        if dead:
            # Not a byte came since that call was sent: better find out than let others wait their time.
            self.abort("the service has fallen silent")
            return
        if self.pending or self.listeners:
            earliest = min(earliest, self._watch_over(now))
        if earliest < _FOREVER:
            self._look_at(max(earliest, now + GRAIN), now)

    def _watch_over(self, now: float) -> float:
        """Ask for a sign where there has been none for long; returns when to look again."""
        due = self._heard + SILENCE * (self._missed + 1)
        if due > now:
            return due
        if self._missed >= MISSED:
            self.abort("the service has fallen silent")
            return _FOREVER
        self._missed += 1
        self._put(frame(Kind.PING))
        return now + SILENCE

    # ------------------------------------------------------------------------------------------ the end

    def eof_received(self) -> bool:
        self.open = False
        return False

    def connection_lost(self, exc: Optional[BaseException]) -> None:
        self._finish(self.reason or errors.why(exc), self._unsent())

    def _unsent(self) -> List[int]:
        """Return the numbers of requests that never left."""
        headers = (_unpack(data) for data in self._out)
        return [number for _, kind, _, _, number in headers if kind == _REQUEST]

    def _finish(self, reason: str, unsent: List[int]) -> None:
        self.open = False
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._out.clear()
        if not self.upgraded.done() and self._upgrade is not None:
            self.upgraded.set_exception(self._upgrade.ended())
        never_left = set(unsent)
        pending, self.pending = self.pending, {}
        for number, call in pending.items():
            if not call.answered:
                call.fail(errors.lost(call.command, number not in never_left, reason))
        pings, self._pings = self._pings, {}
        for ping in pings.values():
            if not ping.done():
                ping.set_exception(errors.failed("the service", reason))
        self._wake_all()
        self._subscribing.clear()
        listeners, self.listeners = self.listeners, {}
        if not self.gone.done():
            self.gone.set_result(None)
        self._ended(self, reason)
        for listener in listeners.values():
            listener.lost(errors.failed("the service", reason))

    def _wake_all(self) -> None:
        """Wake who waits for room, to look for it elsewhere."""
        waiting, self._drained = self._drained, {}
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(True)

    def abort(self, reason: str) -> None:
        """Cut the connection."""
        self.open = False
        self.reason = self.reason or reason
        if self._transport is not None:
            self._transport.abort()

    def bury(self) -> None:
        """Close the socket where the event loop is closed already, so that nothing there can do it any more.

        What the loop has left of a transport offers no way to; asyncio's own have their socket in `_sock`.
        """
        self.open = False
        transport: Any = self._transport
        self._transport = None
        layer = getattr(transport, "_ssl_protocol", None)
        if layer is not None:  # TLS is a transport on a transport
            transport = layer._transport
        sock = getattr(transport, "_sock", None)
        if sock is not None:
            sock.close()
            transport._sock = None

    async def close(self, reason: str, grace: float) -> None:
        """Close in order, and cut what is still there after `grace` seconds. Calls under way fail."""
        self.open = False
        self.reason = self.reason or reason
        transport = self._transport
        if transport is not None and not self.gone.done():
            self._write()
            transport.close()
            alarm = self.loop.call_later(grace, transport.abort)
            try:
                await asyncio.shield(self.gone)
            finally:
                alarm.cancel()


class _Subscribed(msgspec.Struct):
    """What the answers to both kinds of subscribing have in common."""

    subscription_id: int


_DECODERS: Dict[str, Callable[[bytes], _Subscribed]] = {
    "json": msgspec.json.Decoder(_Subscribed).decode,
    "msgpack": msgspec.msgpack.Decoder(_Subscribed).decode,
}


def _seen(future: asyncio.Future[Any]) -> None:
    """Take note of an exception that nobody may be there to see."""
    if not future.cancelled():
        future.exception()


def _expire(future: asyncio.Future[bytes], seconds: float) -> None:
    if not future.done():
        future.set_exception(errors.no_sign(seconds))
