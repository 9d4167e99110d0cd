"""Looking into queues, consuming from several at once, acknowledging with the next consume, and delays of retries."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Dict, List

import pytest

from synap import AsyncSynapClient, MessageNotFoundError, QueueNotFoundError, SynapError
from tests.conformance.test_queue import take, wait_for_consumers
from tests.helpers.patience import PATIENCE


async def fill(client: AsyncSynapClient, queue: str, *values: int) -> List[str]:
    return [(await client.queue.publish(queue, value)).message_id for value in values]


# ---- peek


async def test_peek_shows_what_leaves_next_and_changes_nothing(client: AsyncSynapClient, name: str) -> None:
    await fill(client, name, 1, 2)
    first = await client.queue.publish(name, 3, priority=9, headers={"a": "b"})
    page = await client.queue.peek(name)
    assert [one.message for one in page.messages] == [3, 1, 2]
    assert not page.has_more
    one = page.messages[0]
    assert (one.message_id, one.priority, one.retry_count, one.headers) == (first.message_id, 9, 0, {"a": "b"})
    assert one.due is None
    assert one.published > 1_600_000_000
    assert [(await take(client, name)).message for _ in range(3)] == [3, 1, 2]
    stats = await client.queue.stats(name)
    assert (stats.consumed_total, stats.depth) == (3, 0)


async def test_peek_pages_through_each_state(client: AsyncSynapClient, name: str) -> None:
    await fill(client, name, *range(25))
    for number in range(5):
        await client.queue.publish(name, f"later {number}", delay=500 + number)
    leased = [(await take(client, name)).message for _ in range(7)]
    expected = {"leased": leased, "ready": list(range(7, 25)), "delayed": [f"later {number}" for number in range(5)]}
    for state, messages in expected.items():
        seen, after = [], None
        while True:
            page = await client.queue.peek(name, state=state, after=after, limit=4)
            seen += [one.message for one in page.messages]
            assert all((one.due is None) is (state == "ready") for one in page.messages)
            if not page.has_more:
                break
            after = page.messages[-1].message_id
        assert seen == messages, state


async def test_peek_keeps_the_order_of_what_came_back(client: AsyncSynapClient, name: str) -> None:
    await fill(client, name, *range(6))
    held = [await take(client, name) for _ in range(4)]
    for message in (held[2], held[0], held[3]):
        await client.queue.nack(name, message.message_id)
    first = await client.queue.peek(name, limit=2)
    assert [(one.message, one.retry_count) for one in first.messages] == [(0, 1), (2, 1)]
    rest = await client.queue.peek(name, after=first.messages[-1].message_id)
    assert [one.message for one in rest.messages] == [3, 4, 5]


async def test_peek_refuses_what_it_can_not_show(client: AsyncSynapClient, name: str) -> None:
    with pytest.raises(QueueNotFoundError):
        await client.queue.peek(name)
    (gone,) = await fill(client, name, 1)
    message = await take(client, name)
    await client.queue.ack(name, message.message_id)
    for after in (gone, "nonsense", "", "-"):
        with pytest.raises(MessageNotFoundError):
            await client.queue.peek(name, after=after)
    wrong: List[Dict[str, Any]] = [{"state": "gone"}, {"limit": 0}, {"limit": 1001}]
    for options in wrong:
        with pytest.raises(SynapError) as refused:
            await client.queue.peek(name, **options)
        assert refused.value.code == "INVALID_PAYLOAD"


LARGE = "x" * (3 * 1024 * 1024)
"""A message of which one answer holds two."""


@pytest.mark.once_per_place
async def test_a_page_of_peek_ends_after_8_mebibytes(client: AsyncSynapClient, name: str) -> None:
    for _ in range(3):
        await client.queue.publish(name, LARGE)
    first = await client.queue.peek(name)
    assert (len(first.messages), first.has_more) == (2, True)
    rest = await client.queue.peek(name, after=first.messages[-1].message_id)
    assert (len(rest.messages), rest.has_more) == (1, False)


# ---- consume_many


@pytest.mark.once_per_place
async def test_consume_many_leases_no_more_than_8_mebibytes(client: AsyncSynapClient, name: str) -> None:
    """Nobody would receive what one answer can't hold: its leases would pass, until it is a dead letter."""
    first, second = f"{name}-1", f"{name}-2"
    await client.queue.publish(second, LARGE + LARGE)
    await client.queue.publish(second, 1, headers={"a": LARGE})
    for _ in range(3):
        await client.queue.publish(first, LARGE)
    sizes: List[int] = []
    tried: List[int] = []
    while sum(sizes) < 5:
        found = await client.queue.consume_many([first, second], timeout=PATIENCE)
        tried += [message.retry_count for message in found]
        sizes.append(len(found))
        for message in found:
            await client.queue.ack(message.queue, message.message_id)
    assert (sizes, tried) == ([2, 1, 1, 1], [0] * 5)


