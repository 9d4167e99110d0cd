"""The function library that every write on a cluster is one call of.

The files of `lua/` are one library, loaded under a name that carries a digest of its text, as do its functions:
gateways of different releases work side by side, each with its own. What the keys look like is versioned apart, by
`SHAPE`, which is kept in the cluster; whoever is told another refuses to start.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

SHAPE = 2
"""Version of the shapes of keys that the functions read and write; docs/cluster.md explains them."""


def _text() -> str:
    folder = Path(__file__).parent / "lua"
    return "".join(path.read_text("utf-8") for path in sorted(folder.glob("*.lua")))


_TEXT = _text()

VERSION = hashlib.sha256(_TEXT.encode()).hexdigest()[:8]
"""Digest of the library's text."""
LIBRARY = f"synap_{SHAPE}_{VERSION}"
"""Name of the library in FUNCTION LIST."""
SOURCE = f"#!lua name={LIBRARY}\n{_TEXT.replace('@', '_' + VERSION)}".encode()
"""What FUNCTION LOAD takes."""


@lru_cache(maxsize=None)
def name(function: str) -> bytes:
    """Return the name that a function of the library is called by."""
    return f"{function}_{VERSION}".encode()
