"""The audit log: who did what, with what outcome."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from websockets.asyncio.client import connect as connect_async
from websockets.sync.client import connect

from synap import SynapClient, SynapError
from synap.engine.engine import Engine
from synap.host import EngineHost, jobs
from synap.server import audit as audit_module
from synap.server.audit import Audit
from synap.server.service import Service
from synap.server.settings import ServerConfig
from synap.testing.server import ThrowawayServer
from synap.wire.frames import Kind
from tests.helpers import inside
from tests.helpers.keys import File, speak
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import Native, request, wait_for
from tests.server.test_held_answers import Gate
from tests.server.test_withdrawn import Http, filled, host_of, http, until

Serve = Callable[..., ThrowawayServer]
MANY = audit_module.AT_ONCE + 1
"""Commands whose lines are written in turns."""


def test_the_audit_log_tells_who_did_what(serve: Serve, tmp_path: Path) -> None:
    file = File(tmp_path / "keys.toml")
    path = tmp_path / "audit.jsonl"
    service = serve("--keys-file", str(file.path), "--audit-log", str(path))
    ops, worker, nobody = (speak(service, key) for key in (file.keys["ops"], file.keys["worker"], "synap_wrong"))
    ops.do("queue.create", queue="orders")
    ops.do("kv.set", key="secret", value="password")
    ops.do("admin.config")
    ops.post({"type": "batch", "commands": [{"command": "queue.purge", "payload": {"queue": "orders"}}]})
    worker.do("kv.get", key="secret")
    worker.request("GET", "/api/v1/admin/backup")
    for _ in range(50):
        nobody.do("queue.list")
    with SynapClient(url=service.url, api_key=file.keys["ops"], transport="native") as client:
        client.queue.delete("orders")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    told = [(line["key"], line["lane"], line["what"], line["outcome"], tuple(line.get("names", ()))) for line in lines]
    assert ("ops", "http", "queue.create", "ok", ("orders",)) in told
    assert ("ops", "http", "admin.config", "ok", ()) in told
    assert ("ops", "http", "queue.purge", "ok", ("orders",)) in told
    assert ("worker", "http", "kv.get", "FORBIDDEN", ("secret",)) in told
    assert ("worker", "http", "backup", "FORBIDDEN", ()) in told
    assert ("ops", "native", "queue.delete", "ok", ("orders",)) in told
    assert 1 <= sum(line["outcome"] == "UNAUTHORIZED" for line in lines) < 40
    assert not any(line["what"] == "kv.set" for line in lines)
    text = path.read_text()
    assert "password" not in text
    assert not any(key in text for key in (*file.keys.values(), "synap_wrong"))
    assert all(line["address"] == "127.0.0.1" and line["time"] for line in lines)
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600


def audit_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


BATCH = [
    *({"command": "kv.set", "payload": {"key": f"secret-{n}", "value": "password"}} for n in range(9_000)),
    {"command": "queue.create", "payload": {"queue": "made"}},
    {"command": "queue.purge", "payload": {"queue": "missing"}},
    {"command": "kv.clear", "payload": {"prefix": "nothing:"}},
    {"command": "queue.delete", "payload": {"queue": "made"}},
]
OUTCOMES = [
    ("queue.create", "ok", ("made",)),
    ("queue.purge", "QUEUE_NOT_FOUND", ("missing",)),
    ("kv.clear", "INVALID_COMMAND", ("nothing:",)),  # it takes too long for a batch
    ("queue.delete", "ok", ("made",)),
]


@pytest.mark.parametrize("lane", ["http", "websocket", "native", "native, gone"])
def test_the_outcome_of_what_is_done_in_slices_is_told_when_it_is_known(
    serve: Serve, tmp_path: Path, lane: str
) -> None:
    path = tmp_path / "audit.jsonl"
    service = serve("--audit-log", str(path), "--log-level", "warning")
    if lane == "http":
        assert speak(service).post({"type": "batch", "commands": BATCH}).status == 200
    elif lane == "websocket":
        with connect(service.url.replace("http", "ws") + "/api/v1/ws", open_timeout=PATIENCE, max_size=None) as socket:
            socket.send(json.dumps({"type": "batch", "commands": BATCH}))
            socket.recv(PATIENCE)
    else:
        native = Native(service)
        native.send(request(1, "batch", commands=BATCH))
        if lane == "native":
            assert native.read().kind == Kind.ANSWER
        native.close()
    wait_for(lambda: len(audit_lines(path)) == len(OUTCOMES))
    told = [(line["what"], line["outcome"], tuple(line["names"])) for line in audit_lines(path)]
    assert told == OUTCOMES
    assert {line["lane"] for line in audit_lines(path)} == {lane.partition(",")[0]}
    assert "secret" not in path.read_text()
    assert "password" not in path.read_text()


def test_an_atomic_batch_that_fails_is_told_as_failed(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    service = serve("--audit-log", str(path))
    commands = [{"command": "queue.create", "payload": {"queue": "q"}}, {"command": "kv.incr", "payload": {"key": "t"}}]
    http = speak(service)
    http.do("kv.set", key="t", value="text")
    http.post({"type": "batch", "commands": commands, "atomic": True})
    (line,) = audit_lines(path)
    assert (line["what"], line["outcome"]) == ("queue.create", "BATCH_ABORTED")


def test_what_takes_long_by_itself_is_told_once(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    service = serve("--audit-log", str(path))
    http = speak(service)
    http.post({"command": "kv.mset", "payload": {"pairs": [{"key": f"k{n}", "value": 1} for n in range(50_000)]}})
    http.do("kv.clear", prefix="k")
    lines = [(line["what"], line["outcome"]) for line in audit_lines(path)]
    assert lines.count(("kv.clear", "ok")) == 1
    assert not any(outcome == "waits" for _, outcome in lines)


@pytest.mark.parametrize("lane", ["native", "http"])
def test_a_batch_is_told_whole_though_its_lines_are_written_in_turns(serve: Serve, tmp_path: Path, lane: str) -> None:
    path = tmp_path / "audit.jsonl"
    service = serve("--audit-log", str(path))
    http = speak(service)
    items = [{"command": "queue.create", "payload": {"queue": f"q{number}"}} for number in range(2000)]
    if lane == "native":
        with SynapClient(url=service.url, api_key=http.headers.get("x-api-key")) as client:
            with client.pipeline() as pipe:
                for number in range(2000):
                    pipe.queue.create(f"q{number}")
            client.queue.create("last")
    else:
        http.post({"type": "batch", "commands": items})
        http.do("queue.create", queue="last")
    service.stop()
    made = [line["names"] for line in audit_lines(path) if line["what"] == "queue.create"]
    assert sorted(made) == sorted([["last"], *([f"q{number}"] for number in range(2000))])
    if lane == "native":
        assert made[-1] == ["last"], "what was sent after it waits"


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_the_lines_of_a_large_batch_come_before_what_its_caller_sent_next(
    serve: Serve, tmp_path: Path, fsync: str
) -> None:
    """Also where both are told at once, when the disk has them."""
    path = tmp_path / "audit.jsonl"
    service = serve("--audit-log", str(path), "--fsync", fsync, data=tmp_path / "data")
    native = Native(service)
    commands = [{"command": "queue.create", "payload": {"queue": f"q{n}"}} for n in range(120)]
    native.send(request(1, "batch", commands=commands) + request(2, "queue.delete", queue="q7"))
    assert [native.read().kind for _ in range(2)] == [Kind.ANSWER] * 2
    native.close()
    wait_for(lambda: len(audit_lines(path)) == 121)
    assert [line["what"] for line in audit_lines(path)] == ["queue.create"] * 120 + ["queue.delete"]


@pytest.mark.parametrize("lane", ["native", "http", "websocket"])
async def test_the_lines_of_many_batches_are_written_in_turns_each(
    lane: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once: list[Any] = []
    monkeypatch.setattr(audit_module, "run", at_once.append)
    path = tmp_path / "audit.jsonl"
    place = inside.service(ServerConfig(audit_log=str(path)))
    batch = {"type": "batch", "commands": [{"command": "queue.create", "payload": {"queue": "q"}}] * 200}
    if lane == "native":
        connections = [inside.line(place) for _ in range(20)]
        for connection in connections:
            connection.receive(request(1, "batch", commands=batch["commands"]))
            connection.receive(request(2, "kv.exists", key="k"))
    elif lane == "websocket":
        async with inside.running(place) as port, connect_async(f"ws://127.0.0.1:{port}/api/v1/ws", proxy=None) as one:
            for _ in range(20):
                await one.send(json.dumps(batch))
            for _ in range(20):
                assert len(json.loads(await one.recv())["results"]) == 200
    else:
        async with inside.running(place) as port:
            assert await asyncio.gather(*(post(port, batch) for _ in range(20))) == [200] * 20
    assert place.audit is not None
    while place.audit._unfinished:  # a native connection answers before
        await asyncio.sleep(0)
    assert not at_once
    assert len(audit_lines(path)) == 20 * 200


async def test_who_watches_the_figures_is_told_though_that_had_to_wait(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    place = inside.service(ServerConfig(audit_log=str(path)))
    host: Any = place.host
    watch = json.dumps({"command": "admin.watch"})

    async def held_back(socket: Any) -> None:
        host.busy = host.jobs.exclusive = True
        await socket.send(watch)
        while not host.jobs.waiting:
            await asyncio.sleep(0)

    async with inside.running(place) as port:
        async with connect_async(f"ws://127.0.0.1:{port}/api/v1/ws", proxy=None) as socket:
            await held_back(socket)
            host.jobs.exclusive = False
            host.work()
            assert json.loads(await socket.recv())["success"]
            assert [(line["what"], line["outcome"]) for line in audit_lines(path)] == [("admin.watch", "ok")]
            await held_back(socket)
        while host.jobs.waiting:
            await asyncio.sleep(0)
    assert not place.awaited
    place.watch.stop()


# ------------------------------------------------------------------------------------------ requests with one id

SESSION = "a" * 32
DELETE = {"command": "queue.delete", "payload": {"queue": "q"}, "request_id": f"{SESSION}:1"}
DECOY = {"command": "queue.stats", "payload": {"queue": "missing"}, "request_id": f"{SESSION}:1"}
WHICH = f"/api/v1/command?request_id={SESSION}:1"


def told(path: Path) -> list[tuple[str, str]]:
    return [(line["what"], line["outcome"]) for line in audit_lines(path)]


def queues(place: Service) -> set[str]:
    return set(host_of(place).engine.stats()["queues"])


def go_on(host: EngineHost) -> None:
    """End what others wait for."""
    host.jobs.exclusive = False
    while host.busy:
        host.work()


@asynccontextmanager
async def audited(tmp_path: Path, **given: Any) -> AsyncIterator[tuple[Service, int, Path]]:
    """A service with the queue `q`, its port and its audit log, which has a line of that."""
    path = tmp_path / "audit.jsonl"
    place = inside.service(ServerConfig(audit_log=str(path)), **given)
    inside.line(place).receive(request(1, "queue.create", queue="q"))
    async with inside.running(place) as port:
        yield place, port, path
    assert not place.awaited


async def ask(caller: Http, body: Any) -> Any:
    caller.ask("POST", "/api/v1/command", body)
    return await asyncio.wait_for(caller.answer(), PATIENCE)


@pytest.mark.parametrize("other", ["answered", "withdrawn", "gone"])
async def test_a_deletion_that_waits_has_its_line_whatever_else_has_its_id(other: str, tmp_path: Path) -> None:
    """The other request took the line away."""
    async with audited(tmp_path) as (place, port, path), http(port) as caller:
        host = host_of(place)
        host.busy = host.jobs.exclusive = True
        caller.ask("POST", "/api/v1/command", DELETE)
        await until(lambda: len(host.jobs.waiting) == 1)
        async with http(port) as decoy:
            decoy.ask("POST", "/api/v1/command", DECOY)
            await until(lambda: len(host.jobs.waiting) == 2)
            if other == "withdrawn":
                async with http(port) as third:
                    third.ask("DELETE", WHICH)
                    assert (await third.answer())["success"]
            if other != "gone":
                go_on(host)
                assert "error" in await asyncio.wait_for(decoy.answer(), PATIENCE)
        if other == "gone":
            await until(lambda: len(place.waiting) == 1)
            go_on(host)
        assert (await asyncio.wait_for(caller.answer(), PATIENCE))["payload"]["deleted"]
        assert told(path) == [("queue.create", "ok"), ("queue.delete", "ok")]


async def test_a_deletion_that_is_sent_again_on_a_new_connection_before_its_turn_has_one_line(tmp_path: Path) -> None:
    async with audited(tmp_path) as (place, port, path), http(port) as again:
        host = host_of(place)
        host.busy = host.jobs.exclusive = True
        async with http(port) as first:
            first.ask("POST", "/api/v1/command", DELETE)
            await until(lambda: place.waiting)
        again.ask("POST", "/api/v1/command", DELETE)
        await until(lambda: len(host.jobs.waiting) == 2 and len(place.waiting) == 1)
        go_on(host)
        assert (await asyncio.wait_for(again.answer(), PATIENCE))["payload"]["deleted"]
        assert told(path) == [("queue.create", "ok"), ("queue.delete", "ok")]


@pytest.mark.parametrize("other", ["read", "write"])
@pytest.mark.parametrize("stays", [True, False], ids=["stays", "gone"])
async def test_a_batch_is_told_with_its_own_outcomes_whatever_else_has_its_id(
    other: str, stays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the other one was told as that of all commands; a write is answered as the batch is."""
    monkeypatch.setattr(jobs, "SLICE", 0.0)
    later: list[Callable[[], None]] = []
    async with audited(tmp_path, soon=later.append) as (place, port, path), http(port) as decoy:
        deletions = [{"command": "queue.delete", "payload": {"queue": "q"}}] * 3
        running = host_of(place).jobs.running
        async with http(port) as caller:
            caller.ask(
                "POST", "/api/v1/command", {"type": "batch", "commands": deletions, "request_id": f"{SESSION}:1"}
            )
            await until(lambda: running)
            first = running[0].session
            if not stays:
                caller.writer.close()
                await until(lambda: not first.wanted())
            if other == "read":
                assert "error" in await ask(decoy, DECOY)
            else:
                decoy.ask("POST", "/api/v1/command", {**DELETE, "payload": {"queue": "r"}})
                await until(lambda: running[0].session is not first)
            while later:
                later.pop(0)()
            if stays:
                assert len((await asyncio.wait_for(caller.answer(), PATIENCE))["results"]) == 3
        assert told(path)[1:] == [("queue.delete", "ok"), *[("queue.delete", "QUEUE_NOT_FOUND")] * 2]


