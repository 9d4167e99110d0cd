"""Answers wait for the disk also where their values are translated for their readers."""

from __future__ import annotations

import asyncio

import pytest

from synap.engine.engine import Engine
from synap.host import EngineHost
from synap.server.service import Service
from synap.server.settings import ServerConfig
from synap.wire.frames import Kind
from tests.server.test_held_answers import Gate
from tests.server.test_translations import LARGE, OTHER, Speaker


class Place:
    """A service in this process whose disk does what a test says."""

    def __init__(self, format: str) -> None:
        self.log = Gate()
        numbers = iter(range(10**9))
        self.log.host = EngineHost(Engine(ids=lambda: next(numbers)), log=self.log)
        self.service = Service(self.log.host, ServerConfig())
        self.writer, self.reader = Speaker(self.service, OTHER[format]), Speaker(self.service, format)

    def store(self) -> None:
        """Store a large value that has to be translated for the reader."""
        self.writer.send("queue.publish", queue="q", message=LARGE)
        self.reader.send("stream.subscribe", room="r")
        self.log.commit()
        assert [one.kind for one in self.writer.line.frames()] == [Kind.ANSWER]
        assert [one.kind for one in self.reader.line.frames()] == [Kind.ANSWER]

    async def work(self) -> None:
        """Let everything happen that can happen without the disk."""
        while self.service.turns:
            await asyncio.sleep(0)


@pytest.fixture(params=["json", "msgpack"])
def format(request: pytest.FixtureRequest) -> str:
    """The format that readers speak; values are written in the other."""
    return str(request.param)


@pytest.fixture
async def place(format: str) -> Place:
    made = Place(format)
    made.store()
    return made


@pytest.fixture(params=["in the middle of it", "after it"])
def when(request: pytest.FixtureRequest) -> str:
    """When the disk refuses, seen from a translation that would begin at once."""
    return str(request.param)


async def test_what_the_disk_refused_is_not_answered_with_success(place: Place, when: str) -> None:
    place.reader.send("queue.consume", queue="q")
    if when == "after it":
        await place.work()
    assert place.reader.line.frames() == []
    place.log.fail()
    ((kind, error),) = await place.reader.take()
    assert (kind, error["code"]) == (Kind.ERROR, "SERVICE_UNAVAILABLE")
    await place.work()
    assert place.reader.line.frames() == []
    assert place.reader.line.session.promised == 0


async def test_an_event_that_the_disk_refused_is_not_pushed(place: Place, when: str) -> None:
    place.writer.send("stream.publish", room="r", event_type="t", data=LARGE)
    if when == "after it":
        await place.work()
    place.log.fail()
    await place.work()
    assert place.reader.line.frames() == []
    assert place.reader.line.over, "it has to subscribe again"


async def test_what_is_safe_is_answered_whatever_becomes_of_later_changes(place: Place) -> None:
    place.reader.send("queue.consume", queue="q")
    place.log.commit()
    assert place.reader.line.frames() == [], "it is translated in turns"
    place.writer.send("kv.set", key="k", value=1)
    await place.work()
    place.log.fail()
    ((kind, answer),) = await place.reader.take()
    assert (kind, answer["message"]) == (Kind.ANSWER, LARGE)
    assert place.reader.line.session.promised == 0
