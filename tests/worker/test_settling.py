"""How messages are settled, and what is told of it: when they are given up, when a write is refused, after an outage."""

from __future__ import annotations

import asyncio
from typing import Any, List, Tuple

import pytest

from synap import AsyncSynapClient, SynapError
from synap.errors import ConnectionError
from synap.worker import Message, Worker, runner
from tests.helpers.patience import PATIENCE
from tests.worker.conftest import running, until


@pytest.mark.parametrize("fails", [False, True], ids=["answered", "failed"])
async def test_a_worker_takes_messages_again_once_its_settlements_have_ended(
    client: AsyncSynapClient, name: str, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an outage, when no handler runs any more whose end would let it go on."""
    monkeypatch.setattr(runner, "MAX_UNSETTLED", 0)
    call, settling, go_on = client._calls.call, asyncio.Event(), asyncio.Event()

    async def call_late(command: Any, *arguments: Any, **options: Any) -> Any:
        if command.name == "batch" and not settling.is_set():
            settling.set()
            await go_on.wait()
            if fails:
                raise ConnectionError("CONNECTION_FAILED", "the service is away")
        return await call(command, *arguments, **options)

    monkeypatch.setattr(client._calls, "call", call_late)
    worker = Worker(client, concurrency=1)
    seen: List[int] = []
    for queue in (name, f"{name}-other"):
        worker.handles(queue, pool="loop")(seen.append)
    async with running(worker):
        await client.queue.publish(name, 1)
        await asyncio.wait_for(settling.wait(), PATIENCE)
        await client.queue.publish(name, 2)
        assert worker._runner is not None
        room = worker._runner._room
        await until(lambda: not room.is_set())  # it waits
        go_on.set()
        await until(lambda: seen == [1, 2])
