"""What is counted against the memory limit, and what makes room where it is reached."""

from __future__ import annotations

import gc
import random
import tracemalloc
from typing import Any, ClassVar, Iterator, List, Optional

import msgspec
import pytest

from synap import commands as c
from synap.engine import eviction
from synap.engine.engine import Limits
from synap.engine.eviction import EvictingKeys
from synap.engine.journal import Journal
from synap.engine.priorities import USUAL
from synap.errors import SynapError
from tests.helpers.world import Client, World, picture

X: Any = b"1"
MEGABYTE = 1024 * 1024


def used(world: World) -> int:
    total: int = world.engine.stats()["memory"]
    return total


def full_after(world: World, requests: Iterator[Any], client: Optional[Client] = None, most: int = 20_000) -> int:
    """Make requests until one is refused; returns how many were done."""
    for done, payload in zip(range(most), requests):
        try:
            world(payload, client or Client(), done)
        except SynapError as error:
            if error.code != "MEMORY_LIMIT":
                raise
            return done
    raise AssertionError("nothing was refused")


@pytest.mark.parametrize(
    "make",
    [
        lambda number: c.QueueCreate(f"q{number}"),
        lambda number: c.QueueConsume(f"q{number}"),
        lambda number: c.StreamSubscribe(f"r{number}"),
        lambda number: c.StreamPublish("r", "e", X, {f"{n}": "x" * 100 for n in range(20)}),
        lambda number: c.PubSubSubscribe([f"{number}.{n}.*" for n in range(20)]),
        lambda number: c.QueuePublish("q", X, headers={f"{n}": "x" * 100 for n in range(20)}),
    ],
    ids=["queues", "queues-by-use", "rooms", "metadata", "patterns", "headers"],
)
def test_everything_that_grows_counts(make: Any) -> None:
    world = World(limits=Limits(memory=MEGABYTE))
    done = full_after(world, map(make, range(20_000)))
    assert 10 < done < 1500
    assert used(world) <= MEGABYTE


@pytest.mark.parametrize("letter", ["x", "\U0001f600"])
def test_headers_and_metadata_count_as_what_they_take(letter: str) -> None:
    world = World()
    tracemalloc.start()
    try:
        for number in range(100):
            world(c.QueuePublish("q", X, headers={f"{number}": letter * (3000 + number)}))
            world(c.StreamPublish("r", "e", X, {f"{number}": letter * (2000 + number)}))
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 1.1 * used(world)


def test_patterns_of_many_words_count_as_what_they_take() -> None:
    world, client = World(), Client()
    patterns = [f"{number}." + "a." * 120 + "*" for number in range(200)]
    tracemalloc.start()
    try:
        subscribed = world(c.PubSubSubscribe(patterns), client)
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 1.25 * used(world)
    world(c.PubSubUnsubscribe(subscribed.subscription_id), client)
    assert used(world) == 0


def test_who_waits_on_many_queues_counts_as_what_that_takes() -> None:
    world, client = World(), Client()
    names = [f"q{number}" for number in range(100)]
    for name in names:
        world(c.QueueCreate(name))
    before = used(world)
    waits = c.QueueConsumeMany(names, timeout=1000)
    tracemalloc.start()
    try:
        for number in range(200):
            world(waits, client, number)
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 1.25 * (used(world) - before)
    world.engine.forget(client)
    assert used(world) == before


def test_who_waits_and_who_follows_a_room_counts_until_it_ends() -> None:
    world = World(limits=Limits(memory=MEGABYTE))
    waits, follows = Client(), Client()
    world(c.QueueCreate("q"))
    world(c.StreamSubscribe("r"), follows)
    before = used(world)
    done = full_after(world, (c.QueueConsume("q", timeout=60) for _ in range(20_000)), waits)
    assert 500 < done < 1500
    world.engine.forget(waits)
    assert used(world) == before
    done = full_after(world, (c.StreamSubscribe("r") for _ in range(20_000)), follows)
    assert 500 < done < 2500
    world(c.StreamDelete("r"))
    world.engine.forget(follows)
    world(c.QueueDelete("q"))
    assert used(world) == 0


