"""Leases: who may acknowledge, what comes back and when, and where a message ends that nobody could do."""

from __future__ import annotations

import time
from typing import Any

import pytest

from synap import AsyncSynapClient, MessageNotFoundError, SynapError
from synap.results import MessageId
from tests.conformance.test_queue import drain, take
from tests.helpers.patience import PATIENCE

SOON = 0.2
"""Seconds after which a lease of these tests runs out; the next consumer waits for that."""


async def test_an_unknown_message_is_not_found(client: AsyncSynapClient, name: str) -> None:
    await client.queue.create(name)
    calls: Any = [
        client.queue.ack(name, "never-issued"),
        client.queue.nack(name, "never-issued"),
        client.queue.extend(name, "never-issued", 30),
    ]
    for call in calls:
        with pytest.raises(MessageNotFoundError) as caught:
            await call
        assert caught.value.code == "MESSAGE_NOT_FOUND"
        assert "never-issued" in str(caught.value) or caught.value.details.get("message_id") == "never-issued"


async def test_a_message_that_was_not_consumed_cannot_be_acknowledged(client: AsyncSynapClient, name: str) -> None:
    published = await client.queue.publish(name, 1)
    with pytest.raises(MessageNotFoundError):
        await client.queue.ack(name, published.message_id)
    assert (await take(client, name)).message == 1


async def test_a_message_is_acknowledged_once(client: AsyncSynapClient, name: str) -> None:
    await client.queue.publish(name, 1)
    message = await take(client, name)
    await client.queue.ack(name, message.message_id)
    with pytest.raises(MessageNotFoundError):
        await client.queue.ack(name, message.message_id)


async def test_the_id_as_a_plain_string_is_enough_for_the_client_that_consumed(
    client: AsyncSynapClient, name: str
) -> None:
    await client.queue.publish(name, 1)
    message = await take(client, name)
    await client.queue.extend(name, str(message.message_id), 60)
    await client.queue.ack(name, str(message.message_id))
    assert (await client.queue.stats(name)).acked_total == 1


async def test_another_client_acknowledges_with_the_lease_it_was_handed(
    client: AsyncSynapClient, other: AsyncSynapClient, name: str
) -> None:
    await client.queue.publish(name, 1)
    message = await take(client, name)
    for call in (other.queue.ack, other.queue.nack):
        with pytest.raises(MessageNotFoundError):
            await call(name, str(message.message_id))
    await other.queue.ack(name, MessageId(str(message.message_id), message.lease))
    assert (await client.queue.stats(name)).acked_total == 1


# ---- the deadline


async def test_a_lease_that_runs_out_brings_the_message_back(
    client: AsyncSynapClient, other: AsyncSynapClient, name: str
) -> None:
    await client.queue.publish(name, "work", priority=7, headers={"a": "b"})
    first = await take(client, name, ack_deadline=SOON)
    second = await take(other, name, timeout=PATIENCE)
    assert second.message_id == first.message_id
    assert (second.message, second.priority, second.headers) == ("work", 7, {"a": "b"})
    assert (first.retry_count, second.retry_count) == (0, 1)


async def test_after_the_deadline_the_message_is_no_longer_the_holders(client: AsyncSynapClient, name: str) -> None:
    await client.queue.create(name, max_retries=0, dead_letter=True)
    await client.queue.publish(name, "work")
    late = await take(client, name, ack_deadline=SOON)
    await take(client, f"{name}.dlq", timeout=PATIENCE)
    for call in (client.queue.ack, client.queue.nack):
        with pytest.raises(MessageNotFoundError):
            await call(name, late.message_id)
    with pytest.raises(MessageNotFoundError):
        await client.queue.extend(name, late.message_id, 30)


async def test_a_late_acknowledgement_does_not_take_the_message_from_who_holds_it_now(
    client: AsyncSynapClient, other: AsyncSynapClient, name: str
) -> None:
    await client.queue.publish(name, "work")
    late = await take(client, name, ack_deadline=SOON)
    current = await take(other, name, timeout=PATIENCE, ack_deadline=300)
    assert current.message_id == late.message_id
    with pytest.raises(MessageNotFoundError):
        await client.queue.ack(name, late.message_id)
    with pytest.raises(MessageNotFoundError):
        await client.queue.nack(name, late.message_id)
    with pytest.raises(MessageNotFoundError):
        await client.queue.extend(name, late.message_id, 300)
    assert (await client.queue.stats(name)).pending == 1
    await other.queue.ack(name, current.message_id)
    stats = await client.queue.stats(name)
    assert (stats.depth, stats.pending, stats.acked_total) == (0, 0, 1)


async def test_a_holder_that_got_the_message_again_acknowledges_with_the_new_lease(
    client: AsyncSynapClient, name: str
) -> None:
    await client.queue.publish(name, "work")
    late = await take(client, name, ack_deadline=SOON)
    current = await take(client, name, timeout=PATIENCE)
    with pytest.raises(MessageNotFoundError):
        await client.queue.ack(name, late.message_id)
    await client.queue.ack(name, current.message_id)
    assert await client.queue.consume(name) is None