@pytest.mark.parametrize("held", [False, True], ids=["delivered", "held"])
@pytest.mark.parametrize("long", [False, True], ids=["at once", "in slices"])
async def test_what_a_native_connection_was_told_before_is_not_the_outcome_of_the_same_id(
    long: bool, held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "SLICE", 0.0)
    later: list[Callable[[], None]] = []
    path = tmp_path / "audit.jsonl"
    disk = Gate()
    host = disk.host = EngineHost(
        Engine(ids=iter(range(10**9)).__next__), log=disk if held else None, soon=later.append
    )
    place = Service(host, ServerConfig(audit_log=str(path)))
    connection = inside.line(place)
    connection.receive(request(1, "kv.set", key="text", value="text"), request(2, "queue.create", queue="q"))
    connection.receive(request(3, "kv.incr", key="text"), request(4, "kv.set", key="k", value=1))
    items = [{"command": "queue.delete", "payload": {"queue": "q"}}] * 2
    delete = request(3, "batch", commands=items) if long else request(3, "queue.delete", queue="q")
    connection.receive(request(3, "kv.incr", key="text"), delete)
    disk.commit()
    while later:
        later.pop(0)()
    disk.commit()
    done = [("queue.create", "ok"), ("queue.delete", "ok"), ("queue.delete", "QUEUE_NOT_FOUND")]
    assert told(path) == done[: 2 + long]
    assert len(connection.frames()) == 6
    assert not place.awaited


