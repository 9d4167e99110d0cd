"""What comes back after a restart, and what a disk that refuses takes back."""

from __future__ import annotations

import random
import sys
from typing import Any, List

import pytest

from synap import commands as c
from synap.engine import records as r
from synap.engine.callers import MISSING
from synap.engine.engine import Limits
from synap.engine.journal import Journal, Record
from synap.engine.keystore import MANY
from synap.engine.remembered import pack
from tests.helpers.world import Client, World, dumped, picture, replay

X: Any = b"1"


@pytest.fixture
def world() -> World:
    return World(durable=True)


def commit(world: World) -> List[Record]:
    return world.engine.collect()[0]


def test_everything_comes_back_from_the_journal_and_from_a_dump(world: World) -> None:
    client = Client("me")
    world(c.KvSet("a", X, ttl=100), client, 1)
    for delay in (0, 0, 50):
        world(c.QueuePublish("q", X, 7, {"a": "b"}, delay), client, 2 + delay)
    world(c.QueueNack("q", world.consume().message_id))
    leased = world.get(c.MessageAnswer, c.QueueConsume("q", ack_deadline=20), client, 9)
    world(c.StreamPublish("r", "t", X, {"a": "b"}), client, 10)
    before = picture(world.engine)
    log = commit(world)
    for records in (log, log + log, dumped(world.engine), dumped(world.engine, 1)):
        twin = replay(world.fresh(), records, world.now)
        assert picture(twin) == before
        assert twin.recall("me", 9) == leased
        assert twin.next_deadline() == world.engine.next_deadline()


def test_keys_come_back_alike_from_one_record_for_each_and_from_one_for_many(world: World) -> None:
    for number in range(50):
        world(c.KvSet(f"k{number}", X, ttl=100 + number if number % 3 else None))
    many = dumped(world.engine, 7)
    assert [record[0] for record in many if record[0] != r.TIME].count(r.KEYS) == 8
    one_by_one: List[Record] = []
    for record in many:
        if record[0] == r.KEYS:
            one_by_one += [(r.KEY, key, value, record[2].get(key)) for key, value in record[1].items()]
        else:
            one_by_one.append(record)
    before: List[Record] = [(r.KEY, "k0", b"2", world.now + 5), (r.KEY, "k1", b"2", None), (r.KEY, "other", X, None)]
    over = (*before, (r.KEY, "k2", b"3", world.now + 5), (r.KEY, "k2", b"4", None))
    for records in (many, one_by_one, many + many, one_by_one + many, many + one_by_one):
        assert picture(replay(world.fresh(), records, world.now)) == picture(world.engine)
    after = [picture(replay(world.fresh(), [*over, *records], world.now)) for records in (many, one_by_one)]
    assert after[0] == after[1]
    assert world.engine.next_deadline() == replay(world.fresh(), many, world.now).next_deadline()


def test_the_dict_of_many_restored_keys_holds_their_hashes(world: World) -> None:
    keys = world.engine.keys
    all_of_them = {f"k{number}": X for number in range(2 * MANY)}
    names = list(all_of_them)
    for start in range(0, len(names), 1000):
        keys.restore_keys(dict.fromkeys(names[start : start + 1000], X), {})
    keys.restored()
    assert keys.values == all_of_them
    assert list(keys.values) == names
    if sys.version_info >= (3, 11):
        assert sys.getsizeof(keys.values) - sys.getsizeof(all_of_them) >= 8 * len(names)


def test_a_lease_that_ran_out_while_down_ends_and_one_that_did_not_lasts(world: World) -> None:
    for seconds in (5, 50):
        world(c.QueuePublish("q", X))
        world.consume(ack_deadline=seconds)
    log = commit(world)
    world.now += 10
    world.restart(log)
    assert (world.stats().depth, world.stats().pending) == (1, 1)
    assert world.consume().retry_count == 1


def test_numbers_are_not_used_twice(world: World) -> None:
    first = world.get(c.PublishAnswer, c.QueuePublish("q", X))
    lease = world.consume()
    world(c.QueueAck("q", lease.message_id))
    commit(world)
    world.restart(dumped(world.engine))
    assert world(c.QueuePublish("q", X)).message_id != first.message_id
    assert world.consume().lease > lease.lease


def test_offsets_go_on_where_they_were_also_in_a_room_that_is_empty() -> None:
    world = World(durable=True, limits=Limits(room_age=10))
    for _ in range(5):
        world(c.StreamPublish("r", "t", X))
    world.sleep(20)
    world.restart(commit(world))
    assert world(c.StreamPublish("r", "t", X)).offset == 5


