"""Fair scheduling: requests of a connection beyond one turn wait in a queue, behind other connections' requests.

A turn ends after `TURN` seconds. Connections with more to do are queued, and served round robin by key (or address),
then by connection of that key, so that opening more connections gives no larger share. A connection that sends little
is answered as its requests arrive and is never queued.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from synap.engine.callers import Steps

log = logging.getLogger("synap.server")

TURN = 0.002
"""Seconds that a connection's requests are processed before others have their turn."""
ROUND = 0.004
"""Seconds that all queued connections have together before the event loop polls its sockets again. Connections whose
requests came with one poll have as long together; the rest of them are queued."""


class Turns:
    """The queue of connections that wait for a turn."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[Callable[[], None]]] = {}
        self._asked = False
        self._poll_ends: float | None = None
        """When what came with this poll of the sockets has taken a round's time; None before the first of it."""
        self.taken = 0
        """Queued turns that were run, since the start."""

    def __bool__(self) -> bool:
        """Whether any connection is queued."""
        return bool(self._lines)

    def over(self) -> bool:
        """Return whether what came with this poll of the sockets has taken a round's time, so that the rest has to be
        queued. To be asked for each read of several requests, before they are executed.
        """
        now = time.perf_counter()
        if self._poll_ends is None:
            self._poll_ends = now + ROUND
            asyncio.get_running_loop().call_soon(self._polled)
        return now > self._poll_ends

    def _polled(self) -> None:
        self._poll_ends = None

    def ask(self, key: str, work: Callable[[], None]) -> None:
        """Queue for a turn: `work` is called once, when it comes."""
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = deque()
        line.append(work)
        if not self._asked:
            self._asked = True
            asyncio.get_running_loop().call_soon(self._round)

    def run(self, key: str, steps: Steps) -> None:
        """Work steps off in turns, queued before each."""

        def work() -> None:
            end = time.perf_counter() + TURN
            while time.perf_counter() < end:
                if next(steps, steps) is steps:
                    return
            self.ask(key, work)

        self.ask(key, work)

    async def turn(self, key: str) -> None:
        """Queue for a turn, and wait for it."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def work() -> None:
            if not turn.done():
                turn.set_result(None)

        self.ask(key, work)
        await turn

    async def work_off(self, key: str, steps: Steps, *, begun: bool = False) -> Any:
        """Run steps in turns, queued before each; returns what they return.

        `begun`: the first step is no turn, since for most it is the only one, and takes little.
        """
        try:
            if begun:
                next(steps)
            while True:
                await self.turn(key)
                end = time.perf_counter() + TURN
                while time.perf_counter() < end and not next(steps):
                    pass
        except StopIteration as done:
            return done.value

    def _round(self) -> None:
        self._asked = False
        lines = self._lines
        end = time.perf_counter() + ROUND
        # Work that is queued meanwhile is for the next round.
        for _ in range(sum(map(len, lines.values()))):
            key = next(iter(lines))
            line = lines.pop(key)
            work = line.popleft()
            if line:
                lines[key] = line  # behind the other keys
            self.taken += 1
            try:
                work()
            except Exception:  # others wait for their turns
                log.exception("a turn failed")
            if time.perf_counter() > end:
                break
        if lines and not self._asked:
            self._asked = True
            asyncio.get_running_loop().call_soon(self._round)
