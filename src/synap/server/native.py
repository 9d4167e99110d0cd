"""The native lane: frames in, frames out, nothing between a read of the socket and the engine.

One read is one turn: all requests it brought are done, and everything said leaves in one write. No task, queue or
copy is made for a request.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from synap.commands import (
    BATCH,
    BY_CODE,
    BatchAnswer,
    Command,
    EventAnswer,
    HistoryAnswer,
    Item,
    MGetAnswer,
)
from synap.errors import SynapError
from synap.host import ANSWER, PUSH, REFUSE, Session
from synap.server.auth import Access
from synap.server.clients import Visit
from synap.server.rates import Bucket
from synap.server.service import Service
from synap.server.sizes import ESTIMATES, SMALL, too_large, weigh
from synap.wire.codec import CODECS
from synap.wire.compression import WORTH, compress, decompress
from synap.wire.frames import GZIP, HEADER, MAX_ANSWER, RETRY, Frame, FrameReader, Kind, frame
from synap.wire.handshake import Hello

__all__ = ["NativeSession"]

SLICE = 128 * 1024
"""Bytes of events for one connection in one turn; further ones follow in the next, after everybody else's requests."""
MAX_UNSENT = 64 * 1024 * 1024
"""Bytes that may wait for a peer that doesn't read before the connection is cut."""
TURN = 1024 * 1024
"""Bytes of answers for one connection in one turn; what else it asked for is done when they are on their way."""
LARGE = 512 * 1024
"""Bytes from which on what is said isn't joined before it is sent."""
HIGH_WATER = 256 * 1024
"""Bytes waiting to be sent from which on a connection is not read."""
MAX_WAITING = 10_000
"""Requests of one connection that may wait."""

_COMMANDS: list[Command | None] = [BY_CODE.get(code) for code in range(128)]
_PLAIN: list[Command | None] = [
    None if command is None or command.admin or command.pushes else command for command in _COMMANDS
]
"""Commands that need no look at who asks."""
_NONE: list[Command | None] = [None] * len(_PLAIN)
_MANIFOLD = frozenset((MGetAnswer, HistoryAnswer, BatchAnswer))
"""Answers that may refer to the same large value often: too large to be built, without taking any memory till then."""

_pack = HEADER.pack
_unpack = HEADER.unpack_from
_HEADER = HEADER.size
_REQUEST, _ANSWER, _ERROR = Kind.REQUEST, Kind.ANSWER, Kind.ERROR
_EVENT, _MESSAGE = Kind.EVENT, Kind.MESSAGE

PEER_STALLS, LOG_STALLS, REFUSED, BUSY, OVER = 1, 2, 4, 8, 16
"""Why a connection is not read. What comes when it is `REFUSED` is thrown away; once it is `OVER`, so is what would be
said."""


