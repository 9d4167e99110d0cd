"""Notifies clients in a forked child, whose connections and threads belong to its parent."""

from __future__ import annotations

import os
import weakref

__all__ = ["Forkable", "watch"]


class Forkable:
    """Something that is notified in a forked child."""

    def forked(self) -> None:
        """Drop what belongs to the parent. Called in the child, before anything else runs there."""
        raise NotImplementedError


_watched: weakref.WeakSet[Forkable] = weakref.WeakSet()


def watch(forkable: Forkable) -> None:
    """Call `forked` in every child of this process, as long as `forkable` lives."""
    _watched.add(forkable)


def _in_child() -> None:
    for forkable in list(_watched):
        forkable.forked()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_in_child)
