"""What a connection holds for its caller is weighed as the answers' classes say, short cuts included."""

from __future__ import annotations

import asyncio
import os
from typing import Any
from unittest.mock import Mock

import pytest

from synap.server import sizes
from synap.server.flow import FlowSession
from synap.wire.frames import Kind
from tests.helpers.inside import line, service
from tests.helpers.raw import request
from tests.host.test_batch_short_cuts import ANSWERS


@pytest.mark.parametrize("answer", ANSWERS, ids=repr)
def test_an_answer_by_itself_weighs_what_its_class_says(answer: Any) -> None:
    session = FlowSession.__new__(FlowSession)
    session.host, session.permit, session.promised, session.output = Mock(touched=[]), None, 0, []
    session.answer(1, answer)
    assert session.promised == sizes.estimate(answer)


def test_of_many_paused_subscriptions_only_those_are_resumed_that_there_is_room_for() -> None:
    """A connection may have ten thousand: to try them all for each 128 KB that left took most of the service's time."""
    many = 500
    resumed = 0

    async def work() -> None:
        place = service()
        caller = line(place)
        resume = place.host.resume

        def counted(*arguments: Any) -> bool:
            nonlocal resumed
            resumed += 1
            return resume(*arguments)

        caller.receive(*[request(number, "stream.subscribe", room="r") for number in range(1, many + 1)])
        while place.turns:
            await asyncio.sleep(0)
        caller.frames()
        place.host.resume = counted  # type: ignore[assignment, method-assign]
        data = os.urandom(30_000).hex()
        line(place).receive(request(1, "stream.publish", room="r", event_type="e", data=data))
        got: list[int] = []
        while len(got) < many:
            await asyncio.sleep(0)
            got += [frame.id for frame in caller.frames() if frame.kind == Kind.EVENT]
        assert len(set(got)) == many

    asyncio.run(work())
    assert resumed < 4 * many
