"""The output of a connection on the native lane: encodes what the host delivers, writes it, and pauses reading.

A turn's output leaves in one write. While the peer doesn't read what it was sent, nothing is read from it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from synap.commands import EventAnswer
from synap.errors import SynapError
from synap.host import ANSWER, PUSH, REFUSE, Output
from synap.server.apart import APART, STEPS, Encoded
from synap.server.flow import HIGH_WATER, MAX_UNSENT, FlowSession
from synap.server.service import Service
from synap.server.sizes import too_large
from synap.wire.codec import CODECS
from synap.wire.compression import WORTH, compress, worth
from synap.wire.frames import GZIP, HEADER, MAX_ANSWER, Kind, frame
from synap.wire.handshake import Hello
from synap.wire.large import LARGE, Steps

UNJOINED = 512 * 1024
"""Bytes of output from which on frames are not joined into one buffer."""

_pack = HEADER.pack
_ANSWER, _ERROR = Kind.ANSWER, Kind.ERROR
_EVENT, _MESSAGE, _ENDED = Kind.EVENT, Kind.MESSAGE, Kind.ENDED

CONTROL = 4
"""The kind of output that is a frame about the connection itself (PONG, GOAWAY)."""

PEER_STALLS, LOG_STALLS, REFUSED, BUSY, OVER, UNHEARD = 1, 2, 4, 8, 16, 32
"""Why a connection is not read. REFUSED: discard input. OVER: discard output too. UNHEARD: no bytes came yet."""


class NativeOutput(FlowSession):
    """The part of a native session that sends. The others read frames, check requests, and implement `go_on`."""

    __slots__ = (
        "_apart", "_encode", "_gzip", "_out", "_out_size", "_render", "_service", "_shared", "_stops", "_transport",
    )  # fmt: skip

    def __init__(self, service: Service, hello: Hello) -> None:
        codec = CODECS[hello.format]
        super().__init__(service, codec, hello.session)
        self._service = service
        self._transport: asyncio.Transport
        self._gzip = hello.compression
        self._encode = codec.encode
        self._apart = APART[hello.format]
        self._render = codec.renderers
        self._shared = service.shared[hello.format, hello.compression]
        self._out: list[bytes] = []
        """Frames about the connection itself, which don't wait for the disk."""
        self._out_size = 0
        """Bytes in `_out`."""
        self._stops = UNHEARD

    def deliver(self, output: list[Output]) -> None:
        if self._service.awaited:
            self._service.record_outcomes(self, output)
        stops = self._stops
        if stops and (self.closed or stops & OVER):  # what is closed is not read either
            self.promised -= sum([entry[3] for entry in output])
            return
        if len(output) == 1 and not stops and self._deliver_alone(output[0]):
            return
        encode, render, shared = self._encode, self._render, self._shared
        out: list[bytes] = []
        weights = size = 0
        last: SynapError | None = None
        for entry in output:
            what, number, content, weight = entry
            weights += weight
            try:
                if what == ANSWER:
                    if weight > LARGE:
                        if type(content) is Encoded:
                            out.append(_pack(content.size, _ANSWER, 0, 0, number))
                            out += content.pieces
                            size += content.size
                            continue
                        if weight > MAX_ANSWER:
                            raise too_large(weight, content)
                        if self.put_off(entry):
                            continue
                        if weight > UNJOINED:
                            if not self._service.transit.has_room(weight, promised=True):
                                raise self._service.transit.refusal(weight, content)
                            if not self._gzip:
                                pieces = self._apart.pieces(content)
                                length = sum(map(len, pieces))
                                if length > MAX_ANSWER:
                                    raise too_large(length, content)
                                out.append(_pack(length, _ANSWER, 0, 0, number))
                                out += pieces
                                size += length
                                continue
                    renderer = render.get(type(content))
                    body = encode(content if renderer is None else renderer(content))
                    length = len(body)
                    if length < WORTH:
                        out.append(_pack(length, _ANSWER, 0, 0, number))
                        out.append(body)
                        size += length
                        continue
                    kind, flags = _ANSWER, 0
                    if length > MAX_ANSWER:
                        raise too_large(length, content)
                    if self._gzip and worth(body):
                        body = compress(body)
                        length = len(body)
                        flags = GZIP
                elif what == PUSH:
                    if (weight > LARGE or self._behind) and self.put_off(entry):
                        continue
                    body, flags = shared.encode(content)
                    length = len(body)
                    kind = _EVENT if type(content) is EventAnswer else _MESSAGE
                elif what == CONTROL:
                    out.append(content)
                    continue
                else:
                    if what == REFUSE and not number:
                        last = content
                        weights = sum([one[3] for one in output])  # also of what isn't sent behind it
                        break
                    kind = _ERROR if what == REFUSE else _ENDED
                    body, flags = self.codec.encode_error(content), 0
                    length = len(body)
            except Exception as failure:  # it is an error to its own caller, and the rest is sent
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

    def _deliver_alone(self, entry: Output) -> bool:
        """Send a turn's only output, where it is a small answer; returns False, having done nothing, where it isn't."""
        what, number, content, weight = entry
        if what != ANSWER or weight > WORTH or self._out or self._lagging:
            return False
        renderer = self._render.get(type(content))
        try:
            body = self._encode(content if renderer is None else renderer(content))
        except Exception:
            return False  # it fails again there, and becomes an error
        if len(body) >= WORTH:
            return False
        self.promised -= weight
        self._transport.write(_pack(len(body), _ANSWER, 0, 0, number) + body)
        return True

    def _control_frame(self, data: bytes) -> None:
        """Send a frame about the connection at the end of the turn: in order, or before output that is held."""
        self.promised += len(data)
        if self.host.holds:
            self._out.append(data)
            self._out_size += len(data)
        else:
            self._emit((CONTROL, 0, data, len(data)))

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
            if not (self.stalled or self._transport.is_closing()):
                # The `writelines` of asyncio's own loop, as of Python 3.13.0, never pauses the writer; this does.
                self._transport.set_write_buffer_limits(HIGH_WATER)
            self._service.transit.add(size)
        if self.stalled:
            if size < UNJOINED:
                self._service.transit.add(size + HIGH_WATER // 64)
            if self._transport.get_write_buffer_size() > MAX_UNSENT:
                self._transport.abort()
        else:
            if self._lagging:
                asyncio.get_running_loop().call_soon(self.catch_up)
            self.go_on()

    def in_steps(self, content: Any, weight: int) -> Steps | None:
        return self._apart.in_steps(content) if weight > STEPS else None

    def buffered(self) -> int:
        return self._transport.get_write_buffer_size()

    @property
    def unsent(self) -> int:
        """Estimated bytes that wait to be sent."""
        return self.promised + self._transport.get_write_buffer_size()

    def lose_pushes(self, weight: int) -> None:
        self.promised -= weight
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
        self.go_on()

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

    def _close_unless_read(self, before: int) -> None:
        """Close, unless the peer is still reading."""
        left = self._transport.get_write_buffer_size()
        if 0 < left < before and not self.closed:
            asyncio.get_running_loop().call_later(1.0, self._close_unless_read, left)
        else:
            self._transport.abort()
