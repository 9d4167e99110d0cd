"""Escapes untrusted text for a terminal: control characters, and characters that reorder text. Opens closed streams."""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import Any

_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tab and line feed, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what turns the direction of text (Unicode's Bidi_Control)
    "\u2028\u2029\ud800-\udfff]"  # line breaks of other kinds, and halves of characters
)


def fill_streams() -> None:
    """Open those of stdin, stdout and stderr that are closed, so that no file of ours gets their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def is_closed(stream: Any) -> bool:
    """Return whether a stream was closed when this program began, and `fill_streams` has opened it."""
    return getattr(stream, "name", None) == os.devnull


def escaped(text: str) -> str:
    """Replace control characters by JSON escapes such as `\\u001b`. Tabs and line feeds stay."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


class LineFormatter(logging.Formatter):
    """Formats log records as text, one line each, with control characters escaped; tracebacks follow."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return escaped(super().formatMessage(record)).replace("\n", "\\n")

    def formatException(self, ei: Any) -> str:
        return escaped(super().formatException(ei))
