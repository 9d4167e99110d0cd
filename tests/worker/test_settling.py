"""How messages are settled, and what is told of it: after the last try, a refused write, an outage."""

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


async def test_the_last_try_of_a_message_is_told_as_a_dead_letter(
    client: AsyncSynapClient, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(client)
    events: List[Tuple[str, float, str]] = []

    @worker.handles(name, retries=1, retry_delay=0.001)
    async def work(value: int) -> None:
        raise ValueError("no luck")

    for event in ("done", "retried", "rejected", "lost"):
        worker.on(event)(lambda event: events.append((event.name, event.delay, str(event.error))))
    await worker.enqueue(work, 1)
    outcome = await worker.run_once()

    async def handled() -> bool:
        again = await worker.run_once()
        outcome.rejected += again.rejected
        return outcome.rejected == 1

    await until(handled)
    assert (outcome.retried, outcome.done, outcome.lost) == (1, 0, 0)
    assert events == [("retried", 0.001, "no luck"), ("rejected", 0.0, "no luck")]
    first, last = (text for text in caplog.messages if "failed on message" in text)
    assert first.endswith("try 1 of 2; given back with a delay of 0.001 seconds")
    assert last.endswith("try 2 of 2; it is a dead letter now")


async def test_a_handler_that_is_cancelled_on_its_last_try_is_told_as_a_dead_letter(
    client: AsyncSynapClient, name: str
) -> None:
    worker = Worker(client, grace=0)
    begun = asyncio.Event()
    events: List[str] = []

    @worker.handles(name, retries=0)
    async def work(value: int) -> None:
        begun.set()
        await asyncio.Event().wait()

    for event in ("retried", "rejected"):
        worker.on(event)(lambda event: events.append(event.name))
    await worker.enqueue(work, 1)
    async with running(worker):
        await asyncio.wait_for(begun.wait(), PATIENCE)
    assert events == ["rejected"]
    assert (await client.queue.stats(f"{name}.dlq")).depth == 1
