"""Rooms: offsets, history, subscriptions, retention."""

from __future__ import annotations

from typing import Any, List

import pytest

from synap import commands as c
from synap.engine import records as r
from synap.engine.engine import Limits
from synap.engine.journal import Journal
from synap.engine.streams import EVENTS_AT_ONCE
from tests.helpers.world import Client, World, dumped, picture


@pytest.fixture
def world() -> World:
    return World(limits=Limits(room_events=10, room_age=100))


def publish(world: World, count: int = 1, room: str = "r") -> c.PublishEventAnswer:
    data: Any = b"1"
    for _ in range(count):
        answer = world.get(c.PublishEventAnswer, c.StreamPublish(room, "happened", data))
    return answer


def subscribe(world: World, client: Client, **options: Any) -> c.SubscribedToRoom:
    answer = world.get(c.SubscribedToRoom, c.StreamSubscribe("r", **options), client)
    world.engine.resume(client, answer.subscription_id)
    return answer


def history(world: World, **options: Any) -> List[int]:
    return [event.offset for event in world.get(c.HistoryAnswer, c.StreamHistory("r", **options)).events]


def test_offsets_count_from_zero_without_gaps(world: World) -> None:
    assert [publish(world).offset for _ in range(3)] == [0, 1, 2]
    assert publish(world, room="other").offset == 0
    assert world(c.StreamRooms()).rooms == ["other", "r"]


def test_history_takes_both_ends(world: World) -> None:
    publish(world, 8)
    assert history(world) == list(range(8))
    assert history(world, from_offset=2, to_offset=4) == [2, 3, 4]
    assert history(world, from_offset=-3) == [5, 6, 7]
    assert history(world, from_offset=-3, to_offset=-2) == [5, 6]
    assert history(world, to_offset=-9) == []
    assert history(world, from_offset=-100, limit=2) == [0, 1]
    assert history(world, from_offset=8) == []
    assert history(world, from_offset=5, to_offset=4) == []
    assert history(world, to_offset=2**63 - 1) == list(range(8))


def test_an_event_is_as_it_was_published(world: World) -> None:
    data: Any = b'{"a":1}'
    world.now = 12.7
    answer = world(c.StreamPublish("r", "happened", data, {"by": "me"}))
    (event,) = world(c.StreamHistory("r")).events
    assert event == c.EventAnswer(answer.event_id, 0, "happened", data, 12, {"by": "me"}, "r")


def test_retention_by_count_keeps_the_newest(world: World) -> None:
    publish(world, 100)
    stats = world.get(c.RoomStatsAnswer, c.StreamStats("r"))
    assert (stats.events, stats.oldest_offset, stats.newest_offset, stats.published_total) == (10, 90, 99, 100)
    assert history(world) == list(range(90, 100))
    assert history(world, from_offset=3, limit=2) == [90, 91]
    assert history(world, from_offset=-2) == [98, 99]


def test_retention_by_age(world: World) -> None:
    publish(world, 3)
    world.sleep(50)
    publish(world, 2)
    world.sleep(50)
    assert history(world) == [3, 4]
    world.sleep(50)
    answer = world(c.StreamHistory("r"))
    assert (answer.events, answer.oldest_offset, answer.newest_offset) == ([], 5, 4)
    assert publish(world).offset == 5
    world.sleep(99)
    assert history(world) == [5]
    world.sleep(2)
    assert history(world) == []


def test_an_event_keeps_its_age_where_newer_ones_took_the_place_of_older(world: World) -> None:
    publish(world)
    world.sleep(98)
    publish(world, 10)
    world.sleep(5)
    assert history(world) == list(range(1, 11))
    world.sleep(96)
    assert history(world) == []


