"""Translates large stored values between JSON and MessagePack in steps, so that other requests are executed in between.

A value of ten megabytes may have ten million parts, which takes seconds to decode and to encode. So it is done in
pieces of some kilobytes, each of which msgspec translates at once. A piece that ends inside lists and dictionaries is
completed with their closing brackets; these lists and dictionaries are continued by the next piece.
"""

from __future__ import annotations

import os
import re
from itertools import accumulate
from typing import Any, Dict, Generator, List, Optional, Tuple

import msgspec

from synap.commands import BatchAnswer, BatchOutcome, Compared
from synap.shapes import VALUE, value_fields
from synap.wire import values
from synap.wire.large import (
    CHANGE,
    DICTIONARY,
    LARGE,
    LIST,
    NO_BRACKETS,
    STRINGS,
    Steps,
    check_msgpack,
    is_whole,
    sized,
)
from synap.wire.values import MAX_DEPTH

WINDOW = 16 * 1024
"""Bytes of a piece."""
LEAST = 256
"""Bytes of a piece at the least, where lists are nested in lists."""

_json_decode = msgspec.json.Decoder().decode
_json_encode = msgspec.json.Encoder().encode
_pack_decode = msgspec.msgpack.Decoder().decode
_pack_encode = msgspec.msgpack.Encoder().encode
_LIST, _DICTIONARY = 0x5B, 0x7B
_BEGUN = (_LIST, _DICTIONARY)
_CONTAINERS = frozenset((*b"[{", *range(0x80, 0xA0), *range(0xDC, 0xE0)))
"""First bytes of lists and dictionaries."""
_ENDS = {_LIST: b"]", _DICTIONARY: b"}"}
_BEGINS = bytes.maketrans(b"]{}", b"[[[")
_UNDER_WAY = os.urandom(16).hex()
"""In a dictionary that a piece continues, the key of the value in it that is continued too. Random, so that
no stored value can contain it."""
_END = re.compile(r"trailing characters \(byte (\d+)\)")


def translate(value: bytes, format: str) -> Steps:
    """Translate a stored value to the other `format`, in steps; returns it as `values.TO_MESSAGE[format]` does.

    Steps yield how many bytes of it they have made since the one before, or None for none.
    Raises `WRONG_TYPE` where it is nested deeper than every client can read.
    """
    if value[0] not in _CONTAINERS:
        return (yield from _alone(value, format))
    try:
        return (yield from (_to_msgpack(value) if format == "msgpack" else _to_json(value)))
    except RecursionError:
        raise values.too_deep() from None


def compared(value: bytes) -> Steps:
    """Translate a stored value that another is to be compared with, in steps; returns it with the translation."""
    both = Compared(value)
    if value[0] < 0x80:
        both.other = yield from translate(value, "msgpack")
    elif not (yield from check_msgpack(value)):
        both.other = yield from translate(value, "json")
    return both


def _alone(value: bytes, format: str) -> Steps:
    """Translate a value that is neither a list nor a dictionary."""
    if format == "msgpack":
        whole = bytes(values.as_msgpack(value))
        yield len(whole)
        return whole
    found = _pack_decode(value)
    if type(found) is not str:
        whole = _json_encode(found)
        yield len(whole)
        return whole
    # What has to be escaped takes long.
    pieces = [b'"']
    for at in range(0, len(found), WINDOW):
        pieces.append(_json_encode(found[at : at + WINDOW])[1:-1])
        yield len(pieces[-1])
    return b"".join([*pieces, b'"'])


# ------------------------------------------------------------------------------------------- JSON to MessagePack


class _Open:
    """A list or dictionary whose end has not been reached, and which of the heads its own will be."""

    __slots__ = ("count", "kind", "number")

    def __init__(self, kind: int, number: int) -> None:
        self.kind = kind
        self.number = number
        self.count = 0


def _to_msgpack(data: bytes) -> Steps:
    out = bytearray()
    heads: List[Tuple[int, bytes]] = []
    stack = [_Open(_LIST, -1)]  # around the value itself
    position, size = 0, len(data)
    while position < size:
        rest, strings, end = yield from shape(data, position)
        if end < size:
            comma = rest.rfind(b",")
            before = rest.count(b"\0", 0, comma)
            rest, strings = rest[:comma], strings[:before]
            end = position + comma + sum(map(len, strings)) - before
        before = len(out)
        _add_piece(data[position:end], rest, strings, stack, out, heads)
        position = end + 1
        yield len(out) - before
    # How long these heads are depends on how many items there were.
    parts: List[Any] = []
    whole, begin = memoryview(out), 0
    for number, (place, head) in enumerate(heads):
        parts += [whole[begin:place], head]
        begin = place
        if not number % _SEVERAL:
            yield None
    return b"".join([*parts, whole[begin:]])


