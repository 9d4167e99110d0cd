"""Requests that are given up half-way, on every lane: what is told about them is true, once, and in the audit log."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from synap.errors import AuthenticationError, SynapError
from synap.host import EngineHost, jobs
from synap.server import service as service_module
from synap.server.app import MAX_WITHDRAWN, Withdrawn
from synap.server.service import Service
from synap.server.settings import ServerConfig
from synap.server.single_request import SingleRequest
from synap.wire.frames import RETRY, Kind, frame
from synap.wire.large import LARGE
from tests.helpers.inside import line, running, service
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import request
from tests.server.test_balance import WebSocket

pytestmark = pytest.mark.usefixtures("endless_turns")

KEYS = 5_000
SESSION = "a" * 32
WHICH = f"/api/v1/command?request_id={SESSION}:1"
CLEAR = {"command": "kv.clear", "payload": {"prefix": "k"}, "request_id": f"{SESSION}:1"}
BATCH = {
    "type": "batch",
    "commands": [{"command": "kv.set", "payload": {"key": "large", "value": "x" * LARGE}}],
    "request_id": f"{SESSION}:1",
}
CONSUME = {"command": "queue.consume", "payload": {"queue": "q", "timeout": 60}, "request_id": f"{SESSION}:1"}


async def until(state: Callable[[], Any]) -> None:
    """Wait for what the service tells nobody."""
    while not state():
        await asyncio.sleep(0)


def filled(**options: Any) -> Service:
    """A service with many keys, in which nothing wakes the host: `kv.clear` stands still after its first slice."""
    place = service(**options)
    line(place).receive(request(1, "kv.mset", pairs=[{"key": f"k{number}", "value": 1} for number in range(KEYS)]))
    return place


def host_of(place: Service) -> EngineHost:
    assert isinstance(place.host, EngineHost)
    return place.host


def keys(place: Service) -> int:
    """Let the host do what it would do by now; how many keys are left."""
    for _ in range(20):
        place.host.wake()
    return len(host_of(place).engine.keys.values)


class Http:
    """One connection, and one request after the other on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def ask(self, method: str, path: str, body: Any = None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self.writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)

    async def answer(self) -> Any:
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return json.loads(await self.reader.readexactly(length))


@contextlib.asynccontextmanager
async def http(port: int) -> AsyncIterator[Http]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    yield Http(reader, writer)
    writer.close()


async def delete(port: int) -> None:
    async with http(port) as other:
        other.ask("DELETE", WHICH)
        assert (await other.answer())["success"] is True


def is_uncertain(answer: Any) -> bool:
    error = answer["error"]
    return error["code"] == "INVALID_REQUEST" and error["details"].get("may_have_happened") is True


# ------------------------------------------------------------------------------------------ a clear in turns


async def test_a_clear_that_is_taken_back_over_http_stops_and_says_that_it_may_have_deleted_keys() -> None:
    place = filled()
    async with running(place) as port, http(port) as caller:
        caller.ask("POST", "/api/v1/command", CLEAR)
        await until(lambda: place.under_way)
        await delete(port)
        assert is_uncertain(await caller.answer())
        assert KEYS // 2 < keys(place) < KEYS
        assert not place.under_way
        caller.ask("POST", "/api/v1/command", CLEAR)
        assert is_uncertain(await caller.answer())


async def test_so_it_is_over_a_websocket_where_it_is_answered_once() -> None:
    place = filled()
    async with running(place) as port, connect(f"ws://127.0.0.1:{port}/api/v1/ws", proxy=None) as caller:
        await caller.send(json.dumps(CLEAR))
        await until(lambda: place.under_way)
        await delete(port)
        assert is_uncertain(json.loads(await caller.recv()))
        assert KEYS // 2 < keys(place) < KEYS
        await caller.send('{"command": "kv.exists", "payload": {"key": "k"}, "request_id": "next"}')
        assert json.loads(await caller.recv())["request_id"] == "next"


async def test_so_it_is_on_the_native_lane_without_an_answer_and_the_number_is_free_again() -> None:
    place = filled()
    connection = line(place)
    connection.receive(request(7, "kv.clear", prefix="k"))
    connection.receive(frame(Kind.CANCEL, 7))
    assert KEYS // 2 < keys(place) < KEYS
    assert connection.frames() == []
    connection.receive(request(7, "kv.clear", prefix="k"))
    assert keys(place) == 0
    assert [answer.kind for answer in connection.frames()] == [Kind.ANSWER]


