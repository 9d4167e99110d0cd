"""Locks in a bad network, and those who give up waiting for one."""

from __future__ import annotations

import asyncio

import pytest

from synap import AsyncSynapClient, LockLostError
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