def shape(data: bytes, position: int) -> Generator[None, None, Tuple[bytes, List[bytes], int]]:
    """Return (JSON with each string replaced by a zero byte, the strings, its end) of a piece with a comma."""
    size = len(data)
    shape = b""
    strings: List[bytes] = []
    while True:
        window = data[position : position + WINDOW]
        found = STRINGS.findall(window)
        rest = STRINGS.sub(b"\0", window)
        position += len(window)
        if found and window.endswith(found[-1]) and not is_whole(found[-1]):
            begin = position - len(found.pop())
            rest = rest[:-1]
            if b"," in rest:
                position = begin
            else:
                position = yield from _text_end(data, begin + 1)
                found.append(data[begin:position])
                rest += b"\0"
        shape += rest
        strings += found
        if b"," in rest or position >= size:
            return shape, strings, position
        yield


def _text_end(data: bytes, position: int) -> Generator[None, None, int]:
    """Return the position after a string's last quote, from a position in it."""
    tries = 0
    while True:
        quote = data.find(b'"', position)
        text = data[position:quote]
        if not (len(text) - len(text.rstrip(b"\\"))) & 1:
            return quote + 1
        position = quote + 1
        tries += 1
        if not tries % 1000:
            yield


def _add_piece(
    piece: bytes, rest: bytes, strings: List[bytes], stack: List[_Open], out: bytearray, heads: List[Tuple[int, bytes]]
) -> None:
    """Translate a piece that begins inside the innermost of `stack`; update `stack` to what is open at its end.

    `heads`: those of the lists and dictionaries that no piece holds whole, b"" until they end, with their places.
    """
    began = len(stack) - 1
    brackets = rest.translate(None, NO_BRACKETS)
    levels = list(accumulate(map(CHANGE.__getitem__, brackets), initial=began))
    if max(levels) > MAX_DEPTH:
        raise values.too_deep()
    least, last = min(levels), levels[-1]
    # The brackets that opened what is open at the end, outermost first.
    opened: List[int] = []
    backwards, at = levels[::-1], 0
    for level in range(last - 1, least - 1, -1):
        at = backwards.index(level, at)
        opened.insert(0, len(levels) - 1 - at)
    head = [_begin(one.kind, number < began) for number, one in enumerate(stack[least:], least)]
    tail = [_ENDS[brackets[index]] for index in reversed(opened)]
    text = b"".join([*head, piece, *tail, _ENDS[stack[least].kind]])
    node = _json_decode(text)
    spine = [node]
    for one in stack[least:began]:
        node = node.pop(0) if one.kind == _LIST else node.pop(_UNDER_WAY)
        spine.append(node)
    while len(stack) - 1 > least:
        ended = stack.pop()
        _add(spine.pop(), ended, out)
        heads[ended.number] = heads[ended.number][0], _head(ended)
    node = spine[0]
    for index in opened:
        outer = stack[-1]
        outer.count += 1
        if outer.kind == _LIST:
            inner = node.pop()
            _add(node, outer, out)
        else:
            key = _json_decode(_key_before(rest, strings, index))
            inner = node.pop(key)
            _add(node, outer, out)
            out += _pack_encode(key)
        stack.append(_Open(brackets[index], len(heads)))
        heads.append((len(out), b""))
        node = inner
    _add(node, stack[-1], out)


def _head(ended: _Open) -> bytes:
    few, many = (0x90, 0xDC) if ended.kind == _LIST else (0x80, 0xDE)
    if ended.count < 16:
        return bytes([few | ended.count])
    if ended.count < 65536:
        return bytes([many]) + ended.count.to_bytes(2, "big")
    return bytes([many + 1]) + ended.count.to_bytes(4, "big")


def _begin(kind: int, goes_on: bool) -> bytes:
    return b"[" if kind == _LIST else b'{"%b":' % _UNDER_WAY.encode() if goes_on else b"{"


def _key_before(rest: bytes, strings: List[bytes], index: int) -> bytes:
    """Return the string before a bracket."""
    after = rest.translate(_BEGINS).split(b"[", index + 1)[-1]
    return strings[rest.count(b"\0", 0, len(rest) - len(after)) - 1]


def _add(items: Any, to: _Open, out: bytearray) -> None:
    """Add whole items of a list or dictionary."""
    count = len(items)
    to.count += count
    if count:
        out += memoryview(_pack_encode(items))[1 if count < 16 else 3 if count < 65536 else 5 :]


