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
from typing import Any, Callable, List, NamedTuple, Optional, Tuple, Union, cast

from synap.errors import SynapError
from synap.wire.buffers import ROOM, Buffers
from synap.wire.parts import LOOK, Assembly, Place

__all__ = ["GZIP", "HEADER", "MAX_ANSWER", "MAX_BODY", "RETRY", "Frame", "FrameReader", "Kind", "frame"]

HEADER = struct.Struct(">IBBHI")
MAX_BODY = 10 * 1024 * 1024
"""Bytes the body of a request may have, before and after decompression."""
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


class Frame(NamedTuple):
    kind: int
    flags: int
    code: int
    id: int
    body: bytes
    """A large body that was received in place is a `memoryview` (see `FrameReader.buffer`), or `Parts`."""


_LARGE = 4096
"""Bytes from which on a piece of a body is kept as it is, not joined with others."""

_HEADER = HEADER.size
_unpack = HEADER.unpack_from
_new_frame: Any = tuple.__new__  # what Frame._make does, without the call in between


def frame(kind: int, id: int = 0, body: bytes = b"", code: int = 0, flags: int = 0) -> bytes:
    """Build one frame."""
    return HEADER.pack(len(body), kind, flags, code, id) + body


class FrameReader:
    """Cuts a stream of bytes into frames.

    Holds at most one incomplete frame; a body of more than `limit` bytes is refused when its header is seen. Pieces are
    joined once, so a large body is copied once. Callers that can receive into a buffer use `buffer` and `filled`
    instead of `feed`; then a large body isn't copied at all, and small ones share a buffer.

    `buffers`: where buffers come from, by default some of its own. `most`: bytes of a body up to which it is received
    in place; None: any. `share`: it is once so many times its received part are the whole, so that announcing a large
    one allocates little; None: at once. `find`: one of `FINDERS`; requests in which it finds a place come as `Parts`.
    """

    __slots__ = (
        "_assembly",
        "_body",
        "_find",
        "_head",
        "_held",
        "_most",
        "_pieces",
        "_room",
        "_share",
        "buffers",
        "empty",
        "last",
        "limit",
    )

    def __init__(
        self,
        limit: int = MAX_BODY,
        buffers: Optional[Buffers] = None,
        *,
        most: Optional[int] = None,
        share: Optional[int] = None,
        find: Optional[Callable[[bytes, int], Optional[Place]]] = None,
    ) -> None:
        self.limit = limit
        self.buffers = Buffers() if buffers is None else buffers
        self.empty = True
        """Whether no incomplete frame is held. Then the next bytes begin with a header, and a caller that gets a whole
        frame may parse it itself."""
        self.last: List[Frame] = []
        """The complete frames before the fault for which `feed` raised."""
        self._room: memoryview
        self._most = most
        self._share = share
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
        return self.missing > ROOM and (self._most is None or self._head is None or self._head[0] <= self._most)

    @property
    def in_place(self) -> bool:
        """Whether the body of the incomplete frame is received where it stays."""
        return self._body is not None or self._assembly is not None

    def buffer(self) -> memoryview:
        """Return a buffer to receive into, from its beginning. Then call `filled` with the number of bytes.

        It is the room of `buffers`, or the rest of a large body. That body's buffer is used again once nothing refers
        to it.
        """
        if self._assembly is not None:
            return self._assembly.rest(self._held)
        body = self._body
        if body is None:
            head = self._head
            if head is None or not self.worth or (self._share is not None and self._held * self._share < head[0]):
                self._room = room = self.buffers.room
                return room
            if self._find is not None:
                assembly = self._begin_parts(self._find, *head)
                if assembly is not None:
                    return assembly.rest(self._held)
            body = self._body = self.buffers.take(head[0])
            at = 0
            for piece in self._pieces:
                body[at : at + len(piece)] = piece
                at += len(piece)
            self._pieces.clear()
        return body[self._held :]

    def _begin_parts(
        self,
        find: Callable[[bytes, int], Optional[Place]],
        length: int,
        kind: int,
        flags: int,
        code: int,
        id: int,
    ) -> Optional[Assembly]:
        """Receive the body in parts from now on, where a place for its value is found."""
        if kind != Kind.REQUEST or flags or not self._pieces:
            return None
        first = bytes(self._pieces[0][:LOOK])
        if len(self._pieces) > 1 and len(first) < LOOK:
            first += self._pieces[1][:LOOK]
        place = find(first, length)
        if place is not None:
            self._assembly = Assembly(place, self._pieces, length)
            self._pieces.clear()
        return self._assembly

    def filled(self, count: int) -> List[Frame]:
        """Process the first `count` bytes of the last `buffer`, like `feed`."""
        if self._body is None and self._assembly is None:
            return self.feed(bytes(self._room[:count]))
        self._held += count
        assert self._head is not None
        length, kind, flags, code, id = self._head
        if self._held < length:
            return []
        body = self._body if self._assembly is None else self._assembly.whole()
        self._drop()
        return [Frame(kind, flags, code, id, cast(bytes, body))]

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
                self._drop()
            else:
                length, kind, flags, code, id = self._head
                position = length - self._held
                if position > size:
                    self._hold(data)
                    return frames
                body = b"".join([*self._pieces, data[:position]])
                self._drop()
                frames.append(Frame(kind, flags, code, id, body))
        limit = self.limit
        while size - position >= _HEADER:
            length, kind, flags, code, id = head = _unpack(data, position)
            if length > limit or kind not in KINDS:
                self.last = frames
                raise self._fault(length, kind)
            position += _HEADER
            end = position + length
            if end > size:
                self._head = head
                self.empty = False
                break
            frames.append(_new_frame(Frame, (kind, flags, code, id, data[position:end])))
            if end == size:
                return frames
            position = end
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

    def _drop(self) -> None:
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
