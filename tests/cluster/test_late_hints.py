"""What nodes say in channels comes on connections of their own: it may come late, or not at all, and nothing depends on
when."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from typing import Any, Iterator, List, Tuple

import pytest

from synap import AsyncSynapClient, EventsLostError, QueueNotFoundError, RoomNotFoundError, SynapError
from synap.cluster import channels, host, lines
from synap.cluster.places import Places
from synap.cluster.waiting import Consumers
from synap.testing.cluster import ThrowawayCluster
from tests.cluster.conftest import a_space, another_url
from tests.helpers.patience import PATIENCE


class Hints:
    """Holds back what nodes say in channels, or loses it."""

    def __init__(self) -> None:
        self.held: List[Tuple[Any, bytes]] = []
        self.holds = False

    def release(self) -> None:
        """Let come what was held back."""
        self.holds = False
        held, self.held = self.held, []
        for connection, data in held:
            TAKE(connection, data)

    def lose(self) -> None:
        """Let never come what was held back."""
        self.holds = False
        self.held.clear()


TAKE = channels._Connection.data_received


@contextmanager
def held_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hints]:
    hints = Hints()

    def data_received(self: Any, data: bytes) -> None:
        if hints.holds:
            hints.held.append((self, data))
        else:
            TAKE(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(channels._Connection, "data_received", data_received)
        yield hints
        hints.release()


async def first(subscription: Any) -> Any:
    return (await subscription.__aiter__().__anext__()).data


async def superseded(subscription: Any) -> None:
    with pytest.raises(SynapError) as ended:
        await asyncio.wait_for(first(subscription), PATIENCE)
    assert ended.value.code == "SUPERSEDED"


async def test_who_takes_a_name_over_is_not_ended_by_the_late_news_of_the_one_before(
    one_node: ThrowawayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncSynapClient(url=one_node.url, engine=a_space()) as client:
        with held_back(monkeypatch) as hints:
            await client.stream.subscribe("room")  # from now on, the room's channel is listened to
            hints.holds = True
            older = await client.stream.subscribe("room", name="reader")
            newer = await client.stream.subscribe("room", name="reader")
            hints.release()
            await superseded(older)
            await client.stream.publish("room", "n", 7)
            assert await asyncio.wait_for(first(newer), PATIENCE) == 7


async def test_a_name_that_was_taken_over_is_noticed_without_the_news(
    one_node: ThrowawayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = a_space()
    async with AsyncSynapClient(url=one_node.url, engine=engine) as client:
        with held_back(monkeypatch) as hints:
            older = await client.stream.subscribe("room", name="reader")
            hints.holds = True
            newer = await client.stream.subscribe("room", name="reader")
            hints.lose()
            await superseded(older)
            await client.stream.publish("room", "n", 7)
            assert await asyncio.wait_for(first(newer), PATIENCE) == 7


async def test_a_deleted_room_ends_its_subscriptions_without_the_news_and_is_not_made_again(
    one_node: ThrowawayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncSynapClient(url=one_node.url, engine=a_space()) as client:
        with held_back(monkeypatch) as hints:
            followed = await client.stream.subscribe("room")
            hints.holds = True
            await client.stream.delete("room")
            hints.lose()
            with pytest.raises(RoomNotFoundError):
                await asyncio.wait_for(first(followed), PATIENCE)
            assert await client.stream.rooms() == []


async def test_a_room_that_is_made_again_is_not_ended_by_the_late_news_of_its_deletion(
    one_node: ThrowawayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncSynapClient(url=one_node.url, engine=a_space()) as client:
        with held_back(monkeypatch) as hints:
            before = await client.stream.subscribe("room")
            hints.holds = True
            await client.stream.delete("room")
            after = await client.stream.subscribe("room")
            hints.release()
            with pytest.raises(RoomNotFoundError):
                await asyncio.wait_for(first(before), PATIENCE)
            await client.stream.publish("room", "n", 7)
            assert await asyncio.wait_for(first(after), PATIENCE) == 7


async def waiting(client: AsyncSynapClient, queue: str, count: int) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            if (await client.queue.stats(queue)).consumers == count:
                return
        except QueueNotFoundError:
            pass
        assert time.monotonic() < end, f"there are never {count} consumers"
        await asyncio.sleep(0.01)


async def test_who_waits_for_a_queue_that_is_made_again_is_not_refused_by_the_late_news_of_its_deletion(
    one_node: ThrowawayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncSynapClient(url=one_node.url, engine=a_space()) as client:
        with held_back(monkeypatch) as hints:
            before = asyncio.ensure_future(client.queue.consume("q", timeout=PATIENCE))
            await waiting(client, "q", 1)
            hints.holds = True
            await client.queue.delete("q")
            await client.queue.create("q")
            after = asyncio.ensure_future(client.queue.consume("q", timeout=PATIENCE))
            await waiting(client, "q", 1)
            hints.release()
            with pytest.raises(QueueNotFoundError):
                await asyncio.wait_for(before, PATIENCE)
            await client.queue.publish("q", 7)
            message = await asyncio.wait_for(after, PATIENCE)
            assert message is not None
            assert message.message == 7


async def test_a_deleted_queue_ends_those_who_wait_without_the_news_and_is_not_made_again(
    one_node: ThrowawayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncSynapClient(url=one_node.url, engine=a_space()) as client:
        with held_back(monkeypatch) as hints:
            before = asyncio.ensure_future(client.queue.consume("q", timeout=PATIENCE))
            await waiting(client, "q", 1)
            hints.holds = True
            await client.queue.delete("q")
            hints.lose()
            with pytest.raises(QueueNotFoundError):
                await asyncio.wait_for(before, PATIENCE)
            assert await client.queue.list() == []


@pytest.mark.parametrize("made_again", [False, True])
@pytest.mark.parametrize("how", ["consume", "consume_many", "ack"])
async def test_a_consume_ends_whose_queue_was_deleted_after_it_asked_first(
    one_node: ThrowawayCluster, monkeypatch: pytest.MonkeyPatch, how: str, made_again: bool
) -> None:
    """It asks once, listens for news of its queue, and asks again; what it asked first was forgotten between."""
    space = a_space()
    async with AsyncSynapClient(url=one_node.url, engine=space) as client, AsyncSynapClient(
        url=another_url(one_node), engine=space
    ) as other:
        ack = None
        if how == "ack":
            await other.queue.publish("q", 1)
            taken = await other.queue.consume("q")
            assert taken is not None
            ack = taken.message_id
        with held_back(monkeypatch) as hints:
            hints.holds = True
            asked: asyncio.Future[Any] = asyncio.ensure_future(
                client.queue.consume_many(["other", "q"], timeout=PATIENCE)
                if how == "consume_many"
                else client.queue.consume("q", timeout=PATIENCE, ack=ack)
            )
            while "q" not in await other.queue.list() or (await other.queue.stats("q")).acked_total < (how == "ack"):
                await asyncio.sleep(0.01)
            while not hints.held:  # it has asked, and listens
                await asyncio.sleep(0.01)
            assert await other.queue.delete("q")
            if made_again:
                await other.queue.create("q")
            hints.release()
            with pytest.raises(QueueNotFoundError) as caught:
                await asyncio.wait_for(asked, PATIENCE)
            assert caught.value.may_have_happened is (how == "ack")
            assert ("q" in await other.queue.list()) is made_again


async def test_who_asked_a_queue_that_was_made_again_waits_beside_one_who_waits_for_the_one_before(
    one_node: ThrowawayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = a_space()
    monkeypatch.setattr(lines, "POLL", 10 * PATIENCE)
    async with AsyncSynapClient(url=one_node.url, engine=space) as client, AsyncSynapClient(
        url=another_url(one_node), engine=space
    ) as other:
        with held_back(monkeypatch) as hints:
            before = asyncio.ensure_future(client.queue.consume("q", timeout=PATIENCE))
            await waiting(other, "q", 1)
            hints.holds = True
            await other.queue.delete("q")
            await other.queue.publish("q", 1)
            taken = await other.queue.consume("q")
            assert taken is not None
            after = asyncio.ensure_future(client.queue.consume("q", timeout=PATIENCE, ack=taken.message_id))
            with pytest.raises(QueueNotFoundError):
                await asyncio.wait_for(before, PATIENCE)
            await waiting(other, "q", 1)
            hints.release()
            await other.queue.publish("q", 7)
            message = await asyncio.wait_for(after, PATIENCE)
            assert message is not None
            assert message.message == 7


async def test_a_message_is_delivered_without_the_news(
    one_node: ThrowawayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncSynapClient(url=one_node.url, engine=a_space()) as client:
        with held_back(monkeypatch) as hints:
            consumed = asyncio.ensure_future(client.queue.consume("q", timeout=PATIENCE))
            await waiting(client, "q", 1)
            followed = await client.stream.subscribe("room")
            hints.holds = True
            await client.queue.publish("q", 7)
            await client.stream.publish("room", "n", 8)
            hints.lose()
            message = await asyncio.wait_for(consumed, PATIENCE)
            assert message is not None
            assert message.message == 7
            assert await asyncio.wait_for(first(followed), PATIENCE) == 8


async def test_a_channel_that_is_left_and_entered_at_once_is_listened_to(one_node: ThrowawayCluster) -> None:
    async with AsyncSynapClient(url=one_node.url, engine=a_space()) as client:
        for turn in range(50):
            subscription = await client.stream.subscribe("room")
            again = asyncio.ensure_future(client.stream.subscribe("room"))
            await subscription.unsubscribe()
            second = await again
            await client.stream.publish("room", "n", turn)
            assert await asyncio.wait_for(first(second), PATIENCE) == turn
            await second.unsubscribe()
        for node in one_node.nodes:  # a connection that is lost is noticed, whatever was left and entered before
            subscription = await client.stream.subscribe("room")
            node.ask("CLIENT", "KILL", "TYPE", "pubsub")
            await client.stream.publish("room", "n", "after")
            assert await asyncio.wait_for(first(subscription), PATIENCE) == "after"


async def test_events_that_a_failover_took_are_told_however_late_somebody_learns_of_it(
    one_node: ThrowawayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a failover does to a room is done here by hand: its keys are as they were two events before, elsewhere."""
    space = a_space()
    places = Places(space["partitions"], space["space"])
    head, events = places.room(places.partition("room"), "room")[1:3]
    node = one_node.nodes[0]
    async with AsyncSynapClient(url=one_node.url, engine=space) as client:
        with held_back(monkeypatch) as hints:
            subscription = await client.stream.subscribe("room")
            reading = subscription.__aiter__()
            for number in range(3):
                await client.stream.publish("room", "n", number)
            before = {key: node.ask("DUMP", key) for key in (head, events)}
            for number in range(3, 5):
                await client.stream.publish("room", "n", number)
            assert [(await asyncio.wait_for(reading.__anext__(), PATIENCE)).data for _ in range(5)] == [0, 1, 2, 3, 4]
            hints.holds = True
            for key, kept in before.items():
                node.ask("RESTORE", key, 0, kept, "REPLACE")
            for home in (b"another", b"a third"):  # and once more, which takes nothing
                node.ask("HSET", head, "home", home)
                for number in range(10, 14):
                    await client.stream.publish("room", "n", number)
            hints.lose()
            with pytest.raises(EventsLostError) as lost:
                await asyncio.wait_for(reading.__anext__(), PATIENCE)
            assert lost.value.details == {"room": "room", "from": 3, "to": 4}
            again = await client.stream.subscribe("room", from_offset=3)
            assert await asyncio.wait_for(first(again), PATIENCE) == 10


