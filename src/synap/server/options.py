"""The kinds of the service's options, and the conversion of their values from text."""

from __future__ import annotations

import math
import os
import re
import sys
from typing import Any, NamedTuple

from synap.errors import SynapError


class Option(NamedTuple):
    """One option of the service.

    `kind`: 'text', 'path', 'file' (one that must exist), 'flag', 'int', 'rate', 'size' (bytes; `64MB`, `1GiB`),
    'seconds' (`90`, `15m`, `24h`), 'choice' or 'keys' (a list; on the command line given several times, in the
    environment with commas between). `engine`: whether it is passed to the engine that `engine` names.
    """

    name: str
    kind: str
    doc: str
    least: float = 0
    most: float = math.inf
    choices: tuple[str, ...] = ()
    flag: str = ""
    default: Any = None
    engine: bool = False

    @property
    def on_command_line(self) -> str:
        """The option as it is written on the command line."""
        return self.flag or "--" + self.name.replace("_", "-")

    @property
    def in_environment(self) -> str:
        """The variable that sets the option."""
        return "SYNAP_" + (self.flag.lstrip("-") or self.name).replace("-", "_").upper()


def bad_option(name: str, rule: str, got: object) -> SynapError:
    """Build the error for an invalid value."""
    return SynapError("INVALID_REQUEST", f"{name} must be {rule}, got {got!r}", {"option": name})


_INT = re.compile(r"-?[0-9]{1,20}")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_SECONDS = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)?")
_SPAN = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def converted(option: Option, value: Any) -> Any:
    """Convert a given value (text, or a value of TOML). Raises `INVALID_REQUEST`."""
    if value is None:
        return None
    name, kind = option.name, option.kind
    if kind == "flag":
        return _flag(name, value)
    if kind == "keys":
        return _keys(name, value)
    if kind in ("text", "path", "file", "choice"):
        if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
            raise bad_option(name, "a text", value)
        text = os.fspath(value)
        if "\0" in text:  # TOML can say it, no call of the system takes it
            raise bad_option(name, "without NUL", text)
        if kind == "choice" and text not in option.choices:
            raise bad_option(name, " or ".join(map(repr, option.choices)), value)
        return text
    number = _number(option, value)
    if not option.least <= number <= option.most:
        rule = f"{option.least:,}..{option.most:,}" if option.most != math.inf else f"{option.least:,} or more"
        raise bad_option(name, rule, value)
    return number


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = value.lower() if isinstance(value, str) else None
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise bad_option(name, "true or false", value)


def _keys(name: str, value: Any) -> list[str]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise bad_option(name, "a list of texts", type(value).__name__)
    for key in value:
        # The message doesn't show the value: it may be a mistyped key.
        if not isinstance(key, str) or not key or not key.isascii() or not key.isprintable() or key != key.strip():
            raise SynapError("INVALID_REQUEST", f"{name} must be printable ASCII, not empty", {"option": name})
    return list(value)


def _number(option: Option, value: Any) -> Any:
    name, kind = option.name, option.kind
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise bad_option(name, "a number", value)
    if kind == "int":
        if isinstance(value, int) or (isinstance(value, str) and _INT.fullmatch(value.strip())):
            return int(value)
        raise bad_option(name, "a whole number", value)
    if isinstance(value, str):
        text = value.strip()
        if kind == "size":
            match = _SIZE.fullmatch(text)
            if match is None:
                raise bad_option(name, "bytes, such as 65536, 64KiB or 1GiB", value)
            base = 1024 if match[3] or not match[2] else 1000
            value = float(match[1]) * base ** "_kmgt".index(match[2].lower() or "_")
        else:
            if kind == "rate":
                text = text.removesuffix("/s")
            match = _SECONDS.fullmatch(text)
            if match is None or (kind == "rate" and match[2]):
                rule = "seconds, such as 90, 15m or 24h" if kind == "seconds" else "requests a second"
                raise bad_option(name, rule, value)
            value = float(match[1]) * _SPAN[match[2]]
    if not abs(value) < sys.float_info.max:  # true of NaN too; TOML has whole numbers of any size
        raise bad_option(name, "a finite number", value)
    if kind == "size":
        return int(value)
    if kind == "rate" and value <= 0:
        raise bad_option(name, "more than 0 requests a second", value)
    return float(value)
