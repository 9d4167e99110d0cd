"""Stored values: read as integers, and compared whichever format they are in.

A stored value is JSON text, whose first byte is below 0x80, or MessagePack, whose first byte is not.
"""

from __future__ import annotations

from typing import Any, Optional

import msgspec

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
    """Return whether a stored value equals the given one, whichever format each of them is in."""
    if stored is None or stored == asked:
        return stored is not None
    stored_is_json, asked_is_json = stored[0] < 0x80, asked[0] < 0x80
    if stored_is_json == asked_is_json:
        return False
    text, packed = (asked, stored) if asked_is_json else (stored, asked)
    return bool(_packed(text) == packed)


def _packed(text: bytes) -> bytes:
    """Convert JSON text to MessagePack as it is stored: integers from 0 to 127 in two bytes."""
    data = msgspec.msgpack.encode(msgspec.json.decode(text))
    return b"\xcc" + data if data[0] < 0x80 else data