@pytest.mark.once_per_place
async def test_one_message_is_delivered_and_shown_however_large(client: AsyncSynapClient, name: str) -> None:
    for _ in range(2):
        await client.queue.publish(name, LARGE * 3)
    assert len((await client.queue.peek(name)).messages) == 1
    assert [len(await client.queue.consume_many([name])) for _ in range(2)] == [1, 1]


async def test_consume_many_takes_from_the_first_queues_first(client: AsyncSynapClient, name: str) -> None:
    urgent, usual = f"{name}-urgent", f"{name}-usual"
    await fill(client, usual, 1, 2, 3)
    await fill(client, urgent, 10, 20)
    messages = await client.queue.consume_many([urgent, usual], max=4)
    assert [(one.queue, one.message) for one in messages] == [(urgent, 10), (urgent, 20), (usual, 1), (usual, 2)]
    for one in messages:
        await client.queue.ack(one.queue, one.message_id)
    assert [one.message for one in await client.queue.consume_many([urgent, usual])] == [3]
    assert await client.queue.consume_many([urgent, usual]) == []


async def test_consume_many_waits_at_all_its_queues(
    client: AsyncSynapClient, other: AsyncSynapClient, name: str
) -> None:
    first, second = f"{name}-1", f"{name}-2"
    waiting = asyncio.ensure_future(client.queue.consume_many([first, second], timeout=PATIENCE))
    await wait_for_consumers(other, second, 1)
    await other.queue.publish(second, "at last")
    (message,) = await waiting
    assert (message.queue, message.message) == (second, "at last")
    await wait_for_consumers(other, first, 0)
    await other.queue.publish(first, "for somebody else")
    assert (await take(other, first)).message == "for somebody else"


@pytest.mark.once_per_place
async def test_consume_many_that_waited_in_vain_gets_nothing(client: AsyncSynapClient, name: str) -> None:
    assert await client.queue.consume_many([name], timeout=1) == []


async def test_consume_many_acknowledges_what_it_is_given_or_takes_nothing(client: AsyncSynapClient, name: str) -> None:
    await fill(client, name, 1, 2, 3, 4, 5)
    held = await client.queue.consume_many([name], max=2)
    more = await client.queue.consume_many([name], max=1, ack=held)
    assert [one.message for one in more] == [3]
    assert (await client.queue.stats(name)).acked_total == 2
    with pytest.raises(MessageNotFoundError):
        await client.queue.consume_many([name], ack=[*more, *held])
    stats = await client.queue.stats(name)
    assert (stats.acked_total, stats.pending, stats.depth) == (2, 1, 2)


async def test_consume_many_refuses_a_name_where_names_belong(client: AsyncSynapClient, name: str) -> None:
    wrong: List[Any] = [name, []]
    for queues in wrong:
        with pytest.raises(SynapError) as refused:
            await client.queue.consume_many(queues)
        assert refused.value.code == "INVALID_PAYLOAD"


