"""Whatever a service has taken can be exported, and what was exported comes back as it was."""

from __future__ import annotations

import io
import tempfile
from typing import Any, List

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synap import commands
from synap.engine.limits import Limits
from synap.errors import SynapError
from synap.storage.portable import as_commands, export_directory, import_directory, lines, parse
from synap.wire import values
from synap.wire.codec import JSON, MSGPACK, find
from tests.helpers.world import Client, World

c: Any = commands
"""The payloads; here their values are stored bytes already."""

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
json_values = plain.map(lambda value: values.from_json(JSON.encode(value)))
packed_values = st.recursive(
    plain | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
).map(lambda value: values.from_msgpack(MSGPACK.encode(value)))
stored = json_values | packed_values
headers = st.none() | st.dictionaries(names, texts, max_size=4) | st.just({f"h{number}": "x" for number in range(128)})
metadata = headers


keys = st.builds(lambda key, value, ttl: c.KvSet(key, value, ttl), names, stored, st.none() | st.integers(1, 10**10))
configs = st.builds(
    lambda retries, deadline, depth, letters: c.QueueConfig(retries, deadline, depth, letters),
    st.integers(0, 10**6),
    st.floats(0.001, 86_400),
    st.integers(1, 10**8),
    st.booleans(),
)
queue_names = st.sampled_from(["q", "r", "ü", "q.dlq"])
creations = st.builds(lambda name, config: c.QueueCreate(name, config), queue_names, configs)
messages = st.builds(
    lambda name, value, priority, headers, delay: c.QueuePublish(name, value, priority, headers, delay),
    queue_names,
    stored,
    st.integers(0, 9),
    headers,
    st.just(0) | st.floats(0.001, 31_536_000) | st.just(5),
)
settlements = st.builds(
    lambda name, how: (name, how), queue_names, st.sampled_from(["lease", "reject", "retry", "ack"])
)
events = st.builds(
    lambda room, kind, data, metadata: c.StreamPublish(room, kind, data, metadata),
    st.sampled_from(["a", "ß"]) | names,
    names,
    stored,
    metadata,
)
steps = st.lists(keys | creations | messages | settlements | events | st.integers(1, 100), max_size=25)


def filled(steps: List[Any]) -> World:
    """Do what is given: requests, settlements of the next message of a queue, seconds that pass."""
    world = World(limits=Limits(room_events=3))
    world.client = Client("f" * 32)
    for number, step in enumerate(steps, 1):
        if isinstance(step, int):
            world.sleep(step)
        elif isinstance(step, tuple):
            message = world(c.QueueConsume(step[0], ack_deadline=20), number=number)
            if message is not None and step[1] == "ack":
                world(c.QueueAck(step[0], message.message_id))
            elif message is not None and step[1] != "lease":
                world(c.QueueNack(step[0], message.message_id, step[1] == "retry"))
        else:
            unless_full(world, step, number)
    return world


def unless_full(world: World, payload: Any, number: int = 0) -> None:
    """Make a request that only a full queue may refuse: a `max_depth` can be set below what a queue holds."""
    try:
        world(payload, number=number)
    except SynapError as error:
        if error.code != "QUEUE_FULL":
            raise


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(steps)
def test_what_is_exported_is_imported_as_it_was(steps: List[Any]) -> None:
    world = filled(steps)
    content = list(lines(world.engine, world.now))
    with tempfile.TemporaryDirectory() as directory:
        count = import_directory(content, f"{directory}/imported", now=world.now)
        assert count == len(content) - 2
        out = io.BytesIO()
        export_directory(f"{directory}/imported", out, now=world.now)
    assert sorted(out.getvalue().splitlines(True)[1:]) == sorted(content[1:])


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(steps)
def test_what_is_exported_is_taken_by_a_service(steps: List[Any]) -> None:
    world = filled(steps)
    content = list(lines(world.engine, world.now))
    target = World()
    for name, fields in as_commands(parse(content), world.now):
        target(MSGPACK.decode_payload(find(name), MSGPACK.encode(fields)))
    assert read(target) == read(world)


def read(world: World) -> Any:
    """Read the keys that are not over, and what rooms hold."""
    held = world.engine.keys
    rooms = world.engine.streams.by_name.values()
    return (
        {
            key: values.read(value)
            for key, value in held.values.items()
            if held.expires.get(key, world.now + 1) > world.now
        },
        {room.name: [values.read(event.data) for event in room.events[room.first :]] for room in rooms},
    )
