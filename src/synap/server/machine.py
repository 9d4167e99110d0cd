"""The available memory: the machine's, or the limit of this process's control group (a container, a unit)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PART = 0.8
"""The part of it that is the default limit."""


def default_limit() -> int | None:
    """Return the default memory limit in bytes; None where the system's memory is unknown."""
    whole = memory()
    return None if whole is None else int(whole * PART)


def memory(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that this process may use. `root`: the parent of `proc` and `sys`."""
    sizes = list(_of_groups(root))
    whole = _of_machine(root)
    if whole is not None:
        sizes.append(whole)
    return min(sizes, default=None)


def _of_machine(root: Path) -> int | None:
    try:
        for line in (root / "proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _of_groups(root: Path) -> Iterator[int]:
    """Yield the limits of this process's control groups and their parents, of cgroup versions 1 and 2."""
    base = root / "sys/fs/cgroup"
    for folder, name in _groups(root, base):
        try:
            text = (folder / name).read_text("ascii").strip()
        except (OSError, ValueError):
            continue
        if text.isdigit():  # 'max' is none
            yield int(text)


def _groups(root: Path, base: Path) -> Iterator[tuple[Path, str]]:
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    places = [(base, "memory.max", "/"), (base / "memory", "memory.limit_in_bytes", "/")]
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            places.append((base, "memory.max", path))
        elif "memory" in controllers.split(","):
            places.append((base / "memory", "memory.limit_in_bytes", path))
    for top, name, path in places:
        group = PurePosixPath(path.lstrip("/"))
        for part in (group, *group.parents):
            yield top / part, name
