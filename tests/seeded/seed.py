"""What a planted bug is, and how it gets into a copy of the project."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

__all__ = ["ROOT", "Seed", "copy_project", "plant"]

ROOT = Path(__file__).resolve().parents[2]
_LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*", "node_modules", "dist", "build", "synap-data")


class Seed(NamedTuple):
    """A bug: in `file` (below `src/synap`), `old` becomes `new`; `tests` are pytest arguments that should notice.

    `old` must occur exactly once, so that a seed that fell behind the code is noticed by `test_seeds.py`.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str


def copy_project(to: Path) -> None:
    """Copy what the tests need into the new directory `to`."""
    to.mkdir()
    for name in ("src", "tests", "docs", "bench", "tools"):
        shutil.copytree(ROOT / name, to / name, ignore=_LEFT_OUT)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy2(ROOT / name, to / name)


def plant(seed: Seed, project: Path) -> str:
    """Change the file in the copy; returns it as it was. Raises ValueError where the seed no longer fits the code."""
    path = project / "src" / "synap" / seed.file
    text = path.read_text(encoding="utf-8")
    if text.count(seed.old) != 1:
        raise ValueError(f"{seed.name}: found {text.count(seed.old)} times in {seed.file}, expected once: {seed.old!r}")
    path.write_text(text.replace(seed.old, seed.new), encoding="utf-8")
    return text
