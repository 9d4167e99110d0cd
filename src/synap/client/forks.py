"""Notifies clients in a forked child, whose connections and threads belong to its parent."""

from __future__ import annotations

import os
import weakref
from typing import Any

_watched: weakref.WeakSet[Any] = weakref.WeakSet()


def watch(calls: Any) -> None:
    """Call `forked` of a client's calls in every child of this process, before anything else, as long as they live."""
    _watched.add(calls)


def _in_child() -> None:
    for calls in list(_watched):
        calls.forked()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_in_child)
