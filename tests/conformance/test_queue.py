"""Queues: order, priorities, delays, limits and what there is to know about them."""

from __future__ import annotations

import asyncio
import time
from typing import Any, List

import pytest

from synap import AsyncSynapClient, QueueMessage, QueueNotFoundError, SynapError
from tests.helpers.patience import PATIENCE


async def take(client: AsyncSynapClient, queue: str, *, timeout: float = 0, **options: Any) -> QueueMessage:
    """Consume a message that must be there."""
    message = await client.queue.consume(queue, timeout, **options)
    assert message is not None, "the queue is empty"
    return message


async def drain(client: AsyncSynapClient, queue: str) -> List[Any]:
    """Consume and acknowledge all that is ready."""
    messages: List[Any] = []
    while True:
        message = await client.queue.consume(queue)
        if message is None:
            return messages
        await client.queue.ack(queue, message.message_id)
        messages.append(message.message)


# ---- publish and consume


async def test_a_message_is_published_consumed_and_acknowledged(client: AsyncSynapClient, name: str) -> None:
    published = await client.queue.publish(name, {"do": "this"}, priority=8, headers={"from": "a test"})
    assert published.message_id
    assert published.position == 1
    message = await take(client, name)
    assert message.message_id == published.message_id
    assert message.message == {"do": "this"}
    assert (message.priority, message.retry_count, message.headers) == (8, 0, {"from": "a test"})
    await client.queue.ack(name, message.message_id)
    assert await client.queue.consume(name) is None
    stats = await client.queue.stats(name)
    assert (stats.depth, stats.pending, stats.acked_total) == (0, 0, 1)


async def test_headers_are_empty_where_none_were_given(client: AsyncSynapClient, name: str) -> None:
    await client.queue.publish(name, 1)
    assert (await take(client, name)).headers == {}


async def test_message_ids_differ(client: AsyncSynapClient, name: str) -> None:
    ids = {(await client.queue.publish(name, "the same")).message_id for _ in range(5)}
    assert len(ids) == 5


async def test_consume_on_an_empty_queue_gives_none_at_once(client: AsyncSynapClient, name: str) -> None:
    assert await client.queue.consume(name) is None


async def test_publishing_makes_the_queue_with_the_defaults(client: AsyncSynapClient, name: str) -> None:
    await client.queue.publish(name, 1)
    assert name in await client.queue.list()
    assert not await client.queue.create(name)


async def test_consuming_makes_the_queue(client: AsyncSynapClient, name: str) -> None:
    assert await client.queue.consume(name) is None
    assert name in await client.queue.list()
    assert (await client.queue.stats(name)).depth == 0


async def test_a_leased_message_goes_to_nobody_else(
    client: AsyncSynapClient, other: AsyncSynapClient, name: str
) -> None:
    await client.queue.publish(name, 1)
    assert await client.queue.consume(name)
    assert await other.queue.consume(name) is None


# ---- order


async def test_equal_priority_is_first_in_first_out(client: AsyncSynapClient, name: str) -> None:
    for number in range(10):
        await client.queue.publish(name, number)
    assert await drain(client, name) == list(range(10))


async def test_higher_priority_goes_first(client: AsyncSynapClient, name: str) -> None:
    for priority in (5, 0, 9, 1, 9, 5, 8):
        await client.queue.publish(name, priority, priority=priority)
    assert await drain(client, name) == [9, 9, 8, 5, 5, 1, 0]


async def test_the_default_priority_is_5(client: AsyncSynapClient, name: str) -> None:
    await client.queue.publish(name, "low", priority=4)
    await client.queue.publish(name, "default")
    await client.queue.publish(name, "high", priority=6)
    assert await drain(client, name) == ["high", "default", "low"]


async def test_position_counts_from_one_among_what_goes_before(client: AsyncSynapClient, name: str) -> None:
    assert (await client.queue.publish(name, "a")).position == 1
    assert (await client.queue.publish(name, "b")).position == 2
    assert (await client.queue.publish(name, "first", priority=9)).position == 1
    assert (await client.queue.publish(name, "c")).position == 4
    assert (await client.queue.publish(name, "last", priority=0)).position == 5
    await take(client, name)
    assert (await client.queue.publish(name, "d")).position == 4


@pytest.mark.parametrize("priority", [-1, 10, 12, 1.5, "5"], ids=repr)
async def test_a_priority_outside_0_to_9_is_refused(client: AsyncSynapClient, name: str, priority: Any) -> None:
    with pytest.raises(SynapError) as caught:
        await client.queue.publish(name, 1, priority=priority)
    assert caught.value.code == "INVALID_PAYLOAD"
    assert f"priority must be 0..9, got {priority!r}" in caught.value.message


