"""Checks of arguments before they are sent: only for what an encoder would silently convert.

JSON encoders turn bytes, dates and many other types into text. Where a string is expected, only a string is accepted;
all other rules are checked by the service, the same on every lane.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, TypeVar, cast

from msgspec import UNSET

from synap.config import Default
from synap.errors import SynapError, invalid

T = TypeVar("T")


def text(name: str, value: Any) -> str:
    """Return a plain string, or raise `INVALID_PAYLOAD` that names the argument."""
    if type(value) is str:
        return value
    if not isinstance(value, str):
        raise invalid(name, "a string", value)
    return str.__str__(value)  # encoders know no subclasses


def texts(name: str, value: Optional[Mapping[str, str]]) -> Optional[Dict[str, str]]:
    """Return strings named by strings (or None), or raise `INVALID_PAYLOAD` that names the argument."""
    if value is None:
        return None
    given = as_dict(name, value)
    for key, item in given.items():
        if type(key) is not str or type(item) is not str:
            break
    else:
        return given
    if not all(isinstance(text, str) for pair in given.items() for text in pair):
        raise invalid(name, "strings named by strings", value)
    return {str.__str__(key): str.__str__(item) for key, item in given.items()}


def as_list(name: str, value: Any, rule: str = "a list of names") -> List[Any]:
    """Return a list, or raise `INVALID_PAYLOAD` that names the argument, also for a string."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise invalid(name, rule, value)
    return list(value)


def as_dict(name: str, value: Mapping[str, Any]) -> Dict[str, Any]:
    """Return a dictionary, or raise `INVALID_PAYLOAD` that names the argument."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, Mapping):
        raise invalid(name, "a dictionary", value)
    return dict(value)


def default(value: T) -> T:
    """Return a sentinel default for an argument that changes nothing where it isn't given."""
    return cast(T, Default(value))


def given(value: T) -> T:
    """Return an argument, or `UNSET` where it was not given."""
    return cast(T, UNSET) if isinstance(value, Default) else value


def check_callback(function: Optional[Callable[..., Any]]) -> None:
    """Raise `INVALID_REQUEST` for a callback that can't be called."""
    if function is not None and not callable(function):
        raise SynapError("INVALID_REQUEST", f"callback must be callable, got {function!r}", {"option": "callback"})
