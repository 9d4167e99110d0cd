"""What is sent again is answered again: batches that only settle, and consumes whose lease is over."""

from __future__ import annotations

from typing import Any

import pytest

from synap import commands as c
from synap.engine.callers import MISSING
from tests.helpers.world import Client, World

VALUE: Any = b"1"
OTHER: Any = b"2"


@pytest.mark.parametrize("atomic", [False, True])
def test_a_batch_of_acks_alone_is_remembered(atomic: bool) -> None:
    world, holder = World(), Client("a" * 32)
    for _ in range(2):
        world(c.QueuePublish("q", VALUE))
    held = [world(c.QueueConsume("q"), holder, number) for number in (1, 2)]
    acks = [c.QueueAck("q", message.message_id, message.lease) for message in held]
    outcomes = world.batch(*acks, atomic=atomic, caller=holder, number=3)
    again = world.engine.recall(holder.session, 3)
    assert again is not MISSING
    assert [outcome.payload for outcome in again.results] == outcomes


def test_a_consume_sent_again_is_not_answered_with_a_lease_that_another_holds_by_now() -> None:
    world, first, second = World(), Client("a" * 32), Client("b" * 32)
    world(c.QueuePublish("q", VALUE))
    given = world(c.QueueConsume("q", ack_deadline=5), first, 1)
    assert world.engine.recall(first.session, 1).lease == given.lease
    world.sleep(5)
    taken = world(c.QueueConsume("q", ack_deadline=5), second, 1)
    assert taken.message_id == given.message_id
    assert world.engine.recall(first.session, 1) is MISSING
    assert world.engine.recall(second.session, 1).lease == taken.lease


def test_a_consume_sent_again_acknowledges_once_what_it_was_sent_with() -> None:
    world, holder = World(), Client("a" * 32)
    world(c.QueuePublish("q", VALUE))
    held = world(c.QueueConsume("q"), holder, 1)
    for _ in range(2):
        assert world(c.QueueConsume("q", ack=held.message_id, ack_lease=held.lease), holder, 2) is None
    assert world.stats().acked_total == 1


def test_what_took_effect_is_answered_so_though_its_queue_was_deleted_since() -> None:
    world, holder = World(), Client("a" * 32)
    for number in (1, 2, 3):
        world(c.QueuePublish("q", VALUE))
        world(c.QueueConsume("q"), holder, number)
    first, second, third = (world.engine.recall(holder.session, number) for number in (1, 2, 3))
    requests = [
        c.QueueAck("q", first.message_id),
        c.QueueNack("q", second.message_id),
        c.QueueExtend("q", third.message_id, 60),
        c.QueuePurge("q"),
        c.QueueDelete("q"),
    ]
    answers = [world(request, holder, number) for number, request in enumerate(requests, 4)]
    assert [world.engine.recall(holder.session, number) for number in range(4, 9)] == answers


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("again", [False, True], ids=["gone", "made again"])
def test_a_consume_sent_again_takes_what_there_is_where_the_queue_of_its_lease_was_deleted(
    many: bool, again: bool
) -> None:
    """As where the lease is over: what it acknowledged stays acknowledged, and what it took can't be given any more."""
    world, holder = World(), Client("a" * 32)
    for _ in range(2):
        world(c.QueuePublish("q", VALUE))
    held = world(c.QueueConsume("q"), holder, 1)
    if many:
        request: Any = c.QueueConsumeMany(["q"], 1, ack=[c.Held("q", held.message_id, held.lease)])
        assert len(world(request, holder, 2).messages) == 1
    else:
        request = c.QueueConsume("q", ack=held.message_id, ack_lease=held.lease)
        assert world(request, holder, 2).message_id != held.message_id
    world(c.QueueDelete("q"))
    if again:
        world(c.QueuePublish("q", OTHER))
    assert world.engine.recall(holder.session, 2) is MISSING
    answer = world(request, holder, 2)
    found = answer.messages if many else [] if answer is None else [answer]
    assert [message.message for message in found] == ([OTHER] if again else [])
    assert world(c.QueueList()).queues == ["q"]
    assert world.stats().acked_total == 0


def test_a_confirmation_forgets_what_is_numbered_below_and_nothing_else() -> None:
    world, caller = World(), Client("a" * 32)
    for number in (1, 2, 3):
        world(c.KvIncr("n"), caller, number)
    world.engine.confirm(caller.session, 2)
    assert world.engine.recall(caller.session, 1) is MISSING
    assert [world.engine.recall(caller.session, number).value for number in (2, 3)] == [2, 3]


def test_a_confirmation_forgets_parts_of_a_batch_with_its_number_and_no_earlier() -> None:
    """What slices of a batch wrote is remembered under its number, '+' and theirs, until the batch is confirmed."""
    world, caller = World(), Client("a" * 32)
    answer = c.BatchAnswer([c.BatchOutcome("success", c.NumberAnswer(1))])
    world(c.KvIncr("n"), caller, 4)
    world.engine.replies.keep(caller.session, "5+0", answer, world.now)
    world.engine.replies.keep(caller.session, "5+1", answer, world.now)
    world(c.KvIncr("n"), caller, 6)
    world.engine.confirm(caller.session, 5)
    kept = [world.engine.recall(caller.session, number) is not MISSING for number in (4, "5+0", "5+1", 6)]
    assert kept == [False, True, True, True]
    world.engine.confirm(caller.session, 6)
    kept = [world.engine.recall(caller.session, number) is not MISSING for number in ("5+0", "5+1", 6)]
    assert kept == [False, False, True]
    world.engine.confirm(caller.session, 7)
    assert world.engine.stats()["replies"] == 0
