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
"""Bytes a body from the service may have: a page of many values is larger than any of them, and so is a message in its
answer."""

RETRY = 1
"""Flag of a request that may have been done already: the service looks it up before it does it."""
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
    """A large one that `FrameReader.buffer` received in place is in truth a `bytearray`."""


_LARGE = 4096
"""Bytes from which on a piece of a body is kept as it came."""
_ROOM = 64 * 1024
"""Bytes that `FrameReader.buffer` takes at once; where more of a body are missing, they go where it will stay."""

_HEADER = HEADER.size
_unpack = HEADER.unpack_from
_new_frame: Any = tuple.__new__  # what Frame._make does, without the call in between


def frame(kind: int, id: int = 0, body: bytes = b"", code: int = 0, flags: int = 0) -> bytes:
    """Build one frame."""
    return HEADER.pack(len(body), kind, flags, code, id) + body


class FrameReader:
    """Cuts a stream of bytes into frames.

    Holds at most one unfinished frame: a body beyond `limit` bytes is refused when its header is seen. Its pieces are
    kept as they came and joined once, so a large body is copied once. Whoever can receive into a buffer asks `buffer`
    for one and reports to `filled` instead of calling `feed`; then a large body isn't copied at all, and small ones
    need no memory of their own to arrive in.
    """

    __slots__ = ("_body", "_head", "_held", "_pieces", "empty", "last", "limit", "room")

    def __init__(self, limit: int = MAX_BODY) -> None:
        self.limit = limit
        self.empty = True
        """Whether nothing of an unfinished frame is held. Then what comes next begins with a header, and whoever gets a
        whole frame at once may read it by itself."""
        self.last: List[Frame] = []
        """The frames that were completed together with the fault for which `feed` raised, in front of it."""
        self.room: Optional[memoryview] = None
        """What `buffer` lends out for all that is not the rest of a large body, once it was asked."""
        self._body: Optional[memoryview] = None
        """The body of the unfinished frame, where it is received in place."""
        self._head: Optional[Tuple[int, int, int, int, int]] = None
        """The header of the unfinished frame, once that is whole."""
        self._pieces: List[Union[bytes, bytearray]] = []
        """What is there of its body; without `_head`, of its header."""
        self._held = 0

    @property
    def missing(self) -> int:
        """How many bytes the unfinished frame still needs; 0 where there is none, or its header isn't whole."""
        return 0 if self._head is None else self._head[0] - self._held

    def buffer(self) -> memoryview:
        """Return where the bytes received next may be put, from its beginning; `filled` is told how many they were."""
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
        """Take the first `count` bytes of what `buffer` returned last, like `feed`."""
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
        """Take what was received and return the frames it completes.

        Raises `PAYLOAD_TOO_LARGE` or `INVALID_REQUEST`; the connection can't be read any further then. Frames that came
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
        """Keep a piece; small ones together, or a body that drips in would weigh many times its size."""
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
        """Bytes held of an unfinished frame."""
        return self._held if self._head is None else HEADER.size + self._held
