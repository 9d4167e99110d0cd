"""What may take long before a request can be executed: inflating it, and counting a batch before it is decoded.

What it inflates to counts as in flight from before it is inflated, since a peer sends a thousandth of that.
"""

from __future__ import annotations

from synap.commands import Command
from synap.engine.callers import Steps
from synap.errors import SynapError
from synap.wire.codec import Codec
from synap.wire.compression import decompress_in_steps, inflated_size
from synap.wire.frames import GZIP, HELD
from synap.wire.large import LARGE


class Garbled(Exception):
    """A request that can't be read, after which its connection ends with `fault`."""

    def __init__(self, fault: SynapError) -> None:
        super().__init__(fault)
        self.fault = fault


def lasts(command: Command | None, flags: int, body: bytes) -> bool:
    """Return whether a request has to be prepared."""
    return bool(flags & GZIP) or (command is not None and command.bundle and len(body) > LARGE)


def growth(body: bytes, limit: int) -> int:
    """Return the bytes that inflating a body to at most `limit`, and decoding that, takes at most."""
    return min(inflated_size(body), limit) * HELD


def prepare(codec: Codec, command: Command | None, flags: int, body: bytes, limit: int) -> Steps:
    """Inflate a request to at most `limit` bytes, and count its commands; returns its body. Raises `Garbled`."""
    if flags & GZIP:
        try:
            body = yield from decompress_in_steps(body, limit)
        except SynapError as error:
            raise Garbled(error) from None
    if command is not None and command.bundle:
        yield from codec.count_in_steps(command, body)
    return body
