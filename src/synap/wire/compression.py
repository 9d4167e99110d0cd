"""Gzip for bodies, with a limit on inflated sizes. One gzip stream per body (RFC 1952), on every lane."""

from __future__ import annotations

import zlib
from typing import Iterable, List, Union

from synap.errors import SynapError
from synap.wire.large import Steps

WORTH = 1024
"""Bytes below which compressing a body gains nothing."""

_GZIP = 31  # zlib's `wbits` for a gzip header and a window of 32 KiB


SAMPLE = 32 * 1024
"""Bytes of a large body that are compressed to see whether compressing it gains something."""
STEP = 256 * 1024
"""Bytes, compressed and inflated, of one step."""
MOST_AT_ONCE = 1024 * 1024
"""Bytes beyond which a body is compressed on another thread, or not at all."""


def worth(body: Union[bytes, bytearray]) -> bool:
    """Return whether to compress a body on this thread: it gains something, and takes at most some milliseconds.

    Incompressible data takes ten times as long as other data, so a sample of it is tried first.
    """
    if not WORTH <= len(body) <= MOST_AT_ONCE:
        return False
    return len(body) <= 2 * SAMPLE or len(compress(body[:SAMPLE])) < SAMPLE * 9 // 10


def compress(*pieces: Union[bytes, bytearray]) -> bytes:
    """Compress a body, which may come in pieces, at the fastest level."""
    return compress_all(pieces)


def compress_all(pieces: Iterable[Union[bytes, bytearray, memoryview]]) -> bytes:
    """Compress a body as `compress` does; its pieces are asked for one after the other."""
    deflater = zlib.compressobj(1, zlib.DEFLATED, _GZIP)
    compressed = [deflater.compress(piece) for piece in pieces]
    compressed.append(deflater.flush())
    return b"".join(compressed)


def inflated_size(body: Union[bytes, bytearray, memoryview]) -> int:
    """Return the bytes that a body says it inflates to; one that inflates to more is refused."""
    return int.from_bytes(body[-4:], "little")


def decompress(body: Union[bytes, bytearray, memoryview], limit: int) -> bytes:
    """Inflate a body at once, as `decompress_in_steps` does."""
    steps = decompress_in_steps(body, limit)
    try:
        while True:
            next(steps)
    except StopIteration as done:
        inflated: bytes = done.value
        return inflated


def decompress_in_steps(body: Union[bytes, bytearray, memoryview], limit: int) -> Steps:
    """Inflate a body in steps of at most about a millisecond.

    Raises `PAYLOAD_TOO_LARGE` for one of more than `limit` bytes, and `INVALID_REQUEST` for anything but one complete
    gzip stream, or one that inflates to more than it says, without holding more than that.
    """
    inflater = zlib.decompressobj(_GZIP)
    most = min(limit, inflated_size(body))
    compressed = memoryview(body)
    pieces: List[bytes] = []
    at = size = 0
    while not inflater.eof:
        rest: Union[bytes, memoryview] = inflater.unconsumed_tail
        if not rest:
            rest = compressed[at : at + STEP]
            at += STEP
        try:
            piece = inflater.decompress(rest, min(STEP, most + 1 - size))
        except zlib.error as error:
            raise SynapError("INVALID_REQUEST", f"the body is not gzip as it says: {error}") from None
        if not (piece or rest):
            break
        pieces.append(piece)
        size += len(piece)
        if size > most:
            if most < limit:
                raise SynapError("INVALID_REQUEST", "the body is not one complete gzip stream")
            raise SynapError(
                "PAYLOAD_TOO_LARGE", f"a body may have {limit} bytes, this one inflates to more", {"limit": limit}
            )
        if not inflater.eof:
            yield
    if not inflater.eof or inflater.unused_data or at < len(compressed):
        raise SynapError("INVALID_REQUEST", "the body is not one complete gzip stream")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