class NativeSession(Session, asyncio.Protocol):
    """One connection on the native lane."""

    __slots__ = (
        "_admitted",
        "_bucket",
        "_commands",
        "_deferred",
        "_encode",
        "_fault",
        "_gzip",
        "_lagging",
        "_metered",
        "_out",
        "_promised",
        "_queued",
        "_reader",
        "_render",
        "_service",
        "_shared",
        "_stalled",
        "_stops",
        "_transport",
        "closed",
        "visit",
    )

    def __init__(self, service: Service, hello: Hello, access: Access, bucket: Bucket | None) -> None:
        codec = CODECS[hello.format]
        super().__init__(service.host, codec, hello.session)
        self._service = service
        self._transport: asyncio.Transport
        self._admitted = access
        self._bucket = bucket
        self._gzip = hello.compression
        self._encode = codec.encode
        self._render = codec.renderers
        self._shared = service.shared[hello.format, hello.compression]
        self._reader = FrameReader(service.config.max_body)
        self._commands = _PLAIN
        self._metered = False
        """Whether tokens are so few that each request takes its own; usually all that one read brought take theirs."""
        self._deferred: list[Frame] = []
        """What came and has to wait until earlier answers are on their way."""
        self._out: list[bytes] = []
        self._queued = 0
        """Bytes in `_out`."""
        self._promised = 0
        """Bytes, about, of answers, errors and pushed items that wait for the disk."""
        self._fault: SynapError | None = None
        """The nonsense that came and is to be told once everything is done that came before it."""
        self._lagging: set[int] = set()
        """Subscriptions to rooms that wait until there is room for their next event."""
        self._stalled = False
        """Whether the transport holds more than `HIGH_WATER` bytes."""
        self._stops = 0
        self.closed = False
        self.visit: Visit

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        service = self._service
        self.visit = Visit.over("native", transport, self._admitted.name if service.keys.on else "")
        service.lanes["native"] += 1
        service.connections.add(self)
        service.listeners.add(self)
        earlier = service.native.get(self.session)
        service.native[self.session] = self
        if earlier is not None:
            # The client has come back on a new connection, so it has given up the old one: what waits there would
            # only take messages away.
            cast(NativeSession, earlier).supersede()
        self._transport.set_write_buffer_limits(HIGH_WATER)

    # ------------------------------------------------------------------------------------------ what comes in

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
        try:
            frames = self._reader.feed(data)
        except SynapError as error:
            frames = self._reader.last
            self._fault = error
            self._stops |= REFUSED
        if self._stops & BUSY:
            self._deferred += frames
        else:
            self._work(frames)

    def _work_alone(self, id: int, command: Command, body: bytes) -> None:
        """Do a request that came by itself, as one turn: what `_work` does, without what only matters among several."""
        host = self.host
        try:
            host.execute(self, id, command, body)
        except Exception:
            self.refuse(id, self._service.crashed(command))
        if self._promised > TURN:
            self._stop(BUSY)
        host.end_turn()
        if host.log is not None and host.log.stalled:
            self._stop(LOG_STALLS)
            host.when_flowing(self._log_flows)

    def _work(self, frames: list[Frame]) -> None:
        """Do what came, as one turn. What would make its answers too large together is put off."""
        host = self.host
        execute = host.execute
        commands = self._commands
        if len(self.waiting) > MAX_WAITING - len(frames):
            commands = _NONE
        if self._bucket is not None:
            self._metered = not self._bucket.grab(len(frames))
            if self._metered:
                commands = _NONE
        rest = iter(frames)
        for kind, flags, code, id, body in rest:
            if kind == _REQUEST:
                command = commands[code] if code < 128 else None
                if command is not None and not flags and id:
                    try:
                        execute(self, id, command, body)
                    except Exception:
                        self.refuse(id, self._service.crashed(command))
                elif not self._request(flags, code, id, body):
                    break
            else:
                if self._bucket is not None and not self._metered:
                    self._bucket.give(1)  # Only requests cost anything.
                if not self._control(kind, id):
                    break
            if self._queued + self._promised > TURN:
                self._deferred = list(rest)
                if self._bucket is not None and not self._metered:
                    self._bucket.give(len(self._deferred))
        if self._fault is not None and not self._deferred:
            self._refuse_connection(self._fault)
        elif self._deferred or self._promised > TURN:
            self._stop(BUSY)
        host.end_turn()
        if host.log is not None and host.log.stalled and not self._stops & LOG_STALLS:
            self._stop(LOG_STALLS)
            host.when_flowing(self._log_flows)

    def _work_on(self) -> None:
        """Go on with what was put off, now that there is room for its answers. A turn of its own."""
        if self._stops & BUSY and not self.closed and not self._stalled and self._promised <= TURN:
            frames, self._deferred = self._deferred, []
            self._work(frames)
            if not self._deferred and self._promised <= TURN:
                self._go_on(BUSY)

    def _request(self, flags: int, code: int, id: int, body: bytes) -> bool:
        """Do a request that needs a closer look; False where the connection can't go on."""
        command = _COMMANDS[code] if code < 128 else None
        try:
            if id == 0:
                raise _nonsense("a request needs an id from 1 to 4294967295")
            if flags & GZIP:
                try:
                    body = decompress(body, self._service.config.max_body)
                except SynapError as error:
                    self._fault = error
                    return False
            if command is None:
                raise SynapError("INVALID_COMMAND", f"there is no command number {code}", {"command": code})
            self._service.allow(command, self._admitted)
            if self._metered and self._bucket is not None:
                self._bucket.take()
            if command.waits and (id in self.waiting or len(self.waiting) >= MAX_WAITING):
                raise SynapError("INVALID_REQUEST", f"request {id} waits already, or {MAX_WAITING} others do")
            # A subscription is made anew on a new connection, whatever was answered on the old one.
            retried = bool(flags & RETRY) and not command.pushes
            self.host.execute(self, id, command, body, retried)
        except SynapError as error:
            if id == 0:
                self._fault = error
                return False
            self.host.errors[error.code] = self.host.errors.get(error.code, 0) + 1
            self.refuse(id, error)
        except Exception:
            self.refuse(id, self._service.crashed(command or BATCH))
        return True

    def _control(self, kind: int, id: int) -> bool:
        if kind == Kind.CANCEL:
            self.host.cancel(self, id)
        elif kind == Kind.DONE:
            self.host.confirm(self, id)
        elif kind == Kind.PING:
            self._say(frame(Kind.PONG, id, self.codec.encode(self._service.health())))
        elif kind != Kind.PONG:
            self._fault = _nonsense(f"frames of kind {kind} are the service's, not a client's")
            return False
        return True

    # ------------------------------------------------------------------------------------------ what goes out

    def answer(self, number: int, answer: Any) -> None:
        held = self.host.held
        if held is None:
            self.send_answer(number, answer)
        else:
            kind = type(answer)
            self._promised += ESTIMATES[kind](answer) if kind in ESTIMATES else SMALL
            held.append((self, ANSWER, number, answer))

    def refuse(self, number: int, error: SynapError) -> None:
        held = self.host.held
        if held is None:
            self.send_error(number, error)
        else:
            error.__traceback__ = error.__context__ = None  # They would keep all that the request brought.
            self._promised += _burden(error)
            held.append((self, REFUSE, number, error))

    def send_answer(self, number: int, answer: Any) -> None:
        kind = type(answer)
        if self._promised:
            left = self._promised - (ESTIMATES[kind](answer) if kind in ESTIMATES else SMALL)
            self._promised = left if left > 0 else 0
        render = self._render.get(kind)
        if render is None:
            body = self._encode(answer)
        else:
            if kind in _MANIFOLD:
                size = ESTIMATES[kind](answer)
                if size > MAX_ANSWER:
                    self._say_error(number, too_large(size))
                    return
            body = self._encode(render(answer))
        flags = 0
        size = len(body)
        if size >= WORTH:
            if size > MAX_ANSWER:
                self._say_error(number, too_large(size))
                return
            if self._gzip:
                body = compress(body)
                flags = GZIP
                size = len(body)
        out = self._out
        if not out:
            self.host.touched.append(self)
        out.append(_pack(size, _ANSWER, flags, 0, number))
        out.append(body)
        self._queued += size

    def send_error(self, number: int, error: SynapError) -> None:
        if self._promised:
            if self.host.unavailable is None:
                self._promised = max(0, self._promised - _burden(error))
            else:
                # The disk refused, so all that waited is being said, and answers leave as errors of another size.
                self._promised = 0
        if number:
            self._say_error(number, error)
        else:
            self._part(error)

    def _say_error(self, number: int, error: SynapError) -> None:
        self._say(frame(_ERROR, number, self.codec.encode_error(error)))

    def send_ended(self, subscription_id: int, error: SynapError) -> None:
        self._lagging.discard(subscription_id)
        self._say(frame(Kind.ENDED, subscription_id, self.codec.encode_error(error)))

    def push(self, subscription_id: int, item: Item) -> bool:
        unsent = self._queued + self._promised
        if unsent > SLICE or self._stalled:
            event = type(item) is EventAnswer
            config = self._service.config
            limit = config.stream_buffer if event else config.pubsub_buffer
            if (event and unsent > SLICE) or unsent + self._transport.get_write_buffer_size() > limit or self.closed:
                if event:
                    self._lagging.add(subscription_id)
                return False
        held = self.host.held
        if held is None:
            self.send_push(subscription_id, item)
        else:
            self._promised += weigh(item)
            held.append((self, PUSH, subscription_id, item))
        return True

    def send_push(self, subscription_id: int, item: Item) -> None:
        body, gzipped = self._shared.encode(item)
        if self._promised:
            self._promised = max(0, self._promised - weigh(item))
        out = self._out
        if not out:
            self.host.touched.append(self)
        size = len(body)
        kind = _EVENT if type(item) is EventAnswer else _MESSAGE
        out.append(_pack(size, kind, GZIP if gzipped else 0, 0, subscription_id))
        out.append(body)
        self._queued += size

    def lose_pushes(self) -> None:
        self._promised = 0
        self._transport.abort()

    def has_room(self) -> bool:
        return not self._stalled and self._queued + self._promised <= SLICE

    def flush(self) -> None:
        out = self._out
        if self.closed or self._stops & OVER:
            out.clear()
            self._queued = 0
            return
        if self._queued < LARGE:
            self._transport.write(b"".join(out))
        else:  # copying that much costs more than several buffers
            self._transport.writelines(out)
        out.clear()
        self._queued = 0
        if self._stalled:
            if self._transport.get_write_buffer_size() > MAX_UNSENT:
                self._transport.abort()
        else:
            if self._lagging:
                asyncio.get_running_loop().call_soon(self._catch_up)
            if self._stops & BUSY and self._promised <= TURN:
                asyncio.get_running_loop().call_soon(self._work_on)

    def _say(self, data: bytes) -> None:
        if not self._out:
            self.host.touched.append(self)
        self._out.append(data)
        self._queued += len(data)

    def _catch_up(self) -> None:
        """Go on with subscriptions that wait for room. A turn of its own."""
        if self._stalled or self.closed:
            return
        lagging, self._lagging = self._lagging, set()
        host = self.host
        for subscription_id in lagging:
            if subscription_id in self.subscriptions:
                host.engine.resume(self, subscription_id, host.clock())
        host.end_turn()

    # ------------------------------------------------------------------------------------------ pressure

    def pause_writing(self) -> None:
        self._stalled = True
        self._stop(PEER_STALLS)

    def resume_writing(self) -> None:
        self._stalled = False
        self._go_on(PEER_STALLS)
        if self._lagging:
            self._catch_up()
        self._work_on()

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

    def drain(self) -> None:
        self._commands = _NONE
        self._say(frame(Kind.GOAWAY))

    def shutdown(self) -> None:
        """Everything has been said: close once it is sent. (uvicorn's name for it.)"""
        self._transport.close()

    def settled(self) -> bool:
        if self._transport.is_closing():
            return True
        return not self._deferred and not self._promised and self._transport.get_write_buffer_size() == 0

    def supersede(self) -> None:
        """Another connection of this session has come: end this one."""
        self._leave()
        self._transport.abort()

    def disconnect(self) -> None:
        """Close the connection, as an admin asked."""
        self._leave()
        self._transport.close()

    @property
    def unsent(self) -> int:
        """Bytes that wait to be sent, about."""
        return self._queued + self._transport.get_write_buffer_size()

    def _leave(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._stops |= REFUSED  # Bytes that still come are of a session that may have gone on elsewhere.
        service = self._service
        service.connections.discard(self)
        service.listeners.discard(self)
        if service.native.get(self.session) is self:
            del service.native[self.session]
        self._lagging.clear()
        self.host.leave(self)

    def _refuse_connection(self, fault: SynapError) -> None:
        """End the connection over what its peer sent: tell it, once all is said that came before, and close."""
        self._fault = None
        self._stops |= REFUSED
        self.host.errors[fault.code] = self.host.errors.get(fault.code, 0) + 1
        # Whatever waits could be given messages that nobody would get.
        for number in tuple(self.waiting):
            self.host.cancel(self, cast(int, number))
        self.refuse(0, fault)

    def _part(self, fault: SynapError) -> None:
        """Say the last word."""
        if self._out:
            self.flush()
        self._stops |= OVER
        transport = self._transport
        if transport.is_closing():
            return
        transport.write(frame(_ERROR, 0, self.codec.encode_error(fault)))
        # Closing at once, with bytes of the peer's unread, would reset the connection and lose what was just said.
        if transport.can_write_eof():
            transport.write_eof()
            transport.resume_reading()
            asyncio.get_running_loop().call_later(1.0, self._let_go, transport.get_write_buffer_size())
        else:
            transport.close()

    def _let_go(self, unsent: int) -> None:
        """Close, unless the peer is still taking what was said."""
        left = self._transport.get_write_buffer_size()
        if 0 < left < unsent and not self.closed:
            asyncio.get_running_loop().call_later(1.0, self._let_go, left)
        else:
            self._transport.abort()


def _nonsense(message: str) -> SynapError:
    return SynapError("INVALID_REQUEST", message)


def _burden(error: SynapError) -> int:
    return 256 + len(error.message)
