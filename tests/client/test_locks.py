"""Locks in a bad network, and those who give up waiting for one."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

import pytest

from synap import AsyncSynapClient, LockLostError, SynapError
from synap.testing.server import ThrowawayServer
from tests.helpers.fault_proxy import Fault, FaultProxy
from tests.helpers.patience import PATIENCE


async def test_a_block_is_cancelled_while_the_renewal_of_its_lock_waits_for_an_answer(server: ThrowawayServer) -> None:
    with FaultProxy("127.0.0.1", server.port) as proxy:
        async with AsyncSynapClient(url=proxy.url, timeout=3 * PATIENCE) as client:
            lock = client.lock("silence", ttl=3)

            async def work() -> None:
                async with lock:
                    proxy.fail(up=Fault(swallow=True), down=Fault(swallow=True))
                    await asyncio.sleep(2 * PATIENCE)

            with pytest.raises(LockLostError):
                await asyncio.wait_for(work(), PATIENCE)
            assert lock.lost
            assert not lock.held
            proxy.heal()
            assert await lock.acquire(wait=PATIENCE)  # what is left of the last time doesn't disturb this one
            await lock.release()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tasks of this Python don't count who cancelled them")
@pytest.mark.parametrize("late", [False, True])
async def test_who_cancels_a_block_whose_lock_is_lost_is_heard(late: bool) -> None:
    """Else a task that tries again when it lost its lock could not be ended."""
    async with AsyncSynapClient("memory://") as client:
        lock = client.lock("lost")
        begun, cleaning_up = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            with suppress(LockLostError):
                async with lock:
                    begun.set()
                    if late:  # the block ends without another `await`
                        lock._lose(lock._released)
                        task.cancel()
                        return
                    try:
                        await asyncio.sleep(2 * PATIENCE)
                    finally:
                        cleaning_up.set()
                        await asyncio.sleep(2 * PATIENCE)
            await asyncio.sleep(0)

        task = asyncio.ensure_future(work())
        await asyncio.wait_for(begun.wait(), PATIENCE)
        if not late:
            lock._lose(lock._released)
            await asyncio.wait_for(cleaning_up.wait(), PATIENCE)
            task.cancel()
        await asyncio.wait({task}, timeout=PATIENCE)
        assert task.cancelled()


async def test_a_lock_without_an_event_loop_says_what_it_needs() -> None:
    """As all other calls do."""
    client = AsyncSynapClient("memory://")

    def acquire() -> None:
        with pytest.raises(SynapError, match="needs a running asyncio event loop"):
            client.lock("no loop").acquire().send(None)

    await asyncio.get_running_loop().run_in_executor(None, acquire)