def test_a_ttl_counts_as_long_as_there_is_one() -> None:
    world = World()
    world(c.KvSet("k", X))
    without = used(world)
    world(c.KvSet("k", X, ttl=10))
    with_one = used(world)
    assert with_one > without
    world(c.KvExpire("k", 20))
    assert used(world) == with_one
    world(c.KvPersist("k"))
    assert used(world) == without
    world(c.KvExpire("k", 20))
    world(c.KvSet("k", X))
    assert used(world) == without
    world(c.KvSet("k", X, ttl=10))
    world.sleep(11)
    assert used(world) == 0


def test_what_ends_is_no_longer_counted() -> None:
    world = World()
    client = Client()
    world(c.PubSubSubscribe(["a.*", "b"]), client)
    world(c.QueueCreate("q"))
    world(c.StreamPublish("r", "e", X, {"some": "metadata"}))
    assert used(world) > 3000
    world.engine.forget(client)
    world(c.QueueDelete("q"))
    world(c.StreamDelete("r"))
    assert used(world) == 0


class Noted(bytes):
    """A value that notes when it is freed."""

    freed: ClassVar[List[bytes]] = []

    def __del__(self) -> None:
        Noted.freed.append(bytes(self))


def leave_queue(world: World, value: Any) -> None:
    for name in ("q", "q", "q"):
        world(c.QueuePublish(name, value))
    world(c.QueuePublish("q", value, delay=1000))
    world(c.QueueConsume("q"))
    world(c.QueueNack("q", world.consume().message_id))


def leave_room(world: World, value: Any) -> None:
    client = Client()
    subscription = world(c.StreamSubscribe("r"), client)
    world.engine.advance(world.now)  # from here on, it is watched for being unused
    world(c.StreamUnsubscribe(subscription.subscription_id), client)
    world(c.StreamPublish("r", "e", value))


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize(
    ("make", "end"),
    [
        (lambda world, value: world(c.KvSet("k", value, ttl=1000)), c.KvDel(["k"])),
        (lambda world, value: world(c.KvSet("k", value, ttl=1000)), c.KvSet("k", X)),
        (leave_queue, c.QueuePurge("q")),
        (leave_queue, c.QueueDelete("q")),
        (leave_room, c.StreamDelete("r")),
    ],
    ids=["key", "value", "purged", "queue", "room"],
)
def test_what_is_deleted_is_freed_and_not_only_no_longer_counted(make: Any, end: Any, durable: bool) -> None:
    world = World(durable=durable, limits=Limits(idle=10_000))
    Noted.freed.clear()
    make(world, Noted(b"1"))
    world.engine.collect()
    gc.collect()
    assert not Noted.freed
    world(end)
    world.engine.collect()
    gc.collect()
    assert Noted.freed == [b"1"]


def test_messages_that_leave_from_the_middle_of_a_queue_are_freed() -> None:
    """They are not next out: dead letters that are put back by their ids, behind one that stays."""
    world = World()
    Noted.freed.clear()
    world(c.QueueCreate("q", c.QueueConfig(max_retries=0)))
    for number in range(20):
        value: Any = Noted(b"%d" % number)
        world(c.QueuePublish("q", value))
        world(c.QueueNack("q", world.consume().message_id))
    _, *others = [letter.message_id for letter in world(c.QueuePeek("q.dlq")).messages]
    for letter in others:
        assert world(c.QueueRedrive("q", message_ids=[letter])).redriven == 1
    del value
    assert world.drain() == [b"%d" % number for number in range(1, 20)]
    gc.collect()
    assert len(Noted.freed) >= 18, "one may wait for the next"
    assert world.drain("q.dlq") == [b"0"]


def test_a_level_that_is_empty_has_nothing_to_be_swept() -> None:
    world = World()
    for _ in range(3):
        world(c.QueuePublish("q", X))
    store = world.engine.store
    queue = store.queues["q"]
    store.withdraw(queue, queue.page(None, 1)[0])
    assert world.drain() == [X, X]
    level = queue.levels[USUAL]
    assert level is not None
    assert (level.stale, len(level.fresh)) == (0, 0)