def test_a_cursor_outlives_a_restart(world: World) -> None:
    world.restart([])
    log = commit(world)
    assert log == []
    for key in ("a", "b"):
        world(c.KvSet(key, X))
    cursor = world(c.KvScan(None, None, 1)).cursor
    world.restart(dumped(world.engine))
    assert world(c.KvScan(None, cursor, 1)).keys == ["b"]


def test_a_room_trimmed_while_it_is_dumped_comes_back_whole() -> None:
    world = World(durable=True, limits=Limits(room_events=5))
    for _ in range(5):
        world(c.StreamPublish("r", "t", X))
    commit(world)
    pages = world.engine.dump(3)
    records = next(pages) + next(pages)
    for _ in range(20):
        world(c.StreamPublish("r", "t", X))
    for page in pages:
        records += page
    twin = replay(world.fresh(), records + commit(world), world.now)
    assert picture(twin) == picture(world.engine)


def test_a_dump_ends_however_fast_keys_and_events_come_behind_it(world: World) -> None:
    """It went on to the end as it was by then."""
    for number in range(10):
        world(c.KvSet(f"k{number:04}", X))
        world(c.StreamPublish("r", "t", X))
    commit(world)
    records: List[Record] = []
    came = 10
    for page in world.engine.dump(2):
        records += page
        for _ in range(5):
            world(c.KvSet(f"k{came:04}", X))
            world(c.StreamPublish("r", "t", X))
            came += 1
        assert came < 200
    assert picture(replay(world.fresh(), records + commit(world), world.now)) == picture(world.engine)


def test_what_goes_away_or_comes_again_while_it_is_dumped(world: World) -> None:
    for number in range(5):
        world(c.KvSet(f"k{number}", X))
        for name in ("q", "p"):
            world(c.QueuePublish(name, X))
            world(c.StreamPublish(name, "t", X))
    commit(world)
    steps = [
        lambda: world(c.QueueDelete("q")),
        lambda: world(c.StreamDelete("q")),
        lambda: world(c.QueuePublish("q", X)),
        lambda: world(c.StreamPublish("q", "t", X)),
        lambda: world(c.QueuePurge("p")),
        lambda: world(c.KvDel(["k1", "k4"])),
        lambda: world(c.KvSet("k1", X)),
        lambda: world(c.QueueDelete("q")),
        lambda: world(c.StreamDelete("p")),
    ]
    for offset in range(12):
        twin = World(durable=True)
        twin.restart(dumped(world.engine))
        engine, world.engine = world.engine, twin.engine
        records: List[Record] = []
        waiting = list(steps)
        for place, page in enumerate(world.engine.dump(2)):
            records += page
            if place >= offset and waiting:
                waiting.pop(0)()
        again = replay(world.fresh(), records + commit(world), world.now)
        assert picture(again)["queues"] == picture(world.engine)["queues"]
        assert picture(again) == picture(world.engine)
        world.engine = engine


def test_a_refused_commit_is_as_if_it_had_never_been(world: World) -> None:
    client = Client("me")
    world(c.KvSet("a", X, ttl=5), client, 1)
    world(c.QueuePublish("q", X), client, 2)
    world(c.StreamPublish("r", "t", X), client, 3)
    follower = Client()
    world(c.StreamSubscribe("r"), follower)
    commit(world)
    before = picture(world.engine)
    world(c.KvDel(["a"]), client, 4)
    world(c.QueueConsume("q"), client, 5)
    world(c.StreamPublish("r", "t", X), client, 6)
    world(c.StreamDelete("r"), client, 7)
    world(c.QueuePublish("new", X, delay=5), client, 8)
    _, undos = world.engine.collect()
    Journal.roll_back(undos)
    assert picture(world.engine) == before
    assert world.engine.recall("me", 6) is MISSING
    assert world(c.StreamPublish("r", "t", X)).offset == 1
    assert follower.offsets == [1, 1], "the first of the two was held back by the host, and never sent"
    world.sleep(60)
    assert not world(c.KvGet("a")).found


def test_restoring_keeps_no_way_back(world: World) -> None:
    world(c.KvSet("a", X), Client("me"), 1)
    log = commit(world)
    engine = world.fresh()
    for record in log:
        engine.restore(record)
    engine.restored(world.now)
    assert engine.collect()[1] == []


