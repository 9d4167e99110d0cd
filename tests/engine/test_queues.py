"""Queues: order, leases, dead letters."""

from __future__ import annotations

from typing import Any

import pytest

from synap import commands as c
from synap.engine.callers import WAITING, run
from synap.engine.engine import Limits
from synap.engine.figures import survey
from synap.errors import SynapError
from tests.engine.conftest import publish
from tests.helpers.world import Client, World, dumped

# ---- order


def test_higher_priorities_go_first_and_equal_ones_in_the_order_they_came(world: World) -> None:
    for value, priority in enumerate([5, 9, 0, 5, 9]):
        publish(world, value, priority=priority)
    assert world.drain() == [b"1", b"4", b"0", b"3", b"2"]


def test_a_position_counts_what_leaves_before(world: World) -> None:
    positions = [publish(world, 1, priority=priority).position for priority in (5, 5, 9, 0, 5)]
    assert positions == [1, 2, 1, 4, 4]


def test_a_delayed_message_enters_when_it_is_due(world: World) -> None:
    publish(world, 1, delay=10)
    publish(world, 2)
    assert (world.stats().depth, world.stats().delayed) == (1, 1)
    assert world.drain() == [b"2"]
    publish(world, 3)
    world.sleep(10)
    assert world.drain() == [b"3", b"1"]


def test_a_full_queue_refuses_and_counts_what_is_leased_and_delayed(world: World) -> None:
    world(c.QueueCreate("q", c.QueueConfig(max_depth=3)))
    publish(world, 1, 2)
    publish(world, 3, delay=5)
    message = world.consume()
    data: Any = b"4"
    error = world.error(c.QueuePublish("q", data))
    assert (error.code, error.details) == ("QUEUE_FULL", {"queue": "q", "max_depth": 3})
    world(c.QueueNack("q", message.message_id))
    assert world.drain() == [b"1", b"2"]


@pytest.mark.parametrize(
    "payload",
    [
        c.QueueAck("q", "1"),
        c.QueueNack("q", "1"),
        c.QueueExtend("q", "1", 1),
        c.QueueStats("q"),
        c.QueuePurge("q"),
        c.QueueDelete("q"),
        c.QueueRedrive("q"),
    ],
    ids=lambda payload: type(payload).__name__,
)
def test_a_queue_that_was_never_made_is_not_found(world: World, payload: Any) -> None:
    error = world.error(payload)
    assert (error.code, error.details) == ("QUEUE_NOT_FOUND", {"queue": "q"})


def test_create_says_whether_it_made_the_queue_and_changes_its_settings(world: World) -> None:
    assert world(c.QueueCreate("q")).created
    assert not world(c.QueueCreate("q", c.QueueConfig(max_depth=1))).created
    publish(world, 1)
    assert world.error(c.QueuePublish("q", publishable)).code == "QUEUE_FULL"
    assert world(c.QueueList()).queues == ["q"]


publishable: Any = b"1"


def test_a_name_must_leave_room_for_that_of_its_dead_letters(world: World) -> None:
    assert world.error(c.QueueCreate("q" * 253)).code == "INVALID_PAYLOAD"
    assert world(c.QueueCreate("q" * 256, c.QueueConfig(dead_letter=False))).created
    assert world.error(c.QueueCreate("q" * 256, c.QueueConfig(dead_letter=True))).code == "INVALID_PAYLOAD"
    assert world.error(c.QueuePublish("é" * 129, publishable)).code == "INVALID_PAYLOAD"


# ---- leases


def test_only_the_current_lease_settles_a_message(world: World) -> None:
    publish(world, 1)
    late = world.consume(ack_deadline=5)
    world.sleep(5)
    assert world.error(c.QueueAck("q", late.message_id)).code == "MESSAGE_NOT_FOUND"
    current = world.consume(ack_deadline=5)
    assert (current.message_id, current.retry_count) == (late.message_id, 1)
    assert world.error(c.QueueAck("q", late.message_id, late.lease)).code == "MESSAGE_NOT_FOUND"
    assert world.error(c.QueueNack("q", late.message_id, lease=late.lease)).code == "MESSAGE_NOT_FOUND"
    assert world.error(c.QueueExtend("q", late.message_id, 9, lease=late.lease)).code == "MESSAGE_NOT_FOUND"
    assert world(c.QueueAck("q", current.message_id, current.lease)).success
    assert world.error(c.QueueAck("q", current.message_id, current.lease)).code == "MESSAGE_NOT_FOUND"