@pytest.mark.once_per_place
async def test_extend_gives_the_holder_more_time(client: AsyncSynapClient, other: AsyncSynapClient, name: str) -> None:
    await client.queue.publish(name, "long")
    await client.queue.publish(name, "short")
    for seconds in (1, 4, 16):
        long = await take(client, name, timeout=PATIENCE, ack_deadline=seconds)
        assert long.message == "long"
        try:
            await client.queue.extend(name, long.message_id, 500)
            break
        except MessageNotFoundError:  # a busy machine may take longer than that to start a service that was killed
            assert time.time() >= long.deadline, "the lease lasts"
    await take(client, name, ack_deadline=seconds)
    # The short lease runs out after the long one would have, and comes back alone.
    back = await take(other, name, timeout=PATIENCE)
    assert back.message == "short"
    assert await other.queue.consume(name) is None
    await client.queue.ack(name, long.message_id)


@pytest.mark.once_per_place
async def test_extend_can_also_shorten(client: AsyncSynapClient, name: str) -> None:
    await client.queue.publish(name, "work")
    message = await take(client, name, ack_deadline=500)
    await client.queue.extend(name, message.message_id, 1)
    assert (await take(client, name, timeout=PATIENCE)).retry_count == 1


@pytest.mark.once_per_place
async def test_the_queues_own_deadline_holds_where_consume_gives_none(client: AsyncSynapClient, name: str) -> None:
    await client.queue.create(name, ack_deadline=1)
    await client.queue.publish(name, "work")
    first = await client.queue.consume(name)
    assert first is not None
    second = await take(client, name, timeout=PATIENCE)
    assert second.message_id == first.message_id


@pytest.mark.parametrize("deadline", [0, -1, "30", 10**6], ids=repr)
async def test_a_deadline_that_makes_no_sense_is_refused(client: AsyncSynapClient, name: str, deadline: Any) -> None:
    await client.queue.publish(name, 1)
    with pytest.raises(SynapError) as caught:
        await client.queue.consume(name, ack_deadline=deadline)
    assert caught.value.code == "INVALID_PAYLOAD"
    assert "ack_deadline" in caught.value.message
    message = await take(client, name)
    with pytest.raises(SynapError) as caught:
        await client.queue.extend(name, message.message_id, deadline)
    assert caught.value.code == "INVALID_PAYLOAD"


# ---- negative acknowledgement


async def test_nack_puts_the_message_back_at_the_place_it_had(client: AsyncSynapClient, name: str) -> None:
    for number in range(3):
        await client.queue.publish(name, number)
    first = await take(client, name)
    second = await take(client, name)
    result = await client.queue.nack(name, second.message_id)
    assert (result.success, result.action) == (True, "requeued")
    await client.queue.nack(name, first.message_id)
    assert await drain(client, name) == [0, 1, 2]


async def test_nack_adds_one_to_retry_count(client: AsyncSynapClient, name: str) -> None:
    await client.queue.publish(name, "work")
    for count in range(4):
        message = await take(client, name)
        assert message.retry_count == count
        await client.queue.nack(name, message.message_id)


async def test_a_message_that_was_given_back_cannot_be_acknowledged(client: AsyncSynapClient, name: str) -> None:
    await client.queue.publish(name, "work")
    message = await take(client, name)
    await client.queue.nack(name, message.message_id)
    with pytest.raises(MessageNotFoundError):
        await client.queue.ack(name, message.message_id)
    assert (await take(client, name)).message == "work"


# ---- dead letters


async def test_beyond_max_retries_a_message_is_dead_lettered(client: AsyncSynapClient, name: str) -> None:
    await client.queue.create(name, max_retries=2)
    await client.queue.publish(name, "poison", priority=3, headers={"mine": "kept"})
    for action in ("requeued", "requeued", "dead_lettered"):
        message = await take(client, name)
        assert (await client.queue.nack(name, message.message_id)).action == action
    assert await client.queue.consume(name) is None
    dead = await take(client, f"{name}.dlq")
    assert dead.message == "poison"
    assert dead.headers["mine"] == "kept"
    assert name in dead.headers.values(), "the headers say from where"
    assert "3" in dead.headers.values(), "the headers say how often it was tried"
    assert len(dead.headers) >= 4, "the headers say why"


async def test_the_default_is_three_retries(client: AsyncSynapClient, name: str) -> None:
    await client.queue.publish(name, "poison")
    actions = []
    for _ in range(4):
        message = await take(client, name)
        actions.append((await client.queue.nack(name, message.message_id)).action)
    assert actions == ["requeued"] * 3 + ["dead_lettered"]


