"""Durable subscriptions: the service knows how far a name has got."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, List

import pytest

from synap import AsyncSynapClient, RoomNotFoundError, SynapError
from synap.client._async import commits as async_commits
from synap.client._sync import commits as sync_commits
from synap.results import StreamEvent
from tests.conformance.conftest import Make
from tests.helpers.colour import in_thread
from tests.helpers.patience import PATIENCE, in_time

pytestmark = pytest.mark.without("crashing")  # see tests/client/test_durable_names.py


async def publish(client: AsyncSynapClient, room: str, *values: int) -> None:
    for value in values:
        await client.stream.publish(room, "n", value)


async def committed(client: AsyncSynapClient, room: str, name: str, offset: int) -> None:
    """Wait until a name has got to `offset`."""
    for _ in range(2_000):
        if any((cursor.name, cursor.offset) == (name, offset) for cursor in await client.stream.cursors(room)):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{name} never got to {offset}: {await client.stream.cursors(room)}")


async def take(subscription: Any, count: int) -> List[Any]:
    """Take events by iterating."""
    found: List[Any] = []
    async for event in in_time(subscription):
        found.append(event.data)
        if len(found) == count:
            break
    return found


async def test_a_name_goes_on_behind_what_its_callback_has_done(client: AsyncSynapClient, name: str) -> None:
    await publish(client, name, 0, 1, 2)
    seen: List[Any] = []
    first = await client.stream.subscribe(name, lambda event: seen.append(event.data), replay=True, name="reader")
    await committed(client, name, "reader", 2)
    await first.unsubscribe()
    await publish(client, name, 3, 4)
    second = await client.stream.subscribe(name, lambda event: seen.append(event.data), replay=True, name="reader")
    await committed(client, name, "reader", 4)
    assert seen == [0, 1, 2, 3, 4]
    await second.unsubscribe()


async def test_what_an_iterator_gave_is_done_once_the_next_is_asked_for(client: AsyncSynapClient, name: str) -> None:
    await publish(client, name, 0, 1, 2, 3)
    subscription = await client.stream.subscribe(name, replay=True, name="reader")
    assert await take(subscription, 2) == [0, 1]
    await committed(client, name, "reader", 0)
    await subscription.unsubscribe()
    await committed(client, name, "reader", 1)
    again = await client.stream.subscribe(name, name="reader")
    assert await take(again, 2) == [2, 3]
    await again.unsubscribe()


async def test_a_client_that_closes_commits_what_its_callback_has_done(
    make: Make, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for colour in (async_commits, sync_commits):
        monkeypatch.setattr(colour, "INTERVAL", 10 * PATIENCE)
    client, other = make(), make()
    await publish(other, name, 0, 1, 2)
    last = threading.Event()

    def note(event: StreamEvent) -> None:
        if event.offset == 3:
            last.set()

    await client.stream.subscribe(name, note, replay=True, name="reader")
    await publish(other, name, 3)
    assert await in_thread(last.wait, PATIENCE)
    await client.close()
    assert (await other.stream.cursors(name))[0].offset >= 2  # the last one's callback may not have returned


async def test_a_client_that_closes_does_not_commit_what_its_iterator_gave_last(make: Make, name: str) -> None:
    client, other = make(), make()
    await publish(other, name, 0, 1, 2)
    subscription = await client.stream.subscribe(name, replay=True, name="reader")
    assert await take(subscription, 2) == [0, 1]
    await client.close()
    await subscription.unsubscribe()
    assert (await other.stream.cursors(name))[0].offset == 0


async def test_an_event_whose_handling_failed_comes_again(client: AsyncSynapClient, name: str) -> None:
    await publish(client, name, 0, 1)
    subscription = await client.stream.subscribe(name, replay=True, name="reader")

    async def fail() -> None:
        async with subscription:
            async for _ in in_time(subscription):
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    again = await client.stream.subscribe(name, name="reader")
    assert await take(again, 2) == [0, 1]
    await again.unsubscribe()


async def test_a_new_name_begins_as_replay_says_and_stays_there(client: AsyncSynapClient, name: str) -> None:
    await publish(client, name, 0, 1)
    for reader, replay in (("old", True), ("new", False)):
        subscription = await client.stream.subscribe(name, replay=replay, name=reader)
        await subscription.unsubscribe()
    await publish(client, name, 2)
    assert [(one.name, one.offset, one.lag) for one in await client.stream.cursors(name)] == [
        ("new", 1, 1),
        ("old", -1, 3),
    ]
    subscription = await client.stream.subscribe(name, name="new", replay=True)
    assert await take(subscription, 1) == [2]
    await subscription.unsubscribe()


@pytest.mark.parametrize("beyond", [2, 2**63 - 1])
async def test_a_new_name_is_never_ahead_of_its_room(client: AsyncSynapClient, name: str, beyond: int) -> None:
    await publish(client, name, 0)
    subscription = await client.stream.subscribe(name, from_offset=beyond, name="reader")
    assert [(one.offset, one.lag) for one in await client.stream.cursors(name)] == [(0, 0)]
    await subscription.unsubscribe()
    await publish(client, name, 1)
    again = await client.stream.subscribe(name, name="reader")
    assert await take(again, 1) == [1]
    await again.unsubscribe()


async def test_a_newer_subscriber_of_a_name_takes_over(
    client: AsyncSynapClient, other: AsyncSynapClient, name: str
) -> None:
    older = await client.stream.subscribe(name, name="reader")
    newer = await other.stream.subscribe(name, name="reader")
    with pytest.raises(SynapError) as ended:
        await asyncio.wait_for(take(older, 1), PATIENCE)
    assert ended.value.code == "SUPERSEDED"
    assert ended.value.details == {"room": name, "name": "reader"}
    await publish(client, name, 0)
    assert await take(newer, 1) == [0]
    await newer.unsubscribe()


async def test_commit_sets_a_name_and_forget_removes_it(client: AsyncSynapClient, name: str) -> None:
    await publish(client, name, 0, 1, 2)
    await client.stream.commit(name, "reader", 1)
    assert [(one.offset, one.lag) for one in await client.stream.cursors(name)] == [(1, 1)]
    await client.stream.commit(name, "reader", -1)
    assert [(one.offset, one.lag) for one in await client.stream.cursors(name)] == [(-1, 3)]
    assert await client.stream.forget(name, "reader") is True
    assert await client.stream.forget(name, "reader") is False
    assert await client.stream.cursors(name) == []


async def test_what_can_not_be_committed_is_refused(client: AsyncSynapClient, name: str) -> None:
    with pytest.raises(RoomNotFoundError):
        await client.stream.commit(name, "reader", 0)
    await publish(client, name, 0)
    for offset in (1, -2):
        with pytest.raises(SynapError) as refused:
            await client.stream.commit(name, "reader", offset)
        assert refused.value.code == "INVALID_PAYLOAD"
    with pytest.raises(SynapError) as refused:
        await client.stream.subscribe(name, name="")
    assert refused.value.code == "INVALID_PAYLOAD"
