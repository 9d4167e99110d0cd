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
from typing import Any, List, NamedTuple, Optional, Tuple, Union, cast

from synap.errors import SynapError

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
    """A large body that was received in place by `FrameReader.buffer` is a `bytearray`."""


_LARGE = 4096
"""Bytes from which on a piece of a body is kept as it is, not joined with others."""
_ROOM = 64 * 1024
"""Size of the shared buffer; where more of a body is missing, it is received in place."""

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
    """

    __slots__ = ("_body", "_head", "_held", "_pieces", "empty", "last", "limit", "room")

    def __init__(self, limit: int = MAX_BODY) -> None:
        self.limit = limit
        self.empty = True
        """Whether no incomplete frame is held. Then the next bytes begin with a header, and a caller that gets a whole
        frame may parse it itself."""
        self.last: List[Frame] = []
        """The complete frames before the fault for which `feed` raised."""
        self.room: Optional[memoryview] = None
        """The shared buffer that `buffer` returns for all but large bodies; made when it is first needed."""
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

    def buffer(self) -> memoryview:
        """Return a buffer to receive into, from its beginning. Then call `filled` with the number of bytes."""
        body = self._body
        if body is None:
            if self._head is None or self._head[0] - self._held <= _ROOM:
                if self.room is None:
                    self.room = memoryview(bytearray(_ROOM))
                return self.room
            body = self._body = memoryview(bytearray(self._head[0]))
            body[: self._held] = b"".join(self._pieces)
            self._pieces.clear()
        return body[self._held :]

    def filled(self, count: int) -> List[Frame]:
        """Process the first `count` bytes of the last `buffer`, like `feed`."""
        body = self._body
        if body is None:
            assert self.room is not None
            return self.feed(bytes(self.room[:count]))
        self._held += count
        assert self._head is not None
        length, kind, flags, code, id = self._head
        if self._held < length:
            return []
        self._drop()
        return [Frame(kind, flags, code, id, cast(bytes, body.obj))]

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
        self._head = self._body = None
        self._pieces.clear()
        self._held = 0

    @property
    def pending(self) -> int:
        """Bytes held of the incomplete frame."""
        return self._held if self._head is None else HEADER.size + self._held
