"""Event streams: what a room holds and how it is read."""

from __future__ import annotations

import time
from typing import Any, List

import pytest

from synap import AsyncSynapClient, RoomNotFoundError, SynapError


async def fill(client: AsyncSynapClient, room: str, count: int) -> None:
    """Publish events 0, 1, 2, … to a room."""
    for number in range(count):
        await client.stream.publish(room, "number", number)


async def read(client: AsyncSynapClient, room: str, **options: Any) -> List[int]:
    """Read the offsets of a page of history, having seen that each event holds what it should."""
    events = (await client.stream.history(room, **options)).events
    assert all(event.data == event.offset for event in events)
    return [event.offset for event in events]


async def test_offsets_count_from_zero_without_gaps(client: AsyncSynapClient, name: str) -> None:
    results = [await client.stream.publish(name, "number", number) for number in range(5)]
    assert [result.offset for result in results] == [0, 1, 2, 3, 4]
    assert len({result.event_id for result in results}) == 5


async def test_each_room_counts_for_itself(client: AsyncSynapClient, name: str) -> None:
    await fill(client, f"{name}-a", 3)
    assert (await client.stream.publish(f"{name}-b", "first", None)).offset == 0


async def test_an_event_comes_back_whole(client: AsyncSynapClient, name: str) -> None:
    before = int(time.time())
    published = await client.stream.publish(name, "order.placed", {"id": 7}, metadata={"source": "a test"})
    event = (await client.stream.history(name)).events[0]
    assert event.event_id == published.event_id
    assert (event.offset, event.event_type, event.data) == (0, "order.placed", {"id": 7})
    assert (event.metadata, event.room) == ({"source": "a test"}, name)
    assert type(event.timestamp) is int
    assert before <= event.timestamp <= int(time.time()) + 1


async def test_metadata_is_empty_where_none_was_given(client: AsyncSynapClient, name: str) -> None:
    await client.stream.publish(name, "type", 1)
    assert (await client.stream.history(name)).events[0].metadata == {}


async def test_publishing_without_subscribers_notifies_nobody(client: AsyncSynapClient, name: str) -> None:
    assert (await client.stream.publish(name, "type", 1)).subscribers_notified == 0


# ---- history


async def test_history_gives_the_events_and_the_ends_of_the_room(client: AsyncSynapClient, name: str) -> None:
    await fill(client, name, 5)
    history = await client.stream.history(name)
    assert [event.offset for event in history.events] == [0, 1, 2, 3, 4]
    assert (history.oldest_offset, history.newest_offset) == (0, 4)


async def test_history_takes_both_ends_inclusive(client: AsyncSynapClient, name: str) -> None:
    await fill(client, name, 10)
    assert await read(client, name, from_offset=3, to_offset=6) == [3, 4, 5, 6]
    assert await read(client, name, from_offset=3, to_offset=3) == [3]
    assert await read(client, name, to_offset=1) == [0, 1]
    assert await read(client, name, from_offset=8) == [8, 9]
    assert await read(client, name, from_offset=6, to_offset=3) == []


async def test_history_beyond_the_newest_is_empty(client: AsyncSynapClient, name: str) -> None:
    await fill(client, name, 3)
    history = await client.stream.history(name, from_offset=3)
    assert (history.events, history.oldest_offset, history.newest_offset) == ([], 0, 2)
    assert await read(client, name, from_offset=1, to_offset=10**9) == [1, 2]


async def test_a_negative_offset_counts_from_the_end(client: AsyncSynapClient, name: str) -> None:
    await fill(client, name, 10)
    assert await read(client, name, from_offset=-3) == [7, 8, 9]
    assert await read(client, name, from_offset=-1) == [9]
    assert await read(client, name, from_offset=-100) == list(range(10))


async def test_history_is_limited_to_100_events_unless_told(client: AsyncSynapClient, name: str) -> None:
    commands = [
        {"command": "stream.publish", "payload": {"room": name, "event_type": "number", "data": number}}
        for number in range(105)
    ]
    await client.batch(commands)
    assert await read(client, name) == list(range(100))
    assert await read(client, name, limit=3) == [0, 1, 2]
    assert await read(client, name, from_offset=50, limit=2) == [50, 51]
    assert await read(client, name, limit=10_000) == list(range(105))


