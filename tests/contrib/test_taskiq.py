"""taskiq: what taskiq-redis's tests don't ask of a broker."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from synap import AsyncSynapClient, SynapError

taskiq = pytest.importorskip("taskiq")

from taskiq import AckableMessage, BrokerMessage
from taskiq.api import run_receiver_task
from taskiq.utils import maybe_awaitable

from synap.contrib.taskiq import ResultIsMissingError, SynapBroadcastBroker, SynapBroker, SynapResultBackend
from tests.helpers.patience import PATIENCE


def a_message(**labels: Any) -> BrokerMessage:
    return BrokerMessage(task_id=uuid.uuid4().hex, task_name="t", message=uuid.uuid4().bytes, labels=labels)


async def test_a_task_runs_and_its_result_comes_back(synap_url: str) -> None:
    broker = SynapBroker(synap_url, f"taskiq-{uuid.uuid4()}").with_result_backend(SynapResultBackend(synap_url))

    @broker.task(task_name=f"add-{uuid.uuid4()}")
    async def add(a: int, b: int) -> int:
        return a + b

    await broker.startup()
    worker = asyncio.ensure_future(run_receiver_task(broker))
    task = await add.kiq(2, 3)
    result = await task.wait_result(timeout=PATIENCE, check_interval=0.02)
    assert result.return_value == 5
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    await broker.shutdown()


async def test_what_is_no_task_is_a_dead_letter_and_the_next_task_runs(
    synap_url: str, synap_client: AsyncSynapClient
) -> None:
    broker = SynapBroker(synap_url, f"taskiq-{uuid.uuid4()}")
    foreign: list[Any] = [{"hello": "from the console"}, None, 7]
    for message in foreign:
        await synap_client.queue.publish(broker.queue_name, message)
    task = a_message()
    await broker.kick(task)
    listening = broker.listen()
    got = await asyncio.wait_for(listening.__anext__(), PATIENCE)
    assert isinstance(got, AckableMessage)
    assert got.data == task.message
    dead = await synap_client.queue.peek(f"{broker.queue_name}.dlq")
    assert [one.message for one in dead.messages] == foreign
    await listening.aclose()
    await broker.shutdown()


async def test_a_task_that_was_not_acknowledged_comes_back_and_one_in_work_does_not(
    synap_url: str, synap_client: AsyncSynapClient
) -> None:
    async def ends() -> float:
        (leased,) = (await synap_client.queue.peek(queue, state="leased")).messages
        assert leased.due is not None
        return leased.due

    queue = f"taskiq-{uuid.uuid4()}"
    dying, living = SynapBroker(synap_url, queue, lease=12), SynapBroker(synap_url, queue, lease=12)
    first = a_message()
    await dying.kick(first)
    listening = dying.listen()
    held = await listening.__anext__()
    assert isinstance(held, AckableMessage)
    other = living.listen()
    waiting = asyncio.ensure_future(other.__anext__())
    first_end = await ends()
    while await ends() <= first_end:
        await asyncio.sleep(0.01)
    assert not waiting.done(), "the lease of a task in work is renewed"
    await listening.aclose()  # a worker that ends takes no more, but finishes its tasks
    second_end = await ends()
    while await ends() <= second_end:
        await asyncio.sleep(0.01)
    assert not waiting.done(), "the lease of a task in work is renewed by a worker that ends"
    assert dying._renewal is not None
    dying._renewal.cancel()  # as if that worker had died
    again = await asyncio.wait_for(waiting, PATIENCE)
    assert isinstance(again, AckableMessage)
    assert again.data == first.message
    await maybe_awaitable(again.ack())
    await maybe_awaitable(held.ack())  # too late: it says so in the log and raises nothing
    await other.aclose()
    await dying.shutdown()
    await living.shutdown()


async def test_a_task_whose_queue_was_deleted_is_done_with(
    synap_url: str, synap_client: AsyncSynapClient, caplog: pytest.LogCaptureFixture
) -> None:
    broker = SynapBroker(synap_url, f"taskiq-{uuid.uuid4()}", lease=0.3)
    await broker.kick(a_message())
    listening = broker.listen()
    held = await listening.__anext__()
    assert isinstance(held, AckableMessage)
    await synap_client.queue.delete(broker.queue_name)
    while broker._held:
        await asyncio.sleep(0.01)
    await maybe_awaitable(held.ack())
    assert "can't renew" not in caplog.text
    again = a_message()
    await broker.kick(again)
    next_one = await asyncio.wait_for(listening.__anext__(), PATIENCE)
    assert isinstance(next_one, AckableMessage)
    assert next_one.data == again.message
    await listening.aclose()
    await broker.shutdown()


async def test_labels_give_priority_delay_and_queue(synap_url: str, synap_client: AsyncSynapClient) -> None:
    queue = f"taskiq-{uuid.uuid4()}"
    broker = SynapBroker(synap_url, "elsewhere")
    low, high = a_message(queue_name=queue, priority=1), a_message(queue_name=queue, priority=9)
    for message in (low, high, a_message(queue_name=queue, delay=60)):
        await broker.kick(message)
    first = await synap_client.queue.consume(queue)
    assert first is not None
    assert first.headers["task_id"] == high.task_id
    assert (await synap_client.queue.stats(queue)).delayed == 1
    await broker.shutdown()


async def test_everybody_who_listens_has_a_broadcast_task(synap_url: str) -> None:
    topic = f"taskiq-{uuid.uuid4()}"
    broker = SynapBroadcastBroker(synap_url, topic)
    listening = [broker.listen() for _ in range(2)]
    waiting = [asyncio.ensure_future(one.__anext__()) for one in listening]
    message = a_message()
    matched = 0
    while matched < 2:
        matched = (await broker.client.pubsub.publish(topic, message.message)).subscribers_matched
        await asyncio.sleep(0.01)
    assert await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE) == [message.message] * 2
    for one in listening:
        await one.aclose()
    await broker.shutdown()


async def test_a_result_that_is_missing_and_a_time_that_makes_no_sense(synap_url: str) -> None:
    backend: SynapResultBackend[int] = SynapResultBackend(synap_url)
    with pytest.raises(ResultIsMissingError):
        await backend.get_result("nobody")
    assert await backend.get_progress("nobody") is None
    await backend.shutdown()
    with pytest.raises(SynapError, match="more than 0"):
        SynapResultBackend(synap_url, ttl=0)