def test_a_consume_sent_again_after_a_restart_acknowledges_once(world: World) -> None:
    holder = Client("a" * 32)
    for _ in range(2):
        world(c.QueuePublish("q", X))
    held = world(c.QueueConsume("q"), holder, 1)
    taken = world(c.QueueConsume("q", ack=held.message_id, ack_lease=held.lease, ack_deadline=5), holder, 2)
    assert taken.message_id != held.message_id
    for records in (commit(world), dumped(world.engine)):
        world.restart(records)
        world.sleep(6)  # the lease is over, so that the answer is no longer good, and the consume is done again
        again = world(c.QueueConsume("q", ack=held.message_id, ack_lease=held.lease, ack_deadline=5), holder, 2)
        assert again.message_id == taken.message_id
        assert world.stats().acked_total == 1


def test_records_in_a_row_are_restored_as_each_by_itself(world: World) -> None:
    records: List[Record] = [
        (r.KEY, "a", X, world.now + 50),
        (r.KEY, "b", X, None),
        (r.KEY, "a", b"2", None),
        (r.KEY, "c", X, None),
        (r.KEY, "c", X, world.now + 50),
        (r.KEYS_GONE, ["b"]),
        (r.KEY, "d", X, world.now + 50),
        (r.KEY_EXPIRES, "d", None),
        (r.KEY, "e", X, world.now + 50),
        (r.KEY, "b", b"3", world.now + 60),
        (r.KEY, "e", b"4", None),
        (r.KEY_SET, "f", X, world.now + 50, "s" * 32, 1, world.now),
        (r.KEY_SET, "f", b"5", None, "s" * 32, 2, world.now),
        (r.KEY_SET_SAME, "g", X, world.now + 60, 3),
        (r.KEY_SET_SAME, "g", X, world.now + 70, 4),
        (r.REPLY, "t" * 32, 1, world.now + 1, *pack(c.NumberAnswer(1))),
        (r.REPLY_SAME, 2, *pack(c.NumberAnswer(2))),
        (r.KEY_SET_SAME, "h", X, None, 3),
        (r.KEY_SET, "h", X, None, "s" * 32, 5, world.now + 2),
        (r.REPLY_SAME, 6, *pack(c.NumberAnswer(6))),
    ]
    one_by_one, together = world.fresh(), world.fresh()
    for record in records:
        one_by_one.restore(record)
    together.restore_all(records)
    for engine in (one_by_one, together):
        engine.restored(world.now)
    assert picture(together) == picture(one_by_one)
    assert (
        together.keys.expires
        == one_by_one.keys.expires
        == {
            "b": world.now + 60,
            "c": world.now + 50,
            "g": world.now + 70,
        }
    )
    assert together.keys.values == {"a": b"2", "c": X, "d": X, "e": b"4", "b": b"3", "f": b"5", "g": X, "h": X}
    for engine in (one_by_one, together):
        assert [engine.recall("s" * 32, number) for number in range(1, 7)] == [
            *(c.SetAnswer(True, key) for key in ("f", "f", "g", "g", "h")),
            c.NumberAnswer(6),
        ]
        assert [engine.recall("t" * 32, number) for number in (1, 2, 3)] == [
            c.NumberAnswer(1),
            c.NumberAnswer(2),
            c.SetAnswer(True, "h"),
        ]
        assert [entry[0] - world.now for entry in engine.replies.order] == [0, 0, 0, 0, 1, 1, 1, 2, 2]


def test_who_asked_and_when_is_said_once_in_a_turn(world: World) -> None:
    one, other = Client("s" * 32), Client("t" * 32)
    for caller, number in ((one, 1), (one, 2), (other, 1), (one, 3)):
        world(c.KvSet("a", X), caller, number)
    for number in (4, 5):
        world(c.KvIncr("n"), one, number)
    world.sleep(1)
    world(c.KvSet("a", X), one, 6)
    kinds = [r.KEY_SET, r.KEY_SET_SAME, r.KEY_SET, r.KEY_SET]
    log = commit(world)
    assert [record[0] for record in log if record[0] != r.KEY] == [*kinds, r.REPLY_SAME, r.REPLY_SAME, r.KEY_SET]
    world(c.KvSet("a", X), one, 7)
    assert [record[0] for record in commit(world)] == [r.KEY_SET], "each commit says it by itself"
    world.restart(log)
    assert [world.engine.recall("s" * 32, number) for number in range(1, 7)] == [
        *[c.SetAnswer(True, "a")] * 3,
        *map(c.NumberAnswer, (1, 2)),
        c.SetAnswer(True, "a"),
    ]
    assert world.engine.recall("t" * 32, 1) == c.SetAnswer(True, "a")


