"""An engine without a log, and its clock."""

from __future__ import annotations

from typing import Any

import pytest

from synap import commands as c
from tests.helpers.world import World


@pytest.fixture
def world() -> World:
    return World()


def publish(world: World, *values: int, queue: str = "q", **options: Any) -> c.PublishAnswer:
    """Publish numbers; returns the last answer."""
    for value in values:
        data: Any = b"%d" % value
        answer = world.get(c.PublishAnswer, c.QueuePublish(queue, data, **options))
    return answer
