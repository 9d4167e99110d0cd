"""The fixtures that other projects' tests use."""

from __future__ import annotations

import asyncio

import pytest

from synap import AsyncSynapClient, MessageNotFoundError, SynapClient, SynapError
from synap.testing import TestClock, ThrowawayServer
from synap.testing.server import can_serve
from synap.worker import Message, Retry, Worker
from tests.helpers.patience import PATIENCE

needs_a_service = pytest.mark.skipif(not can_serve(), reason="needs a service")


async def test_a_lease_ends_when_the_clock_is_moved(synap_memory: AsyncSynapClient, synap_clock: TestClock) -> None:
    await synap_memory.queue.publish("q", "work")
    message = await synap_memory.queue.consume("q", ack_deadline=60)
    assert message is not None
    synap_clock.advance(61)
    with pytest.raises(MessageNotFoundError):
        await synap_memory.queue.ack("q", message.message_id)
    again = await synap_memory.queue.consume("q")
    assert again is not None
    assert again.retry_count == 1


async def test_keys_expire_and_delays_pass_when_the_clock_is_moved(
    synap_memory: AsyncSynapClient, synap_clock: TestClock
) -> None:
    await synap_memory.kv.set("session", 1, ttl=3600)
    await synap_memory.queue.publish("later", 1, delay=86_400)
    assert await synap_memory.queue.consume("later") is None
    synap_clock.advance(3599)
    assert await synap_memory.kv.ttl("session") == 1
    synap_clock.advance(86_400)
    assert not await synap_memory.kv.exists("session")
    assert await synap_memory.queue.consume("later") is not None


async def test_who_waits_is_served_when_the_clock_is_moved(
    synap_memory: AsyncSynapClient, synap_clock: TestClock
) -> None:
    waiting = asyncio.ensure_future(synap_memory.queue.consume("q", timeout=600))
    while "q" not in await synap_memory.queue.list():
        await asyncio.sleep(0)
    await synap_memory.queue.publish("q", 1, delay=300)
    synap_clock.advance(300)
    message = await asyncio.wait_for(waiting, PATIENCE)
    assert message is not None


async def test_both_colours_see_the_same_fresh_engine(
    synap_memory: AsyncSynapClient, sync_synap_memory: SynapClient
) -> None:
    assert not sync_synap_memory.kv.scan().keys
    sync_synap_memory.kv.set("key", 1)
    assert (await synap_memory.kv.get("key")).value == 1


async def test_a_worker_is_tested_in_no_time(synap_memory: AsyncSynapClient, synap_clock: TestClock) -> None:
    worker = Worker(synap_memory, clock=synap_clock)
    fired = []

    @worker.handles("emails")
    async def send(value: str, message: Message) -> None:
        if message.retry_count == 0:
            raise Retry(3600)

    @worker.every("1d")
    async def clean() -> None:
        fired.append(synap_clock.now)

    await worker.enqueue(send, "hello")
    assert (await worker.run_once()).retried == 1
    synap_clock.advance(3599)
    assert (await worker.run_once(queues=["emails"])).done == 0
    synap_clock.advance(1)
    assert (await worker.run_once(queues=["emails"])).done == 1
    synap_clock.advance(-synap_clock.now % 86_400)
    await worker.run_once()
    fired.clear()
    for day in range(3):
        synap_clock.advance(86_400)
        assert (await worker.run_once()).done == 1
        assert len(fired) == day + 1


def test_an_engine_has_one_clock(synap_memory_url: str, sync_synap_memory: SynapClient) -> None:
    sync_synap_memory.connect()
    with SynapClient(url=synap_memory_url, clock=TestClock(5.0)) as other:
        with pytest.raises(SynapError, match="another clock"):
            other.connect()
    with pytest.raises(SynapError, match="clock must be"):
        SynapClient(url="memory://", clock=5)  # type: ignore[arg-type]


def test_a_clock_forgets_engines_that_are_gone() -> None:
    clock = TestClock()
    with SynapClient(url="memory://", clock=clock) as client:
        client.kv.set("key", 1, ttl=10)
        assert clock.advance(20) == 1_700_000_020.0
        assert not client.kv.exists("key")
    clock.advance(1)
    with pytest.raises(ValueError, match="forward"):
        clock.advance(-1)


@needs_a_service
@pytest.mark.parametrize("time", ["first", "second"])
async def test_nothing_leaks_from_one_test_to_the_next(
    synap_client: AsyncSynapClient, sync_synap_client: SynapClient, time: str
) -> None:
    assert not (await synap_client.kv.scan()).keys
    assert not await synap_client.queue.list()
    assert not sync_synap_client.stream.rooms()
    await synap_client.kv.set("key", time)
    await synap_client.queue.publish("queue", time)
    await synap_client.stream.publish("room", "event", time)


@needs_a_service
async def test_a_service_is_killed_and_started_again(synap_durable_server: ThrowawayServer) -> None:
    async with AsyncSynapClient(url=synap_durable_server.url, retries=20, retry_max_delay=0.2) as client:
        await client.kv.set("key", 1)
        synap_durable_server.restart()
        assert (await client.kv.get("key")).value == 1


@needs_a_service
def test_a_service_that_does_not_come_up_again_says_so() -> None:
    server = ThrowawayServer()
    for _ in range(3):
        server.start()
        server.stop()
        server.arguments = ["--no-such-option"]
        for _ in range(3):
            with pytest.raises(RuntimeError, match="no-such-option"):
                server.start()
        server.arguments = []


def test_the_fixtures_work_without_this_project(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_it(sync_synap_memory, synap_clock):
            sync_synap_memory.kv.set("key", 1, ttl=5)
            synap_clock.advance(6)
            assert not sync_synap_memory.kv.get("key").found
        """
    )
    outcome = pytester.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider")
    outcome.assert_outcomes(passed=1)
