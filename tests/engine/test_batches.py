"""Batches, and the memory of answered requests."""

from __future__ import annotations

from typing import Any

import pytest

from synap import commands as c
from synap.engine.callers import MISSING, STEP
from synap.engine.engine import MOST_RECIPIENTS, MOST_STEPS, Limits
from synap.engine.priorities import EXAMINED
from synap.errors import SynapError
from tests.helpers.world import Client, World, dumped, on_disk, picture

X: Any = b"1"


def test_one_failing_does_not_stop_the_rest(world: World) -> None:
    broken = SynapError("INVALID_PAYLOAD", "no such field")
    results = world.batch(c.KvSet("a", X), c.KvTtl("nope"), broken, c.QueueConsume("q", 5), c.KvGet("a"))
    assert results[0].success
    assert results[1:4] == ["KEY_NOT_FOUND", "INVALID_PAYLOAD", "INVALID_COMMAND"]
    assert results[4].value == X


@pytest.mark.parametrize(
    "payload", [c.QueueConsume("q"), c.StreamSubscribe("r"), c.PubSubSubscribe(["a"]), c.AdminStats()]
)
def test_what_waits_or_subscribes_is_not_for_batches(world: World, payload: Any) -> None:
    assert world.batch(payload) == ["INVALID_COMMAND"]
    assert world.batch(c.KvSet("a", X), payload, atomic=True) == ["BATCH_ABORTED", "INVALID_COMMAND"]
    assert world(c.KvScan()).keys == []


def test_nothing_goes_out_of_an_atomic_batch_that_fails(world: World) -> None:
    follower, listener, waiter = Client(), Client(), Client()
    world(c.StreamSubscribe("r"), follower)
    world(c.PubSubSubscribe(["#"]), listener)
    world(c.QueueConsume("q", 60), waiter, 1)
    items = [
        c.StreamPublish("r", "t", X),
        c.PubSubPublish("a", X),
        c.QueuePublish("q", X),
        c.QueueDelete("q"),
        c.StreamDelete("r"),
    ]
    before = picture(world.engine)
    assert world.batch(*items, c.KvTtl("nope"), atomic=True)[-1] == "KEY_NOT_FOUND"
    assert picture(world.engine) == before
    assert (follower.pushed, follower.ends, listener.pushed, waiter.answers, waiter.errors) == ([], {}, [], {}, {})
    assert world(c.PubSubStats()).published_total == 0
    world.batch(*items[:3], atomic=True)
    assert (len(follower.pushed), len(listener.pushed), waiter.answers[1].message) == (1, 1, X)
    assert follower.offsets == [0]
    world.batch(*items[3:], atomic=True)
    assert len(follower.ends) == 1


def test_an_atomic_batch_sees_its_own_changes(world: World) -> None:
    results = world.batch(c.KvSet("a", X), c.KvIncr("a"), c.KvGet("a"), atomic=True)
    assert results[2].value == b"2"
    assert world.engine.journal.undos == []


def test_an_atomic_batch_ends_where_its_commands_go_over_too_much(world: World) -> None:
    for number in range(2 * STEP):
        world(c.QueuePublish("q", X, delay=1000))
        world(c.QueueCreate(f"q{number}"))
    for long in (c.QueuePeek("q", state="delayed"), c.QueueList(), c.KvMGet(["k"] * 2 * STEP)):
        few = [c.KvIncr("n"), *[long] * 100]
        assert "BATCH_ABORTED" not in world.batch(*few, atomic=True)
        before = picture(world.engine)
        outcomes = world.batch(c.KvIncr("n"), *[long] * MOST_STEPS, atomic=True)
        assert picture(world.engine) == before
        assert set(outcomes) == {"BATCH_ABORTED", "PAYLOAD_TOO_LARGE"}
        assert outcomes.index("PAYLOAD_TOO_LARGE") > MOST_STEPS // 10


