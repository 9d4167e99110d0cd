"""What one turn asks of one queue is one call of a function, and each request has its own answer all the same."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, AsyncIterator, Callable, Tuple

import pytest
from msgspec import Raw, msgpack
from pytest_asyncio import fixture as async_fixture

from synap import AsyncSynapClient
from synap import commands as c
from synap.cluster.host import ClusterHost
from synap.cluster.running import Pending, Running
from synap.errors import MessageNotFoundError
from synap.testing.cluster import ThrowawayCluster
from tests.cluster.asking import result
from tests.helpers.patience import PATIENCE


@async_fixture
async def client(one_node: ThrowawayCluster, only_what_is_asked: None) -> AsyncIterator[AsyncSynapClient]:
    async with AsyncSynapClient(url=one_node.url, engine={"durability": "none", "space": "joining"}) as client:
        yield client


@pytest.fixture
def queue() -> str:
    return uuid.uuid4().hex


def calls(cluster: ThrowawayCluster) -> int:
    """Count the calls of functions that the node has done."""
    for line in cluster.members[0].ask("INFO", "commandstats").split(b"\r\n"):
        if line.startswith(b"cmdstat_fcall:"):
            return int(line.partition(b"calls=")[2].partition(b",")[0])
    return 0


async def test_a_turn_of_one_queue_is_three_calls_and_everybody_gets_a_message_of_his_own(
    client: AsyncSynapClient, one_node: ThrowawayCluster, queue: str
) -> None:
    await client.queue.create(queue)
    before = calls(one_node)
    await asyncio.gather(*(client.queue.publish(queue, number, priority=number % 3) for number in range(40)))
    messages = await asyncio.gather(*(client.queue.consume(queue, timeout=0) for _ in range(40)))
    found = [message for message in messages if message is not None]
    await asyncio.gather(*(client.queue.ack(queue, message.message_id) for message in found))
    assert calls(one_node) - before == 3
    assert [message.message for message in found] == sorted(range(40), key=lambda number: (-(number % 3), number))
    stats = await client.queue.stats(queue)
    assert (stats.depth, stats.pending, stats.consumed_total, stats.acked_total) == (0, 0, 40, 40)


async def test_positions_are_those_of_one_after_the_other(client: AsyncSynapClient, queue: str) -> None:
    await client.queue.publish(queue, "before", priority=1)
    given = await asyncio.gather(*(client.queue.publish(queue, number, priority=5) for number in range(3)))
    assert [answer.position for answer in given] == [1, 2, 3]


async def test_a_message_that_is_acknowledged_twice_in_a_turn_is_so_once(client: AsyncSynapClient, queue: str) -> None:
    await client.queue.publish(queue, 1)
    await client.queue.publish(queue, 2)
    message = await client.queue.consume(queue)
    assert message is not None
    twice = (client.queue.ack(queue, message.message_id) for _ in range(2))
    answers = await asyncio.gather(*twice, return_exceptions=True)
    assert sorted(isinstance(answer, MessageNotFoundError) for answer in answers) == [False, True]
    stats = await client.queue.stats(queue)
    assert (stats.depth, stats.pending, stats.acked_total) == (1, 0, 1)


async def test_a_consume_that_is_cancelled_among_others_gives_its_message_back(
    client: AsyncSynapClient, queue: str
) -> None:
    for number in range(3):
        await client.queue.publish(queue, number)
    consumes = [asyncio.ensure_future(client.queue.consume(queue, timeout=0)) for _ in range(3)]
    await asyncio.sleep(0)
    consumes[1].cancel()
    kept = await asyncio.gather(consumes[0], consumes[2])
    assert [message.message for message in kept if message is not None] == [0, 2]
    back = await client.queue.consume(queue, timeout=PATIENCE)
    assert back is not None
    assert (back.message, back.retry_count) == (1, 0)


async def test_more_than_one_command_can_carry_is_consumed_by_one_request(client: AsyncSynapClient, queue: str) -> None:
    count = 1000
    for first in range(0, count, 50):
        await asyncio.gather(*(client.queue.publish(queue, first + number) for number in range(50)))
    asked = (client.queue.consume_many([queue], max=count, timeout=0) for _ in range(3))
    messages = [message.message for answer in await asyncio.gather(*asked) for message in answer]
    assert messages == list(range(count))


@pytest.mark.parametrize("tries", [(False, True), (True, False), (True, True)])
async def test_two_tries_at_a_request_in_a_turn_take_effect_once_and_are_answered_alike(
    host: ClusterHost, queue: str, tries: Tuple[bool, bool]
) -> None:
    """As a gateway finds them that stood still while a caller gave up one connection for another."""
    queues, consume = host.facilities.queues, host.consumers.consume
    own = host.memory.request

    async def twice(command: Callable[..., Pending], payload: Any, number: int) -> Any:
        one, other = [command(payload, own("s" * 32, number, retried)) for retried in tries]
        answer = await result(one)
        assert await result(other) == answer
        return answer

    for number in range(3):
        await twice(queues.publish, c.QueuePublish(queue, Raw(msgpack.encode(number))), number + 1)
    (held,) = await result(consume(c.QueueConsume(queue), own("s" * 32, 4, False)))
    asked = c.QueueConsume(queue, ack=held.answer.message_id)
    one, other = [consume(asked, own("s" * 32, 5, retried)) for retried in tries]
    (taken,), again = await result(one), await result(other)
    assert taken.answer.message == 1
    assert [found.answer.message for found in again] == ([1] if tries[1] else [])  # the first try has no caller left
    await twice(queues.ack, c.QueueAck(queue, taken.answer.message_id), 6)
    stats = await result(Running(queues.stats(c.QueueStats(queue), own("", 0, False))).start())
    assert (stats.depth, stats.pending, stats.published_total, stats.acked_total) == (1, 0, 3, 2)
