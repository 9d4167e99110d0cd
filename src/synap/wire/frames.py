"""The native lane's messages: length-prefixed frames, many requests in flight at once.

A frame is a header of 12 bytes, big-endian, and a body:

    body length   4   bytes that follow the header
    kind          1   one of `Kind`
    flags         1   `RETRY`, `GZIP`
    code          2   number of the command in a request, else 0
    id            4   number of the request, or of the subscription in what is pushed

Bodies are payloads, answers and error envelopes in the connection's format. `docs/protocol.md` is the full description.
"""

from __future__ import annotations

import struct
from typing import Callable, List, Optional, Tuple, Union, cast

from synap.errors import SynapError
from synap.wire.buffer_pool import BUFFERS
from synap.wire.parts import LOOK, Assembly, Place

HEADER = struct.Struct(">IBBHI")
MAX_BODY = 10 * 1024 * 1024
"""Bytes the body of a request may have, before and after decompression."""
HELD = 4
"""Bytes that are held while a large body is decoded and executed, for each of it."""
MAX_ANSWER = 64 * 1024 * 1024
"""Bytes the body of an answer or a push may have: a page of values is larger than each of them."""

RETRY = 1
"""Flag of a request that may have been executed already: the service looks up its answer first."""
GZIP = 2
"""Flag of a compressed body."""


class Kind:
    """Kinds of frame. c: sent by clients, s: by the service."""

    REQUEST = 1  # c  a command; answered by ANSWER or ERROR with the same id
    ANSWER = 2  # s
    ERROR = 3  # s  id 0: about the connection, which is closed after it
    EVENT = 4  # s  an event of a room; id is the subscription
    MESSAGE = 5  # s  a message of a topic; id is the subscription
    ENDED = 6  # s  the service ended the subscription; the body says why
    CANCEL = 7  # c  nobody waits for the answer to this request any more
    DONE = 8  # c  the answers to all requests with lower ids have been received
    PING = 9  # both; answered by PONG with the same id
    PONG = 10  # both; the service's has its health as body
    GOAWAY = 11  # s  the service drains: no new requests on this connection


KINDS = frozenset(value for name, value in vars(Kind).items() if name.isupper())


Frame = Tuple[int, int, int, int, bytes]
"""What was received: kind, flags, code, id, body. A large body that was received in place is a `memoryview`, which may
be given back to `BUFFERS`, or `Parts` (see `FrameReader`). It has no names, since a named tuple takes about as
long to make as all else that cuts a frame.
"""

ROOM = 64 * 1024
"""Bytes of the buffer for all but large bodies."""
SHARE = 16
"""`Parts` are allocated for a body once at least one part in so many of it has arrived."""
_LARGE = 4096
"""Bytes from which on a piece of a body is kept as it is, not joined with others."""

_HEADER = HEADER.size
_unpack = HEADER.unpack_from


def frame(kind: int, id: int = 0, body: bytes = b"", code: int = 0, flags: int = 0) -> bytes:
    """Build one frame."""
    return HEADER.pack(len(body), kind, flags, code, id) + body


