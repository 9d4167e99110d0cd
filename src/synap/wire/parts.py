"""Receives a request's large text or bytes where they are stored.

A large value is copied out of its message, since it outlives it. But where a message consists of little beside one
large text, that text can be told from the message's beginning, and is received into `bytes` of its own at once:
`Parts` are such a message's body; `join` makes it one `bytes` object, for callers that make no use of that.
"""

from __future__ import annotations

from io import BytesIO
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple, Union

from synap.errors import SynapError
from synap.wire.large import BYTES, LARGE, SIZES, TEXT, sized

MOST = 2 * 1024 * 1024
"""Bytes of a value up to which it is received so: larger ones are checked in steps."""
LOOK = 2048
"""Bytes at the beginning of a body in which the value is looked for."""
TAIL = 256
"""Bytes at the end of a value that are received together with the rest of the body."""
_REST = 4096
"""Bytes of a body after its value, at most."""
_HEADS = {0xC5: 3, 0xC6: 5, 0xDA: 3, 0xDB: 5}
"""Bytes before MessagePack's large texts and `bytes`, by the first one."""

Place = Tuple[str, int, int]
"""(name of the field, position of its value, bytes of its value)."""


class Parts(NamedTuple):
    """A body: `value` between `before` and `after`, or so it seemed from its beginning."""

    field: str
    before: bytes
    value: bytes
    after: bytes
    ascii: bool
    """Whether all of the value is ASCII, of MessagePack without its head."""

    @property
    def size(self) -> int:
        """Bytes of the whole body."""
        return len(self.before) + len(self.value) + len(self.after)

    def join(self) -> bytes:
        """Return the whole body."""
        return b"".join((self.before, self.value, self.after))


class Assembly:
    """A body of `size` bytes that is being received in parts. `received`: its beginning.

    The buffer of a `BytesIO` is a `bytes` object, which `getvalue` returns without a copy where nothing else refers to
    the buffer. Transports do, to what they have just received into; therefore the last of a value is received into
    `_end`, with what comes after it.
    """

    def __init__(self, place: Place, received: List[Union[bytes, bytearray]], size: int) -> None:
        self._field, self._start, length = place
        self._value = BytesIO(bytes(length))
        self._view = self._value.getbuffer()
        self._turn = self._start + length - TAIL
        """The position in the body from which on `_end` is received into."""
        self._end = memoryview(bytearray(size - self._turn))
        first = memoryview(received[0] if len(received) == 1 else b"".join(received))
        self._before = bytes(first[: self._start])
        inner = first[self._start : self._turn]
        self._view[: len(inner)] = inner
        outer = first[self._turn :]
        self._end[: len(outer)] = outer

    def rest(self, held: int) -> memoryview:
        """Return the buffer for what follows the first `held` bytes of the body."""
        if held < self._turn:
            return self._view[held - self._start : -TAIL]
        return self._end[held - self._turn :]

    def whole(self) -> Parts:
        """Return the body, of which everything was received."""
        view, value = self._view, self._value
        view[-TAIL:] = self._end[:TAIL]
        head = bytes(view[: _HEADS.get(view[0], 0)])
        view[: len(head)] = bytes(len(head))
        view.release()
        ascii = value.getvalue().isascii()
        if head:
            with value.getbuffer() as beginning:
                beginning[: len(head)] = head
        return Parts(self._field, self._before, value.getvalue(), bytes(self._end[TAIL:]), ascii)


def _suits(name: bytes, position: int, length: int, size: int) -> Optional[Place]:
    after = size - position - length
    if LARGE <= length <= MOST and 0 <= after <= _REST and name.isascii():
        return name.decode("ascii"), position, length
    return None


def beginning(first: bytes) -> Optional[Tuple[bytes, int]]:
    """Find the text of an object in JSON that doesn't end within `first`: (name of the field, position of the text)."""
    if first[:1] != b"{":
        return None
    at = 1
    while True:
        name_end = first.find(b'":', at + 1)
        if first[at : at + 1] != b'"' or name_end < 0:
            return None
        name = first[at + 1 : name_end]
        at = name_end + 2
        if first[at : at + 1] == b'"':
            end = first.find(b'"', at + 1)
            if end < 0:
                return name, at
            if b"\\" in first[at:end]:
                return None
            at = end + 1
        else:
            end = first.find(b",", at)
            if end < 0 or not first[at:end].isalnum():
                return None
            at = end
        if first[at : at + 1] != b",":
            return None
        at += 1


def _in_json(first: bytes, size: int) -> Optional[Place]:
    """Find a text that begins within `first`, and may last until the closing bracket of an object of `size` bytes."""
    found = beginning(first)
    return None if found is None else _suits(*found, size - 1 - found[1], size)


def _in_msgpack(first: bytes, size: int) -> Optional[Place]:
    """Find the first text or bytes that don't end within `first`, in a map of `size` bytes."""
    if not first or not 0x80 <= first[0] < 0x90:
        return None
    at = 1
    for _ in range(first[0] & 15):
        end = _end(first, at)
        if end is None or not 0xA0 <= first[at] < 0xC0 or end > len(first):
            return None
        name, at = first[at + 1 : end], end
        end = _end(first, at)
        if end is None:
            return None
        if end > len(first):
            return _suits(name, at, end - at, size)
        at = end
    return None


def _end(first: bytes, at: int) -> Optional[int]:
    """Return where the part at `at` ends; None for a list, a dictionary, or where `first` doesn't hold its length."""
    if at >= len(first):
        return None
    size = SIZES.get(first[at])
    if size is not None:
        return at + 1 + size
    try:
        length, kind, begin = sized(first, first[at], at + 1)
    except SynapError:  # there is no such part
        return None
    return begin + length if kind in (BYTES, TEXT) and begin <= len(first) else None


FINDERS: Dict[str, Callable[[bytes, int], Optional[Place]]] = {"json": _in_json, "msgpack": _in_msgpack}
"""By format: finds the large text of an object from its first bytes and its size."""