@pytest.mark.parametrize("limit", [0, -1, 10_001, "5"], ids=repr)
async def test_a_limit_that_makes_no_sense_is_refused(client: AsyncSynapClient, name: str, limit: Any) -> None:
    await fill(client, name, 1)
    with pytest.raises(SynapError) as caught:
        await client.stream.history(name, limit=limit)
    assert caught.value.code == "INVALID_PAYLOAD"
    assert "limit" in caught.value.message


async def test_history_stats_and_delete_of_an_unknown_room_are_not_found(client: AsyncSynapClient, name: str) -> None:
    calls: Any = [client.stream.history(name), client.stream.stats(name), client.stream.delete(name)]
    for call in calls:
        with pytest.raises(RoomNotFoundError) as caught:
            await call
        assert caught.value.code == "ROOM_NOT_FOUND"
        assert caught.value.details["room"] == name


async def test_a_room_that_was_only_subscribed_to_exists_and_is_empty(client: AsyncSynapClient, name: str) -> None:
    await client.stream.subscribe(name, print)
    assert name in await client.stream.rooms()
    history = await client.stream.history(name)
    assert history.events == []
    assert history.oldest_offset == history.newest_offset + 1


# ---- rooms, stats, delete


async def test_rooms_are_listed(client: AsyncSynapClient, name: str) -> None:
    assert name not in await client.stream.rooms()
    await fill(client, name, 1)
    assert name in await client.stream.rooms()


async def test_stats_tell_about_the_room(client: AsyncSynapClient, name: str) -> None:
    await fill(client, name, 4)
    stats = await client.stream.stats(name)
    assert stats.room == name
    assert (stats.events, stats.oldest_offset, stats.newest_offset) == (4, 0, 3)
    assert (stats.subscribers, stats.published_total) == (0, 4)
    await client.stream.subscribe(name, print, from_offset=4)
    assert (await client.stream.publish(name, "number", 4)).subscribers_notified == 1
    assert (await client.stream.stats(name)).subscribers == 1


async def test_delete_takes_the_room_and_its_events(client: AsyncSynapClient, name: str) -> None:
    await fill(client, name, 2)
    assert await client.stream.delete(name) is True
    assert name not in await client.stream.rooms()
    with pytest.raises(RoomNotFoundError):
        await client.stream.history(name)


@pytest.mark.parametrize("room", ["", "r" * 257], ids=["empty", "long"])
async def test_a_room_name_that_is_empty_or_too_long_is_refused(client: AsyncSynapClient, room: str) -> None:
    calls: Any = [
        client.stream.publish(room, "type", 1),
        client.stream.history(room),
        client.stream.subscribe(room, print),
    ]
    for call in calls:
        with pytest.raises(SynapError) as caught:
            await call
        assert caught.value.code == "INVALID_PAYLOAD"
        assert "room" in caught.value.message


async def test_a_page_of_history_ends_after_8_mebibytes(client: AsyncSynapClient, name: str) -> None:
    large = "x" * (3 * 1024 * 1024)
    for _ in range(4):
        await client.stream.publish(name, "large", large)
    page = await client.stream.history(name)
    assert [event.offset for event in page.events] == [0, 1]
    assert page.newest_offset == 3
    rest = await client.stream.history(name, from_offset=2)
    assert [event.offset for event in rest.events] == [2, 3]


@pytest.mark.once_per_place
async def test_the_metadata_of_events_counts_as_well(client: AsyncSynapClient, name: str) -> None:
    for _ in range(3):
        await client.stream.publish(name, "large", 1, metadata={"a": "x" * (3 * 1024 * 1024)})
    assert [event.offset for event in (await client.stream.history(name)).events] == [0, 1]


async def test_a_page_of_history_holds_one_event_however_large(client: AsyncSynapClient, name: str) -> None:
    for _ in range(2):
        await client.stream.publish(name, "large", "x" * (9 * 1024 * 1024))
    assert [event.offset for event in (await client.stream.history(name)).events] == [0]
    assert [event.offset for event in (await client.stream.history(name, from_offset=-1)).events] == [1]
