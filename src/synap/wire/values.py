"""Which values can be stored, and their stored form.

A stored value is `bytes` whose first byte tells its format:

* below 0x80: JSON text, without white space around it;
* 0x80 and above: MessagePack. The only MessagePack values that begin lower are the integers 0 to 127; they are
  kept in their two-byte form (0xCC, n), which MessagePack allows.

So a value is stored as it was sent, takes nothing beside its own bytes, and is returned unchanged to readers of the
same format; only for a reader of the other format it is converted.
"""

from __future__ import annotations

from itertools import chain
from math import isfinite
from typing import Any, Callable, Dict, Iterable, List, Tuple, Union

import msgspec

from synap.errors import SynapError


def plain(value: Any) -> Any:
    """Convert an instance of a subclass to its plain base type, for encoders."""
    kinds: Tuple[Any, ...] = (str, int, float, dict, list, bytes)
    for kind in kinds:
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"objects of type {type(value).__name__} can't be encoded")


_json_decode = msgspec.json.Decoder().decode
_json_encode = msgspec.json.Encoder(enc_hook=plain).encode
_pack_decode = msgspec.msgpack.Decoder().decode
_pack_encode = msgspec.msgpack.Encoder(enc_hook=plain).encode
_pack_items = msgspec.msgpack.Decoder(List[msgspec.Raw]).decode
_pack_fields = msgspec.msgpack.Decoder(Dict[str, msgspec.Raw]).decode

_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1
MAX_DEPTH = 200
"""The most levels of lists and dictionaries in a value."""


def refuse(path: str, why: str) -> SynapError:
    """Build the error for a value that can't be stored. `path`: where in it, `$` is its root."""
    return SynapError("INVALID_PAYLOAD", f"value at {path} can't be stored: {why}", {"path": path})


def check(value: Any, format: str, path: str = "$") -> None:
    """Refuse a value that would not come back equal and of the same type; `path`: the path of the value itself.

    Raises `INVALID_PAYLOAD` naming the offending place: integers beyond 64 bits, NaN and infinities, keys that are not
    strings, `bytes` where `format` is 'json', objects of other types, nesting deeper than 200. Tuples are stored as
    lists.
    """
    if not is_plain(value):
        _place(value, format, path, 0)


def is_plain(value: Any, depth: int = 0) -> bool:
    """Return True for a storable value of plain types, quickly; False means that `_place` has to check."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return True
    if kind is int:
        fits: bool = _INT_MIN <= value <= _INT_MAX
        return fits
    if kind is float:
        return isfinite(value)
    if kind is dict:
        if depth == MAX_DEPTH:
            return False
        for key, item in value.items():
            if type(key) is not str or (type(item) is not str and not is_plain(item, depth + 1)):
                return False
        return True
    if kind is list or kind is tuple:
        if depth == MAX_DEPTH:
            return False
        for item in value:
            if type(item) is not str and not is_plain(item, depth + 1):
                return False
        return True
    return False


def _place(value: Any, format: str, path: str, depth: int) -> None:
    """Raise for the first part of `value` that can't be stored, if there is one."""
    if value is None or isinstance(value, (str, bool)):
        return
    if isinstance(value, (dict, list, tuple)):
        if depth == MAX_DEPTH:
            raise refuse(path, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, dict):
            for key, item in value.items():
                if not isinstance(key, str):
                    raise refuse(path, f"the key {key!r} is {type(key).__name__}, keys must be strings")
                _place(item, format, f"{path}.{key}", depth + 1)
        else:
            for index, item in enumerate(value):
                _place(item, format, f"{path}[{index}]", depth + 1)
    elif isinstance(value, int):
        if not _INT_MIN <= value <= _INT_MAX:
            raise refuse(path, "integers must fit 64 bits")
    elif isinstance(value, float):
        if not isfinite(value):
            raise refuse(path, f"{value!r} is not a finite number")
    elif isinstance(value, (bytes, bytearray, memoryview)):
        if format == "json":
            raise refuse(path, "bytes need format='msgpack'")
    else:
        raise refuse(path, f"{type(value).__name__} is not among str, int, float, bool, None, list, dict and bytes")


def is_deep(value: Any, most: int = MAX_DEPTH) -> bool:
    """Return, without recursion, whether a decoded value is nested deeper than `most` levels."""
    level = [value] if type(value) is list or type(value) is dict else []
    for _ in range(most):
        below: List[Any] = []
        for item in level:
            items = item.values() if type(item) is dict else item
            below += [inner for inner in items if type(inner) is list or type(inner) is dict]
        if not below:
            return False
        level = below
    return True


def _shallow(found: Any, value: bytes) -> Any:
    """Return a decoded value; raises `WRONG_TYPE` where it is nested too deep for some Python to read."""
    if len(value) > MAX_DEPTH and is_deep(found):
        raise too_deep()
    return found


def too_deep() -> SynapError:
    """Build the error for a value that was stored, by an earlier version, deeper than it can be read."""
    text = f"the stored value is nested deeper than {MAX_DEPTH} levels, which can't be read; store another in its place"
    return SynapError("WRONG_TYPE", text, {"limit": MAX_DEPTH})