def test_what_was_said_in_what_is_cut_back_is_said_again(world: World) -> None:
    caller = Client("s" * 32)
    for number in (1, 2):
        world(c.KvSet("a", X), caller, number)
        world.engine.journal.cut_back(0, 0)
    world(c.KvSet("a", X), caller, 3)
    assert [record[0] for record in commit(world)] == [r.KEY_SET]


def test_a_set_and_its_answer_are_one_record(world: World) -> None:
    caller = Client("s" * 32)
    world(c.KvSet("a", X, ttl=9), caller, 1)
    assert commit(world) == [(r.KEY_SET, "a", X, world.now + 9, "s" * 32, 1, world.now)]


def test_a_set_that_was_refused_is_not_taken_for_the_change_before_it(world: World) -> None:
    world(c.KvIncr("a"))  # nobody's: nothing is remembered, and the change is the last record
    caller = Client("s" * 32)
    world(c.KvSet("a", X, nx=True), caller, 1)
    log = commit(world)
    assert [record[0] for record in log] == [r.KEY, r.REPLY]
    world.restart(log)
    assert world(c.KvGet("a")).value == b"1"
    assert world.engine.recall("s" * 32, 1) == c.SetAnswer(False, "a")


@pytest.mark.parametrize("seed", range(3))
def test_sets_and_their_answers_come_back_where_keys_are_evicted_expire_and_are_taken_back(seed: int) -> None:
    chance = random.Random(seed)
    world = World(durable=True, limits=Limits(memory=19_000, evict=True, reply_age=100), seed=seed)
    clients = [Client(letter * 32) for letter in "ab"]
    log: List[Record] = []
    safe = picture(world.engine)
    refused = evicted = 0

    def a_set() -> c.KvSet:
        value: Any = b"1" * chance.choice((1, 100, 900))
        how: Any = chance.choice(({}, {}, {}, {"nx": True}, {"xx": True}, {"keep_ttl": True}))
        ttl = None if how.get("keep_ttl") else chance.choice((None, 1, 5, 50, 50, 50))
        return c.KvSet(f"k{chance.randrange(40)}", value, ttl, **how)

    for number in range(1, 1500):
        caller, which = chance.choice(clients), chance.random()
        before = world.engine.keys.evicted
        if which < 0.8:
            world(a_set(), caller, number)
        elif which < 0.9:
            failing = [c.QueuePurge("nowhere")] if chance.random() < 0.5 else []
            answers = world.batch(a_set(), c.KvIncr("n"), a_set(), *failing, atomic=True, caller=caller, number=number)
            refused += "QUEUE_NOT_FOUND" in answers
        else:
            world(chance.choice((c.KvIncr("n"), c.KvDel(["k1", "k2"]))), caller, number)
        evicted += world.engine.keys.evicted - before
        if chance.random() < 0.2:
            world.sleep(chance.choice((0, 1, 3)))
        fate = chance.random()
        if fate < 0.1:
            Journal.roll_back(world.engine.collect()[1])
            assert {**picture(world.engine), "replies": 0} == {**safe, "replies": 0}
        elif fate < 0.3:
            log += commit(world)
            safe = picture(world.engine)
            if fate < 0.12:
                world.restart(log)
                after = picture(world.engine)
                due = {key for key, at in safe["expires"].items() if at <= world.now}  # again: expiring was taken back
                assert after["keys"] == {key: value for key, value in safe["keys"].items() if key not in due}
                assert after["expires"] == {key: at for key, at in safe["expires"].items() if key not in due}
                both = set(after["replies"]) & set(safe["replies"])  # the oldest are forgotten, now or then
                assert both or not safe["replies"]
                assert {name: after["replies"][name] for name in both} == {name: safe["replies"][name] for name in both}
                safe = after
    assert evicted > 20
    assert refused > 0


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("dump", [False, True], ids=["log", "snapshot"])
def test_a_consume_that_acknowledged_is_known_to_have_though_the_queue_of_what_it_got_is_gone(
    world: World, many: bool, dump: bool
) -> None:
    client = Client("me")
    world(c.QueuePublish("q", X))
    world(c.QueuePublish("q", X))
    first = world.get(c.MessageAnswer, c.QueueConsume("q"), client, 1)
    held = [c.Held("q", first.message_id, first.lease)]
    consume = c.QueueConsumeMany(["q"], 1, ack=held) if many else c.QueueConsume("q", ack=first.message_id)
    assert world(consume, client, 2)
    world(c.QueueDelete("q"))
    log = commit(world)
    engine = replay(world.fresh(), dumped(world.engine) if dump else log, world.now)
    again = replay(world.fresh(), dumped(engine), world.now)
    for one in (world.engine, engine, again):
        assert one.replies.acked("me", 2)
