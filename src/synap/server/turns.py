"""Turns: what a connection has to do beyond one turn is done later, after everybody else's requests.

A turn ends after `TURN` seconds. Connections with more to do stand in line: keys (or addresses) one after the other,
and the connections of one key among themselves, so that nobody gets more by opening more. Whoever sends a little is
answered when it comes, and never stands in line.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from synap.engine.callers import Steps

__all__ = ["TURN", "Turns"]

log = logging.getLogger("synap.server")

TURN = 0.002
"""Seconds that a connection's requests are worked off before others have their turn."""
ROUND = 0.004
"""Seconds that those in line have together before the event loop looks at its sockets."""


class Turns:
    """Who stands in line."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[Callable[[], None]]] = {}
        self._asked = False
        self.taken = 0
        """Turns that were taken in line, since the start."""

    def __bool__(self) -> bool:
        """Whether somebody stands in line."""
        return bool(self._lines)

    def ask(self, key: str, work: Callable[[], None]) -> None:
        """Stand in line: `work` is called when it is this one's turn, once."""
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = deque()
        line.append(work)
        if not self._asked:
            self._asked = True
            asyncio.get_running_loop().call_soon(self._round)

    async def turn(self, key: str) -> None:
        """Stand in line, and wait for the turn."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def work() -> None:
            if not turn.done():
                turn.set_result(None)

        self.ask(key, work)
        await turn

    async def work_off(self, key: str, steps: Steps) -> Any:
        """Run steps in turns, standing in line before each; returns what they return."""
        try:
            while True:
                await self.turn(key)
                end = time.perf_counter() + TURN
                while time.perf_counter() < end:
                    next(steps)
        except StopIteration as done:
            return done.value

    def _round(self) -> None:
        self._asked = False
        lines = self._lines
        end = time.perf_counter() + ROUND
        # Who asks again while it is done comes in the next round.
        for _ in range(sum(map(len, lines.values()))):
            key = next(iter(lines))
            line = lines.pop(key)
            work = line.popleft()
            if line:
                lines[key] = line  # behind the other keys
            self.taken += 1
            try:
                work()
            except Exception:
                log.exception("a turn failed")
            if time.perf_counter() > end:
                break
        if lines and not self._asked:
            self._asked = True
            asyncio.get_running_loop().call_soon(self._round)