def test_looking_into_a_queue_of_messages_that_came_back_counts_in_an_atomic_batch(world: World) -> None:
    for _ in range(4 * EXAMINED):
        world(c.QueuePublish("q", X))
    held = [message for _ in range(4 * EXAMINED // 1000) for message in world(c.QueueConsumeMany(["q"], 1000)).messages]
    for message in held:
        world(c.QueueNack("q", message.message_id))
    outcomes = world.batch(*[c.QueuePeek("q", limit=1)] * MOST_STEPS, atomic=True)
    assert MOST_STEPS // 5 <= outcomes.index("PAYLOAD_TOO_LARGE") < MOST_STEPS // 3


def test_what_an_atomic_batch_pushes_is_limited(world: World) -> None:
    followers = [Client() for _ in range(1_001)]
    for number, follower in enumerate(followers):
        world(c.StreamSubscribe("r"), follower)
        world(c.PubSubSubscribe(["#"]), follower)
        world(c.QueueConsume(f"q{number % 5}", 60), follower, 1)
    few, many = MOST_RECIPIENTS // len(followers), MOST_RECIPIENTS // len(followers) + 1
    for publish in (c.StreamPublish("r", "t", X), c.PubSubPublish("a", X)):
        before = picture(world.engine)
        outcomes = world.batch(c.KvIncr("n"), *[publish] * many, c.KvIncr("n"), atomic=True)
        assert outcomes == [*["BATCH_ABORTED"] * many, "PAYLOAD_TOO_LARGE", "BATCH_ABORTED"]
        assert picture(world.engine) == before
    assert [follower.pushed for follower in followers if follower.pushed] == []
    world.batch(*[c.StreamPublish("r", "t", X)] * (few // 2), *[c.PubSubPublish("a", X)] * (few // 2), atomic=True)
    assert {len(follower.pushed) for follower in followers} == {few // 2 * 2}
    world.batch(*[c.QueueDelete(f"q{number}") for number in range(5)], c.StreamDelete("r"), atomic=True)
    world.sleep(0)
    assert {len(follower.errors) for follower in followers} == {1}
    assert {len(follower.ends) for follower in followers} == {1}


def test_a_broken_engine_is_put_back_before_the_failure_is_reported(world: World) -> None:
    with pytest.raises(TypeError):
        world.batch(c.KvSet("a", X), c.KvMGet(None), atomic=True)  # type: ignore[arg-type]
    assert world(c.KvScan()).keys == []


# ---- replies


def test_a_write_is_remembered_and_a_read_is_not(world: World) -> None:
    client = Client("me")
    answer = world(c.KvIncr("n"), client, 1)
    world(c.KvGet("n"), client, 2)
    world(c.StreamSubscribe("r"), client, 3)
    assert world.engine.recall("me", 1) is answer
    assert world.engine.recall("me", 2) is MISSING
    assert world.engine.recall("me", 3) is MISSING
    assert world.engine.recall("you", 1) is MISSING


def test_without_a_session_nothing_is_remembered(world: World) -> None:
    world(c.KvIncr("n"), Client(), 1)
    assert world.engine.stats()["replies"] == 0


def test_what_is_confirmed_is_forgotten(world: World) -> None:
    client = Client("me")
    for number in range(10):
        world(c.KvIncr("n"), client, number)
    world.engine.confirm("me", 7)
    assert [world.engine.recall("me", number) is MISSING for number in range(10)] == [True] * 7 + [False] * 3
    world.engine.confirm("me", 100)
    assert world.engine.stats()["replies"] == 0


def test_requests_may_be_named_by_texts(world: World) -> None:
    client = Client("me")
    world(c.KvIncr("n"), client, "first")
    world.engine.confirm("me", 100)
    assert world.engine.recall("me", "first").value == 1


def test_replies_are_bounded_by_count_age_and_bytes() -> None:
    world = World(limits=Limits(replies=10, reply_age=60, reply_bytes=100_000))
    client = Client("me")
    for number in range(20):
        world(c.KvIncr("n"), client, number)
    assert world.engine.recall("me", 9) is MISSING
    assert world.engine.recall("me", 10) is not MISSING
    world.sleep(60)
    assert world.engine.stats()["replies"] == 0
    large: Any = b'"' + b"x" * 50_000 + b'"'
    for number in range(5):
        world(c.KvSet("a", large), client, number)
    assert world.engine.stats()["replies"] < 4
    world.engine.confirm("me", 10)
    assert world.engine.replies.bytes == 0


def test_a_busy_session_does_not_push_out_what_another_still_needs() -> None:
    world = World(limits=Limits(replies=100))
    slow, busy = Client("slow"), Client("busy")
    world(c.KvIncr("n"), slow, 1)
    for number in range(5000):
        world(c.KvIncr("m"), busy, number)
        world.engine.confirm("busy", number - 10)
    assert world.engine.recall("slow", 1).value == 1
    assert len(world.engine.replies.order) < 3000


def test_a_consume_is_remembered_while_its_lease_lasts(world: World) -> None:
    client = Client("me")
    for _ in range(2):
        world(c.QueuePublish("q", X))
    first = world.get(c.MessageAnswer, c.QueueConsume("q", ack_deadline=5), client, 1)
    assert world.engine.recall("me", 1) == first
    world.sleep(5)
    assert world.engine.recall("me", 1) is MISSING
    world(c.QueueConsume("q", 60), client, 2)
    assert world.engine.recall("me", 2).lease != first.lease


def test_a_consume_that_had_to_wait_is_remembered_too(world: World) -> None:
    client = Client("me")
    world(c.QueueConsume("q", 60), client, 1)
    world(c.QueuePublish("q", X))
    assert world.engine.recall("me", 1) == client.answers[1]


def test_a_batch_is_remembered_as_one_answer_also_after_a_restart() -> None:
    world = World(durable=True)
    client = Client("me")
    items = (
        c.KvSet("a", X),
        c.KvSet("a", X),
        c.KvMGet(["a", "b"]),
        c.StreamPublish("r", "t", X),
        c.StreamHistory("r"),
        c.KvTtl("nope"),
        c.QueueCreate("q"),
        c.QueueStats("q"),
        c.KvScan(),
        c.PubSubPublish("a", X),
    )
    world.batch(*items, caller=client, number=5)
    answer = world.engine.recall("me", 5)
    assert answer.results[1].payload.previous == X
    world.restart(dumped(world.engine))
    again = world.engine.recall("me", 5)
    assert again.results[1].payload == c.SetAnswer(True, "a")
    assert on_disk(again) == on_disk(answer)
    world.batch(c.KvGet("a"), caller=client, number=6)
    assert world.engine.recall("me", 6) is MISSING
