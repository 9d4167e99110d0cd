"""Stored values: read as integers, and compared whichever format they are in.

A stored value is JSON text, whose first byte is below 0x80, or MessagePack, whose first byte is not.
"""

from __future__ import annotations

from typing import Any, Optional

import msgspec

from synap.commands import Compared

_PACKED = {0xCC: (1, False), 0xCD: (2, False), 0xCE: (4, False), 0xCF: (8, False)}
_PACKED.update({0xD0: (1, True), 0xD1: (2, True), 0xD2: (4, True), 0xD3: (8, True)})


def integer(value: bytes) -> Optional[int]:
    """Read a stored value as an integer; None where it is none. JSON text below 0x80, MessagePack from there on."""
    head = value[0]
    if head < 0x80:
        digits = value[1:] if head == 0x2D else value
        return int(value) if digits.isdigit() else None
    if head >= 0xE0:
        return head - 256
    size, signed = _PACKED.get(head, (0, False))
    return int.from_bytes(value[1:], "big", signed=signed) if size and len(value) == size + 1 else None


def same(stored: Optional[bytes], asked: Any) -> bool:
    """Return whether a stored value has the very bytes of the given one, in the format that it is stored in."""
    if stored is None or stored == asked:
        return stored is not None
    return (stored[0] < 0x80) != (asked[0] < 0x80) and stored == in_the_other_format(asked)


def in_the_other_format(asked: bytes) -> bytes:
    """Return a value to compare with as it would be stored in the other format; b"" where that can't hold it."""
    if type(asked) is Compared:
        return asked.other
    if asked[0] < 0x80:
        data = msgspec.msgpack.encode(msgspec.json.decode(asked))
        return b"\xcc" + data if data[0] < 0x80 else data  # integers from 0 to 127 are stored in two bytes
    try:
        return msgspec.json.encode(_without_bytes(msgspec.msgpack.decode(asked)))
    except TypeError:
        return b""


def _without_bytes(value: Any) -> Any:
    """Return a value that JSON can hold too; raises `TypeError` for bytes, which it would turn into text."""
    if isinstance(value, bytes):
        raise TypeError
    if isinstance(value, list):
        return [_without_bytes(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_bytes(item) for key, item in value.items()}
    return value
