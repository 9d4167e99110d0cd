"""Cursors of `kv.scan`: the key that a page ended at, signed, so that only cursors that were issued are accepted.

A key that its caller may not see is sealed as well. All others are what the page told.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from synap.errors import SynapError

_SIGNATURE = 8
SEALED = "~"
"""What a cursor with a sealed key begins with: no letter of base64."""
_LONGEST = 1400
"""Characters beyond which none was issued: a key has 1,024 bytes."""


def _sign(secret: bytes, prefix: bytes, key: bytes, kind: bytes) -> bytes:
    text = len(prefix).to_bytes(4, "big") + prefix + key
    return hashlib.blake2b(text, key=secret[:64], digest_size=_SIGNATURE, person=kind).digest()


def _seal(secret: bytes, signature: bytes, text: bytes) -> bytes:
    """Hide a text, or show a hidden one again: it is combined with a stream that no other signature has."""
    stream = hashlib.shake_256(secret[:64] + signature).digest(len(text))
    return bytes(one ^ other for one, other in zip(text, stream))


def write_cursor(secret: bytes, prefix: str, key: str, kind: str = "") -> str:
    """Return the cursor that continues after `key` in a scan of `prefix`; with the kind `SEALED` it hides the key."""
    last = key.encode()
    signature = _sign(secret, prefix.encode(), last, kind.encode())
    told = _seal(secret, signature, last) if kind else last
    return kind + base64.urlsafe_b64encode(signature + told).decode("ascii").rstrip("=")


def read_cursor(secret: bytes, prefix: str, cursor: str) -> str:
    """Return the key that a cursor continues after.

    Raises `INVALID_PAYLOAD` for one that was never issued, and for one that belongs to another prefix.
    """
    try:
        if len(cursor) > _LONGEST:
            raise ValueError
        kind = cursor[:1] if cursor[:1] == SEALED else ""
        text = cursor[len(kind) :]
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        signature, told = data[:_SIGNATURE], data[_SIGNATURE:]
        last = (_seal(secret, signature, told) if kind else told).decode()
        # Compared as text: base64 lets several texts stand for the same bytes, and only one of them was issued.
        if cursor == write_cursor(secret, prefix, last, kind):
            return last
    except (binascii.Error, ValueError):
        pass
    raise SynapError(
        "INVALID_PAYLOAD",
        "cursor must be one that kv.scan gave for this prefix; leave it out to begin at the first page",
        {"field": "cursor"},
    )
