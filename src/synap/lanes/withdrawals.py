"""Takes requests back that nobody waits for any more: `DELETE /api/v1/command?request_id=…`.

Whoever cancels a call does not wait, and the event loop may be about to end. So this is the work of a thread, which
is there while there is something to do.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Callable, Deque, List, Optional, Tuple

import h11

from synap.config import ClientConfig, Target
from synap.lanes.io import monotonic

__all__ = ["Withdrawals"]

MOST = 1000
"""Requests that may wait to be taken back. What more of them were given comes back when the leases end."""
TIMEOUT = 5.0


class Withdrawals:
    """Takes back requests on a connection of its own."""

    def __init__(self, config: ClientConfig, target: Target, headers: List[Tuple[str, str]]) -> None:
        self._config = config
        self._target = target
        self._headers = [*headers, ("Content-Length", "0")]
        self._guard = threading.Lock()
        self._waiting: Deque[Tuple[str, Callable[[], None]]] = deque()
        self._thread: Optional[threading.Thread] = None

    def add(self, request_id: str, done: Callable[[], None]) -> None:
        """Take a request back, soon; `done` is called, on a thread, when that has been tried."""
        with self._guard:
            if len(self._waiting) >= MOST:
                self._waiting.popleft()[1]()
            self._waiting.append((request_id, done))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="synap withdrawals", daemon=True)
                self._thread.start()

    def join(self, timeout: float) -> None:
        """Wait until all is taken back, at most `timeout` seconds."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)

    def abandon(self) -> None:
        """Forget everything: it belongs to the parent of this process."""
        self._guard = threading.Lock()
        self._waiting.clear()
        self._thread = None

    def _run(self) -> None:
        from synap.lanes._sync.connections import Broken, Pool

        pool = Pool(self._config, self._target, lambda: None)
        try:
            while True:
                with self._guard:
                    if not self._waiting:
                        self._thread = None
                        return
                    request_id, done = self._waiting.popleft()
                path = f"/api/v1/command?request_id={request_id}"
                try:
                    pool.exchange(
                        h11.Request(method="DELETE", target=path, headers=self._headers), deadline=monotonic() + TIMEOUT
                    )
                except Broken:
                    pass  # then the lease decides
                done()
        finally:
            pool.close()