def test_a_passed_deadline_counts_even_if_nobody_let_time_pass(world: World) -> None:
    publish(world, 1)
    message = world.consume(ack_deadline=5)
    world.now += 5
    assert world.error(c.QueueAck("q", message.message_id, message.lease)).code == "MESSAGE_NOT_FOUND"


def test_without_the_number_of_the_lease_the_sessions_must_agree(world: World) -> None:
    publish(world, 1, 2)
    mine, other = Client("mine"), Client("other")
    first = world.get(c.MessageAnswer, c.QueueConsume("q"), mine, 1)
    assert world.error(c.QueueAck("q", first.message_id), other).code == "MESSAGE_NOT_FOUND"
    assert world(c.QueueAck("q", first.message_id), mine, 2).success
    second = world.get(c.MessageAnswer, c.QueueConsume("q"), mine, 3)
    assert world(c.QueueAck("q", second.message_id), Client()).success


def test_sessions_of_one_client_hold_their_leases_together(world: World) -> None:
    publish(world, 1)
    mine, kin, other = Client("a" * 24 + "00000000"), Client("a" * 24 + "00000001"), Client("b" * 24 + "00000000")
    message = world.get(c.MessageAnswer, c.QueueConsume("q"), mine, 1)
    assert world.error(c.QueueAck("q", message.message_id), other).code == "MESSAGE_NOT_FOUND"
    assert world(c.QueueAck("q", message.message_id), kin, 1).success


def test_lease_0_is_whichever_is_current(world: World) -> None:
    publish(world, 1)
    message = world.get(c.MessageAnswer, c.QueueConsume("q"), Client("mine"), 1)
    other = Client("other")
    assert world(c.QueueExtend("q", message.message_id, 20, lease=0), other, 1).success
    assert world(c.QueueNack("q", message.message_id, lease=0), other, 2).action == "requeued"
    assert world.error(c.QueueAck("q", message.message_id, lease=0), other).code == "MESSAGE_NOT_FOUND"


def test_extend_moves_the_deadline(world: World) -> None:
    publish(world, 1)
    message = world.consume(ack_deadline=5)
    world(c.QueueExtend("q", message.message_id, 20))
    world.sleep(19)
    assert world.stats().pending == 1
    world.sleep(1)
    assert (world.stats().pending, world.stats().depth) == (0, 1)


def test_what_comes_back_has_the_place_it_had(world: World) -> None:
    publish(world, 1, 2, 3, 4)
    first, second, third = world.consume(), world.consume(ack_deadline=5), world.consume()
    world(c.QueueNack("q", third.message_id))
    world(c.QueueNack("q", first.message_id))
    world.sleep(5)
    assert world.stats().depth == 4
    assert second.message == b"2"
    assert world.drain() == [b"1", b"2", b"3", b"4"]


def test_purge_drops_ready_delayed_and_leased(world: World) -> None:
    publish(world, 1, 2)
    publish(world, 3, delay=5)
    message = world.consume()
    assert world(c.QueuePurge("q")).purged == 3
    assert world.error(c.QueueAck("q", message.message_id)).code == "MESSAGE_NOT_FOUND"
    world.sleep(60)
    assert world.drain() == []


def test_a_queue_that_is_made_again_knows_nothing_of_the_old_one(world: World) -> None:
    publish(world, 1)
    message = world.consume()
    world(c.QueueDelete("q"))
    publish(world, 2)
    again = world.consume()
    assert again.message_id != message.message_id
    assert world.error(c.QueueAck("q", message.message_id, message.lease)).code == "MESSAGE_NOT_FOUND"


def test_stats_count_what_happened(world: World) -> None:
    publish(world, 1, 2, 3)
    world.sleep(7)
    publish(world, 4, delay=60)
    world(c.QueueAck("q", world.consume().message_id))
    world(c.QueueNack("q", world.consume().message_id))
    world(c.QueueNack("q", world.consume().message_id, requeue=False))
    stats = world.stats()
    assert (stats.depth, stats.pending, stats.delayed, stats.consumers) == (1, 0, 1, 0)
    assert (stats.published_total, stats.consumed_total, stats.acked_total) == (4, 3, 1)
    assert (stats.nacked_total, stats.dead_lettered_total) == (2, 1)
    assert stats.oldest_message_age_secs == 7.0


