"""How many of something there may be: refused by name beyond, and what there was stays."""

from __future__ import annotations

from typing import Any, List

import pytest

from synap import commands as c
from synap.engine.limits import Limits
from tests.helpers.world import World

VALUE: Any = b"1"
EVENT = c.StreamPublish("a", "t", VALUE)


@pytest.mark.parametrize(
    ("limits", "made", "beyond"),
    [
        (
            Limits(queues=1),
            [c.QueuePublish("a", VALUE)],
            [c.QueuePublish("b", VALUE), c.QueueCreate("b"), c.QueueConsume("b", 1)],
        ),
        (Limits(rooms=1), [EVENT], [c.StreamPublish("b", "t", VALUE), c.StreamSubscribe("b")]),
        (
            Limits(names=1),
            [EVENT, c.StreamCommit("a", "n", 0)],
            [c.StreamCommit("a", "m", 0), c.StreamSubscribe("a", name="m")],
        ),
    ],
)
def test_queues_rooms_and_names_of_a_room_are_limited(limits: Limits, made: List[Any], beyond: List[Any]) -> None:
    world = World(limits=limits)
    for payload in made:
        world(payload)
    for payload in beyond:
        assert world.error(payload).code == "MEMORY_LIMIT"
    for payload in made:
        world(payload)


def test_a_name_that_is_forgotten_makes_room_for_another() -> None:
    world = World(limits=Limits(names=1))
    for payload in (EVENT, c.StreamCommit("a", "n", 0), c.StreamForget("a", "n")):
        world(payload)
    world(c.StreamCommit("a", "m", 0))
