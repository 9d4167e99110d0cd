"""Gzip for bodies, bounded: what comes in may not inflate past a limit.

One gzip stream a body (RFC 1952), on every lane.
"""

from __future__ import annotations

import zlib
from typing import Union

from synap.errors import SynapError

__all__ = ["WORTH", "compress", "decompress"]

WORTH = 1024
"""Bytes below which compressing a body gains nothing."""

_GZIP = 31  # zlib's word for "a gzip header around it, window of 32 KiB"


def compress(body: Union[bytes, bytearray]) -> bytes:
    """Compress a body, quickly rather than well."""
    deflater = zlib.compressobj(1, zlib.DEFLATED, _GZIP)
    return deflater.compress(body) + deflater.flush()


def decompress(body: Union[bytes, bytearray, memoryview], limit: int) -> bytes:
    """Inflate a body.

    Raises `PAYLOAD_TOO_LARGE` for what has more than `limit` bytes, of which no more than that are ever held, and
    `INVALID_REQUEST` for what is not one whole gzip stream.
    """
    inflater = zlib.decompressobj(_GZIP)
    try:
        inflated = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise SynapError("INVALID_REQUEST", f"the body is not gzip as it says: {error}") from None
    if len(inflated) > limit:
        raise SynapError(
            "PAYLOAD_TOO_LARGE", f"a body may have {limit} bytes, this one inflates to more", {"limit": limit}
        )
    if not inflater.eof or inflater.unused_data:
        raise SynapError("INVALID_REQUEST", "the body is not one whole gzip stream")
    return inflated