@pytest.mark.parametrize("lane", ["native", "http"])
@pytest.mark.parametrize("refuses", [False, True], ids=["the disk takes it", "the disk refuses it"])
async def test_what_the_disk_refuses_is_not_told_as_done(lane: str, refuses: bool, tmp_path: Path) -> None:
    """`ok` was told of what was then undone."""
    path = tmp_path / "audit.jsonl"
    disk = Gate()
    host = disk.host = EngineHost(Engine(ids=iter(range(10**9)).__next__), log=disk)
    place = Service(host, ServerConfig(audit_log=str(path)))
    items = [{"command": "queue.create", "payload": {"queue": f"{number}"}} for number in range(MANY)]
    async with inside.running(place) as port, http(port) as one, http(port) as other:
        connection = inside.line(place)
        if lane == "native":
            connection.receive(request(1, "queue.create", queue="q"), request(2, "batch", commands=items))
        else:
            one.ask("POST", "/api/v1/command", {"command": "queue.create", "payload": {"queue": "q"}})
            await until(lambda: len(disk.batches) == 1)
            other.ask("POST", "/api/v1/command", {"type": "batch", "commands": items})
            await until(lambda: len(disk.batches) == 2)
        assert told(path) == []
        if refuses:
            disk.fail()
        else:
            disk.commit()
        outcome = "SERVICE_UNAVAILABLE" if refuses else "ok"
        if lane == "http":
            answers = [await asyncio.wait_for(caller.answer(), PATIENCE) for caller in (one, other)]
            assert ["results" in answer or answer["success"] for answer in answers] == [not refuses] * 2
        await until(lambda: len(told(path)) == MANY + 1)
        assert told(path) == [("queue.create", outcome)] * (MANY + 1)
        assert len(host.engine.stats()["queues"]) == (0 if refuses else MANY + 1)
        connection.abort()
    assert not place.awaited


