"""Subscriptions to rooms: history, then live, no gap, no repeat, in order."""

from __future__ import annotations

import asyncio
from typing import Any, Dict, List

import pytest

from synap import AsyncSynapClient, StreamEvent, SynapError
from tests.conformance.conftest import Make
from tests.conformance.targets import Target
from tests.conformance.test_stream import fill
from tests.helpers.patience import PATIENCE, in_time
from tests.helpers.seen import Gate, Seen


def offsets(events: List[StreamEvent]) -> List[int]:
    return [event.offset for event in events]


async def test_with_neither_offset_nor_replay_only_what_comes_next_is_pushed(
    client: AsyncSynapClient, name: str
) -> None:
    await fill(client, name, 3)
    seen = Seen()
    await client.stream.subscribe(name, seen)
    for number in (3, 4):
        await client.stream.publish(name, "number", number)
    events = await seen.first(2)
    assert [(event.offset, event.data, event.event_type) for event in events] == [(3, 3, "number"), (4, 4, "number")]


async def test_a_pushed_event_is_whole(client: AsyncSynapClient, name: str) -> None:
    seen = Seen()
    await client.stream.subscribe(name, seen)
    published = await client.stream.publish(name, "type", {"a": 1}, metadata={"m": "d"})
    event = (await seen.first(1))[0]
    assert isinstance(event, StreamEvent)
    assert event == (await client.stream.history(name)).events[0]
    assert (event.event_id, event.metadata, event.room) == (published.event_id, {"m": "d"}, name)


# What each combination gives of a room that holds 0 to 9, into which 10 is published afterwards.
STARTS: Dict[str, Any] = {
    "next": ({}, [10]),
    "replay": ({"replay": True}, list(range(11))),
    "from 0": ({"from_offset": 0}, list(range(11))),
    "from 4": ({"from_offset": 4}, list(range(4, 11))),
    "from 4, replay": ({"from_offset": 4, "replay": True}, list(range(4, 11))),
    "from 10": ({"from_offset": 10}, [10]),
    "last 3": ({"from_offset": -3}, [7, 8, 9, 10]),
    "last 3, replay": ({"from_offset": -3, "replay": True}, [7, 8, 9, 10]),
    "last 50": ({"from_offset": -50, "replay": True}, list(range(11))),
}


@pytest.mark.parametrize("start", STARTS)
async def test_history_comes_first_from_where_it_was_asked(
    client: AsyncSynapClient, other: AsyncSynapClient, name: str, start: str
) -> None:
    options, expected = STARTS[start]
    await fill(client, name, 10)
    seen = Seen()
    await client.stream.subscribe(name, seen, **options)
    await other.stream.publish(name, "number", 10)
    events = await seen.until(lambda event: event.offset == 10)
    assert offsets(events) == expected
    assert all(event.data == event.offset for event in events)


@pytest.mark.without("crashing")
async def test_history_and_live_join_without_gap_or_repeat_while_others_publish(
    client: AsyncSynapClient, other: AsyncSynapClient, name: str
) -> None:
    await fill(client, name, 50)

    async def publish() -> None:
        for number in range(50, 150):
            await other.stream.publish(name, "number", number)

    publishing = asyncio.create_task(publish())
    seen = [Seen() for _ in range(5)]
    for one in seen:
        await client.stream.subscribe(name, one, replay=True)
    await publishing
    for one in seen:
        assert offsets(await one.first(150)) == list(range(150))


async def test_every_subscriber_gets_every_event(client: AsyncSynapClient, other: AsyncSynapClient, name: str) -> None:
    seen = [Seen(), Seen(), Seen()]
    await client.stream.subscribe(name, seen[0], from_offset=0)
    await client.stream.subscribe(name, seen[1], from_offset=0)
    await other.stream.subscribe(name, seen[2], from_offset=0)
    await other.stream.publish(name, "type", "all")
    for one in seen:
        assert offsets(await one.first(1)) == [0]


@pytest.mark.without("crashing")
async def test_publish_answers_how_many_were_notified(
    client: AsyncSynapClient, other: AsyncSynapClient, name: str
) -> None:
    subscriptions = [await who.stream.subscribe(name, print) for who in (client, other, client)]
    assert (await client.stream.publish(name, "type", 1)).subscribers_notified == 3
    await subscriptions[0].unsubscribe()
    assert (await client.stream.publish(name, "type", 2)).subscribers_notified == 2
    for subscription in subscriptions[1:]:
        await subscription.unsubscribe()
    assert (await client.stream.publish(name, "type", 3)).subscribers_notified == 0