async def test_events_are_told_to_be_lost_where_a_node_is_back_without_them_and_has_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their offsets were given out again before this gateway looked, so that it had as many as there are."""
    away, usual = False, channels.Channels._subscribe
    monkeypatch.setattr(channels.Channels, "_subscribe", lambda *given: None if away else usual(*given))
    monkeypatch.setattr(host, "RENEW_EVERY", 1e6)
    with ThrowawayCluster() as cluster:
        (node,) = cluster.members
        engine = {"durability": "none", "patience": PATIENCE}
        async with AsyncSynapClient(url=cluster.url, engine=engine, timeout=PATIENCE) as client:
            reading = (await client.stream.subscribe("room")).__aiter__()
            await client.stream.publish("room", "n", 0)
            node.ask("SAVE")
            await client.stream.publish("room", "n", 1)
            assert [(await asyncio.wait_for(reading.__anext__(), PATIENCE)).data for _ in range(2)] == [0, 1]
            away = True
            node.kill()
            cluster.spawn(node)
            cluster.wait()
            async with AsyncSynapClient(url=another_url(cluster), engine=engine, timeout=PATIENCE) as other:
                assert (await other.stream.publish("room", "n", 2)).offset == 1
                away = False
                while not (await other.stream.publish("room", "n", 3)).subscribers_notified:
                    await asyncio.sleep(0.01)
                with pytest.raises(EventsLostError) as lost:
                    await asyncio.wait_for(reading.__anext__(), PATIENCE)
                assert lost.value.details == {"room": "room", "from": 1, "to": 1}


async def test_events_are_told_to_be_lost_where_a_room_is_back_on_its_node_without_them(
    one_node: ThrowawayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing was published on the node between, nothing says that the room was away; new events under the old
    offsets were passed over."""
    monkeypatch.setattr(host, "RENEW_EVERY", 0.05)
    space = a_space()
    places = Places(space["partitions"], space["space"])
    head, events = places.room(places.partition("room"), "room")[1:3]
    node = one_node.nodes[0]
    async with AsyncSynapClient(url=one_node.url, engine=space) as client:
        reading = (await client.stream.subscribe("room")).__aiter__()
        await client.stream.publish("room", "n", 0)
        before = {key: node.ask("DUMP", key) for key in (head, events)}
        await client.stream.publish("room", "n", 1)
        assert [(await asyncio.wait_for(reading.__anext__(), PATIENCE)).data for _ in range(2)] == [0, 1]
        for key, kept in before.items():
            node.ask("RESTORE", key, 0, kept, "REPLACE")
        with pytest.raises(EventsLostError) as lost:
            await asyncio.wait_for(reading.__anext__(), PATIENCE)
        assert lost.value.details == {"room": "room", "from": 1, "to": 1}