@pytest.mark.parametrize("refused", [{"queues": ["\u00e9" * 200]}, {"max": 0}, {"ack_deadline": 0}, {"timeout": -1}])
async def test_a_consume_that_is_refused_has_acknowledged_nothing(
    client: AsyncSynapClient, name: str, refused: Dict[str, Any]
) -> None:
    await fill(client, name, 1, 2)
    held = await client.queue.consume_many([name], max=1)
    given = {"queues": [], **refused}
    with pytest.raises(SynapError) as error:
        await client.queue.consume_many([name, *given.pop("queues")], ack=held, **given)
    assert error.value.code == "INVALID_PAYLOAD"
    if "queues" not in refused and "max" not in refused:
        with pytest.raises(SynapError):
            await client.queue.consume(name, ack=held[0].message_id, **given)
    stats = await client.queue.stats(name)
    assert (stats.acked_total, stats.pending, stats.depth) == (0, 1, 1)


# ---- consume and acknowledge in one step


async def test_a_consume_acknowledges_and_takes_the_next(client: AsyncSynapClient, name: str) -> None:
    await fill(client, name, 1, 2)
    first = await take(client, name)
    second = await client.queue.consume(name, ack=first.message_id)
    assert second is not None
    assert second.message == 2
    assert await client.queue.consume(name, ack=second.message_id) is None
    stats = await client.queue.stats(name)
    assert (stats.acked_total, stats.pending, stats.depth) == (2, 0, 0)


async def test_an_acknowledgement_with_the_consume_does_not_make_a_queue_that_was_deleted(
    client: AsyncSynapClient, name: str
) -> None:
    await fill(client, name, 1)
    held = await take(client, name)
    await client.queue.delete(name)
    with pytest.raises(QueueNotFoundError):
        await client.queue.consume(name, ack=held.message_id)
    assert name not in await client.queue.list()


async def test_where_the_lease_is_over_nothing_is_taken(client: AsyncSynapClient, name: str) -> None:
    await fill(client, name, 1, 2)
    first = await take(client, name)
    await client.queue.ack(name, first.message_id)
    for id in (first.message_id, "nonsense", "", "-"):
        for wait in (0, 0.01):
            with pytest.raises(MessageNotFoundError):
                await client.queue.consume(name, ack=id, timeout=wait)
    stats = await client.queue.stats(name)
    assert (stats.depth, stats.pending, stats.consumed_total) == (1, 0, 1)


async def test_what_waits_has_acknowledged_already(
    client: AsyncSynapClient, other: AsyncSynapClient, name: str
) -> None:
    await fill(client, name, 1)
    first = await take(client, name)
    waiting = asyncio.ensure_future(client.queue.consume(name, timeout=PATIENCE, ack=first.message_id))
    await wait_for_consumers(other, name, 1)
    assert (await other.queue.stats(name)).acked_total == 1
    await other.queue.publish(name, 2)
    message = await waiting
    assert message is not None
    assert message.message == 2


# ---- retries


@pytest.mark.once_per_place
async def test_a_message_given_back_waits_and_is_at_its_place_again(client: AsyncSynapClient, name: str) -> None:
    await client.queue.create(name, retry_delay=500)
    await fill(client, name, 1, 2, 3)
    first = await take(client, name)
    assert await client.queue.nack(name, first.message_id)
    assert (await client.queue.stats(name)).delayed == 1
    second = await client.queue.consume(name)
    assert second is not None
    assert second.message == 2
    assert await client.queue.create(name, retry_delay=1) is False
    assert await client.queue.nack(name, second.message_id)
    while (await client.queue.stats(name)).delayed > 1:
        await asyncio.sleep(0.05)
    again = await take(client, name)
    assert (again.message, again.retry_count) == (2, 1)


