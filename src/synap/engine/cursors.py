"""Cursors of `kv.scan`: the last key of a page, signed, so that only cursors that were issued are accepted."""

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


def write_cursor(secret: bytes, prefix: str, key: str) -> str:
    """Return the cursor that continues after `key` in a scan of `prefix`."""
    last = key.encode()
    return base64.urlsafe_b64encode(_sign(secret, prefix.encode(), last) + last).decode("ascii").rstrip("=")


def read_cursor(secret: bytes, prefix: str, cursor: str) -> str:
    """Return the key that a cursor continues after.

    Raises `INVALID_PAYLOAD` for one that was never issued, and for one that belongs to another prefix.
    """
    try:
        data = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        last = data[_SIGNATURE:].decode()
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