@pytest.mark.parametrize("together", [True, False])
async def test_an_id_in_the_audit_log_that_is_under_way_ends_a_native_connection(
    together: bool, tmp_path: Path
) -> None:
    """The error of the second request was told as the outcome of the first."""
    path = tmp_path / "audit.jsonl"
    place = filled(config=ServerConfig(audit_log=str(path)))
    connection = inside.line(place)
    connection.receive(request(1, "kv.set", key="text", value="text"))
    frames = [request(2, "kv.clear", prefix="k"), request(3, "kv.get", key="k"), request(2, "kv.incr", key="text")]
    if together:
        connection.receive(*frames)
    else:
        for one in frames:
            connection.receive(one)
    assert [(one.kind, one.id) for one in connection.frames()][1:] == [(Kind.ANSWER, 3), (Kind.ERROR, 0)]
    assert told(path) == [("kv.clear", "withdrawn")]


async def test_a_native_connection_goes_on_once_what_it_awaited_is_in_the_audit_log(tmp_path: Path) -> None:
    place = filled(config=ServerConfig(audit_log=str(tmp_path / "audit.jsonl")))
    connection = inside.line(place)
    commands = connection.session._commands
    connection.receive(request(1, "kv.clear", prefix="k"))
    assert connection.session._commands is not commands
    while place.awaited:
        place.host.wake()
    connection.receive(request(1, "kv.get", key="k"))
    assert connection.session._commands == commands
    assert [(one.kind, one.id) for one in connection.frames()] == [(Kind.ANSWER, 1)] * 2


