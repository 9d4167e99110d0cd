"""One timer for all waiting calls of an event loop, instead of one for each."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Dict, Optional, Tuple

from synap.commands import Command
from synap.lanes.inprocess.session import Waiter
from synap.wire.outcomes import timed_out

MIN_TIMER = 0.01
"""The shortest time, in seconds, between two checks of the deadlines."""
_FOREVER = float("inf")


class Deadlines:
    """Times waiters out. Belongs to an event loop, and to its thread."""

    __slots__ = ("_alarm", "_at", "_waiting", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._waiting: Dict[Waiter, Tuple[float, Command, float]] = {}
        self._alarm: Optional[asyncio.TimerHandle] = None
        self._at = _FOREVER

    def add(self, waiter: Waiter, command: Command, began: float, timeout: float) -> None:
        """Settle `waiter` with `TIMEOUT` `timeout` seconds after `began`, unless it is withdrawn before."""
        deadline = began + timeout
        self._waiting[waiter] = (deadline, command, timeout)
        if deadline < self._at:
            self._set_alarm(deadline)

    def withdraw(self, waiter: Waiter) -> None:
        """Remove a waiter that was answered, or that nobody waits for any more."""
        self._waiting.pop(waiter, None)

    def _set_alarm(self, when: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._at = when
        self._alarm = self.loop.call_later(max(when - monotonic(), 0.0), self._check_deadlines)

    def _check_deadlines(self) -> None:
        self._alarm = None
        self._at = earliest = _FOREVER
        now = monotonic()
        for waiter, (deadline, command, timeout) in list(self._waiting.items()):
            if deadline <= now:
                del self._waiting[waiter]
                waiter.settle(None, timed_out(command, True, timeout))
            elif deadline < earliest:
                earliest = deadline
        if earliest < _FOREVER:
            self._set_alarm(max(earliest, now + MIN_TIMER))
