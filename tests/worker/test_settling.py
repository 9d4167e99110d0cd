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


async def test_a_refused_command_that_misses_a_queue_of_its_own_is_no_lost_lease(
    client: AsyncSynapClient, name: str
) -> None:
    worker = Worker(client)

    @worker.handles(name, retry_delay=3600)
    async def work(value: int, message: Message) -> None:
        message.pipeline().kv.set(f"{name}-key", 1)
        message.pipeline().queue.purge(f"{name}-missing")

    await worker.enqueue(work, 1)
    outcome = await worker.run_once()
    assert (outcome.lost, outcome.retried) == (0, 1)
    (error,) = outcome.errors
    assert isinstance(error, SynapError)
    assert error.code == "QUEUE_NOT_FOUND"
    stats = await client.queue.stats(name)
    assert (stats.pending, stats.delayed) == (0, 1)
    assert not await client.kv.exists(f"{name}-key")


async def test_a_message_that_is_gone_when_its_pipeline_is_sent_is_lost(client: AsyncSynapClient, name: str) -> None:
    worker = Worker(client)

    @worker.handles(name)
    async def work(value: int, message: Message) -> None:
        message.pipeline().kv.set(f"{name}-key", 1)
        await client.queue.purge(name)

    await worker.enqueue(work, 1)
    outcome = await worker.run_once()
    assert (outcome.lost, outcome.retried, outcome.done) == (1, 0, 0)
    assert not await client.kv.exists(f"{name}-key")