async def test_a_subscription_knows_its_room(client: AsyncSynapClient, name: str) -> None:
    assert (await client.stream.subscribe(name, print)).room == name


async def test_after_unsubscribe_nothing_more_comes(client: AsyncSynapClient, name: str) -> None:
    ends, stays = Seen(), Seen()
    subscription = await client.stream.subscribe(name, ends, from_offset=0)
    await client.stream.subscribe(name, stays, from_offset=0)
    await client.stream.publish(name, "number", 0)
    await ends.first(1)
    await subscription.unsubscribe()
    await client.stream.publish(name, "number", 1)
    assert offsets(await stays.first(2)) == [0, 1]
    assert offsets(ends.items) == [0]


async def test_unsubscribing_twice_is_harmless(client: AsyncSynapClient, name: str) -> None:
    subscription = await client.stream.subscribe(name, print)
    await subscription.unsubscribe()
    await subscription.unsubscribe()


@pytest.mark.without("crashing")  # whoever is away just then finds the room begun anew
async def test_a_deleted_room_ends_its_subscriptions(client: AsyncSynapClient, name: str) -> None:
    await fill(client, name, 1)
    subscription = await client.stream.subscribe(name, replay=True)
    received = []

    async def receive() -> None:
        async for event in in_time(subscription):
            received.append(event.offset)
            await client.stream.delete(name)

    with pytest.raises(SynapError) as caught:
        await asyncio.wait_for(receive(), PATIENCE)
    assert caught.value.code == "ROOM_NOT_FOUND"
    assert received == [0]


# ---- iterators


async def test_a_subscription_can_be_iterated(client: AsyncSynapClient, name: str) -> None:
    await fill(client, name, 3)
    subscription = await client.stream.subscribe(name, replay=True)
    await client.stream.publish(name, "number", 3)
    received: List[StreamEvent] = []

    async def receive() -> None:
        async for event in in_time(subscription):
            received.append(event)
            if event.offset == 3:
                return

    await asyncio.wait_for(receive(), PATIENCE)
    assert offsets(received) == [0, 1, 2, 3]
    await subscription.unsubscribe()


async def test_iteration_ends_with_the_subscription(client: AsyncSynapClient, name: str) -> None:
    await fill(client, name, 2)
    subscription = await client.stream.subscribe(name, replay=True)
    received: List[int] = []

    async def receive() -> None:
        async for event in in_time(subscription):
            received.append(event.offset)
            if event.offset == 1:
                await subscription.unsubscribe()

    await asyncio.wait_for(receive(), PATIENCE)
    assert received == [0, 1]


# ---- across reconnects


@pytest.mark.only("crashing")
async def test_a_subscription_goes_on_after_a_crash_without_gap_or_repeat(client: AsyncSynapClient, name: str) -> None:
    seen = Seen()
    await client.stream.subscribe(name, seen)
    for number in range(10):  # a crash before each
        await client.stream.publish(name, "number", number)
    events = await seen.until(lambda event: event.offset == 9)
    assert offsets(events) == list(range(10))


@pytest.mark.only("crashing")
async def test_a_subscription_that_had_no_event_yet_misses_none_after_a_crash(
    client: AsyncSynapClient, name: str
) -> None:
    await fill(client, name, 3)
    seen = Seen()
    await client.stream.subscribe(name, seen)
    await client.stream.publish(name, "number", 3)
    assert offsets(await seen.first(1)) == [3]


# ---- a callback that takes its time


@pytest.mark.without("crashing")
async def test_a_slow_subscriber_misses_nothing_and_delays_nobody(make: Make, target: Target, name: str) -> None:
    slow, quick = make(buffer=10), make()
    gate = Gate(target.colour)
    seen, others = Seen(), Seen()
    await slow.stream.subscribe(name, gate.before(seen))
    await quick.stream.subscribe(name, others)
    await fill(quick, name, 200)
    assert offsets(await others.first(200)) == list(range(200))
    assert seen.items == []
    gate.open()
    assert offsets(await seen.first(200)) == list(range(200))
