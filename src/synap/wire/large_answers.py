"""Decodes large answers in JSON. A text that makes up most of an answer is cut out instead of decoded.

A decoder scans a text byte by byte for escapes and control characters, which takes most of its time. The service has
encoded the text, so it is enough to find its end, and to see that it has no escapes.
"""

from __future__ import annotations

import os
from typing import Any, Callable, Optional, Tuple, cast

from msgspec import DecodeError

from synap.wire.large import LARGE
from synap.wire.parts import LOOK, beginning

_REST = 4096
"""Bytes of an answer after its text, at most."""
_MARK = os.urandom(16).hex()
"""Stands for the text while the rest is decoded."""
_QUOTED = b'"%b"' % _MARK.encode()


def decode(body: memoryview, decoder: Callable[[Any], Any]) -> Any:
    """Decode an answer in JSON that was received in place, as `decoder` does. Raises what that raises."""
    found = _cut(body)
    if found is not None:
        name, rest, text = found
        try:
            result = decoder(rest)
        except DecodeError:  # a text where another type should be, for one
            return decoder(body)
        if getattr(result, name, None) == _MARK:
            setattr(result, name, text)
            return result
    return decoder(body)


def _cut(body: memoryview) -> Optional[Tuple[str, bytes, str]]:
    """Return the name of the field with the text, the answer with the mark in its place, and the text."""
    place = beginning(bytes(body[:LOOK]))
    if place is None:
        return None
    name, at = place
    whole, size = cast(bytearray, body.obj), len(body)
    end = whole.find(b'"', at + 1, size)
    if end - at < LARGE or size - end > _REST or whole.find(b"\\", at, end) >= 0:
        return None
    try:
        text = str(body[at + 1 : end], "utf-8")
    except UnicodeDecodeError:
        return None
    return name.decode("utf-8", "replace"), bytes(body[:at]) + _QUOTED + bytes(body[end + 1 :]), text
