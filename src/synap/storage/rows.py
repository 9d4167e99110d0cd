"""Sealed bodies: the format of the database's rows, with a checksum and the place they belong to.

    offset  size  what
    0       2     "sy"
    2       1     kind: L a commit, S a slice of a snapshot, M what identifies the database
    3       1     version of this header: 1
    4       4     CRC-32 of everything behind it
    8       8     number: of the commit, of the snapshot's generation, of the row
    16      4     part of the snapshot, else 0
    20      …     MessagePack: an array of records (L, S), a map (M)

A body says itself where it belongs, so that a row that stands in another row's place is noticed like one whose bytes
changed.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, Callable, Iterable, List, NamedTuple, Sequence, Tuple, Union

import msgspec

from synap.engine.journal import Record

COMMIT, SLICE, META = b"L", b"S", b"M"
HEADER = struct.Struct(">2scBIQI")
_VERSION = 1
_CHECKED_FROM = 8

Body = Union[bytes, bytearray, memoryview]

_encode = msgspec.msgpack.Encoder().encode
_decode_records: Callable[[Body], List[Record]] = msgspec.msgpack.Decoder(List[Tuple[Any, ...]]).decode
_decode_any: Callable[[Body], Any] = msgspec.msgpack.Decoder().decode


class Torn(ValueError):
    """Raised for a body that is not what was written there; says what is wrong."""


class Packed(NamedTuple):
    """Encoded records, without the head of an array, so that several can be joined to one."""

    records: int
    data: memoryview


def pack(records: Sequence[Record]) -> Packed:
    """Encode records."""
    data = _encode(records)
    count = len(records)
    return Packed(count, memoryview(data)[1 if count < 16 else 3 if count < 65536 else 5 :])


def seal(kind: bytes, number: int, part: int, packed: Iterable[Packed]) -> bytearray:
    """Make the body of a row out of encoded records."""
    pieces: List[Union[bytes, memoryview]] = [b"", b""]
    count = 0
    for piece in packed:
        count += piece.records
        pieces.append(piece.data)
    pieces[1] = struct.pack(">BI", 0xDD, count)
    return _close(kind, number, part, pieces)


def seal_map(number: int, content: Any) -> bytearray:
    """Make the body of a row of `meta`."""
    return _close(META, number, 0, [b"", _encode(content)])


def _close(kind: bytes, number: int, part: int, pieces: List[Union[bytes, memoryview]]) -> bytearray:
    pieces[0] = HEADER.pack(b"sy", kind, _VERSION, 0, number, part)
    body = bytearray().join(pieces)
    with memoryview(body) as view:
        struct.pack_into(">I", body, 4, zlib.crc32(view[_CHECKED_FROM:], kind[0]))
    return body


def checksum(body: Body) -> int:
    """Read the checksum out of a sealed body."""
    number: int = struct.unpack_from(">I", body, 4)[0]
    return number


def unseal(kind: bytes, number: int, part: int, body: Any) -> memoryview:
    """Check a body and return what it carries. Raises `Torn`."""
    if not isinstance(body, bytes):
        raise Torn(f"holds {type(body).__name__} where a sealed body belongs")
    if len(body) < HEADER.size:
        raise Torn(f"has {len(body)} bytes, fewer than its header")
    magic, its_kind, version, crc, its_number, its_part = HEADER.unpack_from(body)
    if magic != b"sy" or version != _VERSION or its_kind != kind:
        raise Torn("does not begin with the header that belongs there")
    view = memoryview(body)
    if zlib.crc32(view[_CHECKED_FROM:], kind[0]) != crc:
        raise Torn("does not match its checksum")
    if (its_number, its_part) != (number, part):
        raise Torn(f"belongs elsewhere: it says {its_number}/{its_part}, it stands at {number}/{part}")
    return view[HEADER.size :]


def _decoded(decode: Callable[[Body], Any], content: memoryview) -> Any:
    try:
        return decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Torn(f"matches its checksum and can't be decoded: {error}") from None


def decode_records(content: memoryview) -> List[Record]:
    """Decode what a body of records carries. Raises `Torn`."""
    records: List[Record] = _decoded(_decode_records, content)
    return records


def unseal_records(kind: bytes, number: int, part: int, body: Any) -> List[Record]:
    """Check a body and decode its records. Raises `Torn`."""
    return decode_records(unseal(kind, number, part, body))


def unseal_map(number: int, body: Any) -> Any:
    """Check the body of a row of `meta` and decode it. Raises `Torn`."""
    return _decoded(_decode_any, unseal(META, number, 0, body))