# ------------------------------------------------------------------------- what a client sends, what the engine keeps


LARGE = 4096
"""Bytes from which on a JSON string without escapes is recognised without decoding it."""
_QUOTE = 0x22
FEW = 256
"""Bytes up to which a list or dictionary holds few keys."""
_LEVELS: Dict[int, Callable[[bytes], Iterable[Any]]] = {
    **dict.fromkeys((*range(0x90, 0xA0), 0xDC, 0xDD), _pack_items),
    **dict.fromkeys((*range(0x80, 0x90), 0xDE, 0xDF), lambda data: _pack_fields(data).values()),
}
"""By the first byte of a list or dictionary in MessagePack: returns what is in it, encoded."""


def from_json(raw: Union[bytes, msgspec.Raw]) -> bytes:
    """Check a value of a JSON message and return a copy, in its stored form.

    Raises `INVALID_PAYLOAD` for text that is not UTF-8 and for numbers beyond 64 bits.
    """
    data = bytes(raw)
    if len(data) >= LARGE and data[0] == _QUOTE and type(raw) is msgspec.Raw and data.isascii() and b"\\" not in data:
        return data  # a string without escapes: the decoder of the message has checked every byte of it
    try:
        value = _json_decode(data)
        if type(value) is not str:
            _pack_encode(value)
            # Python 3.14 and newer decode values nested ten thousand deep; older ones refuse them.
            if data.count(b"[") + data.count(b"{") > MAX_DEPTH and is_deep(value):
                raise refuse("$", f"nested deeper than {MAX_DEPTH} levels")
    except OverflowError:
        raise refuse("$", "integers must fit 64 bits") from None
    except RecursionError:
        raise refuse("$", f"nested deeper than {MAX_DEPTH} levels") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise refuse("$", str(error)) from None
    return data


def from_msgpack(raw: Union[bytes, msgspec.Raw]) -> bytes:
    """Check a value of a MessagePack message and return a copy, in its stored form.

    Raises `INVALID_PAYLOAD` for what can't be converted to JSON: keys that are not strings, extension types, NaN and
    infinities.
    """
    data = bytes(raw)
    if len(data) == 1 and data[0] < 0x80:
        return b"\xcc" + data
    try:
        if len(data) >= LARGE and data[0] in _LEVELS and may_have_many_keys(data):
            _check_keys(data)
        value = _pack_decode(data)
        if type(value) is not str and type(value) is not bytes:
            check(value, "msgpack")
    except RecursionError:
        raise refuse("$", f"nested deeper than {MAX_DEPTH} levels") from None
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise refuse("$", str(error)) from None
    return data


def may_have_many_keys(data: bytes) -> bool:
    """Return whether a dictionary in MessagePack may have more than 15 keys."""
    return b"\xde" in data or b"\xdf" in data


def _check_keys(data: bytes) -> None:
    """Refuse keys that aren't strings, a level at a time, before a dictionary is made of them.

    Lists that have the same hash are easily found, and a dictionary of many such keys takes the square of their number.
    """
    level = [data]
    for _ in range(MAX_DEPTH):
        try:
            inside = chain.from_iterable([_LEVELS[item[0]](item) for item in level])
            level = [one for one in [bytes(raw) for raw in inside if len(raw) >= FEW] if one[0] in _LEVELS]
        except msgspec.ValidationError:
            raise refuse("$", "keys must be strings") from None
        if not level:
            return
    raise refuse("$", f"nested deeper than {MAX_DEPTH} levels")


# --------------------------------------------------------------------------------- what the engine hands to a reader


def as_json(value: bytes) -> msgspec.Raw:
    """Convert a stored value for a JSON message; `bytes` in it become base64 text."""
    if value[0] < 0x80:
        return msgspec.Raw(value)
    return msgspec.Raw(_json_encode(_shallow(read(value), value)))


def as_msgpack(value: bytes) -> msgspec.Raw:
    """Convert a stored value for a MessagePack message."""
    if value[0] >= 0x80:
        return msgspec.Raw(value)
    return msgspec.Raw(_pack_encode(_shallow(read(value), value)))


TO_MESSAGE: Dict[str, Callable[[bytes], msgspec.Raw]] = {"json": as_json, "msgpack": as_msgpack}
"""By the format of a message: converts a stored value for it."""
FIRST_BYTES = {"json": "< 0x80", "msgpack": ">= 0x80"}
"""A condition, in Python, on the first byte of a stored value: it is in the format already."""
TO_STORED: Dict[str, Callable[[Union[bytes, msgspec.Raw]], bytes]] = {"json": from_json, "msgpack": from_msgpack}
"""By the format of a message: checks a value of it, and returns its stored form."""


def read(value: bytes) -> Any:
    """Decode a stored value. Raises `WRONG_TYPE` where it is nested too deep."""
    try:
        return _json_decode(value) if value[0] < 0x80 else _pack_decode(value)
    except RecursionError:
        raise too_deep() from None
