"""A connection whose requests wait until a request before them is prepared, or told to the audit log."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest

from synap.commands import BATCH
from synap.engine.callers import Steps
from synap.host import jobs
from synap.server.settings import ServerConfig
from synap.wire.frames import GZIP, HEADER, Kind, frame
from tests.helpers.frames import Frame
from tests.helpers.inside import Line, line, service
from tests.helpers.raw import request


class Held:
    """Steps that end when a test says so."""

    def __init__(self) -> None:
        self.over = False
        self.after = asyncio.Event()

    def steps(self) -> Steps:
        while not self.over:
            yield True
        asyncio.get_running_loop().call_soon(self.after.set)

    async def end(self) -> None:
        self.over = True
        await self.after.wait()
        await asyncio.sleep(0)


COMMANDS: dict[str, Any] = {
    "room": ("stream.subscribe", {"room": "r"}, "stream.publish", {"room": "r", "event_type": "t", "data": "d"}),
    "topic": ("pubsub.subscribe", {"topics": ["t"]}, "pubsub.publish", {"topic": "t", "message": "d"}),
}


@pytest.mark.parametrize("what", COMMANDS)
async def test_is_pushed_what_comes_meanwhile(what: str) -> None:
    place = service(ServerConfig(pubsub_buffer=64 * 1024, stream_buffer=64 * 1024))
    connection, publisher = line(place), line(place)
    subscribe, subscription, publish, item = COMMANDS[what]
    connection.receive(request(1, subscribe, **subscription))
    connection.frames()
    held = Held()
    connection.session.hold(held.steps())
    publisher.receive(*(request(number, publish, **item) for number in range(1, 4)))
    pushed = [frame.kind for frame in connection.frames()]
    assert pushed == [Kind.EVENT if what == "room" else Kind.MESSAGE] * 3
    await held.end()
    publisher.receive(request(4, publish, **item))
    assert len(connection.frames()) == 1


async def test_is_read_again_when_it_is_over_and_not_before() -> None:
    connection = line(service())
    connection.receive(request(100, "kv.exists", key="n"))
    connection.frames()
    held, further = Held(), Held()
    connection.session.hold(held.steps())
    connection.session.hold(further.steps())
    connection.receive(*(request(number, "kv.incr", key="n") for number in range(1, 100)))
    assert not connection.read
    assert not connection.session.settled()
    assert connection.session.queued() < 64 * 1024
    await held.end()
    assert connection.frames() == []
    assert not connection.session.settled()
    await further.end()
    while len(told := connection.frames()) < 99:  # of a turn that is queued
        await asyncio.sleep(0)
    assert json.loads(told[-1].body)["value"] == 99
    assert connection.read
    assert connection.session.settled()


@pytest.mark.parametrize("flags", [0, GZIP])
async def test_is_told_of_nonsense_after_the_answers_to_what_came_before_it(
    flags: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "SLICE", 0.0)
    connection = line(service(soon=asyncio.get_running_loop().call_soon))
    count = 10_000 if flags else 100
    body = json.dumps({"commands": [{"command": "kv.incr", "payload": {"key": "n"}}] * count}).encode()
    batch = frame(Kind.REQUEST, 1, gzip.compress(body) if flags else body, BATCH.code, flags)
    connection.receive(batch, HEADER.pack(2**31, Kind.REQUEST, 0, 0, 2))
    told = await told_until(connection, Kind.ERROR)
    assert [(one.kind, one.id) for one in told] == [(Kind.ANSWER, 1), (Kind.ERROR, 0)]
    assert len(json.loads(told[0].body)["results"]) == count


async def told_until(connection: Line, last: int) -> list[Frame]:
    """Wait for a frame of this kind."""
    told: list[Frame] = []
    while not (told and told[-1].kind == last):
        await asyncio.sleep(0)
        told += connection.frames()
    return told
