"""Consumers that wait: who is served when, and what becomes of one that goes away."""

from __future__ import annotations

from types import GeneratorType

import pytest

from synap import commands as c
from synap.engine.callers import STEP, WAITING
from synap.engine.engine import Limits
from tests.engine.conftest import publish
from tests.helpers.world import Client, World


def wait(world: World, client: Client, number: int, timeout: float = 60, queue: str = "q") -> None:
    assert world(c.QueueConsume(queue, timeout), client, number) is WAITING


def test_redrive_serves_who_waits_as_it_goes(world: World) -> None:
    waits, many = Client(), 4 * STEP
    for number in range(many):
        publish(world, number, queue="q.dlq", priority=number % 10)
    world(c.QueueCreate("q"))
    for number in range(many):
        assert world(c.QueueConsume("q", timeout=10), waits, number) is WAITING
    steps = world.engine.execute(c.QueueRedrive("q"), world.now, world.client)
    assert isinstance(steps, GeneratorType)
    answered = 0
    for _ in steps:
        assert len(waits.answers) - answered <= STEP
        answered = len(waits.answers)
    assert many - answered <= STEP
    priorities = [answer.priority for answer in waits.answers.values()]
    assert len(priorities) == many
    assert priorities == sorted(priorities, reverse=True)


def test_waiters_are_served_first_come_first_served(world: World) -> None:
    one, two = Client(), Client()
    wait(world, one, 1)
    wait(world, two, 1)
    wait(world, one, 2)
    assert world.stats().consumers == 3
    assert publish(world, 1, 2).position == 1
    assert one.answers[1].message == b"1"
    assert two.answers[1].message == b"2"
    assert one.waiting == {2}
    assert world.stats().pending == 2


def test_a_wait_ends_with_nothing(world: World) -> None:
    wait(world, world.client, 1, timeout=5)
    world.sleep(4)
    assert world.client.answers == {}
    world.sleep(1)
    assert world.client.answers == {1: None}
    publish(world, 1)
    assert world.stats().depth == 1


@pytest.mark.parametrize("how", ["nack", "deadline", "delay", "redrive", "dead letter"])
def test_whoever_waits_is_given_what_becomes_ready(world: World, how: str) -> None:
    publish(world, 1, delay=3 if how == "delay" else 0)
    queue = "q"
    if how == "delay":
        wait(world, world.client, 1)
        world.sleep(3)
    elif how == "redrive":
        world(c.QueueNack("q", world.consume().message_id, requeue=False))
        wait(world, world.client, 1)
        world(c.QueueRedrive("q"))
    else:
        message = world.consume(ack_deadline=3)
        queue = "q.dlq" if how == "dead letter" else "q"
        wait(world, world.client, 1, queue=queue)
        if how == "deadline":
            world.sleep(3)
        else:
            world(c.QueueNack("q", message.message_id, requeue=how == "nack"))
    assert world.client.answers[1].message == b"1"
    assert world.stats(queue).pending == 1


def test_who_goes_away_takes_no_message_with_it(world: World) -> None:
    gone, here = Client("gone"), Client("here")
    wait(world, gone, 1)
    wait(world, gone, 2)
    wait(world, here, 1)
    world.engine.cancel(gone, 1)
    world.engine.forget(gone)
    publish(world, 1)
    assert here.answers[1].message == b"1"
    assert gone.answers == {}
    assert gone.waiting == set()


def test_a_request_taken_back_after_its_answer_puts_the_message_back_untried(world: World) -> None:
    client = Client("me")
    publish(world, 1, 2)
    first = world.get(c.MessageAnswer, c.QueueConsume("q"), client, 1)
    world.engine.cancel(client, 1)
    again = world.get(c.MessageAnswer, c.QueueConsume("q"), client, 2)
    assert (again.message_id, again.retry_count) == (first.message_id, 0)
    world(c.QueueAck("q", again.message_id, again.lease), client, 3)
    world.engine.cancel(client, 2)
    assert world.drain() == [b"2"]


def test_what_is_taken_back_goes_to_whoever_waits(world: World) -> None:
    client, other = Client("me"), Client()
    publish(world, 1)
    world(c.QueueConsume("q"), client, 1)
    wait(world, other, 1)
    world.engine.cancel(client, 1, world.now)
    assert other.answers[1].message == b"1"


def test_deleting_a_queue_tells_those_who_wait(world: World) -> None:
    wait(world, world.client, 1)
    world(c.QueueDelete("q"))
    assert world.client.errors[1].code == "QUEUE_NOT_FOUND"
    assert world.client.waiting == set()


def test_draining_answers_everyone_who_waits(world: World) -> None:
    wait(world, world.client, 1)
    wait(world, world.client, 2, queue="other")
    world.engine.release_waiters(world.now)
    assert world.client.answers == {1: None, 2: None}
    publish(world, 1)
    assert world.stats().depth == 1


def test_a_request_sent_again_waits_on_its_new_connection(world: World) -> None:
    old, new = Client("me"), Client("me")
    wait(world, old, 7)
    wait(world, new, 7)
    world.engine.forget(old)
    publish(world, 1)
    assert new.answers[7].message == b"1"
    assert old.answers == {}


def test_waiting_consumers_are_limited() -> None:
    world = World(limits=Limits(waiting=1))
    wait(world, world.client, 1)
    for payload in (c.QueueConsume("q", 5), c.QueueConsumeMany(["q"], timeout=5, ack=[])):
        assert world.error(payload).code == "SERVICE_UNAVAILABLE"


def test_cancelling_a_consume_whose_lease_is_over_leaves_the_next_holder_alone() -> None:
    world, gone, holder = World(), Client("a" * 32), Client("b" * 32)
    publish(world, 1)
    world(c.QueueConsume("q", ack_deadline=5), gone, 1)
    world.sleep(5)
    held = world(c.QueueConsume("q", ack_deadline=60), holder, 1)
    world.engine.cancel(gone, 1, world.now)
    assert (world.stats().pending, world.stats().depth) == (1, 0)
    world(c.QueueAck("q", held.message_id, held.lease), holder)
