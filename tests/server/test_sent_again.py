"""A request that is sent again while it is being executed: everybody who waits for its answer is told, at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
from websockets.asyncio.client import ClientConnection, connect

from synap.commands import COMMANDS
from synap.errors import SynapError
from synap.host import jobs
from synap.server.drain import Server
from synap.server.garbage import Collections
from synap.server.run import uvicorn_config
from synap.server.service import Service
from synap.server.settings import ServerConfig
from synap.wire.frames import RETRY, Kind, frame
from synap.wire.large import LARGE
from tests.helpers.inside import Line, line, running, service
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import request
from tests.server.test_withdrawn import Http, host_of, http, until

pytestmark = pytest.mark.usefixtures("endless_turns")

SESSION = "b" * 32
MANY = [{"command": "kv.incr", "payload": {"key": "n"}}] * 200


class Caller(Protocol):
    """A caller on some lane that sends the one request, and reads what it is told."""

    async def send(self) -> None: ...

    async def told(self) -> Any: ...


class OverHttp:
    def __init__(self, connection: Http, body: Any) -> None:
        self.connection = connection
        self.body = body

    async def send(self) -> None:
        self.connection.ask("POST", "/api/v1/command", self.body)

    async def told(self) -> Any:
        return await asyncio.wait_for(self.connection.answer(), PATIENCE)


class OverWebSocket:
    def __init__(self, connection: ClientConnection, body: Any) -> None:
        self.connection = connection
        self.body = body

    async def send(self) -> None:
        await self.connection.send(json.dumps(self.body))

    async def told(self) -> Any:
        return json.loads(await asyncio.wait_for(self.connection.recv(), PATIENCE))


class OverFrames:
    def __init__(self, connection: Line, body: Any) -> None:
        self.connection = connection
        self.body = body

    async def send(self) -> None:
        self.connection.receive(request(1, "batch", RETRY, commands=self.body["commands"]))

    async def told(self) -> Any:
        [told] = [one for one in self.connection.frames() if one.kind != Kind.GOAWAY]
        document = json.loads(told.body)
        return {"error": document} if told.kind == Kind.ERROR else document


@asynccontextmanager
async def callers(place: Service, body: Any, lanes: str) -> AsyncIterator[list[Caller]]:
    """Open a connection on each of the lanes."""
    async with AsyncExitStack() as open_:
        port = await open_.enter_async_context(running(place))
        made: list[Caller] = []
        for lane in lanes.split():
            if lane == "http":
                made.append(OverHttp(await open_.enter_async_context(http(port)), body))
            elif lane == "native":
                connection = line(place, session=SESSION)
                open_.callback(connection.session.connection_lost, None)
                made.append(OverFrames(connection, body))
            else:
                url = f"ws://127.0.0.1:{port}/api/v1/ws"
                made.append(OverWebSocket(await open_.enter_async_context(connect(url, proxy=None)), body))
        yield made


LANES = ["http http", "websocket websocket", "http websocket http", "native http", "http native"]


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("fails", [False, True], ids=["answered", "refused"])
async def test_what_is_executed_in_turns_is_told_to_all(
    lanes: str, fails: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(jobs, "SLICE", 0.0)
    later: list[Callable[[], None]] = []
    log = tmp_path / "audit.jsonl"
    place = service(ServerConfig(audit_log=str(log)), soon=later.append)
    commands = [*MANY, {"command": "queue.create", "payload": {"queue": "q"}}]
    body = {"type": "batch", "commands": commands, "request_id": f"{SESSION}:1"}
    async with callers(place, body, lanes) as asking:
        running_jobs = host_of(place).jobs.running
        for count, one in enumerate(asking):
            await one.send()
            await until(lambda: running_jobs)
            while len(running_jobs[0].earlier) < count:
                await asyncio.sleep(0)
        if fails:
            error = SynapError("SERVICE_UNAVAILABLE", "the disk is full", {})
            monkeypatch.setattr(jobs.Job, "answer", lambda job, answer: job.refuse(error))
        while later:
            later.pop(0)()
        told = [await one.told() for one in asking]
        outcomes = [one["error"]["code"] if fails else one["results"][199] for one in told]
        assert outcomes == outcomes[:1] * len(asking)
        if not fails:
            assert told[0]["results"][199]["payload"] == {"value": 200}
    assert not place.under_way
    assert not place.waiting
    assert not place.awaited
    assert not place.transit.working
    assert [json.loads(text)["what"] for text in log.read_text().splitlines()].count("queue.create") == 1


@pytest.mark.parametrize("lanes", ["native http", "native websocket", "http native"])
async def test_a_stop_waits_until_all_who_sent_a_request_are_answered(
    lanes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "SLICE", 0.0)
    later: list[Callable[[], None]] = []
    place = service(ServerConfig(drain_timeout=PATIENCE), soon=later.append)
    body = {"type": "batch", "commands": MANY, "request_id": f"{SESSION}:1"}
    async with callers(place, body, lanes) as asking:
        running_jobs = host_of(place).jobs.running
        for count, one in enumerate(asking):
            await one.send()
            await until(lambda: running_jobs)
            while len(running_jobs[0].earlier) < count:
                await asyncio.sleep(0)
        server = Server(uvicorn_config(place.config, place), place, Collections())
        looks: list[bool] = []
        settled = server._settled

        def look() -> bool:
            looks.append(settled())
            return looks[-1]

        monkeypatch.setattr(server, "_settled", look)
        place.draining = True
        ending = asyncio.ensure_future(server.end())
        while len(looks) < 2:
            await asyncio.sleep(0)
        assert not any(looks)
        while later:
            later.pop(0)()
        told = [await one.told() for one in asking]
        assert [one["results"][199]["payload"] for one in told] == [{"value": 200}] * 2
        await ending


async def test_a_large_consume_that_is_sent_again_while_it_is_decoded_waits_for_the_last_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, "SLICE", 0.0)
    later: list[Callable[[], None]] = []
    place = service(soon=later.append)
    first, last = line(place, session=SESSION), line(place)
    body = json.dumps({"queues": ["q"], "timeout": 60}).encode() + b" " * LARGE
    asked = frame(Kind.REQUEST, 1, body, COMMANDS["queue.consume_many"].code, RETRY)
    first.receive(asked)
    host = host_of(place)
    [job] = host.jobs.running
    first.session.connection_lost(None)
    again = line(place, session=SESSION)
    again.receive(asked)
    assert job.session is again.session
    while later:
        later.pop(0)()
    last.receive(request(1, "queue.publish", queue="q", message=1))
    [told] = again.frames()
    assert (told.kind, told.id) == (Kind.ANSWER, 1)
    assert json.loads(told.body)["messages"][0]["message"] == 1
    assert not first.frames()


@pytest.mark.parametrize("timeout", [0, 60])
async def test_a_large_consume_whose_connection_is_lost_while_it_is_decoded_takes_nothing(
    timeout: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "SLICE", 0.0)
    later: list[Callable[[], None]] = []
    place = service(soon=later.append)
    other, gone = line(place), line(place)
    if not timeout:
        other.receive(request(1, "queue.publish", queue="q", message=1))
    body = json.dumps({"queues": ["q"], "timeout": timeout}).encode() + b" " * LARGE
    gone.receive(frame(Kind.REQUEST, 1, body, COMMANDS["queue.consume_many"].code))
    assert host_of(place).jobs.running
    gone.session.connection_lost(None)
    while later:
        later.pop(0)()
    if timeout:
        other.receive(request(1, "queue.publish", queue="q", message=1))
    engine = host_of(place).engine
    assert engine.stats()["queues"]["q"]["depth"] == 1
    assert not engine.deliveries.waiting
    assert not place.transit.working
