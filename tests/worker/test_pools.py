"""The processes of the pool, by themselves."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest

from synap.worker import pools
from tests.helpers.patience import PATIENCE
from tests.worker import jobs
from tests.worker.conftest import until


class Declined(Exception):
    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


def decline() -> None:
    raise Declined("card", "expired")


async def test_an_exception_that_cannot_be_made_again_comes_as_text_and_its_process_stays() -> None:
    pool = pools.ProcessPool(1)
    try:
        with pytest.raises(RuntimeError, match="Declined: card: expired"):
            await pool.run(decline, (), PATIENCE)
        assert pool._all, "it was killed, as if it had failed itself"
    finally:
        pool.close()


async def test_a_process_that_nobody_waits_for_any_more_when_it_has_started_is_used_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Late(pools._Child):
        def __init__(self, context: object) -> None:
            begun.set()
            go_on.wait(PATIENCE)
            super().__init__(context)  # type: ignore[arg-type]  # what the pool passes

    monkeypatch.setattr(pools, "_Child", Late)
    pool = pools.ProcessPool(1)
    try:
        first = asyncio.ensure_future(pool.run(abs, (-1,), None))
        await until(begun.is_set)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        go_on.set()
        await until(lambda: pool._all)
        assert await asyncio.wait_for(pool.run(abs, (-2,), None), PATIENCE) == 2
        assert len(pool._all) == 1
    finally:
        pool.close()


async def test_a_handler_that_is_cancelled_twice_leaves_no_error_behind() -> None:
    """As two signals do: the second comes while its process is being killed."""
    told: List[Dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    pool = pools.ProcessPool(1)
    try:
        await pool.run(abs, (-1,), None)
        handler = asyncio.ensure_future(pool.run(time.sleep, (PATIENCE,), None))
        await until(lambda: not pool._idle)
        for _ in range(2):
            handler.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await handler
    finally:
        pool.close()
    pool._threads.shutdown(wait=True)
    for _ in range(3):  # turns of the event loop, until it has the thread's outcome
        await asyncio.sleep(0)
    del handler
    gc.collect()
    assert told == []


async def test_a_process_that_died_while_it_was_idle_fails_no_handler() -> None:
    """A message whose handler has not begun would lose an attempt, and with its last one become a dead letter."""
    pool = pools.ProcessPool(2)
    try:
        assert await asyncio.wait_for(pool.run(abs, (-1,), None), PATIENCE) == 1
        [child] = pool._all
        child.process.kill()
        await until(lambda: not child.process.is_alive())
        assert await asyncio.wait_for(pool.run(abs, (-2,), None), PATIENCE) == 2
        assert child not in pool._all
        assert child.connection.closed
    finally:
        pool.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
async def test_a_process_that_died_is_told_though_what_it_has_forked_goes_on(tmp_path: Path) -> None:
    """That has the pipe as well, so there is no end of it."""
    forked = tmp_path / "forked"
    pool = pools.ProcessPool(1)
    try:
        with pytest.raises(pools.ProcessDied, match="exit code 7"):
            await asyncio.wait_for(pool.run(jobs.fork_and_die, (str(forked),), None), PATIENCE)
        assert not pool._all
    finally:
        os.kill(int(forked.read_text()), signal.SIGKILL)
        pool.close()


async def test_the_time_of_a_function_begins_when_its_process_has_imported_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that takes longer to import than its handler may run made dead letters of all messages."""
    allowed: List[object] = []
    outcome = pools.ProcessPool._outcome

    async def noting(self: pools.ProcessPool, child: pools._Child, job: bytes, timeout: Any) -> Any:
        allowed.append(timeout)
        return await outcome(self, child, job, timeout)

    monkeypatch.setattr(pools.ProcessPool, "_outcome", noting)
    pool = pools.ProcessPool(1)
    try:
        for _ in range(2):
            assert await pool.run(abs, (-1,), PATIENCE) == 1
        assert await pool.run(max, (1, 2), PATIENCE) == 2
    finally:
        pool.close()
    longest = max(pools.LOADING, PATIENCE)
    assert allowed == [longest, PATIENCE, PATIENCE, longest, PATIENCE]


@pytest.mark.parametrize(("timeout", "longest"), [(None, None), (1.0, pools.LOADING), (1000.0, 1000.0)])
async def test_loading_a_function_has_as_long_as_it_itself_and_a_minute_at_least(
    timeout: Optional[float], longest: Optional[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed: List[object] = []

    async def noting(self: pools.ProcessPool, child: pools._Child, job: bytes, timeout: Any) -> Any:
        allowed.append(timeout)
        return True, (None, [])

    monkeypatch.setattr(pools.ProcessPool, "_outcome", noting)
    pool = pools.ProcessPool(1)
    try:
        await pool.run(abs, (-1,), timeout)
    finally:
        pool.close()
    assert allowed == [longest, timeout]


def test_a_process_ends_in_the_middle_of_a_function_where_its_parent_is_killed() -> None:
    """It went on without a timeout, and for ever where the function hung."""
    program = """
import asyncio
from synap.worker.pools import ProcessPool
from tests.worker import jobs

async def main() -> None:
    await ProcessPool(1).run(jobs.say_and_hang, (), None)

asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, encoding="utf-8")
    try:
        assert process.stdout is not None
        child = int(process.stdout.readline())
    finally:
        process.kill()
    try:
        process.communicate(timeout=PATIENCE)  # until the last one that could write has ended
    except subprocess.TimeoutExpired:
        os.kill(child, signal.SIGKILL)
        raise
