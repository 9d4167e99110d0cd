"""Checks of large values in steps, so that other requests are executed in between.

A value of ten megabytes may have ten million parts. Decoding it at once takes seconds, in which nothing else is
executed, and hundreds of megabytes. These functions scan the bytes in steps of about a millisecond, without building
objects, and refuse what `values` refuses. The syntax has been checked before: decoders scan every byte of a value that
they cut out of its message.
"""

from __future__ import annotations

import codecs
import re
import struct
from itertools import accumulate
from math import isfinite
from typing import Any, Generator, List, Optional, Tuple

import msgspec

from synap.errors import SynapError
from synap.wire.values import MAX_DEPTH, refuse

Steps = Generator[Any, None, Any]
"""What is done in steps: yields where it may be interrupted, and `PAUSE` before what can't be and takes long."""
PAUSE = True

HEAVY = 1024 * 1024
"""Bytes that a decoder takes some milliseconds to walk through, which begins in a slice of its own."""

LARGE = 64 * 1024
"""Bytes from which on a value is checked in steps."""
WINDOW = 16 * 1024
"""Bytes of JSON in one step."""
PLAIN = 1024
"""Bytes without an escape from which on a piece of a string is found without the pattern, which is far slower."""
DECODED = 1024 * 1024
"""Bytes of a text of MessagePack in one step."""
PARTS = 2000
"""Parts of MessagePack in one step."""

STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
"""Strings in a window of JSON; the last one may continue after it."""
_PIECE = re.compile(
    rb'(?:[^"\\]{1,256}|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4}|\\u[0-9a-fA-F]{4}|\\[^u]){1,256}'
)
"""A piece of a long string that splits no escape sequence."""
_NUMBERS = re.compile(rb"-?[0-9][-+.eE0-9]*")
_NUMERIC = b"-+.eE0123456789"
NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
CHANGE = [1 if byte in b"[{" else -1 if byte in b"]}" else 0 for byte in range(256)]

_json = msgspec.json.Decoder().decode
_whole = msgspec.json.Decoder(msgspec.Raw).decode
_TEXTS, _BINARIES = {0xDA: 3, 0xDB: 5}, (0xC5, 0xC6)
"""Heads of MessagePack's large texts, with their size, and of its large `bytes`."""
_pack = msgspec.msgpack.Encoder().encode


def take(raw: Any, format: str) -> Steps:
    """Check a large value of a message, as `values.TO_STORED` does, in steps; returns its stored form."""
    data = bytes(raw)
    yield PAUSE if len(data) > HEAVY else None
    yield from (check_json(data) if format == "json" else check_msgpack(data))
    return data


def check_text(data: bytes, format: str, ascii: bool) -> None:
    """Check a value that should be one text or `bytes`, at once. `ascii`: whether all but its head is ASCII.

    Raises `DecodeError` or `UnicodeDecodeError`.
    """
    if format == "json":
        _whole(data)
        if not ascii or b"\\" in data:
            _json(data)
    elif data[0] in _TEXTS:
        if not ascii:
            str(memoryview(data)[_TEXTS[data[0]] :], "utf-8")
    elif data[0] not in _BINARIES:
        raise msgspec.DecodeError("it is neither a text nor bytes")


def _deep() -> SynapError:
    return refuse("$", f"nested deeper than {MAX_DEPTH} levels")


