"""Waiting in an event loop for an engine of this process costs no timer, and ends in time all the same."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any, List, Optional
from unittest import mock

from synap.commands import COMMANDS
from synap.errors import SynapError
from synap.lanes.inprocess.deadlines import Deadlines
from synap.lanes.inprocess.session import Waiter
from tests.helpers.patience import PATIENCE

SET = COMMANDS["kv.set"]


class Waits(Waiter):
    def __init__(self) -> None:
        super().__init__()
        self.ended = asyncio.Event()
        self.error: Optional[SynapError] = None

    def settle(self, answer: Any, error: Optional[SynapError]) -> None:
        self.error = error
        self.ended.set()


async def test_whose_time_is_over_is_told_and_nobody_else() -> None:
    deadlines = Deadlines(asyncio.get_running_loop())
    first, second, long, gone = (Waits() for _ in range(4))
    deadlines.add(long, SET, monotonic(), 3600)
    deadlines.add(second, SET, monotonic(), 0.2)
    deadlines.add(first, SET, monotonic(), 0.05)
    deadlines.add(gone, SET, monotonic(), 0.01)
    deadlines.withdraw(gone)
    for waiter in (first, second):
        await asyncio.wait_for(waiter.ended.wait(), PATIENCE)
        assert waiter.error is not None
        assert waiter.error.code == "TIMEOUT"
        assert waiter.error.may_have_happened
    assert not long.ended.is_set()
    assert not gone.ended.is_set()


async def test_many_who_wait_share_a_timer() -> None:
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(loop)
    began = monotonic()
    waiters: List[Waits] = [Waits() for _ in range(100)]
    with mock.patch.object(loop, "call_later", wraps=loop.call_later) as timers:
        for number, waiter in enumerate(waiters):
            deadlines.add(waiter, SET, began, 0.05 + 0.001 * number)
    assert timers.call_count == 1
    for waiter in waiters:
        await asyncio.wait_for(waiter.ended.wait(), PATIENCE)
