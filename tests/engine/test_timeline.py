"""Times of the engine and what the wall clock showed, over steps of the wall clock."""

from __future__ import annotations

import pytest
from msgspec import Raw

from synap import commands as c
from synap.engine.timeline import Timeline
from tests.helpers.world import Client, World

BEGIN = 1_700_000_000.0


@pytest.mark.parametrize("moment", [-5000.0, -1.0, 0.0, 500.0, 1000.0, 5000.0])
def test_a_timestamp_is_read_by_the_clock_of_its_time(moment: float) -> None:
    timeline = Timeline()
    timeline.add(BEGIN, 600.0)
    timeline.add(BEGIN + 1000, 4200.0)
    assert timeline.time(timeline.at(BEGIN + moment)) == BEGIN + moment


def test_a_step_that_is_known_is_told_once() -> None:
    timeline = Timeline()
    timeline.add(BEGIN, 600.0)
    timeline.add(BEGIN, 600.0)
    timeline.add(BEGIN - 10, 5.0)
    assert timeline.steps == [(BEGIN, 600.0)]
    assert timeline.ahead == 600.0


def test_a_lease_ends_at_the_same_time_in_an_answer_that_is_repeated() -> None:
    world, caller = World(), Client("me")  # whose answers are remembered
    for text in (b"1", b"2"):
        world(c.QueuePublish("q", Raw(text)))
    world.engine.timeline.add(world.now, 600.0)
    one = world.get(c.MessageAnswer, c.QueueConsume("q"), caller, 1)
    many = world.get(c.MessagesAnswer, c.QueueConsumeMany(["q"], 1), caller, 2)
    assert world.engine.recall("me", 1) == one
    assert world.engine.recall("me", 2) == many
