"""Encodes large answers in pieces, large values in them as they are stored, so that these are sent without a copy.

Of a list of many small ones, encoding takes a millisecond for each megabyte or two, so it is done in steps.
"""

from __future__ import annotations

import os
from typing import Any, Callable, Generator, NamedTuple, Optional

import msgspec

from synap.commands import COMMANDS, BatchAnswer, BatchOutcome, Figures
from synap.server.sizes import estimate
from synap.shapes import STRUCTS, renderer, value_fields
from synap.wire import values
from synap.wire.codec import CODECS, Codec

LEAST = 32 * 1024
"""Bytes of a value from which on it is a piece of its own."""
STEPS = 2 * 1024 * 1024
"""Estimated bytes of an answer from which on its list is encoded in steps."""
STEP = 256 * 1024
"""Estimated bytes of one step."""
_MARK = os.urandom(16).hex().encode()
"""Stands for such a value while the rest is encoded. Nobody can have stored it: it is never sent."""


_LISTS: dict[type, str] = {BatchAnswer: "results"}
"""By an answer's class: its only field with values, where that is a list."""
for _command in COMMANDS.values():
    _fields = value_fields(_command.answer)
    if len(_fields) == 1 and _fields[0].kind == STRUCTS:
        _LISTS[_command.answer] = _fields[0].name


class Encoded(NamedTuple):
    """An encoded answer."""

    pieces: list[bytes]
    size: int
    """Bytes of all pieces."""


PIECES = "pieces"
"""The key of `Pieces` in the ASGI message that sends them over a WebSocket."""


class Pieces:
    """An encoded message of a WebSocket, which is sent in frames of one piece each."""

    __slots__ = ("pieces", "size", "text")

    def __init__(self, encoded: Encoded, *, text: bool) -> None:
        self.pieces, self.size = encoded
        self.text = text

    def __len__(self) -> int:
        return self.size


class Apart:
    """The encoder of one format. For one thread."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._renderers: dict[type, Callable[[Any], Any] | None] = {}
        self._show = values.TO_MESSAGE[codec.format]
        self._values: list[bytes] = []

    def pieces(self, answer: Any) -> list[bytes]:
        """Encode an answer; the pieces in a row are what `Codec.encode_answer` returns."""
        render = self._renderer(type(answer))
        if render is None:
            return [self._codec.encode_answer(answer)]
        return self._encode(render, answer)

    def in_steps(
        self, answer: Any, wrap: Callable[[Any], Any] = lambda shell: shell
    ) -> Generator[Optional[int], None, Encoded] | None:
        """Return the steps to encode an answer with a list; None where it has none.

        They yield how many bytes they have made. The pieces in a row are what `Codec.encode_answer` returns, inside of
        what `wrap` makes of the answer without the list.
        """
        name = _LISTS.get(type(answer))
        return None if name is None else self._in_steps(answer, name, wrap)

    def _in_steps(self, answer: Any, name: str, wrap: Callable[[Any], Any]) -> Generator[Optional[int], None, Encoded]:
        items = getattr(answer, name)
        json = self._codec.format == "json"
        shell = wrap(msgspec.structs.replace(answer, **{name: msgspec.Raw(_MARK)}))
        before, after = self._codec.encode(shell).split(_MARK)
        pieces = [before, b"[" if json else _head(len(items))]
        last = b"]" + after if json else after
        size = sum(map(len, (*pieces, last)))
        yield size
        begin = weight = 0
        for end, item in enumerate(items, 1):
            weight += estimate(item.payload if type(item) is BatchOutcome else item)
            if weight < STEP and end < len(items):
                continue
            made = self._encode(self._render, items[begin:end])
            made[0] = made[0][1 if json else len(_head(end - begin)) :]
            if json:
                made[-1] = made[-1][:-1] + (b"," if end < len(items) else b"")
            pieces += made
            grown = sum(map(len, made))
            size += grown
            begin, weight = end, 0
            yield grown
        return Encoded([one for one in (*pieces, last) if one], size)

    def _renderer(self, kind: type) -> Callable[[Any], Any] | None:
        if kind not in self._renderers:
            self._renderers[kind] = renderer(kind, self._set_apart)
        return self._renderers[kind]

    def _render(self, item: Any) -> Any:
        if type(item) is list:
            return [self._render(one) for one in item]
        if type(item) is BatchOutcome:
            return item if item.payload is None else BatchOutcome(item.status, self._render(item.payload), item.error)
        if type(item) in (BatchAnswer, Figures):
            return self._codec.render(item)
        render = self._renderer(type(item))
        return item if render is None else render(item)

    def _encode(self, render: Callable[[Any], Any], what: Any) -> list[bytes]:
        self._values.clear()
        whole = self._codec.encode(render(what))
        if not self._values:
            return [whole]
        rest = whole.split(_MARK)
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


def _head(count: int) -> bytes:
    """Return the beginning of a list of so many items in MessagePack."""
    if count < 16:
        return bytes([0x90 | count])
    return b"\xdc" + count.to_bytes(2, "big") if count < 65536 else b"\xdd" + count.to_bytes(4, "big")


APART = {name: Apart(codec) for name, codec in CODECS.items()}