async def test_what_is_answered_as_an_earlier_request_was_is_not_told_as_done(tmp_path: Path) -> None:
    async with audited(tmp_path) as (_, port, path), http(port) as caller:
        stored = {"command": "kv.set", "payload": {"key": "k", "value": 1}, "request_id": f"{SESSION}:1"}
        first = await ask(caller, stored)
        assert await ask(caller, DELETE) == first
        assert told(path) == [("queue.create", "ok")], "nothing was deleted"
        again = {**DELETE, "request_id": f"{SESSION}:2"}
        assert await ask(caller, again) == await ask(caller, again)
        assert told(path) == [("queue.create", "ok"), ("queue.delete", "ok")]


async def test_what_is_not_done_again_in_a_batch_is_not_told_as_done(tmp_path: Path) -> None:
    async with audited(tmp_path) as (place, port, path), http(port) as caller:
        items = [
            {"command": "queue.create", "payload": {"queue": name}, "number": number}
            for name, number in (("a", 8), ("b", 8), ("c", 9))
        ]
        batch = {"type": "batch", "commands": items, "request_id": f"{SESSION}:1"}
        for _ in range(2):
            assert all(one["status"] == "success" for one in (await ask(caller, batch))["results"])
        assert queues(place) == {"q", "a", "c"}
        assert [line["names"] for line in audit_lines(path)] == [["q"], ["a"], ["c"]]