@pytest.mark.parametrize("lane", ["http", "native"])
async def test_a_clear_that_the_disk_stops_says_that_it_may_have_deleted_keys(lane: str) -> None:
    place = filled()
    full = SynapError("SERVICE_UNAVAILABLE", "the disk is full", {"retry_after": 1.0})
    if lane == "native":
        connection = line(place)
        connection.receive(request(1, "kv.clear", prefix="k"))
        host_of(place).failed(full)
        [answer] = connection.frames()
        details = json.loads(answer.body)["details"]
    else:
        async with running(place) as port, http(port) as caller:
            caller.ask("POST", "/api/v1/command", CLEAR)
            await until(lambda: place.under_way)
            host_of(place).failed(full)
            details = (await caller.answer())["error"]["details"]
    assert details["may_have_happened"] is True


async def test_a_clear_whose_key_is_taken_away_says_that_it_may_have_deleted_keys() -> None:
    place = filled()
    async with running(place) as port, http(port) as caller:
        caller.ask("POST", "/api/v1/command", CLEAR)
        await until(lambda: place.waiting)
        [call] = place.waiting
        call.take_back(AuthenticationError("UNAUTHORIZED", "this key is not known here any more"))
        assert (await caller.answer())["error"]["details"]["may_have_happened"] is True
        assert KEYS // 2 < keys(place) < KEYS


# ------------------------------------------------------------------------------------------ other effects

PUBLISH = {"command": "pubsub.publish", "payload": {"topic": "t", "message": 1}, "request_id": f"{SESSION}:1"}


async def test_a_message_to_a_topic_that_is_taken_back_before_it_is_read_may_have_been_sent_before() -> None:
    async with running(service()) as port, http(port) as caller:
        await delete(port)
        caller.ask("POST", "/api/v1/command", PUBLISH)
        assert is_uncertain(await caller.answer())


