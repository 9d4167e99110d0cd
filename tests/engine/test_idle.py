"""Queues and rooms that were made by use alone and hold nothing go after a while."""

from __future__ import annotations

from typing import Any, Dict

import pytest

from synap import commands as c
from synap.engine.engine import Limits
from synap.engine.journal import Journal
from tests.helpers.world import Client, World, dumped, picture

X: Any = b"1"


@pytest.fixture
def world() -> World:
    return World(durable=True, limits=Limits(idle=100))


def names(world: World) -> Any:
    return world(c.QueueList()).queues, world(c.StreamRooms()).rooms


def test_what_was_made_by_use_and_holds_nothing_goes(world: World) -> None:
    client = Client()
    world(c.QueueConsume("polled"))
    world(c.QueueCreate("created"))
    world(c.QueuePublish("emptied", X))
    world(c.QueueAck("emptied", world.consume("emptied").message_id))
    world(c.QueuePublish("full", X))
    subscription = world(c.StreamSubscribe("empty"), client)
    world(c.StreamPublish("kept", "e", X))
    world.sleep(99)
    assert names(world) == (["created", "emptied", "full", "polled"], ["empty", "kept"])
    world.sleep(2)
    assert names(world) == (["created", "full"], ["empty", "kept"])
    world(c.StreamUnsubscribe(subscription.subscription_id), client)
    world.sleep(201)
    assert names(world) == (["created", "full"], ["kept"])
    assert picture(world.engine)


def test_a_queue_that_is_used_stays(world: World) -> None:
    for _ in range(5):
        world(c.QueuePublish("q", X))
        world(c.QueueAck("q", world.consume().message_id))
        world.sleep(90)
    world(c.QueueConsume("q", timeout=1000), Client(), 1)
    world.sleep(500)
    assert names(world)[0] == ["q"]
    world.sleep(800)
    assert names(world)[0] == []


def test_creating_a_queue_makes_it_stay(world: World) -> None:
    world(c.QueueConsume("q"))
    world(c.QueueCreate("q"))
    world.sleep(1000)
    assert names(world)[0] == ["q"]


@pytest.mark.parametrize("dump", [False, True], ids=["log", "snapshot"])
def test_a_restart_knows_which_were_made_by_use(world: World, dump: bool) -> None:
    world(c.QueueConsume("polled"))
    world(c.QueueConsume("configured"))
    world(c.QueueCreate("configured"))
    world(c.StreamSubscribe("empty"), Client())
    records = dumped(world.engine) if dump else world.engine.collect()[0]
    world.restart(records)
    world.sleep(201)
    assert names(world) == (["configured"], [])
    world.restart(records + world.engine.collect()[0])
    assert names(world) == (["configured"], [])


def test_a_room_that_a_durable_subscription_knows_stays(world: World) -> None:
    client = Client()
    subscription = world(c.StreamSubscribe("named", name="auditor"), client)
    world(c.StreamUnsubscribe(subscription.subscription_id), client)
    world.sleep(500)
    assert names(world) == ([], ["named"])
    world(c.StreamForget("named", "auditor"))
    world.sleep(201)
    assert names(world) == ([], [])


def test_without_a_limit_nothing_goes() -> None:
    world = World()
    world(c.QueueConsume("polled"))
    assert world.engine.next_deadline() is None
    world.sleep(10**9)
    assert names(world)[0] == ["polled"]


def refuse(world: World, *payloads: Any) -> None:
    """Execute what the disk refuses, so late that what watches idle things has looked meanwhile."""
    world.engine.collect()
    for payload in payloads:
        world(payload)
    world.sleep(250)
    Journal.roll_back(world.engine.collect()[1])


@pytest.mark.parametrize("refused", ["nothing", "deletion", "creation"])
def test_an_idle_queue_goes_also_after_the_disk_refused_what_happened_to_it(world: World, refused: str) -> None:
    world(c.QueueConsume("q"))
    if refused == "nothing":  # but that it went because it was idle
        refuse(world)
    else:
        refuse(world, c.QueueDelete("q") if refused == "deletion" else c.QueueCreate("q"))
    assert names(world)[0] == ["q"]
    world.sleep(201)
    assert names(world)[0] == []


@pytest.mark.parametrize("refused", ["nothing", "deletion", "event"])
def test_an_idle_room_goes_also_after_the_disk_refused_what_happened_to_it(world: World, refused: str) -> None:
    client = Client()
    subscription = world(c.StreamSubscribe("r"), client)
    world(c.StreamUnsubscribe(subscription.subscription_id), client)
    if refused == "nothing":
        refuse(world)
    else:
        refuse(world, c.StreamDelete("r") if refused == "deletion" else c.StreamPublish("r", "e", X))
    assert names(world)[1] == ["r"]
    world.sleep(201)
    assert names(world)[1] == []


@pytest.mark.parametrize("what", ["queue", "configured", "deleted", "room", "deleted room", "event"])
def test_what_is_taken_back_again_and_again_is_watched_once(world: World, what: str) -> None:
    client = Client()
    world(c.QueuePublish("q", X))
    world(c.StreamSubscribe("r"), client)
    payloads: Dict[str, Any] = {
        "queue": c.QueueConsume("other"),
        "configured": c.QueueCreate("q"),
        "deleted": c.QueueDelete("q"),
        "room": c.StreamSubscribe("other"),
        "deleted room": c.StreamDelete("r"),
        "event": c.StreamPublish("r", "e", X),
    }
    checks = world.engine.idle.checks
    world.engine.advance(world.now)
    before = len(checks.entries)
    for number in range(3000):
        world.engine.collect()
        world(payloads[what], Client())
        Journal.roll_back(world.engine.collect()[1])
        if number % 10 == 0:
            world.engine.advance(world.now)
    world.engine.advance(world.now)
    assert len(checks.entries) + len(checks.unswept) <= before + 1025, "entries that don't count any more stay"
    made = world.engine.idle.count
    world.sleep(1000)
    assert world.engine.idle.count - made <= 2 * 10, "it is checked more than once per age"
    assert len(checks.entries) <= before
    assert names(world) == (["q"], ["r"])