async def test_nack_says_how_long_to_wait(client: AsyncSynapClient, name: str) -> None:
    await client.queue.create(name, retry_delay=1)
    await fill(client, name, 1)
    message = await take(client, name)
    assert (await client.queue.nack(name, message.message_id, delay=500)).action == "requeued"
    (one,) = (await client.queue.peek(name, state="delayed")).messages
    assert one.retry_count == 1
    assert one.due is not None
    assert 490 < one.due - one.published < 560


async def test_create_changes_only_what_is_given(client: AsyncSynapClient, name: str) -> None:
    await client.queue.create(name, max_retries=0, max_depth=2, dead_letter=False)
    assert await client.queue.create(name, max_depth=3) is False
    await fill(client, name, 1, 2, 3)
    with pytest.raises(SynapError) as full:
        await fill(client, name, 4)
    assert full.value.code == "QUEUE_FULL"
    for _ in range(3):
        message = await take(client, name)
        assert (await client.queue.nack(name, message.message_id)).action == "requeued"


async def test_a_dead_letter_is_not_lost_by_looking_at_it(client: AsyncSynapClient, name: str) -> None:
    await client.queue.create(name, max_retries=0)
    await fill(client, name, 1)
    await client.queue.nack(name, (await take(client, name)).message_id)
    for _ in range(6):
        letter = await take(client, f"{name}.dlq")
        assert (await client.queue.nack(f"{name}.dlq", letter.message_id)).action == "requeued"
    assert await client.queue.redrive(name) == 1


# ---- leases as numbers


@pytest.mark.without("crashing")
async def test_an_id_that_was_text_is_settled_with_its_lease(
    client: AsyncSynapClient, other: AsyncSynapClient, name: str
) -> None:
    await fill(client, name, 1, 2, 3)
    for method in (other.queue.ack, other.queue.nack):
        message = await take(client, name)
        text = json.loads(json.dumps(message.message_id))
        with pytest.raises(MessageNotFoundError) as refused:
            await method(name, text)
        assert refused.value.details["reason"] == "lease_needed"
        assert "lease=message.lease" in str(refused.value)
        await method(name, text, lease=message.lease)
    message = await take(client, name)
    await other.queue.extend(name, str(message.message_id), 60, lease=message.lease)
    await client.queue.ack(name, message.message_id)
    with pytest.raises(MessageNotFoundError) as refused:
        await client.queue.ack(name, message.message_id)
    assert refused.value.details["reason"] == "settled"


@pytest.mark.once_per_place
@pytest.mark.without("crashing")  # what passed its deadline before a restart is not known after it
async def test_the_error_says_that_the_lease_is_over(client: AsyncSynapClient, name: str) -> None:
    await fill(client, name, 1)
    late = await client.queue.consume(name, ack_deadline=0.2)
    assert late is not None
    again = await client.queue.consume(name, timeout=PATIENCE)
    assert again is not None
    with pytest.raises(MessageNotFoundError) as refused:
        await client.queue.ack(name, late.message_id)
    assert refused.value.details["reason"] == "held_by_another"
    await client.queue.nack(name, again.message_id)
    with pytest.raises(MessageNotFoundError) as refused:
        await client.queue.ack(name, late.message_id)
    assert refused.value.details["reason"] == "lease_over"


async def test_redrive_puts_back_the_letters_that_are_named(client: AsyncSynapClient, name: str) -> None:
    for number in range(4):
        await client.queue.publish(name, number)
        message = await client.queue.consume(name)
        assert message is not None
        await client.queue.nack(name, message.message_id, requeue=False)
    letters = (await client.queue.peek(f"{name}.dlq")).messages
    chosen = [letters[2].message_id, letters[0].message_id]
    assert await client.queue.redrive(name, message_ids=[*chosen, "0-0", "nonsense", *chosen]) == 2
    assert [one.message for one in (await client.queue.peek(name)).messages] == [0, 2]
    assert [one.message for one in (await client.queue.peek(f"{name}.dlq")).messages] == [1, 3]
    assert await client.queue.redrive(name, message_ids=chosen) == 0
    assert await client.queue.redrive(name) == 2
