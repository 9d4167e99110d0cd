"""Cursors of `kv.scan`: the key that a page ended at, signed, so that only cursors that were issued are accepted.

The key is sealed as well: whoever scans with grants may be stopped at one that they may not see.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from synap.errors import SynapError

__all__ = ["read_cursor", "write_cursor"]

_SIGNATURE = 8


def _sign(secret: bytes, prefix: bytes, key: bytes) -> bytes:
    text = len(prefix).to_bytes(4, "big") + prefix + key
    return hashlib.blake2b(text, key=secret[:64], digest_size=_SIGNATURE).digest()


def _seal(secret: bytes, signature: bytes, text: bytes) -> bytes:
    """Hide a text, or show a hidden one again: it is combined with a stream that no other signature has."""
    stream = hashlib.shake_256(secret[:64] + signature).digest(len(text))
    return bytes(one ^ other for one, other in zip(text, stream))


def write_cursor(secret: bytes, prefix: str, key: str) -> str:
    """Return the cursor that continues after `key` in a scan of `prefix`."""
    last = key.encode()
    signature = _sign(secret, prefix.encode(), last)
    return base64.urlsafe_b64encode(signature + _seal(secret, signature, last)).decode("ascii").rstrip("=")


def read_cursor(secret: bytes, prefix: str, cursor: str) -> str:
    """Return the key that a cursor continues after.

    Raises `INVALID_PAYLOAD` for one that was never issued, and for one that belongs to another prefix.
    """
    try:
        data = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        last = _seal(secret, data[:_SIGNATURE], data[_SIGNATURE:]).decode()
        # Compared as text: base64 lets several texts stand for the same bytes, and only one of them was issued.
        if cursor == write_cursor(secret, prefix, last):
            return last
    except (binascii.Error, ValueError):
        pass
    raise SynapError(
        "INVALID_PAYLOAD",
        "cursor must be one that kv.scan gave for this prefix; leave it out to begin at the first page",
        {"field": "cursor"},
    )
