"""Counts the items of long lists and dictionaries in a request before it is decoded.

Ten megabytes may hold millions of keys, where ten thousand are allowed. The decoder makes all of them before it counts,
which takes up to a second. So they are counted in the encoded request, in steps, and as far as needed. MessagePack says
before each list how long it is.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate
from typing import Any, Dict, Generator, Type

import msgspec
from msgspec import Raw, Struct

from synap.wire.large import CHANGE, PAUSE
from synap.wire.translate import shape

MANY = 50_000
"""Commas in JSON up to which nothing is counted: decoding that many items takes some milliseconds."""

_STRUCTURE = bytes(byte for byte in range(256) if byte not in b"[]{},")
_decoders: Dict[Any, Any] = {}


@lru_cache(maxsize=None)
def bounds(payload: Type[Struct]) -> Dict[str, int]:
    """Return the most items by the name of each bounded list or dictionary of a payload."""
    found: Dict[str, int] = {}
    info = msgspec.inspect.type_info(payload)
    assert isinstance(info, msgspec.inspect.StructType)
    for field in info.fields:
        options = field.type.types if isinstance(field.type, msgspec.inspect.UnionType) else (field.type,)
        for option in options:
            inner = option.type if isinstance(option, msgspec.inspect.Metadata) else option
            most = getattr(inner, "max_length", None)
            if isinstance(inner, (msgspec.inspect.ListType, msgspec.inspect.DictType)) and most is not None:
                found[field.encode_name] = most
    return found


def long_fields(payload: Type[Struct], body: Any) -> Generator[Any, None, Dict[str, bytes]]:
    """Return, in steps, the encoded lists and dictionaries of a JSON payload that may have too many items."""
    if body.count(b",") <= MANY:
        return {}
    yield PAUSE
    decode = _decoders.get(payload)
    if decode is None:
        fields: Any = [(name, Raw, msgspec.field(default=Raw(b""))) for name in bounds(payload)]
        decode = msgspec.json.Decoder(msgspec.defstruct(f"{payload.__name__}Lists", fields)).decode
        _decoders[payload] = decode
    try:
        lists = decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return {}  # the decoder of the whole request reports it
    yield
    return {name: bytes(getattr(lists, name)) for name in lists.__struct_fields__}


def fits(data: bytes, most: int) -> Generator[None, None, bool]:
    """Return, in steps, whether a JSON list or dictionary has at most `most` items."""
    if data[:1] not in (b"[", b"{") or data.count(b",") < most:
        return True
    count = position = level = 0
    while position < len(data) and count < most:
        rest, _, position = yield from shape(data, position)
        structure = rest.translate(None, _STRUCTURE)
        levels = list(accumulate(map(CHANGE.__getitem__, structure), initial=level))
        count += sum([1 for byte, at in zip(structure, levels) if byte == 0x2C and at == 1])
        level = levels[-1]
        yield
    return count < most
