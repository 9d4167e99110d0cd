"""What CPUs there are for this process and the service it talks to, and whether others want them."""

from __future__ import annotations

import os

LOADAVG = "/proc/loadavg"
"""Where Linux tells the number of runnable threads, before the slash: proc_loadavg(5)."""


def has_cpus() -> bool:
    """Return whether this process may use more than one CPU, so that a service beside it can work meanwhile."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) > 1
    return (os.cpu_count() or 1) > 1


def overcommitted() -> bool:
    """Return whether more threads are runnable now than the machine has CPUs; False where the system doesn't tell."""
    try:
        with open(LOADAVG, "rb", buffering=0) as loadavg:
            runnable = int(loadavg.read(64).split(b"/", 1)[0].rsplit(None, 1)[-1])
    except (OSError, ValueError, IndexError):
        return False
    return runnable > (os.cpu_count() or 1)