async def test_a_room_that_moves_and_loses_nothing_is_followed_on(
    one_node: ThrowawayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = a_space()
    places = Places(space["partitions"], space["space"])
    head = places.room(places.partition("room"), "room")[1]
    async with AsyncSynapClient(url=one_node.url, engine=space) as client:
        subscription = await client.stream.subscribe("room")
        reading = subscription.__aiter__()
        for number in range(50):  # more often than the room remembers
            one_node.nodes[0].ask("HSET", head, "home", b"%d" % number)
            await client.stream.publish("room", "n", number)
            assert (await asyncio.wait_for(reading.__anext__(), PATIENCE)).data == number
        assert one_node.nodes[0].ask("HLEN", head) < 40


async def test_those_who_still_wait_ask_again_after_an_error_of_those_before_them(
    one_node: ThrowawayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, failing = Consumers.take, [SynapError("SERVICE_UNAVAILABLE", "the node is away")]

    async def fails_once(*given: Any, **more: Any) -> Any:
        if failing and given[3] >= 4:
            raise failing.pop()
        return await take(*given, **more)

    monkeypatch.setattr(Consumers, "take", fails_once)
    engine = a_space()
    async with AsyncSynapClient(url=one_node.url, engine=engine, retries=0) as client:
        async with AsyncSynapClient(url=another_url(one_node), engine=engine) as other:
            with held_back(monkeypatch) as hints:
                await client.kv.get("k")
                waiters = [asyncio.ensure_future(client.queue.consume("q", timeout=PATIENCE)) for _ in range(4)]
                failed, _ = await asyncio.wait(waiters, timeout=PATIENCE, return_when=asyncio.FIRST_EXCEPTION)
                assert failed
                hints.holds = True
                left = [waiter for waiter in waiters if not waiter.done()]
                for number in range(len(left)):
                    await other.queue.publish("q", number)
                found = await asyncio.wait_for(asyncio.gather(*left), PATIENCE)
                assert sorted(message.message for message in found if message) == list(range(len(left)))
                hints.lose()
                await asyncio.gather(*waiters, return_exceptions=True)