def test_an_event_keeps_its_age_where_another_was_undone(world: World) -> None:
    publish(world)
    world.sleep(100)
    data: Any = b"1"
    assert world.batch(c.StreamPublish("r", "happened", data), c.KvTtl("none"), atomic=True)[1] == "KEY_NOT_FOUND"
    world.sleep(98)
    publish(world)
    world.sleep(5)
    assert history(world) == [1]
    world.sleep(96)
    assert history(world) == []


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({}, 8),
        ({"replay": True}, 0),
        ({"from_offset": 5}, 5),
        ({"from_offset": -2}, 6),
        ({"from_offset": -100}, 0),
        ({"from_offset": 0, "replay": False}, 0),
        ({"from_offset": 8}, 8),
        ({"from_offset": 10}, 10),
    ],
    ids=repr,
)
def test_a_subscription_starts_where_it_is_told(world: World, options: Any, first: int) -> None:
    publish(world, 8)
    client = Client()
    assert subscribe(world, client, **options).next_offset == first
    publish(world, 4)
    assert client.offsets == list(range(first, 12))


def test_what_retention_removed_is_skipped_to_the_oldest_kept(world: World) -> None:
    publish(world, 20)
    client = Client()
    assert subscribe(world, client, from_offset=3).next_offset == 10
    assert client.offsets == list(range(10, 20))


def test_history_is_not_pushed_before_the_answer(world: World) -> None:
    publish(world, 3)
    client = Client()
    world(c.StreamSubscribe("r", replay=True), client)
    assert client.pushed == []
    publish(world)
    assert client.pushed == []
    assert world.engine.resume(client, 1)
    publish(world)
    assert client.offsets == [0, 1, 2, 3, 4]


def test_a_full_subscriber_is_caught_up_without_gap_or_repeat(world: World) -> None:
    slow, quick = Client(), Client()
    slow.room = 2
    subscription = subscribe(world, slow)
    subscribe(world, quick)
    publish(world, 5)
    assert slow.offsets == [0, 1]
    slow.room = 1
    assert not world.engine.resume(slow, subscription.subscription_id)
    slow.room = None
    assert world.engine.resume(slow, subscription.subscription_id)
    publish(world)
    assert slow.offsets == quick.offsets == [0, 1, 2, 3, 4, 5]


def test_a_subscriber_that_fell_behind_retention_goes_on_at_the_oldest(world: World) -> None:
    slow = Client()
    slow.room = 1
    subscription = subscribe(world, slow)
    publish(world, 30)
    slow.room = None
    world.engine.resume(slow, subscription.subscription_id)
    assert slow.offsets == [0, *range(20, 30)]


def test_subscribers_get_the_same_object(world: World) -> None:
    one, two = Client(), Client()
    subscribe(world, one)
    subscribe(world, two)
    assert publish(world).subscribers_notified == 2
    assert one.pushed[0][1] is two.pushed[0][1]


def test_unsubscribing_ends_the_pushes(world: World) -> None:
    client = Client()
    subscription = subscribe(world, client).subscription_id
    assert not world(c.StreamUnsubscribe(subscription), Client()).unsubscribed
    assert not world(c.PubSubUnsubscribe(subscription), client).unsubscribed
    assert world(c.StreamUnsubscribe(subscription), client).unsubscribed
    assert not world(c.StreamUnsubscribe(subscription), client).unsubscribed
    assert publish(world).subscribers_notified == 0
    assert client.pushed == []


def test_who_goes_away_is_not_notified(world: World) -> None:
    client = Client()
    subscribe(world, client)
    world.engine.forget(client)
    assert publish(world).subscribers_notified == 0
    assert client.subscriptions == {}


def test_deleting_a_room_ends_its_subscriptions_and_offsets_begin_anew(world: World) -> None:
    client = Client()
    subscription = subscribe(world, client).subscription_id
    first = publish(world, 3)
    assert world(c.StreamDelete("r")).deleted
    assert client.ends[subscription].code == "ROOM_NOT_FOUND"
    again = publish(world)
    assert again.offset == 0
    assert again.event_id != first.event_id
    assert len(client.pushed) == 3


@pytest.mark.parametrize("payload", [c.StreamHistory("r"), c.StreamStats("r"), c.StreamDelete("r")], ids=repr)
def test_a_room_that_was_never_made_is_not_found(world: World, payload: Any) -> None:
    error = world.error(payload)
    assert (error.code, error.details) == ("ROOM_NOT_FOUND", {"room": "r"})


