"""The server side of the native lane: a protocol that executes frames as they are read, without tasks or queues.

One read is one turn: all its requests are executed, and all output is sent in one write.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import cast

from synap.commands import BY_CODE, Command, EventAnswer
from synap.errors import SynapError
from synap.host import ANSWER, PUSH, REFUSE, Said
from synap.server.auth import Access
from synap.server.clients import Visit
from synap.server.flow import HIGH_WATER, MAX_UNSENT, TURN, FlowSession
from synap.server.logs import connection_ended
from synap.server.rates import Bucket
from synap.server.service import Guest, Service
from synap.server.sizes import no_room, too_large
from synap.server.turns import TURN as SECONDS
from synap.wire.codec import CODECS
from synap.wire.compression import WORTH, compress, decompress, worth
from synap.wire.frames import GZIP, HEADER, MAX_ANSWER, RETRY, Frame, FrameReader, Kind, frame
from synap.wire.handshake import Hello
from synap.wire.large import LARGE

__all__ = ["NativeSession"]

PIECE = 16 * 1024
"""Bytes that are parsed into frames at a time."""
SEVERAL = 16
"""Frames between two checks of the clock."""
UNJOINED = 512 * 1024
"""Bytes of output from which on frames are not joined into one buffer."""
MIN_RATE = 4096.0
"""Bytes a second that a peer must send of an incomplete frame."""
MAX_WAITING = 10_000
"""Waiting requests of one connection."""

_COMMANDS: list[Command | None] = [BY_CODE.get(code) for code in range(128)]
_PLAIN: list[Command | None] = [
    None if command is None or command.audited or command.pushes else command for command in _COMMANDS
]
"""Commands that need no check of the caller."""
_SINGLE: list[Command | None] = [None if command is None or command.bundle else command for command in _PLAIN]
"""The same without batches, whose commands have to be counted."""
_NONE: list[Command | None] = [None] * len(_PLAIN)

_pack = HEADER.pack
_unpack = HEADER.unpack_from
_HEADER = HEADER.size
_REQUEST, _ANSWER, _ERROR = Kind.REQUEST, Kind.ANSWER, Kind.ERROR
_EVENT, _MESSAGE, _ENDED = Kind.EVENT, Kind.MESSAGE, Kind.ENDED

CONTROL = 4
"""The kind of output that is a frame about the connection itself (PONG, GOAWAY)."""

PEER_STALLS, LOG_STALLS, REFUSED, BUSY, OVER, UNHEARD = 1, 2, 4, 8, 16, 32
"""Why a connection is not read. REFUSED: discard input. OVER: discard output too. UNHEARD: no bytes came yet."""


class NativeSession(FlowSession, asyncio.Protocol):
    """One connection on the native lane."""

    __slots__ = (
        "_bucket",
        "_commands",
        "_deferred",
        "_encode",
        "_fault",
        "_gzip",
        "_lane",
        "_metered",
        "_out",
        "_out_size",
        "_queued",
        "_reader",
        "_render",
        "_service",
        "_shared",
        "_stops",
        "_transport",
        "_unread",
        "deadline",
        "guest",
        "visit",
    )

    def __init__(
        self, service: Service, hello: Hello, guest: Guest, bucket: Bucket | None, lane: str = "native"
    ) -> None:
        codec = CODECS[hello.format]
        super().__init__(service, codec, hello.session)
        self._service = service
        self._lane = lane
        self._transport: asyncio.Transport
        self.guest = guest
        self.permit = guest.access.permit
        self._bucket = bucket
        self._gzip = hello.compression
        self._encode = codec.encode
        self._render = codec.renderers
        self._shared = service.shared[hello.format, hello.compression]
        self._reader = FrameReader(service.config.max_body)
        self._commands = self._unchecked()
        self._metered = False
        """Whether each request takes its own token, because there are too few for all requests of this read."""
        self._deferred: list[Frame] = []
        """Received frames that wait until earlier answers are sent."""
        self._unread = b""
        """Received bytes after those, not parsed yet."""
        self._queued = False
        """Whether this connection is queued for its next turn."""
        self._out: list[bytes] = []
        """Frames about the connection itself, which don't wait for the disk."""
        self._out_size = 0
        """Bytes in `_out`."""
        self._fault: SynapError | None = None
        """The error of a malformed frame, to be reported once all frames before it are executed."""
        self._stops = UNHEARD
        self.deadline: float | None = None
        """When the first frame, or an incomplete one, must be complete (loop time)."""
        self.visit: Visit

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        service = self._service
        self.visit = Visit.over(self._lane, transport, self.guest.access.name if service.keys.on else "")
        service.lanes[self._lane] += 1
        service.connections.add(self)
        service.listeners.add(self)
        earlier = service.native.get(self.session)
        service.native[self.session] = self
        if earlier is not None:
            # The client has reconnected, so it has given up the old connection: requests that wait there would only
            # lease messages that nobody receives.
            cast(NativeSession, earlier).supersede()
        self._transport.set_write_buffer_limits(HIGH_WATER)

    # ------------------------------------------------------------------------------------------ receiving

    def data_received(self, data: bytes) -> None:
        if len(data) >= _HEADER and self._reader.empty and not self._stops:
            length, kind, flags, code, id = _unpack(data)
            command = self._commands[code] if code < 128 else None
            if (
                length + _HEADER == len(data)
                and length <= self._reader.limit
                and kind == _REQUEST
                and command is not None
                and id
                and not flags
                and len(self.waiting) < MAX_WAITING
                and (self._bucket is None or self._bucket.grab(1))
            ):
                self._work_alone(id, command, data[_HEADER:])
                return
        if self._stops & REFUSED:
            return
        self._stops &= ~UNHEARD
        if self._unread:
            self._unread += data
            return
        if len(data) > PIECE:
            self._unread = data
            if self._stops & BUSY:
                return
            whole, data = data, self._next_piece()
            if self._unread and self._service.turns:
                self._unread = whole
                self._stop(BUSY)
                self._ask_turn()
                return
        frames = self._cut(data)
        if self._stops & BUSY:
            self._deferred += frames
        else:
            self._work(frames)

    def _next_piece(self) -> bytes:
        """Take about `PIECE` of the received bytes, ending at a frame's end, so that a large frame stays whole."""
        data = self._unread
        size = len(data)
        at = self._reader.missing
        while at < PIECE:
            if at + _HEADER > size:
                at = size
                break
            at += _HEADER + _unpack(data, at)[0]
        self._unread = data[at:]
        return data[:at] if at < size else data

    def _cut(self, data: bytes) -> list[Frame]:
        """Parse bytes into frames."""
        try:
            frames = self._reader.feed(data)
        except SynapError as error:
            frames = self._reader.last
            self._fault = error
            self._stops |= REFUSED
            self._unread = b""
        if self._reader.empty:
            self.deadline = None
        else:
            if len(data) >= PIECE:
                self._service.transit.add(len(data))
            now = asyncio.get_running_loop().time()
            if self.deadline is None or frames:
                self.deadline = now + self._service.config.handshake_timeout
            self.deadline += len(data) / MIN_RATE
        return frames

    def _work_alone(self, id: int, command: Command, body: bytes) -> None:
        """Execute a single request as one turn: `_work` without the parts that matter for several frames only."""
        host = self.host
        host.execute(self, id, command, body)
        if self.promised > TURN or (host.busy and host.working_for(self)):
            self._stop(BUSY)
        host.end_turn()
        if host.stalled:
            self._stop(LOG_STALLS)
            host.when_flowing(self._log_flows)

    def _work(self, frames: list[Frame]) -> None:
        """Execute frames as one turn. Once its answers are too large together, the rest is deferred."""
        host = self.host
        execute = host.execute
        commands = self._commands
        if len(self.waiting) > MAX_WAITING - len(frames):
            commands = _NONE
        if self._bucket is not None:
            self._metered = not self._bucket.grab(len(frames))
            if self._metered:
                commands = _NONE
        end = perf_counter() + SECONDS
        place = 0
        while place < len(frames):
            several = iter(frames[place : place + SEVERAL])
            place += SEVERAL
            for kind, flags, code, id, body in several:
                if kind == _REQUEST:
                    command = commands[code] if code < 128 else None
                    if command is not None and not flags and id:
                        execute(self, id, command, body)
                    elif not self._request(flags, code, id, body):
                        place = len(frames)
                        break
                else:
                    if self._bucket is not None and not self._metered:
                        self._bucket.give(1)  # only requests cost tokens
                    if not self._control(kind, id):
                        place = len(frames)
                        break
                if self.promised > TURN or (host.busy and host.working_for(self)):
                    self._put_off([*several, *frames[place:]])
                    place = len(frames)
                    break
            if place < len(frames) and perf_counter() > end:
                self._put_off(frames[place:])
                break
        if self._fault is not None and not self._deferred:
            self._refuse_connection(self._fault)
        elif self._deferred or self._unread or self.promised > TURN or (host.busy and host.working_for(self)):
            self._stop(BUSY)
        host.end_turn()
        if self._out:
            self._write([])
        if self._deferred or self._unread:
            self._ask_turn()
        if host.stalled and not self._stops & LOG_STALLS:
            self._stop(LOG_STALLS)
            host.when_flowing(self._log_flows)

    def _put_off(self, frames: list[Frame]) -> None:
        self._deferred = frames
        if self._bucket is not None and not self._metered:
            self._bucket.give(len(frames))

    def _ask_turn(self) -> None:
        """Queue for a turn to execute deferred frames, if there is room for their answers."""
        if not self._queued and self._free():
            self._queued = True
            self._service.turns.ask(self.guest.access.name, self._work_on)

    def _work_on(self) -> None:
        """Run a queued turn. An exception ends the connection, as it does in a read: its client would wait for ever."""
        try:
            self._work_on_frames()
        except Exception:
            self._transport.abort()
            raise

    def _work_on_frames(self) -> None:
        """Execute deferred frames until the turn's time is up."""
        self._queued = False
        end = perf_counter() + SECONDS
        while self._stops & BUSY and not self.closed and self._free():
            if self._deferred or not self._unread:
                frames, self._deferred = self._deferred, []
            else:
                frames = self._cut(self._next_piece())
            self._work(frames)
            if not (self._deferred or self._unread):
                if self._free():
                    self._go_on(BUSY)
                return
            if perf_counter() > end:
                break
        if self._stops & BUSY:
            self._ask_turn()

    def lane_name(self) -> str:
        return self._lane

    def go_on(self) -> None:
        if self._stops & BUSY:
            self._ask_turn()

    def _free(self) -> bool:
        """Return whether more requests may be executed for this connection now."""
        return not self.stalled and self.promised <= TURN and not (self.host.busy and self.host.working_for(self))

    def _request(self, flags: int, code: int, id: int, body: bytes) -> bool:
        """Execute a request with all checks; returns False where the connection can't go on."""
        command = _COMMANDS[code] if code < 128 else None
        try:
            if id == 0:
                raise _malformed("a request needs an id from 1 to 4294967295")
            if flags & GZIP:
                try:
                    body = decompress(body, self._service.config.max_body)
                except SynapError as error:
                    self._fault = error
                    return False
            if command is None:
                raise SynapError("INVALID_COMMAND", f"there is no command number {code}", {"command": code})
            guest, service = self.guest, self._service
            quota = guest.access.quota
            if quota is not None:
                service.count_bytes(guest.access, len(body))
            payload = None
            decoded = self.permit is not None or command.bundle
            if decoded and len(body) > LARGE and not command.bundle:
                payload = self.codec.decode_fields(command, body)  # enough for the checks here
                decoded = False
            elif decoded:
                payload = self.codec.decode_payload(command, body)
            service.allow(command, payload, guest)
            if quota is not None:
                service.check_quota(command, guest.access, self, len(self.waiting))
            if self._metered and self._bucket is not None:
                self._bucket.take()
            if self._bucket is not None and command.bundle and payload is not None:
                self._bucket.charge(len(payload.commands) - 1)
            if command.waits and (id in self.waiting or len(self.waiting) >= MAX_WAITING):
                raise SynapError("INVALID_REQUEST", f"request {id} waits already, or {MAX_WAITING} others do")
            # Subscribing is executed again on a new connection, whatever was answered on the old one.
            retried = bool(flags & RETRY) and not command.pushes
            self.host.execute(self, id, command, payload if decoded else body, retried, decoded=decoded)
            if command.audited or command.bundle:
                if payload is None:
                    payload = self.codec.decode_payload(command, body)
                service.note(self, id, command, payload, guest)
        except SynapError as error:
            if id == 0:
                self._fault = error
                return False
            self.host.count_error(error.code)
            self.refuse(id, error)
        return True

    def _control(self, kind: int, id: int) -> bool:
        if kind == Kind.CANCEL:
            self.host.cancel(self, id)
        elif kind == Kind.DONE:
            self.host.confirm(self, id)
        elif kind == Kind.PING:
            self._control_frame(frame(Kind.PONG, id, self.codec.encode(self._service.health())))
        elif kind != Kind.PONG:
            self._fault = _malformed(f"frames of kind {kind} are the service's, not a client's")
            return False
        return True

    # ------------------------------------------------------------------------------------------ sending

    def deliver(self, said: list[Said]) -> None:
        if self._service.awaited:
            self._service.heard(self, said)
        if self.closed or self._stops & OVER:
            self.promised -= sum([entry[3] for entry in said])
            return
        encode, render, shared = self._encode, self._render, self._shared
        out: list[bytes] = []
        weights = size = 0
        last: SynapError | None = None
        for what, number, content, weight in said:
            weights += weight
            flags = 0
            try:
                if what == ANSWER:
                    kind = _ANSWER
                    if weight > UNJOINED:
                        if weight > MAX_ANSWER:
                            raise too_large(weight, content)
                        if not self._service.transit.has_room(weight):
                            raise no_room(content)
                    renderer = render.get(type(content))
                    body = encode(content if renderer is None else renderer(content))
                    length = len(body)
                    if length >= WORTH:
                        if length > MAX_ANSWER:
                            raise too_large(length, content)
                        if self._gzip and worth(body):
                            body = compress(body)
                            length = len(body)
                            flags = GZIP
                elif what == PUSH:
                    body, flags = shared.encode(content)
                    length = len(body)
                    kind = _EVENT if type(content) is EventAnswer else _MESSAGE
                elif what == CONTROL:
                    out.append(content)
                    continue
                else:
                    if what == REFUSE and not number:
                        last = content
                        break
                    kind = _ERROR if what == REFUSE else _ENDED
                    body = self.codec.encode_error(content)
                    length = len(body)
            except Exception as failure:
                body = self.codec.encode_error(self.undeliverable(what, number, failure))
                length = len(body)
                kind = _ENDED if what == PUSH else _ERROR
                flags = 0
            out.append(_pack(length, kind, flags, 0, number))
            out.append(body)
            size += length
        self.promised -= weights
        if not (self._out or self._lagging or self._stops or size > UNJOINED):
            self._transport.write(b"".join(out))
        else:
            self._write(out, size)
        if last is not None:
            self._half_close(last)

    def _control_frame(self, data: bytes) -> None:
        """Send a frame about the connection at the end of the turn: in order, or before output that is held."""
        self.promised += len(data)
        if self.host.holds:
            self._out.append(data)
            self._out_size += len(data)
        else:
            self._say((CONTROL, 0, data, len(data)))

    def _write(self, out: list[bytes], size: int = 0) -> None:
        """Write frames, those about the connection first, and resume what waited for that."""
        if self._out:
            out[:0] = self._out
            self._out.clear()
            self.promised -= self._out_size
            self._out_size = 0
        if self.closed or self._stops & OVER:
            return
        if size < UNJOINED:
            self._transport.write(b"".join(out))
        else:  # copying so much costs more than several buffers
            self._transport.writelines(out)
            self._service.transit.add(size)
        if self.stalled:
            if size < UNJOINED:
                self._service.transit.add(size + HIGH_WATER // 64)
            if self._transport.get_write_buffer_size() > MAX_UNSENT:
                self._transport.abort()
        else:
            if self._lagging:
                asyncio.get_running_loop().call_soon(self.catch_up)
            if self._stops & BUSY:
                self._ask_turn()

    def buffered(self) -> int:
        return self._transport.get_write_buffer_size()

    def queued(self) -> int:
        """Estimated bytes held outside the transport."""
        return self.promised + self._reader.pending + len(self._unread)

    def _unchecked(self) -> list[Command | None]:
        """Return the commands that this connection's key may use without further checks."""
        access = self.guest.access
        quota = access.quota
        plain = _PLAIN if self._bucket is None and self._service.audit is None else _SINGLE
        if access.permit is None and quota is None:
            return plain
        if quota is not None and quota.bytes is not None:
            return _NONE
        counted = quota is not None and quota.waiting is not None
        allowed = access.open
        return [
            None if one is None or one.code not in allowed or one.bundle or (counted and one.waits) else one
            for one in plain
        ]

    def adopt(self, access: Access) -> None:
        """Apply changed permissions of the key."""
        self.guest.access = access
        self.permit = access.permit
        self._bucket = self._service.bucket(access)
        if not self._service.draining:
            self._commands = self._unchecked()

    def lose_pushes(self) -> None:
        self._transport.abort()

    def abort(self) -> None:
        self._transport.abort()

    # ------------------------------------------------------------------------------------------ back-pressure

    def pause_writing(self) -> None:
        self.stalled = True
        self._stop(PEER_STALLS)

    def resume_writing(self) -> None:
        self.stalled = False
        self._go_on(PEER_STALLS)
        self.catch_up()
        if self._stops & BUSY:
            self._ask_turn()

    def _log_flows(self) -> None:
        self._go_on(LOG_STALLS)

    def _stop(self, why: int) -> None:
        if not self._stops and not self.closed:
            self._transport.pause_reading()
        self._stops |= why

    def _go_on(self, why: int) -> None:
        if self._stops & why:
            self._stops &= ~why
            if not self._stops and not self.closed:
                self._transport.resume_reading()

    # ------------------------------------------------------------------------------------------ the end

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def overdue(self) -> None:
        """Called after `deadline`: end the connection, unless it isn't being read."""
        if self._stops & ~UNHEARD:
            self.deadline = asyncio.get_running_loop().time() + self._service.config.handshake_timeout
        else:
            self.deadline = None
            self._refuse_connection(_malformed("the rest of a frame, or the first one, took too long"))
            self.host.end_turn()

    def drain(self) -> None:
        self._commands = _NONE
        self._control_frame(frame(Kind.GOAWAY))
        self.host.end_turn()
        self._write([])

    def shutdown(self) -> None:
        """Close once everything is sent. (The name is uvicorn's.)"""
        self._transport.close()

    def settled(self) -> bool:
        if self._transport.is_closing():
            return True
        return not (self._deferred or self._unread or self.promised) and self._transport.get_write_buffer_size() == 0

    def supersede(self) -> None:
        """End this connection: its session has a newer one."""
        self._leave()
        self._transport.abort()

    def disconnect(self) -> None:
        """Close the connection, as an admin asked."""
        self._leave()
        self._transport.close()

    @property
    def unsent(self) -> int:
        """Estimated bytes that wait to be sent."""
        return self.promised + self._transport.get_write_buffer_size()

    def _leave(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._stops |= REFUSED  # the session may go on elsewhere: ignore what is still received
        service = self._service
        service.connections.discard(self)
        service.listeners.discard(self)
        if service.native.get(self.session) is self:
            del service.native[self.session]
        self._lagging.clear()
        connection_ended(self.visit)
        self.host.leave(self)

    def _refuse_connection(self, fault: SynapError) -> None:
        """End the connection because of what its peer sent: report the error after all earlier output, and close."""
        self._fault = None
        self._stops |= REFUSED
        self.host.count_error(fault.code)
        # Waiting requests could lease messages that nobody receives.
        for number in tuple(self.waiting):
            self.host.cancel(self, cast(int, number))
        self.refuse(0, fault)

    def _half_close(self, fault: SynapError) -> None:
        """Send the connection-level ERROR frame and half-close, so that the peer can still read it."""
        self._stops |= OVER
        transport = self._transport
        if transport.is_closing():
            return
        transport.write(frame(_ERROR, 0, self.codec.encode_error(fault)))
        # Closing at once, with unread bytes, would reset the connection and lose the frame that was just sent.
        if transport.can_write_eof():
            transport.write_eof()
            transport.resume_reading()
            asyncio.get_running_loop().call_later(1.0, self._close_unless_read, transport.get_write_buffer_size())
        else:
            transport.close()

    def _close_unless_read(self, unsent: int) -> None:
        """Close, unless the peer is still reading."""
        left = self._transport.get_write_buffer_size()
        if 0 < left < unsent and not self.closed:
            asyncio.get_running_loop().call_later(1.0, self._close_unless_read, left)
        else:
            self._transport.abort()


def _malformed(message: str) -> SynapError:
    return SynapError("INVALID_REQUEST", message)
