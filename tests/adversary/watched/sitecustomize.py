"""Python loads this at the start of a service that `heavy` watches: it counts how long the event loop takes a turn.

In CPU time of its thread, which other processes of the machine don't lengthen as they lengthen round trips. What it
found is printed once the service stops: the longest turns, in milliseconds.
"""

from __future__ import annotations

import asyncio
import atexit
import faulthandler
import gc
import heapq
import os
import sys
import time

from synap.server.drain import Server

longest: list[float] = []
collecting: list[float] = [0.0, 0.0]
begun = Server.begun


def watched(server: Server) -> None:
    loop = asyncio.get_running_loop()
    last = 0.0
    stalls = os.environ.get("STALLS")
    file = open(stalls, "a", encoding="utf-8", buffering=1) if stalls else None  # noqa: SIM115  # until the end

    def beat() -> None:
        nonlocal last
        now = time.thread_time()
        heapq.heappush(longest, now - last)
        if len(longest) > 10:
            heapq.heappop(longest)
        last = now
        if file is not None:
            faulthandler.dump_traceback_later(0.03, file=file)
        loop.call_later(0.001, beat)

    def start() -> None:
        nonlocal last
        last = time.thread_time()
        beat()

    begun(server)
    collecting[0] = 0.0
    loop.call_later(0.2, start)


def collected(phase: str, _: object) -> None:
    now = time.thread_time()
    if phase == "start":
        collecting[1] = now
    else:
        collecting[0] = max(collecting[0], now - collecting[1])


def told() -> None:
    turns = " ".join(f"{1000 * turn:.1f}" for turn in sorted(longest, reverse=True))
    sys.stdout.write(f"longest turns: {turns}; collecting: {1000 * collecting[0]:.1f}\n")


Server.begun = watched  # type: ignore[method-assign,assignment]
gc.callbacks.append(collected)
atexit.register(told)
