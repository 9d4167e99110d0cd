"""One multiplexed native connection in an event loop: buffering, pipelining, deadlines.

Calls that are made in the same turn of the loop leave in one write at its end; a lone call leaves at once, and of
several the first are written before the turn ends (`pipelining`). After a lone call the loop may poll for its answer
before it sleeps (`busy_poll`). Answers resume their tasks while the read that brought them is processed, so requests
that these make leave in the same turn. One timer at the earliest deadline serves all calls. Data is received into one
buffer, since a `recv` that allocates maps and unmaps memory each time.

The `Conversation` interprets the frames.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any, Awaitable, Callable, Dict, Optional, cast

from synap.commands import Command
from synap.errors import SynapError
from synap.lanes.errors import subscription_lost
from synap.lanes.native.busy_poll import BusyPoll
from synap.lanes.native.cpus import has_cpus
from synap.lanes.native.pending import Pending, Ping, seen
from synap.lanes.native.pipelining import MOST, Pipelining
from synap.lanes.opening import Framing, Opening
from synap.wire.codec import Codec
from synap.wire.compression import WORTH
from synap.wire.conversation import CONFIRM_EVERY, SILENCE, Conversation, Fault, Listener
from synap.wire.frames import HEADER, RETRY, Kind
from synap.wire.outcomes import timed_out, why

HIGH_WATER = 256 * 1024
"""Bytes that may wait to be sent before new calls wait (back-pressure)."""
LARGE = 64 * 1024
"""Bytes of a body from which on it has a write of its own, at once: copying so much costs more than a write."""
MIN_TIMER = 0.01
"""The shortest time, in seconds, between two checks of the deadlines."""
STALLED = 1.0
"""Seconds without a byte after which a call that timed out takes its connection with it."""

_pack = HEADER.pack
_REQUEST = Kind.REQUEST
_FOREVER = float("inf")


class Connection(asyncio.BufferedProtocol):
    """A connection, from its handshake to its end. It is `full` while its send buffer is."""

    def __init__(
        self,
        codec: Codec,
        opening: Opening,
        compression: bool,
        confirm: Callable[[Connection], None],
        ended: Callable[[Connection, str], None],
        *,
        spin: float = False,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.conversation = conversation = Conversation(codec, compression=compression)
        conversation.open = False  # until the handshake is done
        self.pending: Dict[int, Any] = conversation.calls
        self.full = False
        self.lost: asyncio.Future[None] = self.loop.create_future()
        self.opened: asyncio.Future[None] = self.loop.create_future()
        self.opened.add_done_callback(seen)
        self.reason: Optional[str] = None
        """Why it ended, where that is known."""
        self._results = codec.results
        self._confirm = confirm
        self._ended = ended
        self._transport: Optional[asyncio.Transport] = None
        self._opening: Optional[Opening] = opening
        self._framing: Optional[Framing] = None
        self._wrapped = True
        """Whether received bytes are not plain frames: a handshake, or WebSocket messages."""
        self._reader = conversation.reader
        self._room = self._reader.buffer()
        self._ping = 0
        self._out = conversation.out
        self._pipelining = Pipelining()
        self._flush_after = MOST
        self._flushing = False
        self._turn_ended = _FOREVER
        """When the last turn with requests ended, until answers came."""
        self._drained: Dict[asyncio.Future[bool], float] = {}
        self._busy_poll = BusyPoll(spin) if spin and has_cpus() else None
        self._polling = False
        self._poll_until = 0.0
        self._alarm: Optional[asyncio.TimerHandle] = None
        self._alarm_at = _FOREVER

    @property
    def open(self) -> bool:
        """Whether requests can be sent: until it ends or the service drains."""
        return self.conversation.open

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight and nothing subscribed."""
        return self.conversation.idle

    # ------------------------------------------------------------------------------------------ requests

    def send(
        self,
        command: Command,
        number: int,
        body: bytes,
        began: float,
        timeout: float,
        parked: Optional[Dict[int, bool]] = None,
    ) -> Awaitable[Any]:
        """Send a request, and return what to await for its answer. The connection is open and not full.

        `timeout`: seconds from `began`. `parked` has the requests that may be sent again, and whether they have been
        sent before.
        """
        conversation = self.conversation
        if conversation.answered >= CONFIRM_EVERY:
            self._confirm(self)
        flags = 0
        if parked is not None:
            if command.leases:  # not confirmed before the caller has the message: the service may have to take it back
                parked.setdefault(number, False)
            if parked and parked.get(number):
                flags = RETRY
        if len(body) >= WORTH:
            body, flags = conversation.fit(body, flags)
        size = len(body)
        pending = self.pending
        if size < LARGE:
            out = self._out
            out.append(_pack(size, _REQUEST, flags, command.code, number) + body)
            if self._flushing:
                if len(out) >= self._flush_after:
                    self._write_early()
            elif pending:
                self._flushing = True
                self.loop.call_soon(self._flush)
            else:  # a lone call has nothing to wait for: it is sent before the bookkeeping
                self._write()
                if self._busy_poll is not None:
                    self._poll_after(self._busy_poll)
        else:
            self._out.append(_pack(size, _REQUEST, flags, command.code, number))
            self._write()
            if self._transport is not None and not self._transport.is_closing():
                self._transport.write(body if self._framing is None else self._framing.wrap(body))
        deadline = began + timeout
        call = pending[number] = Pending(self, number, command, deadline, began, self._results[command.name], parked)
        if deadline < self._alarm_at:
            self._set_alarm(min(deadline, began + SILENCE))
        return call.outcome()

    def subscribe(
        self, command: Command, number: int, body: bytes, listener: Listener, began: float, timeout: float
    ) -> Awaitable[Any]:
        """Send a request to subscribe; `listener` gets the pushes from the answer on."""
        self.conversation.subscribing(command, number, listener)
        return self.send(command, number, body, began, timeout)

    def unsubscribe(
        self, command: Command, number: int, subscription_id: int, timeout: float
    ) -> Optional[Awaitable[Any]]:
        """End a subscription that `command` made: its listener is no longer called. None on an ended connection."""
        ending, body = self.conversation.unsubscribing(command, subscription_id)
        if not self.open:
            return None
        return self.send(ending, number, body, monotonic(), timeout)

    def withdraw(self, number: int) -> None:
        """Cancel a request, also one whose answer has come; the service takes back a message it may have leased."""
        if self._transport is not None and not self._transport.is_closing():
            self.conversation.withdraw(number)
            self._flush_soon()
        else:
            self.pending.pop(number, None)

    async def ping(self, timeout: float) -> bytes:
        """Send a PING; returns the body of the PONG."""
        self._ping += 1
        number = self._ping
        ping = Ping(self.loop)
        self.conversation.ping(number, ping)
        self._flush_soon()
        alarm = self.loop.call_later(timeout, ping.expire, timeout)
        try:
            return await ping.future
        finally:
            alarm.cancel()
            self.conversation.forget_ping(number)

    # ------------------------------------------------------------------------------------------ sending

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)
        elif len(self._out) >= self._flush_after:
            self._write_early()

    def _flush(self) -> None:
        self._flushing = False
        self._end_turn()

    def _end_turn(self) -> None:
        if self._out:
            self._write()
        in_flight = len(self.pending)
        self._turn_ended = monotonic() if in_flight else _FOREVER
        self._flush_after = self._pipelining.size(in_flight)

    def _write_early(self) -> None:
        self._write()
        if self._flush_after < MOST:  # this turn may have many more requests than the last one
            self._flush_after *= 2

    def _write(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return  # what is in `_out` was never sent, and `connection_lost` fails those calls accordingly
        out = self._out
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        if self._framing is not None:
            data = self._framing.wrap(data)
        transport.write(data)

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        self._wake_all()

    async def drained(self, timeout: float) -> bool:
        """Wait until the connection is no longer full, or has ended; returns False after `timeout` seconds."""
        waiter: asyncio.Future[bool] = self.loop.create_future()
        deadline = monotonic() + timeout
        self._drained[waiter] = deadline
        if deadline < self._alarm_at:
            self._set_alarm(deadline)
        try:
            return await waiter
        finally:
            self._drained.pop(waiter, None)

    def _wake_all(self) -> None:
        """Wake all who wait in `drained`."""
        waiting, self._drained = self._drained, {}
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(True)

    # ------------------------------------------------------------------------------------------ receiving

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(HIGH_WATER)
        if self._opening is not None:
            self._transport.write(self._opening.request)

    def get_buffer(self, sizehint: int) -> memoryview:
        reader = self._reader
        return self._room if reader.empty or self._wrapped else reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        conversation = self.conversation
        conversation.heard = now = monotonic()
        conversation.missed = 0
        if self._turn_ended < now:
            self._pipelining.answered(now - self._turn_ended)
            self._turn_ended = _FOREVER
        if self._wrapped:
            self._receive_wrapped(bytes(self._room[:nbytes]))
        elif not conversation.take_alone(self._room, nbytes):  # a lone answer: its task sends its next request itself
            self._process(nbytes)

    def _receive_wrapped(self, data: bytes) -> None:
        """Process received bytes that are not plain frames."""
        if self._opening is not None:
            rest = self._shake_hands(self._opening, data)
        else:
            rest = self._unwrap(data)
        if rest:
            self._process(rest)

    def _process(self, received: Any) -> None:
        """Process the bytes of one read (or their number in the buffer). Output is flushed once at the end, or earlier
        where it is large."""
        conversation = self.conversation
        flushed_later, self._flushing = self._flushing, True
        try:
            if type(received) is int:
                conversation.filled(received)
            else:
                conversation.feed(received)
        except Fault as fault:
            self.abort(str(fault))
        finally:
            self._flushing = flushed_later
            self._end_turn()
        if not conversation.open:
            self._wake_all()

    def _unwrap(self, data: bytes) -> bytes:
        assert self._framing is not None
        try:
            rest = self._framing.unwrap(data)
        except Fault as fault:
            self.abort(str(fault))
            return b""
        out = self._framing.take_out()
        if out and self._transport is not None and not self._transport.is_closing():
            self._transport.write(out)
        return rest

    def _shake_hands(self, opening: Opening, data: bytes) -> Optional[bytes]:
        """Continue the handshake; returns the bytes after it, once it is done."""
        try:
            rest = opening.feed(data)
        except SynapError as error:
            if not self.opened.done():
                self.opened.set_exception(error)
            self.abort("there was no handshake")
            return None
        if rest is not None:
            self._opening = None
            self._framing = opening.framing
            self._wrapped = self._framing is not None
            self.conversation.max_body = opening.max_body
            self.conversation.open = True
            if not self.opened.done():
                self.opened.set_result(None)
        return rest

    def _poll_after(self, busy_poll: BusyPoll) -> None:
        """Keep the loop from sleeping for a moment after a lone call: it polls while a callback waits for its turn."""
        if self._polling:  # the answer before came in time
            busy_poll.hit()
        if not busy_poll.allowed():
            self._poll_until = 0.0
            return
        self._poll_until = monotonic() + busy_poll.seconds
        if not self._polling:
            self._polling = True
            self.loop.call_soon(self._poll)

    def _poll(self) -> None:
        busy_poll = self._busy_poll
        assert busy_poll is not None
        if not self.pending:
            busy_poll.hit()
        elif monotonic() < self._poll_until:
            self.loop.call_soon(self._poll)
            return
        elif self._poll_until:
            busy_poll.miss()
        self._polling = False

    # ------------------------------------------------------------------------------------------ time

    def _set_alarm(self, when: float) -> None:
        """Check the deadlines at `when`."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = when
        self._alarm = self.loop.call_later(max(when - monotonic(), 0), self._check_deadlines)

    def _check_deadlines(self) -> None:
        self._alarm = None
        self._alarm_at = _FOREVER
        now = monotonic()
        earliest = _FOREVER
        dead = False
        heard = self.conversation.heard
        for number, call in list(self.pending.items()):
            if call.answered:
                continue
            if call.deadline <= now:
                self.withdraw(number)
                dead = dead or (heard < call.began and now - heard >= STALLED)
                call.fail(timed_out(call.command, True, call.deadline - call.began))
            elif call.deadline < earliest:
                earliest = call.deadline
        for waiter, deadline in list(self._drained.items()):
            if deadline <= now and not waiter.done():
                waiter.set_result(False)
            earliest = min(earliest, deadline) if deadline > now else earliest
        try:
            if dead:  # nothing was received since that call was sent: don't let others wait for their timeouts
                raise Fault("the service has fallen silent")
            if self.pending or self.conversation.listeners:
                earliest = min(earliest, self.conversation.watch(now))
        except Fault as fault:
            self.abort(str(fault))
            return
        if self._out:
            self._flush_soon()
        if earliest < _FOREVER:
            self._set_alarm(max(earliest, now + MIN_TIMER))

    # ------------------------------------------------------------------------------------------ the end

    def eof_received(self) -> bool:
        self.conversation.open = False
        return False

    def connection_lost(self, exc: Optional[BaseException]) -> None:
        reason = self.reason = self.reason or why(exc)
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if not self.opened.done() and self._opening is not None:
            self.opened.set_exception(self._opening.ended())
        listeners = self.conversation.end(reason)
        self._wake_all()
        if not self.lost.done():
            self.lost.set_result(None)
        self._ended(self, reason)
        for listener in listeners:
            listener.lost(subscription_lost(reason))

    def abort(self, reason: str) -> None:
        """Close the connection at once."""
        self.conversation.open = False
        self.reason = self.reason or reason
        if self._transport is not None:
            self._transport.abort()

    def close_orphaned(self) -> None:
        """Close the socket of a connection whose event loop is closed already.

        Transports offer no way to do that; asyncio's own have their socket in `_sock`.
        """
        self.conversation.open = False
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
        """Close, and abort after `grace` seconds, also where waiting for it is cancelled. Calls in flight fail."""
        self.shut(reason, grace)
        if self._transport is not None and not self.lost.done():
            await asyncio.shield(self.lost)

    def shut(self, reason: str, grace: float) -> None:
        """Begin to close, and abort after `grace` seconds. What waits to be sent is sent."""
        self.conversation.open = False
        self.reason = self.reason or reason
        transport = self._transport
        if transport is not None and not self.lost.done():
            self._write()
            if self._framing is not None and not transport.is_closing():
                transport.write(self._framing.goodbye())
            transport.close()
            alarm = self.loop.call_later(grace, transport.abort)
            self.lost.add_done_callback(lambda _: alarm.cancel())
