"""The input: the files of the running Python's standard library, their size classes and digests."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from typing import List, NamedTuple, Optional, Tuple

NOT_THE_LIBRARY = frozenset({"__pycache__", "site-packages", "dist-packages"})
"""Folders inside it that hold what others installed, or what importing leaves behind and may change meanwhile."""


class SizeClass(NamedTuple):
    """Files of up to `limit` bytes; the smaller, the more urgent."""

    name: str
    limit: float
    priority: int


CLASSES = (
    SizeClass("tiny", 1 << 10, 9),
    SizeClass("small", 8 << 10, 7),
    SizeClass("medium", 64 << 10, 5),
    SizeClass("large", 512 << 10, 3),
    SizeClass("huge", float("inf"), 1),
)


def size_class(size: int) -> SizeClass:
    """Find the class of a file of `size` bytes."""
    return next(known for known in CLASSES if size <= known.limit)


def root() -> str:
    """Find the directory of the standard library."""
    return sysconfig.get_path("stdlib")


def files(count: Optional[int] = None) -> List[Tuple[str, int]]:
    """List path (relative to `root`) and size of every readable file, or of `count` of them spread over the whole."""
    top = root()
    found: List[Tuple[str, int]] = []
    for folder, folders, names in os.walk(top):
        folders[:] = sorted(set(folders) - NOT_THE_LIBRARY)
        for name in sorted(names):
            path = os.path.join(folder, name)
            if os.path.isfile(path) and os.access(path, os.R_OK) and name.isprintable():
                found.append((os.path.relpath(path, top), os.path.getsize(path)))
    if count is None or count >= len(found):
        return found
    return [found[index * len(found) // count] for index in range(count)]


def digest(path: str) -> str:
    """Hash a file of the library (SHA-256, hex)."""
    sha = hashlib.sha256()
    with open(os.path.join(root(), path), "rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()