# ---- dead letters


def test_a_message_is_tried_again_max_retries_times(world: World) -> None:
    world(c.QueueCreate("q", c.QueueConfig(max_retries=2)))
    publish(world, 1, headers={"mine": "kept"}, priority=7)
    actions = [world(c.QueueNack("q", world.consume().message_id)).action for _ in range(3)]
    assert actions == ["requeued", "requeued", "dead_lettered"]
    letter = world.consume("q.dlq")
    assert (letter.message, letter.priority, letter.retry_count) == (b"1", 7, 0)
    assert letter.headers["mine"] == "kept"
    assert letter.headers["x-dead-letter-reason"] == "max_retries"
    assert letter.headers["x-dead-letter-queue"] == "q"
    assert letter.headers["x-dead-letter-tries"] == "3"


def test_the_headers_tell_the_reasons_apart(world: World) -> None:
    world(c.QueueCreate("q", c.QueueConfig(max_retries=0)))
    publish(world, 1, 2, 3)
    world(c.QueueNack("q", world.consume().message_id, requeue=False))
    world(c.QueueNack("q", world.consume().message_id))
    world.consume(ack_deadline=1)
    world.sleep(1)
    reasons = [world.consume("q.dlq").headers["x-dead-letter-reason"] for _ in range(3)]
    assert reasons == ["rejected", "max_retries", "ack_deadline"]


def test_redrive_puts_dead_letters_back_as_they_were(world: World) -> None:
    publish(world, 1, 2, 3, headers={"mine": "kept"})
    for _ in range(3):
        world(c.QueueNack("q", world.consume().message_id, requeue=False))
    assert world(c.QueueRedrive("q", 1)).redriven == 1
    assert world(c.QueueRedrive("q")).redriven == 2
    assert world(c.QueueRedrive("q")).redriven == 0
    message = world.consume()
    assert (message.message, message.headers, message.retry_count) == (b"1", {"mine": "kept"}, 0)


def test_redrive_stops_at_a_full_queue(world: World) -> None:
    world(c.QueueCreate("q", c.QueueConfig(max_depth=2)))
    for value in range(3):
        publish(world, value)
        world(c.QueueNack("q", world.consume().message_id, requeue=False))
    assert world(c.QueueRedrive("q")).redriven == 2
    assert world.error(c.QueueRedrive("q")).code == "QUEUE_FULL"
    assert world.stats("q.dlq").depth == 1


def test_without_dead_letters_only_requeue_false_drops(world: World) -> None:
    world(c.QueueCreate("q", c.QueueConfig(max_retries=0, dead_letter=False)))
    publish(world, 1)
    for tries in range(3):
        assert world.consume(ack_deadline=1).retry_count == tries
        world.sleep(1)
    assert world(c.QueueNack("q", world.consume().message_id)).action == "requeued"
    assert world.consume().retry_count == 4
    world.sleep(30)
    assert world(c.QueueNack("q", world.consume().message_id, requeue=False)).action == "dropped"
    assert world.stats().dropped_total == 1
    assert world(c.QueueList()).queues == ["q"]


def test_a_dead_letter_is_not_lost_by_its_own_queue(world: World) -> None:
    assert world(c.QueueConsume("q.dlq")) is None, "made in passing, before there was a dead letter"
    publish(world, 1)
    world(c.QueueNack("q", world.consume().message_id, requeue=False))
    for _ in range(10):
        world.consume("q.dlq", ack_deadline=1)
        world.sleep(1)
    assert world.drain("q.dlq") == [b"1"]


def test_a_full_dead_letter_queue_lets_its_oldest_go(world: World) -> None:
    world(c.QueueCreate("q.dlq", c.QueueConfig(max_depth=2)))
    for value, priority in enumerate([9, 1, 1]):
        publish(world, value, priority=priority)
        world(c.QueueNack("q", world.consume().message_id, requeue=False))
    assert world.engine.stats()["queues"]["q.dlq"]["dropped_total"] == 1
    assert world.drain("q.dlq") == [b"1", b"2"]