def _decoded(text: bytes) -> Any:
    try:
        return _json(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise refuse("$", str(error)) from None


# ------------------------------------------------------------------------------------------------- JSON


def check_json(data: bytes) -> Steps:
    """Check that every client can read a JSON text. Raises `INVALID_PAYLOAD`."""
    size = len(data)
    if data[0] == 0x22 and data.isascii() and b"\\" not in data:
        return  # a string without escapes
    position = depth = 0
    while position < size:
        window = data[position : position + WINDOW]
        strings: List[bytes] = STRINGS.findall(window)
        rest = STRINGS.sub(b" ", window)
        end = position + len(window)
        goes_on = bool(strings) and window.endswith(strings[-1]) and not is_whole(strings[-1])
        if goes_on:
            end -= len(strings.pop())
        elif end < size:
            whole = rest.rstrip(_NUMERIC)  # without a number that the next window may continue
            if not whole:
                raise refuse("$", f"a number may have {WINDOW:,} digits")
            end -= len(rest) - len(whole)
            rest = whole
        depth = _nesting(rest, depth)
        if strings:
            _decoded(b"[%b]" % b",".join(strings))
        _check_numbers(rest)
        position = end
        yield
        if goes_on:
            position = yield from _check_text(data, end + 1)


def is_whole(string: bytes) -> bool:
    """Return whether a match of `STRINGS` ends with its own quote."""
    inner = string[1:-1]
    return len(string) > 1 and string[-1] == 0x22 and not (len(inner) - len(inner.rstrip(b"\\"))) & 1


def _nesting(rest: bytes, depth: int) -> int:
    """Return the nesting depth after a piece of JSON without strings."""
    brackets = rest.translate(None, NO_BRACKETS)
    if not brackets:
        return depth
    levels = list(accumulate(map(CHANGE.__getitem__, brackets), initial=depth))
    if max(levels) > MAX_DEPTH:
        raise _deep()
    return levels[-1]


def _check_numbers(rest: bytes) -> None:
    numbers = _NUMBERS.findall(rest)
    if numbers:
        try:
            _pack(_decoded(b"[%b]" % b",".join(numbers)))
        except OverflowError:
            raise refuse("$", "integers must fit 64 bits") from None


def _check_text(data: bytes, position: int) -> Steps:
    """Check a string in pieces, from after its first quote; returns the position after its last."""
    size = len(data)
    while position < size and data[position] != 0x22:
        quote = data.find(b'"', position, position + LARGE)
        stop = min(position + LARGE, size) if quote < 0 else quote
        escape = data.find(b"\\", position, stop)
        if escape < 0:
            end = stop
        elif escape - position >= PLAIN:
            end = escape
        else:
            piece = _PIECE.match(data, position)
            if piece is None:
                raise refuse("$", "an escape in a text is not one of JSON's")
            end = piece.end()
        while end < size and data[end] & 0xC0 == 0x80:
            end += 1  # the rest of a character
        text = data[position:end]
        if escape >= 0 or not text.isascii():
            _decoded(b'"%b"' % text)
        position = end
        yield
    return position + 1


# ------------------------------------------------------------------------------------------- MessagePack

_RUN = re.compile(rb"[\x00-\x7f\x80\x90\xa0\xc0\xc2\xc3\xe0-\xff]{1,4096}")
"""A run of parts of one byte each."""
SIZES = dict.fromkeys((*range(0x80), 0xC0, 0xC2, 0xC3, *range(0xE0, 0x100)), 0)
SIZES.update({0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8})
"""Bytes after the head of a part without a length, by the head."""
_FLOATS = {0xCA: struct.Struct(">f"), 0xCB: struct.Struct(">d")}
_LENGTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}


def check_msgpack(data: bytes) -> Steps:
    """Check that a MessagePack value can be converted to JSON; returns whether `bytes` in it would become text there.

    Raises `INVALID_PAYLOAD`.
    """
    try:
        return (yield from _check_parts(data))
    except (IndexError, struct.error):
        raise refuse("$", "it ends too early") from None


def _check_parts(data: bytes) -> Steps:
    size = len(data)
    position, rest = 0, PARTS
    has_bytes = False
    left, keyed = 1, False
    """Remaining parts of the current list or dictionary; of a dictionary, keys and values both count."""
    outer: List[Tuple[int, bool]] = []
    while True:
        while not left:
            if not outer:
                return has_bytes
            left, keyed = outer.pop()
        rest -= 1
        if rest < 0:
            rest = PARTS
            yield
        if not keyed:
            run = _RUN.match(data, position, min(size, position + left))
            if run is not None:
                if len(outer) >= MAX_DEPTH and (b"\x80" in run[0] or b"\x90" in run[0]):
                    raise _deep()
                left -= run.end() - position
                position = run.end()
                rest -= (run.end() - run.start()) >> 4
                continue
        head = data[position]
        position += 1
        key = keyed and not left & 1
        left -= 1
        kind = 0
        if head in SIZES:
            length = SIZES[head]
            if head in _FLOATS and not isfinite(_FLOATS[head].unpack_from(data, position)[0]):
                raise refuse("$", "a number is not finite")
        else:
            length, kind, position = sized(data, head, position)
            has_bytes |= kind == BYTES
        if key and kind != TEXT:
            raise refuse("$", "keys must be strings")
        if kind in (LIST, DICTIONARY):
            if len(outer) >= MAX_DEPTH:
                raise _deep()
            outer.append((left, keyed))
            keyed = kind == DICTIONARY
            left = 2 * length if keyed else length
            continue
        end = position + length
        if end > size:
            raise IndexError
        if kind == TEXT:
            yield from _check_utf8(data, position, end)
        position = end


BYTES, TEXT, LIST, DICTIONARY = 1, 2, 3, 4


def sized(data: bytes, head: int, position: int) -> Tuple[int, int, int]:
    """Parse the head of a part with a length: (length, kind, position after the head)."""
    if head < 0x90:
        return head & 15, DICTIONARY, position
    if head < 0xA0:
        return head & 15, LIST, position
    if head < 0xC0:
        return head & 31, TEXT, position
    width: Optional[int] = _LENGTHS.get(head)
    if width is None:
        raise refuse("$", "extension types can't be stored")
    kind = BYTES if head < 0xC7 else TEXT if head < 0xDC else LIST if head < 0xDE else DICTIONARY
    return int.from_bytes(data[position : position + width], "big"), kind, position + width


def _check_utf8(data: bytes, position: int, end: int) -> Steps:
    text = memoryview(data)
    try:
        while end - position > DECODED:
            position += codecs.utf_8_decode(text[position : position + DECODED], "strict", False)[1]
            yield
        str(text[position:end], "utf-8")
    except UnicodeDecodeError as error:
        raise refuse("$", str(error)) from None