def test_subscribing_makes_the_room(world: World) -> None:
    subscribe(world, Client())
    answer = world(c.StreamHistory("r"))
    assert (answer.events, answer.oldest_offset, answer.newest_offset) == ([], 0, -1)


def test_subscriptions_are_limited() -> None:
    world = World(limits=Limits(subscriptions=1))
    subscribe(world, world.client)
    assert world.error(c.StreamSubscribe("r")).code == "INVALID_REQUEST"
    assert world.error(c.PubSubSubscribe(["a"])).code == "INVALID_REQUEST"


def test_a_lagging_subscriber_goes_on_with_the_oldest_event_that_retention_left(world: World) -> None:
    client = Client()
    subscription = subscribe(world, client)
    client.room = 5
    publish(world, 8)
    assert client.offsets == list(range(5))
    publish(world, 20)
    client.room = 3
    assert not world.engine.resume(client, subscription.subscription_id)
    assert client.offsets[5:] == [18, 19, 20]
    client.room = None
    assert world.engine.resume(client, subscription.subscription_id)
    publish(world)
    assert client.offsets[5:] == list(range(18, 29))


def test_events_that_are_too_old_go_a_slice_at_a_time() -> None:
    world = World(durable=True, limits=Limits(room_age=100))
    for number in range(20):
        publish(world, 500 if number else 4000, room=f"r{number}")
    young = world.now + 50
    for number in range(20):
        world.now = young
        publish(world, 3, room=f"r{number}")
    world.now = young + 60
    turns = 0
    left = 4000 + 19 * 500
    while (world.due() or world.now + 1) <= world.now:
        before = dumped(world.engine)
        world.engine.advance(world.now)
        turns += 1
        records, undos = world.engine.collect()
        gone = sum(record[2] for record in dumped(world.engine) if record[0] == r.TRIMMED)
        assert 0 < left - (4000 + 19 * 500 - gone) <= EVENTS_AT_ONCE
        left = 4000 + 19 * 500 - gone
        assert left == 0 or turns < 30
        if turns == 2:  # refused by a disk, they come back and go again
            Journal.roll_back(undos)
            assert dumped(world.engine) == before
            left = 4000 + 19 * 500 - sum(record[2] for record in before if record[0] == r.TRIMMED)
        else:
            world.engine.leftovers.committed(undos)
            assert records
    assert left == 0
    for number in range(20):
        assert len(world(c.StreamHistory(f"r{number}")).events) == 3
    assert picture(world.engine)


def test_a_durable_subscription_is_that_of_its_name_after_a_deletion_that_was_undone() -> None:
    world = World(durable=True)
    older, newer = Client("a" * 32), Client("b" * 32)
    publish(world)
    subscribe(world, older, name="n")
    world.engine.collect()
    world(c.StreamDelete("r"))
    Journal.roll_back(world.engine.collect()[1])
    older.ends.clear()
    subscribe(world, newer, name="n")
    assert [error.code for error in older.ends.values()] == ["SUPERSEDED"]
    assert len(world.engine.streams.by_name["r"].subscriptions) == 1


def test_a_batch_that_fails_moves_the_events_of_a_full_room_a_few_times_not_once_for_each() -> None:
    class Moved(List[Any]):
        times = 0

        def __setitem__(self, place: Any, events: Any) -> None:
            before = len(self)
            super().__setitem__(place, events)
            self.times += len(self) != before

    values: List[Any] = [b"%d" % number for number in range(1500)]
    world = World(limits=Limits(room_events=1000))
    for number in range(1500):
        world(c.StreamPublish("r", "e", values[number]))
    room = world.engine.streams.by_name["r"]
    room.events = moved = Moved(room.events)
    before = world(c.StreamHistory("r", limit=2000))
    for count in (1, 10, 124, 125, 126, 500, 1100, 3000):
        outcomes = world.batch(*[c.StreamPublish("r", "e", values[0])] * count, c.QueueAck("q", "x"), atomic=True)
        assert outcomes[-1] == "QUEUE_NOT_FOUND"
        assert world(c.StreamHistory("r", limit=2000)) == before
    assert moved.times < 100
    assert world(c.StreamPublish("r", "e", values[0])).offset == 1500