@pytest.mark.parametrize("many", [False, True])
def test_a_consume_that_is_refused_has_not_acknowledged(many: bool) -> None:
    world = World(limits=Limits(waiting=1))
    publish(world, 1)
    held = world.consume()

    def take(queue: str, lease: int) -> Any:
        if many:
            return c.QueueConsumeMany([queue], timeout=9, ack=[c.Held(queue, held.message_id, lease)])
        return c.QueueConsume(queue, timeout=9, ack=held.message_id, ack_lease=lease)

    assert world.error(take("none", held.lease)).code == "QUEUE_NOT_FOUND"
    assert world.error(take("q", held.lease + 1)).code == "MESSAGE_NOT_FOUND"
    assert world(c.QueueConsume("q", timeout=9), Client(), 1) is WAITING
    assert world.error(take("q", held.lease)).code == "SERVICE_UNAVAILABLE"
    assert world(c.QueueList()).queues == ["q"]
    assert (world.stats().pending, world.stats().acked_total) == (1, 0)
    world(c.QueueAck("q", held.message_id, held.lease))


@pytest.mark.parametrize("many", [False, True])
def test_a_consume_that_has_acknowledged_is_not_refused_for_want_of_memory(many: bool) -> None:
    """What is remembered counts now and then only, which may be with what this very consume has acknowledged."""
    refused = 0
    for kept in range(250, 260):
        world, client = World(limits=Limits(memory=1_000_000)), Client("s" * 32)
        publish(world, 1)
        message = world.get(c.MessageAnswer, c.QueueConsume("q"), client, 1)
        for number in range(kept):
            world(c.KvIncr("n"), client, number + 2)
        left = world.engine.budget.limit - world.engine.budget.used
        value: Any = b"1" * (left - 5000)
        world(c.KvSet("filling", value))
        held = c.Held("q", message.message_id, message.lease)
        one = c.QueueConsume("q", 10, ack=message.message_id, ack_lease=message.lease)
        try:
            world(c.QueueConsumeMany(["q"], 1, 10, ack=[held]) if many else one, client, 1000)
        except SynapError:
            refused += 1
            assert world.stats().pending == 1
    assert refused < 10


def test_many_leases_end_in_bounded_steps(world: World) -> None:
    publish(world, *range(2500))
    for _ in range(2500):
        world.consume(ack_deadline=5)
    world.now += 5
    world.engine.advance(world.now)
    assert 0 < world.stats().depth < 2500
    due = world.engine.next_deadline()
    assert due is not None
    assert due <= world.now
    world.sleep(0)
    assert world.stats().depth == 2500


def test_redriving_counts_what_is_leased_and_delayed_against_max_depth(world: World) -> None:
    world(c.QueueCreate("q", c.QueueConfig(max_depth=2)))
    for value in (1, 2):
        publish(world, value)
        letter = world.consume()
        world(c.QueueNack("q", letter.message_id, False, letter.lease))
    publish(world, 3)
    held = world.consume()
    publish(world, 4, delay=60)
    assert world.error(c.QueueRedrive("q")).code == "QUEUE_FULL"
    world(c.QueueAck("q", held.message_id, held.lease))
    assert world(c.QueueRedrive("q")).redriven == 1
    stats = world.stats()
    assert (stats.depth, stats.pending, stats.delayed) == (1, 0, 1)
    assert world.stats("q.dlq").depth == 1


def test_a_delay_is_no_age(world: World) -> None:
    publish(world, 1, delay=100)
    assert world.stats().oldest_message_age_secs is None
    world.sleep(130)
    assert world.stats().oldest_message_age_secs == 30
    message = world.consume()
    world(c.QueueNack("q", message.message_id))
    assert world.stats().oldest_message_age_secs == 30


@pytest.mark.parametrize("dump", [False, True], ids=["log", "snapshot"])
def test_a_delay_is_no_age_after_a_restart(dump: bool) -> None:
    world = World(durable=True)
    publish(world, 1, delay=100)
    world.sleep(130)
    records = dumped(world.engine) if dump else world.engine.collect()[0]
    world.restart(records)
    assert world.stats().oldest_message_age_secs == 30