async def post(port: int, body: object) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body).encode()
    head = "POST /api/v1/command HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    answer = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
    writer.close()
    return len(answer["results"])


def test_refusals_in_the_audit_log_are_few_and_say_how_many_were_left_out(tmp_path: Path) -> None:
    now = [0.0]
    audit = Audit(str(tmp_path / "audit.jsonl"), lambda: now[0])
    for _ in range(5):
        for _ in range(1_000):
            audit.refused("UNAUTHORIZED", {"key": "", "address": "127.0.0.1", "lane": "http"}, "sign in")
        now[0] += 1.0
    lines = audit_lines(tmp_path / "audit.jsonl")
    assert len(lines) <= 5 * 20
    audit.refused("UNAUTHORIZED", {"key": "", "address": "127.0.0.1", "lane": "http"}, "sign in")
    lines = audit_lines(tmp_path / "audit.jsonl")
    assert sum(line.get("left_out", 0) for line in lines) + len(lines) == 5_001
    audit.done({"key": "ops", "address": "127.0.0.1", "lane": "http"}, "backup", "ok")
    assert audit_lines(tmp_path / "audit.jsonl")[-1]["what"] == "backup", "what was done is never left out"


# ------------------------------------------------------------------------------------------ a full disk


class Disk:
    """Takes of each write as much as there is room for."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.data = b""

    def write(self, descriptor: int, data: bytes) -> int:
        taken, self.room = data[: self.room], max(0, self.room - len(data))
        if not taken:
            raise OSError(28, "No space left on device")
        self.data += taken
        return len(taken)


def test_what_a_full_disk_does_not_take_is_logged_and_the_next_line_stands_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The rest of a write was lost without a word, and the next line began in the middle of that one."""
    audit = Audit(str(tmp_path / "audit.jsonl"))
    disk = Disk(10_000)
    monkeypatch.setattr(audit_module, "os", SimpleNamespace(write=disk.write))
    audit.done({"key": "ops"}, "line", "ok")
    line = len(disk.data)
    for room in range(2 * line + 1):
        caplog.clear()
        disk.data, disk.room = b"", room
        audit.done({"key": "ops"}, "line", "ok")
        audit.done({"key": "ops"}, "line", "ok")
        disk.room = 10_000
        audit.done({"key": "ops"}, "next", "ok")
        *before, last = disk.data.decode().splitlines()
        assert json.loads(last)["what"] == "next"
        whole = [one for one in before if one.endswith("}")]
        assert len(whole) == (room + 1) // line
        assert len(before) - len(whole) == ((room + 1) % line > 1)
        assert caplog.text.count("can't be written: No space left on device") == 2 - room // line


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_that_nobody_reads_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    os.mkfifo(path)
    with pytest.raises(SynapError, match=r"audit_log: .* can't be written"):
        Audit(str(path))
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        audit = Audit(str(path))
        assert os.get_blocking(audit._descriptor), "a reader that is late is waited for"
        audit.done({}, "backup", "ok")
        assert b"backup" in reader.read()


def test_a_write_that_takes_several_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    audit = Audit(str(tmp_path / "audit.jsonl"))

    def write(descriptor: int, data: bytes) -> int:
        written.append(data[:7])
        return len(written[-1])

    monkeypatch.setattr(audit_module, "os", SimpleNamespace(write=write))
    for what in ("one", "two"):
        audit.done({"key": "ops"}, what, "ok")
    assert [json.loads(line)["what"] for line in b"".join(written).splitlines()] == ["one", "two"]