# ------------------------------------------------------------------------------------------- MessagePack to JSON


class _Inside:
    """A list or dictionary that is being translated, and how many items of it are left."""

    __slots__ = ("dictionary", "left")

    def __init__(self, kind: int, left: int) -> None:
        self.dictionary = kind == DICTIONARY
        self.left = left


def _to_json(data: bytes) -> Steps:
    count, kind, position = sized(data, data[0], 1)
    stack = [_Inside(kind, count)]
    out = bytearray(b"{" if kind == DICTIONARY else b"[")
    several, window, made = 1, WINDOW, 0
    while stack:
        inside = stack[-1]
        if not inside.left:
            out += b"}" if inside.dictionary else b"]"
            stack.pop()
            continue
        yield len(out) - made
        made = len(out)
        several = min(several, inside.left)
        items, used = _items(data, position, inside.dictionary, several, window)
        if items is not None:
            if values.is_deep(items, MAX_DEPTH + 1 - len(stack)):
                raise values.too_deep()
            out += _comma(out)
            out += memoryview(_json_encode(items))[1:-1]
            inside.left -= several
            position += used
            several, window = several * 2, min(window * 2, WINDOW)
        elif several > 1:
            several //= 2
        else:
            inside.left -= 1
            out += _comma(out)
            if inside.dictionary:
                begin = position
                length, _, position = sized(data, data[begin], begin + 1)
                position += length
                out += yield from _alone(data[begin:position], "json")
                made = len(out)
                out += b":"
                items, used = _items(data, position, False, 1, LEAST)
                if items is not None:
                    out += memoryview(_json_encode(items))[1:-1]
                    position += used
                    continue
            count, kind, begin = sized(data, data[position], position + 1)
            if kind in (LIST, DICTIONARY):
                position = begin
                stack.append(_Inside(kind, count))
                if len(stack) > MAX_DEPTH:
                    raise values.too_deep()
                out += b"{" if kind == DICTIONARY else b"["
                window = max(window // 2, LEAST)
            else:
                out += yield from _alone(data[position : begin + count], "json")
                made = len(out)
                position = begin + count
    return bytes(out)


def _comma(out: bytearray) -> bytes:
    return b"" if out[-1] in _BEGUN else b","


def _items(data: bytes, position: int, dictionary: bool, several: int, window: int) -> Tuple[Any, int]:
    """Decode `several` items of a list or dictionary: (items, their bytes), or (None, 0) if `window` is too small."""
    piece = (b"\xdf" if dictionary else b"\xdd") + several.to_bytes(4, "big") + data[position : position + window]
    try:
        return _pack_decode(piece), len(piece) - 5
    except msgspec.DecodeError as error:
        found = _END.search(str(error))
        if found is None:
            return None, 0
    end = int(found[1])
    return _pack_decode(piece[:end]), end - 5


# ------------------------------------------------------------------------------------------- answers and items

_SEVERAL = 100
"""Small values that are translated in one step."""


def foreign(content: Any, format: str) -> int:
    """Return the bytes of those values in an answer or pushed item that are stored in the other format."""
    if type(content) is BatchAnswer:
        return sum([foreign(one.payload, format) for one in content.results if one.payload is not None])
    size = 0
    for name, kind, _ in value_fields(type(content)):
        held = getattr(content, name)
        if kind != VALUE:
            size += sum([foreign(one, format) for one in held])
        elif held is not None and (held[0] < 0x80) != (format == "json"):
            size += len(held)
    return size


def translate_content(content: Any, format: str) -> Generator[Optional[int], None, Any]:
    """Return a copy of an answer or pushed item with all its values in `format`, made in steps."""
    if type(content) is BatchAnswer:
        outcomes = []
        for one in content.results:
            payload = None if one.payload is None else (yield from translate_content(one.payload, format))
            outcomes.append(BatchOutcome(one.status, payload, one.error))
        return BatchAnswer(outcomes)
    changes: Dict[str, Any] = {}
    for name, kind, _ in value_fields(type(content)):
        held = getattr(content, name)
        if kind != VALUE:
            items: List[Any] = []
            for number, one in enumerate(held, 1):
                items.append((yield from translate_content(one, format)))
                if not number % _SEVERAL:
                    yield None
            changes[name] = items
        elif held is not None and (held[0] < 0x80) != (format == "json"):
            if len(held) >= LARGE:
                changes[name] = yield from translate(held, format)
            else:
                # In the stored form, whose first byte says again that it needs no translation.
                changes[name] = small = values.TO_STORED[format](values.TO_MESSAGE[format](held))
                yield len(small)
    return msgspec.structs.replace(content, **changes)