async def test_headers_must_be_strings(client: AsyncSynapClient, name: str) -> None:
    headers: Any = {"attempt": 1}
    with pytest.raises(SynapError) as caught:
        await client.queue.publish(name, 1, headers=headers)
    assert caught.value.code == "INVALID_PAYLOAD"
    assert "headers" in caught.value.message


async def test_a_message_has_at_most_128_headers_of_its_own(client: AsyncSynapClient, name: str) -> None:
    headers = {f"h{number}": "" for number in range(128)}
    with pytest.raises(SynapError) as caught:
        await client.queue.publish(name, 1, headers={**headers, "one": "more"})
    assert caught.value.code == "INVALID_PAYLOAD"
    await client.queue.publish(name, 1, headers={**headers, "x-dead-letter-reason": "of an earlier life"})
    await client.queue.nack(name, (await take(client, name)).message_id, requeue=False)
    letter = await take(client, f"{name}.dlq")
    assert headers.items() < letter.headers.items()
    await client.queue.publish(name, 1, headers=letter.headers)


@pytest.mark.parametrize("queue", ["", "q" * 257], ids=["empty", "long"])
async def test_a_queue_name_that_is_empty_or_too_long_is_refused(client: AsyncSynapClient, queue: str) -> None:
    for call in (client.queue.publish(queue, 1), client.queue.consume(queue), client.queue.stats(queue)):
        with pytest.raises(SynapError) as caught:
            await call
        assert caught.value.code == "INVALID_PAYLOAD"
        assert "queue" in caught.value.message


# ---- delay


async def test_a_message_that_is_there_is_taken_however_short_the_wait(client: AsyncSynapClient, name: str) -> None:
    moment = 1e-6
    assert await client.queue.consume(name, moment) is None  # from now on a consume of a cluster waits for a hint
    for number in range(20):
        await client.queue.publish(name, number)
        if number % 2:
            taken = await client.queue.consume(name, moment)
        else:
            taken = (await client.queue.consume_many([name], timeout=moment))[0]
        assert taken is not None
        assert taken.message == number


async def test_a_queue_has_a_name_that_its_dead_letters_can_be_named_after(client: AsyncSynapClient, name: str) -> None:
    queue = name + "q" * (256 - len(name))
    await client.queue.consume(name, 0.01)  # from now on a long consume of a cluster waits without asking first
    for refused in (
        client.queue.publish(queue, 1),
        client.queue.consume(queue),
        client.queue.consume(queue, 0.01),
        client.queue.consume(queue, PATIENCE),
        client.queue.consume_many([queue]),
        client.queue.create(queue),
    ):
        with pytest.raises(SynapError) as caught:
            await refused
        assert caught.value.code == "INVALID_PAYLOAD"
        assert ".dlq must fit behind it" in caught.value.message
    publish = {"command": "queue.publish", "payload": {"queue": queue, "message": 1}}
    (outcome,) = await client.batch([publish], atomic=True)
    assert outcome.error is not None
    assert outcome.error["message"] == caught.value.message
    assert queue not in await client.queue.list()
    assert await client.queue.create(queue, dead_letter=False)
    assert not await client.queue.create(queue, max_retries=0)
    with pytest.raises(SynapError) as caught:
        await client.queue.create(queue, dead_letter=True)
    assert caught.value.code == "INVALID_PAYLOAD"
    await client.queue.publish(queue, 1)
    assert (await client.queue.nack(queue, (await take(client, queue)).message_id)).action == "requeued"


async def test_a_delayed_message_is_held_back(client: AsyncSynapClient, name: str) -> None:
    await client.queue.publish(name, "later", delay=500)
    await client.queue.publish(name, "now")
    assert (await take(client, name)).message == "now"
    assert await client.queue.consume(name) is None
    stats = await client.queue.stats(name)
    assert (stats.depth, stats.delayed) == (0, 1)


@pytest.mark.once_per_place
async def test_a_delayed_message_comes_when_its_time_has_come(client: AsyncSynapClient, name: str) -> None:
    await client.queue.publish(name, "later", delay=1)
    message = await take(client, name, timeout=PATIENCE)
    assert (message.message, message.retry_count) == ("later", 0)


async def test_a_negative_delay_is_refused(client: AsyncSynapClient, name: str) -> None:
    with pytest.raises(SynapError) as caught:
        await client.queue.publish(name, 1, delay=-1)
    assert caught.value.code == "INVALID_PAYLOAD"
    assert "delay" in caught.value.message


# ---- create, list, delete, purge, limits


async def test_create_says_whether_it_made_the_queue(client: AsyncSynapClient, name: str) -> None:
    assert await client.queue.create(name) is True
    assert await client.queue.create(name) is False
    assert name in await client.queue.list()


