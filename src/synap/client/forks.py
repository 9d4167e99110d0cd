"""What a client must do in a forked child: its connections and threads are its parent's."""

from __future__ import annotations

import os
import weakref

__all__ = ["Forkable", "watch"]


class Forkable:
    """Something that has to know when its process was forked."""

    def forked(self) -> None:
        """Let go of what belongs to the parent. Called in the child, before anything else runs there."""
        raise NotImplementedError


_watched: weakref.WeakSet[Forkable] = weakref.WeakSet()


def watch(forkable: Forkable) -> None:
    """Have `forked` called in every child of this process, as long as `forkable` lives."""
    _watched.add(forkable)


def _in_child() -> None:
    for forkable in list(_watched):
        forkable.forked()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_in_child)
