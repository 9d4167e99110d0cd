"""A command that is refused leaves no trace, whatever limit it meets and wherever in its course."""

from __future__ import annotations

import copy
from typing import Any, Dict, List, Tuple

import pytest

from synap import commands as c
from synap.engine.engine import Limits
from synap.errors import SynapError
from tests.helpers.world import Client, World, picture

V: Any = b"1"
LONG: Any = b'"' + b"x" * 700 + b"'"

COMMANDS: Dict[str, List[Any]] = {
    "kv": [
        c.KvSet("new", V),
        c.KvSet("new", LONG, ttl=10),
        c.KvSet("a", LONG),
        c.KvSet("t", V, keep_ttl=True),
        c.KvSet("a", LONG, if_value=V),
        c.KvSet("new", V, nx=True),
        c.KvGet("a"),
        c.KvDel(["a", "t"]),
        c.KvExists("a"),
        c.KvIncr("new"),
        c.KvIncr("a", 10**15),
        c.KvDecr("new"),
        c.KvExpire("a", 10),
        c.KvClear("a"),
        c.KvPersist("t"),
        c.KvTtl("t"),
        c.KvScan(),
        c.KvMSet([c.Pair("new", V), c.Pair("a", LONG), c.Pair("new2", LONG, ttl=5)]),
        c.KvMGet(["a", "new"]),
    ],
    "queue": [
        c.QueueCreate("new"),
        c.QueueCreate("q", c.QueueConfig(max_depth=7)),
        c.QueueCreate("new" + ".dlq", c.QueueConfig(dead_letter=True)),
        c.QueueDelete("q"),
        c.QueuePurge("q"),
        c.QueuePublish("new", V),
        c.QueuePublish("new", LONG, headers={"h": "x" * 100}),
        c.QueuePublish("q", LONG),
        c.QueuePublish("q", V, delay=5),
        c.QueuePublish("full", V),
        c.QueuePeek("q"),
        c.QueueConsume("new"),
        c.QueueConsume("new", 10),
        c.QueueConsume("q"),
        c.QueueConsume("empty", 10),
        c.QueueConsumeMany(["new"], 10),
        c.QueueConsumeMany(["new1", "new2", "new3"], 10, timeout=0),
        c.QueueConsumeMany(["new1", "new2", "new3"], 10, timeout=10),
        c.QueueConsumeMany(["empty", "new1", "q", "new2"], 10, timeout=10),
        c.QueueConsumeMany(["empty", "new1", "new2"], 10, timeout=10),
        c.QueueConsumeMany(["new1", "x" * 300], 10),
        c.QueueConsumeMany(["new1", "\udcff"], 10),
        c.QueueRedrive("q"),
        c.QueueStats("q"),
        c.QueueList(),
    ],
    "stream": [
        c.StreamPublish("new", "t", V),
        c.StreamPublish("r", "t", LONG, metadata={"m": "x" * 50}),
        c.StreamPublish("new", "\u00e9" * 200, V),
        c.StreamSubscribe("new"),
        c.StreamSubscribe("new", name="n"),
        c.StreamSubscribe("new", name="\u00e9" * 200),
        c.StreamSubscribe("r", name="other"),
        c.StreamSubscribe("r", name="n"),
        c.StreamCommit("r", "n", 0),
        c.StreamCommit("r", "other", 0),
        c.StreamForget("r", "n"),
        c.StreamCursors("r"),
        c.StreamUnsubscribe(1),
        c.StreamHistory("r"),
        c.StreamRooms(),
        c.StreamStats("r"),
        c.StreamDelete("r"),
    ],
    "pubsub": [
        c.PubSubPublish("a.b", V),
        c.PubSubSubscribe(["a.*", "b.#", "a.*"]),
        c.PubSubSubscribe(["a.b", "no..word"]),
        c.PubSubUnsubscribe(2),
        c.PubSubTopics(),
        c.PubSubStats(),
    ],
}
EVERY = [payload for group in COMMANDS.values() for payload in group]
# What needs the id of a message is made once there is one.
OF_MESSAGES = (c.QueueAck, c.QueueNack, c.QueueExtend)


LIMITS = ("queues", "rooms", "names", "subscriptions", "waiting")


def named(payload: Any) -> str:
    return type(payload).__name__


