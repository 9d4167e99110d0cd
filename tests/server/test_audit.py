"""The audit log: who did what, with what outcome."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect as connect_async
from websockets.sync.client import connect

from synap import SynapClient
from synap.server import audit as audit_module
from synap.server.audit import Audit
from synap.server.settings import ServerConfig
from synap.testing.server import ThrowawayServer
from synap.wire.frames import Kind
from tests.helpers import inside
from tests.helpers.keys import File, speak
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import Native, request, wait_for

Serve = Callable[..., ThrowawayServer]


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