def test_a_queue_that_is_empty_again_takes_what_it_counts_for() -> None:
    world = World()
    publishes = [c.QueuePublish(f"q{queue}", X, priority=priority) for queue in range(200) for priority in range(10)]
    tracemalloc.start()
    try:
        for publish in publishes:
            world(publish)
        for queue in range(200):
            assert world.drain(f"q{queue}") == [X] * 10
        world.engine.store.leases.rebuild([])
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 1.25 * used(world)


def test_entries_of_a_queue_do_not_pile_up_where_batches_fail_again_and_again() -> None:
    world = World()
    for number in range(3):
        value: Any = b"%d" % number
        world(c.QueuePublish("q", value))
    taken = world.consume()
    for _ in range(100):
        assert "BATCH_ABORTED" in world.batch(c.QueueNack("q", taken.message_id), c.KvTtl("none"), atomic=True)
    assert len(world.engine.store.queues["q"].listing()) <= 6
    world(c.QueueNack("q", taken.message_id))
    assert world.drain() == [b"0", b"1", b"2"]


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("keys", c.KvDel(["k"])),
        ("leases", c.QueueAck("q", "", 0)),
        ("leases", c.QueueExtend("q", "", 20_000)),
        ("leases", c.QueueDelete("q")),
        ("leases", c.QueueNack("q", "")),
        ("delays", c.QueuePurge("later")),
        ("delays", c.QueueDelete("later")),
        ("rooms", c.StreamDelete("r")),
    ],
)
def test_deadlines_do_not_pile_up_where_a_change_is_undone_again_and_again(what: str, change: Any) -> None:
    world = World(durable=True)
    world(c.KvSet("k", X, ttl=10_000))
    world(c.QueuePublish("q", X))
    taken = world.consume(ack_deadline=10_000)
    world(c.QueuePublish("later", X, delay=10_000))
    world(c.StreamPublish("r", "e", X))
    store, streams = world.engine.store, world.engine.streams
    places = {
        "keys": world.engine.keys.deadlines,
        "leases": store.leases,
        "delays": store.delays,
        "rooms": streams.ages,
    }
    deadlines: Any = places[what]
    if hasattr(change, "message_id"):
        change = msgspec.structs.replace(change, message_id=taken.message_id)
    before = picture(world.engine)
    for _ in range(4000):
        world.engine.collect()
        world(change)
        Journal.roll_back(world.engine.collect()[1])
    assert picture(world.engine) == before
    assert len(deadlines.entries) + len(deadlines.unswept) <= 2100


def test_remembered_answers_count_and_have_a_share_of_the_limit() -> None:
    world = World(limits=Limits(memory=8 * MEGABYTE))
    client = Client("s" * 32)
    for number in range(5_000):
        world(c.KvIncr("n"), client, number)
    assert world.engine.replies.count <= MEGABYTE // 300
    assert MEGABYTE * 0.8 < used(world) <= 2 * MEGABYTE
    world.sleep(700)
    assert used(world) < 1000


# ---- eviction


def cache(memory: int = MEGABYTE, **options: Any) -> World:
    return World(limits=Limits(memory=memory, evict=True), **options)


