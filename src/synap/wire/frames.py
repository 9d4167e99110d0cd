"""The native lane's messages: length-prefixed frames, many requests under way at once.

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
from typing import Any, List, NamedTuple, Union

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


_new_frame: Any = tuple.__new__  # what Frame._make does, without the call in between


def frame(kind: int, id: int = 0, body: bytes = b"", code: int = 0, flags: int = 0) -> bytes:
    """Build one frame."""
    return HEADER.pack(len(body), kind, flags, code, id) + body


class FrameReader:
    """Cuts a stream of bytes into frames.

    Holds at most one unfinished frame: a body beyond `limit` bytes is refused when its header is seen.
    """

    __slots__ = ("_buffer", "_need", "limit")

    def __init__(self, limit: int = MAX_BODY) -> None:
        self.limit = limit
        self._buffer = bytearray()
        self._need = HEADER.size

    def feed(self, data: Union[bytes, bytearray, memoryview]) -> List[Frame]:
        """Take what was received and return the frames it completes.

        Raises `PAYLOAD_TOO_LARGE` or `INVALID_REQUEST`; the connection can't be read any further then.
        """
        buffer = self._buffer
        if buffer:
            buffer += data
            if len(buffer) < self._need:
                return []
            data = bytes(buffer)
            buffer.clear()
        elif type(data) is not bytes:
            data = bytes(data)
        frames: List[Frame] = []
        unpack, make, header = HEADER.unpack_from, _new_frame, HEADER.size
        position, size = 0, len(data)
        while size - position >= header:
            length, kind, flags, code, id = unpack(data, position)
            if length > self.limit:
                raise SynapError(
                    "PAYLOAD_TOO_LARGE",
                    f"a body may have {self.limit} bytes, this one has {length}",
                    {"limit": self.limit},
                )
            if kind not in KINDS:
                raise SynapError("INVALID_REQUEST", f"frame kind must be 1..11, got {kind}")
            end = position + header + length
            if end > size:
                self._need = header + length
                break
            frames.append(make(Frame, (kind, flags, code, id, data[position + header : end])))
            position = end
        else:
            self._need = header
        if position < size:
            buffer += data[position:]
        return frames

    @property
    def pending(self) -> int:
        """Bytes held of an unfinished frame."""
        return len(self._buffer)
