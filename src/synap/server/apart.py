"""Encodes large answers in pieces, large values in them as they are stored, so that these are sent without a copy."""

from __future__ import annotations

import os
from typing import Any, Callable

import msgspec

from synap.shapes import renderer
from synap.wire import values
from synap.wire.codec import CODECS, Codec

__all__ = ["APART", "Apart"]

LEAST = 32 * 1024
"""Bytes of a value from which on it is a piece of its own."""
_MARK = os.urandom(16).hex().encode()
"""Stands for such a value while the rest is encoded. Nobody can have stored it: it is never sent."""


class Apart:
    """The encoder of one format. For one thread."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._renderers: dict[type, Callable[[Any], Any] | None] = {}
        self._show = values.AS[codec.format]
        self._values: list[bytes] = []

    def pieces(self, answer: Any) -> list[bytes]:
        """Encode an answer; the pieces in a row are what `Codec.encode_answer` returns."""
        kind = type(answer)
        if kind not in self._renderers:
            self._renderers[kind] = renderer(kind, self._set_apart)
        render = self._renderers[kind]
        if render is None:
            return [self._codec.encode_answer(answer)]
        self._values.clear()
        rest = self._codec.encode(render(answer)).split(_MARK)
        pieces = [rest[0]]
        for value, after in zip(self._values, rest[1:]):
            pieces += [value, after]
        self._values.clear()
        return [piece for piece in pieces if piece]

    def _set_apart(self, value: bytes) -> Any:
        if len(value) < LEAST or (value[0] < 0x80) != (self._codec.format == "json"):
            return self._show(value)
        self._values.append(value)
        return msgspec.Raw(_MARK)


APART = {name: Apart(codec) for name, codec in CODECS.items()}