async def test_a_full_queue_refuses_and_loses_nothing(client: AsyncSynapClient, name: str) -> None:
    await client.queue.create(name, max_depth=2)
    await client.queue.publish(name, "a")
    await client.queue.publish(name, "b")
    with pytest.raises(SynapError) as caught:
        await client.queue.publish(name, "c")
    assert caught.value.code == "QUEUE_FULL"
    assert not caught.value.may_have_happened
    assert await drain(client, name) == ["a", "b"]
    await client.queue.publish(name, "d")
    assert await drain(client, name) == ["d"]


@pytest.mark.once_per_place
async def test_a_full_queue_says_how_many_it_may_hold(client: AsyncSynapClient, name: str) -> None:
    for number in range(3):
        await client.queue.publish(name, number)
    await client.queue.create(name, max_depth=2)
    with pytest.raises(SynapError) as full:
        await client.queue.publish(name, 3)
    text = f"the queue {name!r} is full: its max_depth is 2; consume some or raise max_depth"
    assert (full.value.message, full.value.details) == (text, {"queue": name, "max_depth": 2})


async def test_a_queue_that_is_full_takes_returned_messages_back(client: AsyncSynapClient, name: str) -> None:
    await client.queue.create(name, max_depth=1)
    await client.queue.publish(name, "a")
    message = await take(client, name)
    await client.queue.nack(name, message.message_id)
    assert (await take(client, name)).message == "a"


async def test_purge_drops_what_is_ready_and_says_how_much(client: AsyncSynapClient, name: str) -> None:
    for number in range(3):
        await client.queue.publish(name, number)
    assert await client.queue.purge(name) == 3
    assert await client.queue.consume(name) is None
    assert await client.queue.purge(name) == 0
    assert name in await client.queue.list()


@pytest.mark.parametrize("many", [False, True], ids=["consume", "consume_many"])
async def test_a_consume_that_waits_ends_where_its_queue_is_deleted(
    client: AsyncSynapClient, name: str, many: bool
) -> None:
    if many:
        waiting: asyncio.Future[object] = asyncio.ensure_future(
            client.queue.consume_many([name, f"{name}-other"], timeout=PATIENCE)
        )
    else:
        waiting = asyncio.ensure_future(client.queue.consume(name, PATIENCE))
    while name not in await client.queue.list():
        await asyncio.sleep(0.01)
    await client.queue.delete(name)
    with pytest.raises(QueueNotFoundError) as caught:
        await waiting
    assert caught.value.details["queue"] == name


async def test_delete_takes_the_queue_and_its_messages(client: AsyncSynapClient, name: str) -> None:
    await client.queue.publish(name, 1)
    assert await client.queue.delete(name) is True
    assert name not in await client.queue.list()
    assert await client.queue.consume(name) is None


async def test_a_queue_that_was_never_made_is_not_found(client: AsyncSynapClient, name: str) -> None:
    calls: Any = [
        client.queue.ack(name, "some-id"),
        client.queue.nack(name, "some-id"),
        client.queue.extend(name, "some-id", 30),
        client.queue.stats(name),
        client.queue.purge(name),
        client.queue.delete(name),
        client.queue.redrive(name),
    ]
    for call in calls:
        with pytest.raises(QueueNotFoundError) as caught:
            await call
        assert caught.value.code == "QUEUE_NOT_FOUND"
        assert caught.value.details["queue"] == name
        assert name in caught.value.message


@pytest.mark.parametrize(
    ("option", "value"),
    [("max_retries", -1), ("ack_deadline", 0), ("max_depth", 0), ("max_depth", "many"), ("dead_letter", 1)],
)
async def test_a_setting_that_makes_no_sense_is_refused(
    client: AsyncSynapClient, name: str, option: str, value: Any
) -> None:
    with pytest.raises(SynapError) as caught:
        await client.queue.create(name, **{option: value})
    assert caught.value.code == "INVALID_PAYLOAD"
    assert option in caught.value.message
    assert name not in await client.queue.list()


async def test_stats_count_what_happened(client: AsyncSynapClient, name: str) -> None:
    for number in range(5):
        await client.queue.publish(name, number)
    await client.queue.publish(name, "later", delay=500)
    acked, nacked, buried, _ = [await take(client, name) for _ in range(4)]
    await client.queue.ack(name, acked.message_id)
    await client.queue.nack(name, nacked.message_id)
    await client.queue.nack(name, buried.message_id, requeue=False)
    stats = await client.queue.stats(name)
    assert (stats.depth, stats.pending, stats.delayed, stats.consumers) == (2, 1, 1, 0)
    assert (stats.published_total, stats.consumed_total) == (6, 4)
    assert (stats.acked_total, stats.nacked_total, stats.dead_lettered_total) == (1, 2, 1)
    assert stats.oldest_message_age_secs is not None
    assert 0 <= stats.oldest_message_age_secs < 60


