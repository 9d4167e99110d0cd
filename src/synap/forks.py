"""Notifies clients and locks in a forked child, which has copies of what belongs to its parent."""

from __future__ import annotations

import os
import weakref
from typing import Any

_watched: weakref.WeakSet[Any] = weakref.WeakSet()


def watch(owner: Any) -> None:
    """Call `forked` of an object in every child of this process, before anything else, as long as it lives."""
    _watched.add(owner)


def _in_child() -> None:
    for owner in list(_watched):
        owner.forked()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_in_child)
