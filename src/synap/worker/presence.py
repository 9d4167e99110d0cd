"""Report running workers: each process keeps a key about itself, for the console and other tools.

The key `synap:worker:<host>:<pid>:<number>` expires by itself, so a process that was killed leaves the list after
`TTL` seconds. A worker whose API key may not write it is not listed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import time
from typing import Any, Callable, Dict, List, Tuple

from synap.client._async.client import AsyncSynapClient
from synap.errors import PermissionDeniedError, SynapError

log = logging.getLogger("synap.worker")

PREFIX = "synap:worker:"
TTL = 15
INTERVAL = 5.0
FIRST_INTERVAL = 0.5
"""Seconds between the first report, when nothing runs yet, and the second."""
LEAVE_TIMEOUT = 1.0
"""Seconds that deleting the report may take."""
MAX_LISTED = 50
"""The most running handlers in a report."""

_numbers = itertools.count(1)

Running = Callable[[], List[Tuple[str, str, float]]]
"""What runs now: (handler, queue, seconds since it began) for each message."""


class Presence:
    """The reports of one worker. `running` returns what runs; `done` and `failed` count messages by how they ended."""

    def __init__(self, client: AsyncSynapClient, queues: List[str], concurrency: int, running: Running) -> None:
        self._client = client
        self._queues = sorted(queues)
        self._concurrency = concurrency
        self._running = running
        self._started = time.time()
        self.name = f"{socket.gethostname()}:{os.getpid()}:{next(_numbers)}"
        self.done = 0
        self.failed = 0

    def count(self, how: str) -> None:
        """Count a message by how it ended: 'done', or anything else."""
        self.done += how == "done"
        self.failed += how != "done"

    def report(self) -> Dict[str, Any]:
        """Return the report."""
        now = time.time()
        running = [{"name": name, "queue": queue, "since": now - took} for name, queue, took in self._running()]
        return {
            "name": self.name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "queues": self._queues,
            "concurrency": self._concurrency,
            "running": running[:MAX_LISTED],
            "busy": len(running),
            "done": self.done,
            "failed": self.failed,
            "started": self._started,
        }

    async def run(self) -> None:
        """Report until cancelled, or until the service refuses the key."""
        pause = FIRST_INTERVAL
        while True:
            try:
                await self._client.kv.set(PREFIX + self.name, self.report(), ttl=TTL)
            except PermissionDeniedError as error:
                log.debug("this worker is not listed, its key may not write %s: %s", PREFIX, error)
                return
            except SynapError as error:
                log.debug("this worker could not be listed: %s", error)
            await asyncio.sleep(pause)
            pause = INTERVAL

    async def leave(self) -> None:
        """Delete the report. If that fails, it expires."""
        with contextlib.suppress(SynapError, asyncio.TimeoutError):
            await asyncio.wait_for(self._client.kv.delete(PREFIX + self.name), LEAVE_TIMEOUT)