@pytest.mark.once_per_place
async def test_a_delay_is_no_age(client: AsyncSynapClient, name: str) -> None:
    began = time.monotonic()
    await client.queue.publish(name, "later", delay=1)

    async def age() -> float:
        while True:
            found = (await client.queue.stats(name)).oldest_message_age_secs
            if found is not None:
                return found
            await asyncio.sleep(0.05)

    assert await asyncio.wait_for(age(), PATIENCE) <= time.monotonic() - began - 1


async def test_an_empty_queue_has_no_oldest_message(client: AsyncSynapClient, name: str) -> None:
    await client.queue.create(name)
    assert (await client.queue.stats(name)).oldest_message_age_secs is None


# ---- waiting


async def wait_for_consumers(client: AsyncSynapClient, queue: str, count: int) -> None:
    """Wait until `count` consumers wait at a queue."""
    end = time.monotonic() + PATIENCE
    while queue not in await client.queue.list() or (await client.queue.stats(queue)).consumers != count:
        assert time.monotonic() < end, f"{count} consumers never waited at once"
        await asyncio.sleep(0.005)


async def test_a_waiting_consumer_is_given_what_is_published(
    client: AsyncSynapClient, other: AsyncSynapClient, name: str
) -> None:
    waiting = asyncio.create_task(client.queue.consume(name, timeout=PATIENCE))
    await wait_for_consumers(other, name, 1)
    await other.queue.publish(name, "at last")
    message = await waiting
    assert message is not None
    assert message.message == "at last"
    await client.queue.ack(name, message.message_id)


@pytest.mark.once_per_place
async def test_a_consumer_that_waited_in_vain_gets_none(client: AsyncSynapClient, name: str) -> None:
    assert await client.queue.consume(name, timeout=1) is None
    assert (await client.queue.stats(name)).consumers == 0


@pytest.mark.without("crashing")
async def test_waiters_are_served_first_come_first_served(
    client: AsyncSynapClient, other: AsyncSynapClient, name: str
) -> None:
    waiting = []
    for count in range(1, 5):
        waiting.append(asyncio.create_task(client.queue.consume(name, timeout=PATIENCE)))
        await wait_for_consumers(other, name, count)
    for number in range(4):
        await other.queue.publish(name, number)
    messages = await asyncio.gather(*waiting)
    assert [message.message for message in messages if message] == [0, 1, 2, 3]


@pytest.mark.without("crashing")
async def test_a_waiter_is_given_a_message_that_comes_back(
    client: AsyncSynapClient, other: AsyncSynapClient, name: str
) -> None:
    await client.queue.publish(name, "again")
    first = await take(client, name)
    waiting = asyncio.create_task(other.queue.consume(name, timeout=PATIENCE))
    await wait_for_consumers(client, name, 1)
    await client.queue.nack(name, first.message_id)
    second = await waiting
    assert second is not None
    assert (second.message_id, second.retry_count) == (first.message_id, 1)


@pytest.mark.only("async")
@pytest.mark.without("crashing")
async def test_a_waiter_that_goes_away_takes_no_message_with_it(
    client: AsyncSynapClient, other: AsyncSynapClient, name: str
) -> None:
    gone = asyncio.create_task(client.queue.consume(name, timeout=PATIENCE))
    await wait_for_consumers(other, name, 1)
    stays = asyncio.create_task(client.queue.consume(name, timeout=PATIENCE))
    await wait_for_consumers(other, name, 2)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    await wait_for_consumers(other, name, 1)
    await other.queue.publish(name, "for who stays")
    message = await stays
    assert message is not None
    assert message.message == "for who stays"


@pytest.mark.only("async")
@pytest.mark.without("crashing")
async def test_a_client_that_closes_while_it_waits_takes_no_message_with_it(
    client: AsyncSynapClient, other: AsyncSynapClient, name: str
) -> None:
    waiting = asyncio.create_task(client.queue.consume(name, timeout=PATIENCE))
    await wait_for_consumers(other, name, 1)
    await client.close()
    with pytest.raises((SynapError, asyncio.CancelledError)):
        await waiting
    await wait_for_consumers(other, name, 0)
    await other.queue.publish(name, "still here")
    assert (await take(other, name)).message == "still here"


@pytest.mark.parametrize("timeout", [-1, "1", 10**6], ids=repr)
async def test_a_timeout_that_makes_no_sense_is_refused(client: AsyncSynapClient, name: str, timeout: Any) -> None:
    with pytest.raises(SynapError) as caught:
        await client.queue.consume(name, timeout)
    assert caught.value.code == "INVALID_PAYLOAD"
    assert "timeout" in caught.value.message