class FrameReader:
    """Cuts a stream of bytes into frames.

    Holds at most one incomplete frame; a body of more than `limit` bytes is refused when its header is seen. Pieces are
    joined once, so a large body is copied once. Callers that can receive into a buffer use `buffer` and `filled`
    instead of `feed`; then a large body isn't copied at all, and small ones share a buffer.

    `room`: that buffer, by default one of its own. `find`: one of `FINDERS`; only requests in which it finds a place
    are received in place then, and come as `Parts`.
    """

    __slots__ = ("_assembly", "_body", "_find", "_head", "_held", "_pieces", "empty", "last", "limit", "room")

    def __init__(
        self,
        limit: int = MAX_BODY,
        room: Optional[memoryview] = None,
        find: Optional[Callable[[bytes, int], Optional[Place]]] = None,
    ) -> None:
        self.limit = limit
        self.room = memoryview(bytearray(ROOM)) if room is None else room
        """The buffer for all but large bodies."""
        self.empty = True
        """Whether no incomplete frame is held. Then the next bytes begin with a header, and a caller that gets a whole
        frame may parse it itself."""
        self.last: List[Frame] = []
        """The complete frames before the fault for which `feed` raised."""
        self._find = find
        self._assembly: Optional[Assembly] = None
        """The body of the incomplete frame, where it is received in parts."""
        self._body: Optional[memoryview] = None
        """The body of the incomplete frame, where it is received in place."""
        self._head: Optional[Tuple[int, int, int, int, int]] = None
        """The header of the incomplete frame, once that is complete."""
        self._pieces: List[Union[bytes, bytearray]] = []
        """The received part of its body; without `_head`, of its header."""
        self._held = 0

    @property
    def missing(self) -> int:
        """Missing bytes of the incomplete frame; 0 where there is none, or its header is incomplete."""
        return 0 if self._head is None else self._head[0] - self._held

    @property
    def worth(self) -> bool:
        """Whether the body of the incomplete frame is one to receive in place, now or once more of it has come."""
        return self.missing > ROOM and (self._find is None or self._place() is not None)

    @property
    def in_place(self) -> bool:
        """Whether the body of the incomplete frame is received where it stays."""
        return self._body is not None or self._assembly is not None

    def buffer(self) -> memoryview:
        """Return a buffer to receive into, from its beginning: `room`, or the rest of a large body.

        Then call `filled` with the number of bytes.
        """
        if not self.in_place and not self._begin():
            return self.room
        if self._assembly is not None:
            return self._assembly.rest(self._held)
        assert self._body is not None
        return self._body[self._held :]

    def _begin(self) -> bool:
        """Receive the body in place from now on, if it is one for that."""
        if self._head is None or self.missing <= ROOM:
            return False
        size = self._head[0]
        if self._find is None:
            self._body = body = BUFFERS.take(size)
            at = 0
            for piece in self._pieces:
                body[at : at + len(piece)] = piece
                at += len(piece)
        else:
            place = self._place() if self._held * SHARE >= size else None
            if place is None:
                return False
            self._assembly = Assembly(place, self._pieces, size)
        self._pieces.clear()
        return True

    def _place(self) -> Optional[Place]:
        """Find where the value is in the body of the incomplete frame."""
        assert self._find is not None
        assert self._head is not None
        length, kind, flags, _, _ = self._head
        if kind != Kind.REQUEST or flags or not self._pieces:
            return None
        first = bytes(self._pieces[0][:LOOK])
        if len(self._pieces) > 1 and len(first) < LOOK:
            first += self._pieces[1][:LOOK]
        return self._find(first, length)

    def filled(self, count: int) -> List[Frame]:
        """Process the first `count` bytes of the last `buffer`, like `feed`."""
        if not self.in_place:
            return self.feed(bytes(self.room[:count]))
        self._held += count
        assert self._head is not None
        length, kind, flags, code, id = self._head
        if self._held < length:
            return []
        body = self._body if self._assembly is None else self._assembly.whole()
        self.drop()
        return [(kind, flags, code, id, cast(bytes, body))]

    def feed(self, data: Union[bytes, bytearray, memoryview]) -> List[Frame]:
        """Process received bytes and return the frames they complete.

        Raises `PAYLOAD_TOO_LARGE` or `INVALID_REQUEST`, after which the connection can't be read any further. Frames
        before the fault are in `last`.
        """
        if type(data) is not bytes:
            data = bytes(data)
        frames: List[Frame] = []
        position = 0
        size = len(data)
        if not self.empty:
            if self._head is None:
                data = b"".join([*self._pieces, data])
                size = len(data)
                self.drop()
            else:
                length, kind, flags, code, id = self._head
                position = length - self._held
                if position > size:
                    self._hold(data)
                    return frames
                body = b"".join([*self._pieces, data[:position]])
                self.drop()
                frames.append((kind, flags, code, id, body))
        limit = self.limit
        last = size - _HEADER
        while position <= last:
            length, kind, flags, code, id = _unpack(data, position)
            if length > limit or kind not in KINDS:
                self.last = frames
                raise self._fault(length, kind)
            begin = position + _HEADER
            position = begin + length
            if position > size:
                self._head = length, kind, flags, code, id
                self.empty = False
                position = begin
                break
            frames.append((kind, flags, code, id, data[begin:position]))
        if position < size:
            self._hold(data[position:])
        return frames

    def _fault(self, length: int, kind: int) -> SynapError:
        if length > self.limit:
            text = f"a body may have {self.limit} bytes, this one has {length}"
            return SynapError("PAYLOAD_TOO_LARGE", text, {"limit": self.limit})
        return SynapError("INVALID_REQUEST", f"frame kind must be 1..11, got {kind}")

    def _hold(self, data: bytes) -> None:
        """Keep a piece. Small ones are joined: as many small objects they would take many times their size."""
        self.empty = False
        pieces = self._pieces
        if len(data) >= _LARGE:
            pieces.append(data)
        elif pieces and type(pieces[-1]) is bytearray:
            pieces[-1] += data
        else:
            pieces.append(bytearray(data))
        self._held += len(data)

    def drop(self) -> None:
        """Discard the incomplete frame."""
        self.empty = True
        self._head = self._body = self._assembly = None
        self._pieces.clear()
        self._held = 0

    @property
    def pending(self) -> int:
        """Bytes held for the incomplete frame."""
        if self._head is None:
            return self._held
        return _HEADER + (self._head[0] if self.in_place else self._held)