def test_headers_of_a_dead_letter_do_not_count_against_the_128(world: World) -> None:
    headers = {f"h{number}": "" for number in range(128)}
    publish(world, 1, headers={**headers, "x-dead-letter-reason": "rejected"})
    data: Any = b"1"
    error = world.error(c.QueuePublish("q", data, headers={**headers, "one": "more"}))
    assert (error.code, "at most 128" in error.message) == ("INVALID_PAYLOAD", True)


def test_what_became_due_meanwhile_happens_in_the_order_of_time() -> None:
    """A machine that slept is told of everything at once."""
    world, waiter = World(), Client()
    late: Any = b"delayed"
    publish(world, 1)
    world.consume(ack_deadline=8)
    world(c.QueuePublish("q", late, delay=5))
    world(c.QueueConsume("q", timeout=60), waiter, 1)
    world.now += 20
    world.engine.advance(world.now)
    assert waiter.answers[1].message == b"delayed"


def test_what_acknowledges_a_message_twice_is_refused_and_takes_nothing(world: World) -> None:
    publish(world, 1, 2)
    held = world.consume()
    one = c.Held("q", held.message_id, held.lease)
    error = world.error(c.QueueConsumeMany(["q"], 10, ack=[one, one]))
    assert (error.code, error.details["field"]) == ("INVALID_PAYLOAD", "ack")
    assert (world.stats().acked_total, world.stats().pending) == (0, 1)


def test_each_further_try_waits_longer_and_the_first_as_configured(world: World) -> None:
    world(c.QueueCreate("q", c.QueueConfig(max_retries=10, retry_delay=10, retry_backoff=2, retry_max_delay=35)))
    publish(world, 1)
    for pause in (10, 20, 35, 35):
        held = world.consume(ack_deadline=5)
        world(c.QueueNack("q", held.message_id, lease=held.lease))
        assert world.get(c.PeekAnswer, c.QueuePeek("q", "delayed")).messages[0].due == world.now + pause
        world.sleep(pause - 0.5)
        assert world(c.QueueConsume("q")) is None
        world.sleep(0.5)
    world.consume(ack_deadline=5)
    world.sleep(5)  # a lease that runs out counts like a nack
    assert world.get(c.PeekAnswer, c.QueuePeek("q", "delayed")).messages[0].due == world.now + 35


def test_queues_without_figures_of_their_own_have_the_age_of_their_oldest_message(world: World) -> None:
    def others() -> Any:
        return run(survey(world.engine, 1, lambda name: name == "named"))["queues_others"]

    began = world.now
    publish(world, 1, queue="named")
    world.sleep(10)
    for queue in ("forgotten", "younger"):
        publish(world, 1, queue=queue)
        world.sleep(10)
    publish(world, 1, 2, 3, 4, 5, queue="busy")
    assert (others()["depth"], others()["oldest"]) == (2, began + 10)
    held = world.consume("forgotten")
    assert others()["oldest"] == began + 20, "what is leased doesn't wait"
    world(c.QueueNack("forgotten", held.message_id))
    assert others()["oldest"] == began + 10
    world(c.QueuePurge("forgotten"))
    world(c.QueuePurge("younger"))
    assert others()["oldest"] is None


@pytest.mark.parametrize("durable", [False, True])
def test_what_came_back_and_went_and_came_back_is_shown_once(durable: bool) -> None:
    world = World(durable=durable)
    publish(world, 0, 1, 2, 3)
    taken = [world.consume() for _ in range(2)]
    nacks = [c.QueueNack("q", message.message_id) for message in taken]
    assert "BATCH_ABORTED" in world.batch(*reversed(nacks), c.KvTtl("none"), atomic=True)
    for nack in nacks:
        world(nack)
    shown = world(c.QueuePeek("q"))
    assert [message.message for message in shown.messages] == [b"0", b"1", b"2", b"3"]
    assert [message.message for message in world(c.QueuePeek("q", limit=2)).messages] == [b"0", b"1"]
    assert world.drain() == [b"0", b"1", b"2", b"3"]


def test_a_page_behind_a_message_is_found_while_others_come_back(world: World) -> None:
    publish(world, *range(5000))
    world.consume(ack_deadline=5)
    after = world(c.QueuePeek("q", limit=4500)).messages[-1].message_id
    steps: Any = world.engine.execute(c.QueuePeek("q", after=after), world.now, world.client)
    next(steps)  # others have their turn, and time passes
    world.sleep(10)
    assert len(run(steps).messages) == 100