async def test_nack_without_requeue_dead_letters_at_once(client: AsyncSynapClient, name: str) -> None:
    await client.queue.publish(name, "no good")
    message = await take(client, name)
    result = await client.queue.nack(name, message.message_id, requeue=False)
    assert (result.success, result.action) == (True, "dead_lettered")
    assert await client.queue.consume(name) is None
    assert (await take(client, f"{name}.dlq")).message == "no good"


@pytest.mark.once_per_place
async def test_a_lease_that_runs_out_too_often_dead_letters(client: AsyncSynapClient, name: str) -> None:
    await client.queue.create(name, max_retries=1)
    await client.queue.publish(name, "slow")
    assert (await take(client, name, ack_deadline=SOON)).retry_count == 0
    assert (await take(client, name, timeout=PATIENCE, ack_deadline=SOON)).retry_count == 1
    dead = await take(client, f"{name}.dlq", timeout=PATIENCE)
    assert dead.message == "slow"
    assert await client.queue.consume(name) is None
    assert (await client.queue.stats(name)).dead_lettered_total == 1


async def test_headers_tell_a_deadline_from_a_refusal(client: AsyncSynapClient, name: str) -> None:
    await client.queue.create(name, max_retries=0)
    await client.queue.publish(name, "slow")
    await take(client, name, ack_deadline=SOON)
    slow = await take(client, f"{name}.dlq", timeout=PATIENCE)
    await client.queue.publish(name, "refused")
    message = await take(client, name)
    await client.queue.nack(name, message.message_id)
    refused = await take(client, f"{name}.dlq")
    assert slow.headers != refused.headers


async def test_dead_letters_are_an_ordinary_queue(client: AsyncSynapClient, name: str) -> None:
    for number in range(3):
        await client.queue.publish(name, number)
        message = await take(client, name)
        await client.queue.nack(name, message.message_id, requeue=False)
    dlq = f"{name}.dlq"
    assert dlq in await client.queue.list()
    assert (await client.queue.stats(dlq)).depth == 3
    dead = await take(client, dlq)
    await client.queue.nack(dlq, dead.message_id)
    assert await drain(client, dlq) == [0, 1, 2]


async def test_redrive_puts_dead_letters_back(client: AsyncSynapClient, name: str) -> None:
    for number in range(5):
        await client.queue.publish(name, number, headers={"mine": "kept"})
        message = await take(client, name)
        await client.queue.nack(name, message.message_id, requeue=False)
    assert await client.queue.redrive(name, limit=2) == 2
    assert (await client.queue.stats(name)).depth == 2
    assert (await client.queue.stats(f"{name}.dlq")).depth == 3
    assert await client.queue.redrive(name) == 3
    assert await client.queue.redrive(name) == 0
    message = await take(client, name)
    assert (message.message, message.retry_count, message.headers) == (0, 0, {"mine": "kept"})
    await client.queue.ack(name, message.message_id)
    assert await drain(client, name) == [1, 2, 3, 4]


async def test_redrive_where_nothing_died_puts_nothing_back(client: AsyncSynapClient, name: str) -> None:
    await client.queue.create(name)
    assert await client.queue.redrive(name) == 0


@pytest.mark.parametrize("limit", [0, -1], ids=repr)
async def test_a_redrive_of_less_than_one_is_refused(client: AsyncSynapClient, name: str, limit: int) -> None:
    await client.queue.create(name)
    with pytest.raises(SynapError) as caught:
        await client.queue.redrive(name, limit)
    assert caught.value.code == "INVALID_PAYLOAD"


async def test_without_dead_letters_a_message_goes_back_however_often(client: AsyncSynapClient, name: str) -> None:
    await client.queue.create(name, dead_letter=False, max_retries=0)
    await client.queue.publish(name, "no good")
    message = await take(client, name)
    for tries in range(5):
        assert (await client.queue.nack(name, message.message_id)).action == "requeued"
        message = await take(client, name)
        assert message.retry_count == tries + 1
    assert (await client.queue.nack(name, message.message_id, requeue=False)).action == "dropped"
    assert await client.queue.consume(name) is None
    assert f"{name}.dlq" not in await client.queue.list()


async def test_purge_leaves_nothing_of_what_was_leased_to_come_back(client: AsyncSynapClient, name: str) -> None:
    await client.queue.publish(name, "leased")
    await client.queue.publish(name, "ready")
    message = await take(client, name)
    await client.queue.purge(name)
    with pytest.raises(MessageNotFoundError):
        await client.queue.ack(name, message.message_id)
    assert await client.queue.consume(name) is None


async def test_a_queue_that_was_deleted_and_made_again_knows_nothing_of_the_old_leases(
    client: AsyncSynapClient, name: str
) -> None:
    await client.queue.publish(name, "old")
    message = await take(client, name)
    await client.queue.delete(name)
    await client.queue.publish(name, "new")
    with pytest.raises(MessageNotFoundError):
        await client.queue.ack(name, message.message_id)
    assert (await take(client, name)).message == "new"