def furnish(seed: int = 0, **options: Any) -> Tuple[World, Client, c.MessageAnswer]:
    """Make a world with some of everything, and a caller with a session."""
    world = World(limits=Limits(**{"room_events": 3, **options}), durable=True, seed=seed)
    caller = Client("s" * 32)
    world(c.KvSet("a", V))
    world(c.KvSet("t", V, ttl=1000))
    world(c.QueueCreate("full", c.QueueConfig(max_depth=1)))
    world(c.QueueCreate("q", c.QueueConfig(max_retries=0)))
    world(c.QueueCreate("empty"))
    for value in range(5):
        world(c.QueuePublish("q", V, headers={"n": str(value)}))
    world(c.QueuePublish("q", V, delay=500))
    world(c.QueuePublish("full", V))
    letter = world.consume("q")
    world(c.QueueNack("q", letter.message_id))
    held = world.consume("q", ack_deadline=900)
    for _ in range(3):
        world(c.StreamPublish("r", "t", V))
    world(c.StreamSubscribe("r", name="n"), caller)
    world(c.PubSubSubscribe(["a.b"]), caller)
    world.engine.collect()
    return world, caller, held


def trace(world: World, caller: Client) -> Dict[str, Any]:
    """Describe everything: what is kept, what is derived, who waits and listens, what goes to the disk."""
    engine = world.engine
    return copy.deepcopy(
        {
            "kept": {name: part for name, part in picture(engine).items() if name != "rooms"},
            "rooms": {
                name: (room.oldest, room.next, dict(room.places)) for name, room in engine.streams.by_name.items()
            },
            "budget": (engine.budget.used, engine.budget.aside, engine.budget.limit),
            "waiting": len(engine.deliveries.waiting),
            "waiters": {name: len(queue.waiters) for name, queue in engine.store.queues.items()},
            "subscriptions": sorted(caller.subscriptions),
            "patterns": sorted(engine.topics.patterns),
            "told": (dict(caller.answers), list(caller.pushed), sorted(caller.ends), set(caller.waiting)),
            "evicted": engine.keys.evicted,
            "records": len(engine.journal.records),
            "undos": len(engine.journal.undos),
        }
    )


def refused(world: World, caller: Client, payload: Any) -> bool:
    """Execute; where it is refused, nothing may be different from before."""
    before = trace(world, caller)
    try:
        world(payload, caller, 1)
    except SynapError:
        assert trace(world, caller) == before
        return True
    return False


def test_the_commands_are_all_there() -> None:
    named = {type(payload) for payload in EVERY} | set(OF_MESSAGES)
    assert named == {command.payload for command in c.COMMANDS.values() if not command.hosted}


@pytest.mark.parametrize("payload", EVERY, ids=named)
def test_what_memory_has_no_room_for_leaves_no_trace(payload: Any) -> None:
    free, outcomes = 0, []
    while free < 6000:
        world, caller, _ = furnish()
        world.engine.budget.limit = world.engine.budget.used + free
        outcomes.append(refused(world, caller, payload))
        free += 73
    assert outcomes == sorted(outcomes, reverse=True), "what fits in less fits in more"


def test_a_message_is_settled_however_little_room_there_is() -> None:
    for made in (c.QueueAck, c.QueueNack):
        world, caller, held = furnish()
        world.engine.budget.limit = 0
        assert not refused(world, caller, made("q", held.message_id, lease=held.lease))
    world, caller, held = furnish()
    world.engine.budget.limit = 0
    assert not refused(world, caller, c.QueueExtend("q", held.message_id, 10, held.lease))


@pytest.mark.parametrize("payload", EVERY, ids=named)
def test_what_meets_another_limit_leaves_no_trace(payload: Any) -> None:
    for limit in LIMITS:
        for most in range(1, 8):
            world, caller, _ = furnish()
            setattr(world.engine.limits, limit, most)
            refused(world, caller, payload)


@pytest.mark.parametrize("payload", EVERY, ids=named)
def test_no_key_is_evicted_for_what_is_refused_for_another_reason(payload: Any) -> None:
    for limit in LIMITS:
        world, caller, _ = furnish(evict=True)
        for number in range(100):
            world(c.KvSet(f"t{number}", V, ttl=1000))
        world.engine.collect()
        setattr(world.engine.limits, limit, 1)
        world.engine.budget.limit = world.engine.budget.used
        refused(world, caller, payload)


def test_a_request_that_waits_already_leaves_no_trace() -> None:
    world, caller, _ = furnish()
    world(c.QueueConsume("empty", 10), caller, 1)
    for payload in (c.QueueConsume("new", 10), c.QueueConsumeMany(["empty", "new"], 10, timeout=10)):
        assert refused(world, caller, payload)