def test_keys_with_a_ttl_make_room_for_any_write() -> None:
    world = cache()
    for number in range(8_000):
        world(c.KvSet(f"k{number}", X, ttl=100))
    evicted = world.engine.stats()["keys_evicted"]
    assert evicted > 0
    assert len(world.engine.keys.values) == 8_000 - evicted
    value: Any = b'"' + b"x" * (MEGABYTE // 4) + b'"'
    world(c.QueuePublish("q", value))
    world(c.StreamPublish("r", "e", value))
    world(c.KvSet("kept", value))
    assert used(world) <= MEGABYTE
    picture(world.engine)


def test_keys_without_ttl_never_go() -> None:
    world = cache()
    world(c.KvSet("kept", X))
    full_after(world, (c.KvSet(f"k{number}", X) for number in range(20_000)))
    assert world.engine.stats()["keys_evicted"] == 0
    world(c.KvDel(["k1"]))
    world(c.KvSet("volatile", X, ttl=100))
    world(c.KvSet("longer-than-that", X, ttl=100))
    assert world(c.KvGet("kept")).found
    assert not world(c.KvGet("volatile")).found


def test_a_key_may_make_room_for_itself() -> None:
    world = cache()
    half: Any = b'"' + b"x" * (MEGABYTE // 2) + b'"'
    more: Any = b'"' + b"x" * (MEGABYTE - 1000) + b'"'
    world(c.KvSet("key", half, ttl=100))
    world(c.KvSet("key", more, ttl=100))
    assert world(c.KvGet("key")).value == more
    picture(world.engine)


def test_the_least_recently_used_go_first() -> None:
    world = cache()
    for number in range(8_000):
        world(c.KvSet(f"k{number}", X, ttl=100_000))
        if number % 100 == 0:
            for hot in range(200):
                world(c.KvGet(f"k{hot}"))
    kept = world.engine.keys.values
    assert sum(f"k{hot}" in kept for hot in range(200)) > 190
    assert sum(f"k{number}" in kept for number in range(200, 1000)) < 80


def test_what_went_stays_gone_after_a_restart_and_an_undone_batch_brings_it_back() -> None:
    world = cache(durable=True)
    for number in range(8_000):
        world(c.KvSet(f"k{number}", X, ttl=100_000))
    records, _ = world.engine.collect()
    before = dict(world.engine.keys.values)
    value: Any = b'"' + b"x" * 100_000 + b'"'
    outcomes = world.batch(c.KvSet("new", value), c.KvIncr("new"), atomic=True)
    assert outcomes == ["BATCH_ABORTED", "WRONG_TYPE"]
    assert world.engine.keys.values == before
    world.restart(records)
    assert world.engine.keys.values == before


VALUE: Any = b'"' + b"x" * (MEGABYTE // 2) + b'"'


@pytest.mark.parametrize(
    "payload",
    [c.KvSet("new", VALUE), c.QueuePublish("q", VALUE), c.StreamPublish("r", "e", VALUE)],
    ids=lambda payload: type(payload).__name__,
)
def test_a_write_that_needs_more_keys_to_go_than_may_at_once_goes_on_when_it_is_made_again(
    payload: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was refused with `MEMORY_LIMIT` though there were others."""
    monkeypatch.setattr(eviction, "MOST", 1_000)
    world = cache()
    for number in range(8_000):
        world(c.KvSet(f"k{number}", X, ttl=100))
    before = world.engine.keys.evicted
    error = world.error(payload)
    assert (error.code, error.details) == ("SERVICE_UNAVAILABLE", {"retry_after": 0.1})
    assert world.engine.keys.evicted - before == 1_000
    for _ in range(5):
        outcome = world.batch(payload)[0]
        if outcome != "SERVICE_UNAVAILABLE":
            break
    assert not isinstance(outcome, str)
    picture(world.engine)


def test_the_hit_rate_on_skewed_reads_is_near_that_of_a_true_lru() -> None:
    """Zipf over 5,000 keys, room for about a tenth: as much as Redis' volatile-lru comes to, which samples as well."""
    world = cache(memory=120_000)
    rng = random.Random(1)
    weights = [1 / rank for rank in range(1, 5_001)]
    hits = 0
    for key in rng.choices(range(5_000), weights, k=20_000):
        if world(c.KvGet(f"k{key}")).found:
            hits += 1
        else:
            world(c.KvSet(f"k{key}", X, ttl=10**6))
    assert hits / 20_000 > 0.60


def test_uses_are_remembered_of_keys_with_a_ttl_only() -> None:
    world = cache()
    for number in range(100):
        for payload in (c.KvSet("persisted", X, ttl=100), c.KvPersist("persisted"), c.KvSet("replaced", X, ttl=100)):
            world(payload)
        world(c.KvSet("replaced", X))
        world(c.KvSet("kept", X, ttl=100))
        outcomes = world.batch(
            c.KvSet(f"undone {number}", X, ttl=100), c.KvSet("kept", X), c.KvTtl("none"), atomic=True
        )
        assert outcomes == ["BATCH_ABORTED", "BATCH_ABORTED", "KEY_NOT_FOUND"]
    assert isinstance(world.engine.keys, EvictingKeys)
    assert set(world.engine.keys.used) == {"kept"}
