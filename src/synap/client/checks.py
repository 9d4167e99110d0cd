"""What the methods look at before anything is sent: only what an encoder would turn into something else in silence.

JSON encoders make text of bytes, dates and numbers of many kinds. Where a string is due, only a string will do; all
other rules are the service's to check, on every lane alike.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Mapping, Optional

from synap.errors import SynapError, invalid

__all__ = ["callback", "mapping", "text", "texts"]


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
    given = mapping(name, value)
    for key, item in given.items():
        if type(key) is not str or type(item) is not str:
            break
    else:
        return given
    if not all(isinstance(text, str) for pair in given.items() for text in pair):
        raise invalid(name, "strings named by strings", value)
    return {str.__str__(key): str.__str__(item) for key, item in given.items()}


def mapping(name: str, value: Mapping[str, Any]) -> Dict[str, Any]:
    """Return a dictionary, or raise `INVALID_PAYLOAD` that names the argument."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, Mapping):
        raise invalid(name, "a dictionary", value)
    return dict(value)


def callback(function: Optional[Callable[..., Any]]) -> None:
    """Raise `INVALID_REQUEST` for a callback that can't be called."""
    if function is not None and not callable(function):
        raise SynapError("INVALID_REQUEST", f"callback must be callable, got {function!r}", {"option": "callback"})
