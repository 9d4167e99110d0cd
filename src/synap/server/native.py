"""The server side of the native lane: a protocol that executes frames as they are read, without tasks or queues.

One read is one turn: all its requests are executed, and all output is sent in one write.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import cast

from synap.commands import Command
from synap.engine.callers import Number
from synap.errors import SynapError
from synap.server.clients import Visit
from synap.server.flow import HIGH_WATER, TURN
from synap.server.in_place import InPlace
from synap.server.logs import connection_ended
from synap.server.native_output import BUSY, LOG_STALLS, OVER, REFUSED, UNHEARD
from synap.server.native_requests import MAX_WAITING, NO_COMMANDS, NativeRequests, malformed
from synap.server.rates import Weighing
from synap.server.service import Principal, Service
from synap.server.turns import TURN as SECONDS
from synap.wire.frames import HEADER, Frame, FrameReader, Kind, frame
from synap.wire.handshake import Hello
from synap.wire.parts import FINDERS, Parts

PIECE = 16 * 1024
"""Bytes that are parsed into frames at a time."""
LITTLE = 1024
"""Bytes of a read that is always executed at once: what it takes is bounded by the connections, each with so little."""
SEVERAL = 16
"""Frames between two checks of the clock."""
MIN_RATE = 4096.0
"""Bytes a second that a peer must send of an incomplete frame."""

_unpack = HEADER.unpack_from
_HEADER = HEADER.size
_REQUEST = Kind.REQUEST


class NativeSession(NativeRequests, asyncio.Protocol):
    """One connection on the native lane."""

    __slots__ = (
        "_in_place", "_lane", "_queued", "_reader", "deadline", "visit",
    )  # fmt: skip

    def __init__(self, service: Service, hello: Hello, principal: Principal, lane: str = "native") -> None:
        super().__init__(service, hello, principal)
        self._lane = lane
        self._reader = FrameReader(service.config.max_body, service.room, FINDERS[hello.format])
        self._in_place: InPlace | None = None
        self._queued = False
        """Whether this connection is queued for its next turn."""
        self.deadline: float | None = None
        """When the first frame, or an incomplete one, must be complete (loop time)."""
        self.visit: Visit

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        service = self._service
        self.visit = Visit.over(self._lane, transport, self.principal.access.name if service.keys.on else "")
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
                and (self._bucket is None or self._bucket.grab(1, length))
            ):
                self._work_alone(id, command, data[_HEADER:])
                return
        if self._stops & REFUSED:
            return
        self._stops &= ~UNHEARD
        if self._unread:
            self._unread += data
            return
        if len(data) > LITTLE and self._service.turns.over():
            self._unread = data
            if not self._stops & BUSY:
                self._stop(BUSY)
                self._ask_turn()
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
        was_empty = self._reader.empty
        frames = self._cut(data)
        if self._stops & BUSY:
            self._deferred += frames
        else:
            are_all = was_empty and self._reader.empty and self._fault is None
            self._work(frames, len(data) - _HEADER * len(frames) if are_all else None)

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
            self._incomplete(len(data), bool(frames))
            if len(data) >= PIECE:
                self._service.transit.add(len(data))
            if self._reader.worth and not self._unread:
                if self._in_place is None:
                    self._in_place = InPlace(self, self._reader, self._transport, self._service.transit.add)
                self._in_place.begin()
        return frames

    def _incomplete(self, size: int, another: bool) -> None:
        """Set when an incomplete frame must be complete, of which `size` bytes came now; `another`: the first ones."""
        now = asyncio.get_running_loop().time()
        if self.deadline is None or another:
            self.deadline = now + self._service.config.handshake_timeout
        self.deadline += size / MIN_RATE

    def received_in_place(self, count: int) -> None:
        """Receive bytes of a request with a large value, in the reader's buffer."""
        if self._stops & REFUSED:
            return
        frames = self._reader.filled(count)
        if not frames:
            self._incomplete(count, False)
            return
        self.deadline = None
        [(kind, flags, code, number, body)] = frames
        parts = cast(Parts, body)
        if self._work_parts(code, number, parts):
            return
        frames = [(kind, flags, code, number, parts.join())]
        if self._stops & BUSY:
            self._deferred += frames
        elif self._service.turns:
            self._deferred += frames
            self._stop(BUSY)
            self._ask_turn()
        else:
            self._work(frames)

    def _work_parts(self, code: int, number: int, parts: Parts) -> bool:
        """Execute a large request from its parts; returns False, having done nothing, where it takes the whole body."""
        command = self._commands[code] if code < 128 else None
        if command is None or command.waits or not number or self._stops or self.host.busy or self._service.turns:
            return False
        if self.permit is not None:  # decoding the whole body checks what it may do
            return False
        payload = self.codec.decode_parts(command, parts)
        if payload is None or (self._bucket is not None and not self._bucket.grab(1, parts.size)):
            return False
        self.host.execute(self, number, command, payload, decoded=True)
        self._work([])  # the end of this turn
        return True

    def _work_alone(self, id: int, command: Command, body: bytes) -> None:
        """Execute a single request as one turn: `_work` without the parts that matter for several frames only."""
        host = self.host
        host.execute(self, id, command, body)
        if self.promised > TURN or (host.busy and host.working_for(self)):
            self._stop(BUSY)
        host.end_turn()
        if (host.may_stall or host.busy) and host.stalled:
            self._stop(LOG_STALLS)
            host.when_flowing(self._log_flows)

    def _work(self, frames: list[Frame], size: int | None = None) -> None:
        """Execute frames as one turn. Once its answers are too large together, the rest is deferred.

        `size`: the bytes of their bodies, where they are known.
        """
        host = self.host
        execute = host.execute
        commands = self._commands
        if len(self.waiting) > MAX_WAITING - len(frames):
            commands = NO_COMMANDS
        if self._bucket is not None:
            self._metered = not self._bucket.grab(len(frames), self._size(frames) if size is None else size)
            if self._metered:
                commands = NO_COMMANDS
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
                    elif self._held:
                        self._put_off([*several, *frames[place:]])
                        place = len(frames)
                        break
                    elif self._commands is NO_COMMANDS:
                        commands = NO_COMMANDS
                else:
                    if self._bucket is not None and not self._metered:
                        self._bucket.give(1, len(body))  # only requests cost tokens
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
        works = self._held or (host.busy and host.working_for(self))
        if self._fault is not None and not (self._deferred or works):
            self._refuse_connection(self._fault)
        elif self._deferred or self._unread or works or self.promised > TURN:
            self._stop(BUSY)
        host.end_turn()
        if self._out:
            self._write([])
        if self._deferred or self._unread:
            self._ask_turn()
        if host.stalled and not self._stops & LOG_STALLS:
            self._stop(LOG_STALLS)
            host.when_flowing(self._log_flows)

    def _size(self, frames: list[Frame]) -> int:
        """Return the bytes of frames' bodies where somebody counts them."""
        return sum([len(one[4]) for one in frames]) if type(self._bucket) is Weighing else 0

    def _put_off(self, frames: list[Frame]) -> None:
        self._deferred = frames
        if self._bucket is not None and not self._metered:
            self._bucket.give(len(frames), self._size(frames))

    def _ask_turn(self) -> None:
        """Queue for a turn to execute deferred frames, if there is room for their answers."""
        if not (self._queued or self.closed) and self._free():
            self._queued = True
            self._service.turns.ask(self.principal.access.name, self._work_on)

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

    def wanted(self) -> bool:
        return not (self.closed or self._stops & OVER)

    def dropped(self, number: Number) -> None:
        self._service.awaited.pop((self, number), None)

    def repeated(self, number: Number, place: int | None = None) -> None:
        self._service.record_repeated(self, number, place)

    def go_on(self) -> None:
        working = self._service.transit.working
        if working and self in working and not (self.host.busy and self.host.working_for(self)):
            del working[self]
        if self._stops & BUSY:
            self._ask_turn()

    def _free(self) -> bool:
        """Return whether more requests may be executed for this connection now."""
        if self.stalled or self._held or self.promised > TURN:
            return False
        return not (self.host.busy and self.host.working_for(self))

    def _control(self, kind: int, id: int) -> bool:
        if kind == Kind.CANCEL:
            self._service.record_withdrawn(self, id)
            self.host.cancel(self, id)
        elif kind == Kind.DONE:
            self.host.confirm(self, id)
        elif kind == Kind.PING:
            health = self._service.health(admin=self.principal.access.admin)
            self._control_frame(frame(Kind.PONG, id, self.codec.encode(health)))
        elif kind != Kind.PONG:
            self._fault = malformed(f"frames of kind {kind} are the service's, not a client's")
            return False
        return True

    def queued(self) -> int:
        """Estimated bytes held outside the transport."""
        deferred = sum([len(one[4]) for one in self._deferred])
        received = self._reader.pending + len(self._unread) + deferred + self._preparing
        return self.promised - self.elsewhere + received

    def _log_flows(self) -> None:
        self._go_on(LOG_STALLS)

    # ------------------------------------------------------------------------------------------ the end

    def eof_received(self) -> None:
        """Do and write nothing more: the transport closes once its peer has read what was written, if it ever does."""
        self._stops |= REFUSED | OVER
        self._deferred, self._unread = [], b""
        self._service.record_withdrawn(self)
        self.host.leave(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def overdue(self) -> None:
        """Called after `deadline`: end the connection, unless it isn't being read."""
        if self._stops & ~UNHEARD:
            self.deadline = asyncio.get_running_loop().time() + self._service.config.handshake_timeout
        else:
            self.deadline = None
            self._refuse_connection(malformed("the rest of a frame, or the first one, took too long"))
            self.host.end_turn()

    def drain(self) -> None:
        self._commands = NO_COMMANDS
        self._control_frame(frame(Kind.GOAWAY))
        self.host.end_turn()
        self._write([])

    def shutdown(self) -> None:
        """Close once everything is sent. (The name is uvicorn's.)"""
        self._transport.close()

    def settled(self) -> bool:
        if self._transport.is_closing():
            return True
        held = self._deferred or self._unread or self._held or self.promised
        return not held and self._transport.get_write_buffer_size() == 0

    def supersede(self) -> None:
        """End this connection: its session has a newer one."""
        self._leave()
        self._transport.abort()

    def disconnect(self) -> None:
        """Close the connection: its key was removed, or an admin asked for it."""
        self.adopt(self.principal.access.emptied())
        self._leave()
        self._transport.close()

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
        # This session is in cycles, and it may be long until they are collected.
        self._reader.drop()
        self._deferred, self._unread = [], b""
        connection_ended(self.visit)
        self._service.record_withdrawn(self)
        self.host.leave(self)
        self.go_on()