@pytest.mark.parametrize(
    "asked",
    [
        PUBLISH,
        {"command": "kv.set", "payload": {"key": "k", "value": 1}},
        {"command": "kv.get", "payload": {"key": "k"}},
    ],
    ids=lambda asked: str(asked["command"]),
)
async def test_where_no_answer_can_be_delivered_it_is_said_whether_the_request_may_have_had_effects(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(call: SingleRequest, answer: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(SingleRequest, "_take", fail)
    async with running(service()) as port, http(port) as caller:
        caller.ask("POST", "/api/v1/command", asked)
        error = (await caller.answer())["error"]
    assert error["code"] == "INTERNAL_ERROR"
    assert error["details"].get("may_have_happened", False) is (asked["command"] != "kv.get")


# ------------------------------------------------------------------------------------------ before its turn


@pytest.mark.parametrize("how", ["deleted", "gone", "deleted, websocket", "gone, websocket"])
async def test_what_is_given_up_before_its_turn_takes_no_message(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "SLICE", 0.0)
    later: list[Callable[[], None]] = []
    place = service(soon=later.append)
    heavy, other = line(place), line(place)
    heavy.receive(request(1, "queue.publish", queue="q", message="for another"))
    heavy.receive(request(2, "kv.mset", pairs=[{"key": f"k{number}", "value": 1} for number in range(1_200)]))
    assert host_of(place).jobs.exclusive
    waiting = host_of(place).jobs.waiting
    async with running(place) as port, http(port) as caller:
        if "websocket" in how:
            async with connect(f"ws://127.0.0.1:{port}/api/v1/ws", proxy=None) as carrier:
                await carrier.send(json.dumps(CONSUME))
                await until(lambda: waiting)
                if "deleted" in how:
                    await delete(port)
                    assert is_uncertain(json.loads(await carrier.recv()))
            await until(lambda: not place.listeners - {heavy.session, other.session})
        else:
            caller.ask("POST", "/api/v1/command", CONSUME)
            await until(lambda: waiting)
            if how == "deleted":
                await delete(port)
                assert is_uncertain(await caller.answer())
            else:
                caller.writer.close()
                await until(lambda: not place.waiting)
        while later:
            later.pop(0)()
        other.receive(request(1, "queue.consume", queue="q"))
        assert json.loads(other.frames()[0].body)["message"] == "for another"


async def test_what_is_being_executed_is_answered_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "SLICE", 0.0)
    later: list[Callable[[], None]] = []
    place = service(soon=later.append)
    items = [{"command": "kv.incr", "payload": {"key": "n"}}] * 100
    async with running(place) as port, http(port) as caller:
        caller.ask("POST", "/api/v1/command", {"type": "batch", "commands": items, "request_id": f"{SESSION}:1"})
        await until(lambda: later)
        await delete(port)
        while later:
            later.pop(0)()
        assert len((await caller.answer())["results"]) == 100


@pytest.mark.parametrize(
    "how",
    ["deleted", "gone", "taken back", "deleted, websocket", "gone, websocket", "gone, native", "superseded, native"],
)
async def test_what_is_given_up_before_its_turn_is_not_done_and_held_no_longer(
    how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(jobs, "SLICE", 0.0)
    later: list[Callable[[], None]] = []
    place = service(ServerConfig(audit_log=str(tmp_path / "audit.jsonl")), soon=later.append)
    heavy = line(place)
    heavy.receive(request(2, "kv.mset", pairs=[{"key": f"k{number}", "value": 1} for number in range(1_200)]))
    assert host_of(place).jobs.exclusive
    async with running(place) as port, http(port) as caller:
        if "native" in how:
            connection = line(place, session=SESSION)
            connection.receive(request(1, "batch", commands=BATCH["commands"]))
            await until(lambda: place.transit.working)
            if "gone" in how:
                connection.session.connection_lost(None)
            else:
                line(place, session=SESSION).session.connection_lost(None)
        elif "websocket" in how:
            async with connect(f"ws://127.0.0.1:{port}/api/v1/ws", proxy=None) as carrier:
                await carrier.send(json.dumps(BATCH))
                await until(lambda: place.transit.working)
                if "deleted" in how:
                    await delete(port)
                    assert is_uncertain(json.loads(await carrier.recv()))
            await until(lambda: place.listeners == {heavy.session})
        else:
            caller.ask("POST", "/api/v1/command", BATCH)
            await until(lambda: place.waiting)
            assert place.transit.working
            if how == "deleted":
                await delete(port)
                assert is_uncertain(await caller.answer())
            elif how == "taken back":
                [call] = place.waiting
                call.take_back(AuthenticationError("UNAUTHORIZED", "this key is not known here any more"))
                assert (await caller.answer())["error"]["code"] == "UNAUTHORIZED"
            else:
                caller.writer.close()
                await until(lambda: not place.waiting)
        while later:
            later.pop(0)()
    assert len(heavy.frames()) == 1
    assert "large" not in host_of(place).engine.keys.values
    assert not place.awaited
    assert not place.transit.working
    assert not host_of(place).working_on


async def test_what_a_newer_connection_takes_over_is_held_for_that_one_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(jobs, "SLICE", 0.0)
    later: list[Callable[[], None]] = []
    place = service(ServerConfig(audit_log=str(tmp_path / "audit.jsonl")), soon=later.append)
    items = [{"command": "kv.set", "payload": {"key": "k", "value": "x" * 1_000}}] * 200
    connection = line(place, session=SESSION)
    connection.receive(request(1, "batch", commands=items))
    await until(lambda: place.transit.working)
    newer = line(place, session=SESSION)
    assert list(place.transit.working) == [connection.session], "its work is not done"
    newer.receive(request(1, "batch", RETRY, commands=items))
    await until(lambda: host_of(place).working_for(newer.session))
    assert list(place.transit.working) == [newer.session]
    while later:
        later.pop(0)()
    assert [(told.kind, told.id) for told in newer.frames()] == [(Kind.ANSWER, 1)]
    assert not place.transit.working


@pytest.mark.parametrize("lost", [True, False])
async def test_what_the_disk_stops_is_held_no_longer(
    lost: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(jobs, "SLICE", 0.0)
    place = service(ServerConfig(audit_log=str(tmp_path / "audit.jsonl")), soon=lambda function: None)
    connection = line(place)
    items = [{"command": "kv.mset", "payload": {"pairs": [{"key": "k", "value": "x" * 100}] * 1_200}}]
    connection.receive(request(1, "batch", commands=items))
    await until(lambda: place.transit.working)
    host = host_of(place)
    host.holds = True  # as with fsync=always; else nothing is taken back, and it goes on
    while not host.jobs.exclusive:  # a slice, and not a turn, which may be several
        host._go_on(host.jobs.running[0])
    if lost:
        connection.session.connection_lost(None)
        assert place.transit.working, "its work is not done"
    host.failed(SynapError("SERVICE_UNAVAILABLE", "the disk is full", {"retry_after": 1.0}))
    assert not place.transit.working


# ------------------------------------------------------------------------------------------ the audit log


async def test_what_is_awaited_no_longer_is_in_the_log_as_under_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(jobs, "SLICE", 0.0)
    monkeypatch.setattr(service_module, "MOST_AWAITED", 2)
    later: list[Callable[[], None]] = []
    log = tmp_path / "audit.jsonl"
    place = service(ServerConfig(audit_log=str(log)), soon=later.append)
    callers = [line(place) for _ in range(4)]
    for number, caller in enumerate(callers):
        create = {"command": "queue.create", "payload": {"queue": f"q{number}"}}
        caller.receive(
            request(1, "batch", commands=[create] * 3 + [{"command": "kv.get", "payload": {"key": "k"}}] * 200)
        )
    await until(lambda: len(host_of(place).jobs.running) == 4)
    assert len(place.awaited) == 2
    while later:
        later.pop(0)()
    assert not place.awaited
    await until(lambda: len(log.read_text().splitlines()) == 12)
    lines = [json.loads(text) for text in log.read_text().splitlines()]
    assert {(*told["names"], told["outcome"]) for told in lines} == {
        ("q0", "under_way"),
        ("q1", "under_way"),
        ("q2", "ok"),
        ("q3", "ok"),
    }
    assert all(len(caller.frames()) == 1 for caller in callers)


async def test_what_a_stop_cuts_off_is_in_the_audit_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "SLICE", 0.0)
    path = tmp_path / "audit.jsonl"
    later: list[Callable[[], None]] = []
    place = service(ServerConfig(audit_log=str(path)), soon=later.append)
    made = [{"command": "queue.create", "payload": {"queue": f"q{number}"}} for number in range(100)]
    line(place).receive(request(1, "batch", commands=made))
    assert later
    place.record_unfinished()
    assert place.audit is not None
    place.audit.finish()
    told = [json.loads(text) for text in path.read_text().splitlines()]
    assert [(one["names"], one["outcome"]) for one in told] == [([f"q{n}"], "withdrawn") for n in range(100)]


@pytest.mark.parametrize("how", ["deleted", "http", "websocket", "native", "cancelled", "nonsense"])
async def test_what_is_given_up_half_way_is_in_the_audit_log(how: str, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    place = filled(config=ServerConfig(audit_log=str(path)))
    if how in ("native", "cancelled", "nonsense"):
        connection = line(place)
        connection.receive(request(1, "kv.clear", prefix="k"))
        if how == "native":
            connection.session.connection_lost(None)
        else:
            connection.receive(frame(Kind.CANCEL, 1) if how == "cancelled" else frame(255))
    else:
        async with running(place) as port, http(port) as caller:
            if how == "websocket":
                async with connect(f"ws://127.0.0.1:{port}/api/v1/ws", proxy=None) as carrier:
                    await carrier.send(json.dumps(CLEAR))
                    await until(lambda: place.under_way)
            else:
                caller.ask("POST", "/api/v1/command", CLEAR)
                await until(lambda: place.under_way)
                if how == "deleted":
                    await delete(port)
        await until(lambda: not place.under_way)
    assert KEYS // 2 < keys(place) < KEYS
    told = [json.loads(text) for text in path.read_text().splitlines()]
    assert [(one["what"], one["outcome"], one["names"]) for one in told] == [("kv.clear", "withdrawn", ["k"])]
    assert not place.awaited


async def test_a_websocket_that_is_ended_executes_nothing_more_though_its_peer_reads_nothing() -> None:
    """As when its key was removed: the last answers are still being sent then."""
    place = service()
    socket = WebSocket(place, deaf=True)

    def ask(key: str) -> None:
        payload = {"key": key, "value": 1}
        socket.ask(json.dumps({"command": "kv.set", "request_id": key, "payload": payload}).encode(), "json")

    stored = host_of(place).engine.keys.values
    ask("before")
    await asyncio.wait_for(until(lambda: "before" in stored), PATIENCE)
    (conversation,) = place.listeners
    conversation.disconnect()
    ask("after")
    await asyncio.wait_for(until(socket.messages.empty), PATIENCE)
    socket.abort()
    await asyncio.wait_for(socket.task, PATIENCE)
    assert "after" not in stored


def test_ids_that_one_key_withdraws_take_the_place_of_its_own() -> None:
    withdrawn = Withdrawn()
    withdrawn.add("modest", "s:1")
    for number in range(2 * MAX_WITHDRAWN):
        withdrawn.add("greedy", f"g:{number}")
    assert withdrawn.has("modest", "s:1")
    assert not withdrawn.has("greedy", "s:1")
    assert withdrawn.has("greedy", f"g:{2 * MAX_WITHDRAWN - 1}")
    assert not withdrawn.has("greedy", "g:0")
