"""Objects of a user's own types: converted to plain values when they are sent, and back when they are read.

What is stored is always a plain value. An object (a dataclass, a msgspec `Struct`, an attrs class, a pydantic model,
`datetime`, `UUID`, `Decimal`, an `Enum`, and lists and dictionaries of these) is lowered to one before it is sent, and
`type=T` converts a plain value back. A program that doesn't use this pays nothing: plain values are recognised by the
check they go through anyway.
"""

from __future__ import annotations

import sys
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import Any, Dict, Optional
from uuid import UUID

import msgspec

from synap.errors import SynapError
from synap.wire import values

_LEAVES = (datetime, date, time, timedelta, UUID, Decimal, Enum, msgspec.Struct)


# ------------------------------------------------------------------------------------------ in


def storable(value: Any, format: str, path: str = "$") -> Any:
    """Return `value` with the objects in it lowered to plain values; the value itself where there are none.

    Raises `INVALID_PAYLOAD` naming the offending place, as `values.check` does.
    """
    if values.is_plain(value):
        return value
    lowered = _lower(value, path, 0)
    values.check(lowered, format, path)
    return lowered


def _lower(value: Any, path: str, depth: int) -> Any:
    if value is None or isinstance(value, (str, int, float, bytes)) or depth == values.MAX_DEPTH:
        return value  # the check that follows reports the depth
    if isinstance(value, dict):
        return {key: _lower(item, f"{path}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_lower(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
    if not _is_object(value):
        return value
    try:
        return msgspec.to_builtins(value, builtin_types=(bytes,), str_keys=True, enc_hook=_encode)
    except (TypeError, ValueError, RecursionError) as error:
        raise values.refuse(path, f"{type(value).__name__}: {error}") from None


def _is_object(value: Any) -> bool:
    kind = type(value)
    return (
        isinstance(value, _LEAVES)
        or hasattr(kind, "__dataclass_fields__")
        or hasattr(kind, "__attrs_attrs__")
        or _is_model(kind)
    )


def _encode(value: Any) -> Any:
    if _is_model(type(value)):
        return value.model_dump(mode="json", by_alias=True, round_trip=True)
    raise TypeError(f"objects of type {type(value).__name__} can't be stored")


# ------------------------------------------------------------------------------------------ out


def check_type(wanted: Any) -> None:
    """Raise `INVALID_REQUEST` for an unusable `type=` argument. Called before a message is leased for it."""
    try:
        try:
            reason = _unusable(wanted)
        except TypeError:  # it has no hash
            reason = _unusable.__wrapped__(wanted)
    except (NameError, AttributeError) as error:
        reason = str(error)
    if reason is not None:
        message = (
            f"type must be a dataclass, a msgspec Struct, a TypedDict, a pydantic model, a plain type, or a list or "
            f"dictionary of these, got {wanted!r:.200} ({reason})"
        )
        raise SynapError("INVALID_REQUEST", message, {"option": "type"})


@lru_cache(maxsize=512)
def _unusable(wanted: Any) -> Optional[str]:
    """Explain why no value can be converted to `wanted`; None where some can."""
    try:
        info = msgspec.inspect.type_info(wanted)
    except (NameError, AttributeError):  # not remembered: a name that it mentions may be defined later
        raise
    except (TypeError, SyntaxError, ValueError) as error:  # a text is read as an expression
        return str(error)
    if isinstance(info, msgspec.inspect.CustomType) and not _is_model(info.cls):
        return "a class that says nothing of its fields"
    return None


def fit(value: Any, wanted: Any, details: Dict[str, Any]) -> Any:
    """Convert a plain value to an object of type `wanted`.

    Raises `WRONG_TYPE` with the path in `details`, beside the `details` that are given.
    """
    try:
        return msgspec.convert(value, wanted, str_keys=True, dec_hook=_decode)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `")
        inner = error.__cause__
        place = (path[:-1].replace("` in `", " in ") or "$") + (inner.path if isinstance(inner, _Misfit) else "")
    except (TypeError, ValueError, RecursionError) as error:  # from a `__post_init__`, or of a type that has none
        text, place = str(error), "$"
    name = getattr(wanted, "__name__", None) or str(wanted)
    message = f"the value at {place} doesn't fit {name}: {text[:500]}"
    raise SynapError("WRONG_TYPE", message, {**details, "path": place})


def as_type(item: Any, field: str, wanted: Any, **details: Any) -> Any:
    """Replace the value in `field` of a result by one of type `wanted`, and return the result."""
    setattr(item, field, fit(getattr(item, field), wanted, details))
    return item


class _Misfit(ValueError):
    """A pydantic model's validation error, and the path of the value."""

    def __init__(self, text: str, path: str) -> None:
        super().__init__(text)
        self.path = path


def _decode(kind: Any, value: Any) -> Any:
    if isinstance(kind, type) and isinstance(value, kind):
        return value
    if not _is_model(kind):
        raise TypeError(f"{getattr(kind, '__name__', kind)} says nothing of its fields")
    try:
        # As JSON: only there does a strict model take the text of a date for a date.
        return kind.model_validate_json(msgspec.json.encode(value))
    except ValueError as error:
        raise _misfit(error) from None


def _misfit(error: Any) -> _Misfit:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"])
    return _Misfit(first["msg"], path)


def _is_model(kind: Any) -> bool:
    """Return whether `kind` is a class of pydantic models. Imports nothing: a program that has one has pydantic."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)
