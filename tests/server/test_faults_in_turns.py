"""What fails while it is worked off in turns is an error to its own caller, and the log says how."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from synap.commands import BATCH, COMMANDS
from synap.engine.callers import Steps
from synap.engine.engine import Engine
from synap.host import EngineHost
from synap.server import http_exchange, preparation
from synap.server.audit import Audit
from synap.server.service import Service
from synap.server.settings import ServerConfig
from synap.wire.codec import Codec
from synap.wire.envelope import Wire
from synap.wire.frames import GZIP, RETRY, Kind, frame
from tests.helpers.inside import Line, line, running, service
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import request

LARGE = json.dumps({"commands": [{"command": "kv.get", "payload": {"key": "k" * 100}}] * 1000}).encode()
MINE = b'{"type":"batch","request_id":"mine",' + LARGE[1:]


def fail(*arguments: Any, **options: Any) -> Steps:
    """Fail after a while, as a bug would."""
    for _ in range(3):
        yield
    raise RuntimeError("a fault in the service")


@pytest.fixture
async def place() -> Service:
    return service()


@pytest.fixture
async def port(place: Service) -> AsyncIterator[int]:
    """The port of a service in this process."""
    async with running(place) as number:
        yield number


async def answers(connection: Line, count: int) -> list[tuple[int, int, str]]:
    """Wait for so many frames; of each the number, the kind and the error's code."""
    found: list[Any] = []
    end = time.monotonic() + PATIENCE
    while len(found) < count:
        assert time.monotonic() < end, found
        await asyncio.sleep(0)
        found += connection.frames()
    return [(one.id, one.kind, json.loads(one.body).get("code", "")) for one in found]


@pytest.mark.parametrize("what", ["counting", "inflating"])
async def test_on_the_native_lane(
    what: str, place: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if what == "counting":
        monkeypatch.setattr(Codec, "count_in_steps", fail)
    else:
        monkeypatch.setattr(preparation, "decompress_in_steps", fail)
    connection = line(place)
    flags, body = (RETRY, LARGE) if what == "counting" else (GZIP, gzip.compress(LARGE))
    connection.receive(
        frame(Kind.REQUEST, 1, body, flags=flags, code=BATCH.code),
        frame(Kind.REQUEST, 2, b'{"key":"k"}', code=COMMANDS["kv.exists"].code),
    )
    assert await answers(connection, 2) == [(1, Kind.ERROR, "INTERNAL_ERROR"), (2, Kind.ANSWER, "")]
    assert "a fault in the service" in caplog.text
    assert connection.session.promised == 0


@pytest.mark.parametrize("what", ["reading", "inflating"])
async def test_over_http(
    what: str, port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    body, more = MINE, b""
    if what == "reading":
        monkeypatch.setattr(Wire, "read_in_steps", fail)
    else:
        monkeypatch.setattr(http_exchange, "decompress_in_steps", fail)
        body, more = gzip.compress(MINE), b"Content-Encoding: gzip\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST /api/v1/command HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(head + more + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert (await reader.readline()).startswith(b"HTTP/1.1 500 ")
    writer.close()
    assert "a fault in the service" in caplog.text


async def test_over_a_websocket_which_stays(
    port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Wire, "read_in_steps", fail)
    async with connect(f"ws://127.0.0.1:{port}/api/v1/ws", proxy=None) as connection:
        await connection.send(MINE.decode())
        told = json.loads(await connection.recv())
        assert told["request_id"] == "mine"
        assert told["error"]["code"] == "INTERNAL_ERROR"
        await connection.send('{"command": "kv.exists", "payload": {"key": "k"}}')
        assert json.loads(await connection.recv())["success"] is True
    assert "a fault in the service" in caplog.text


@pytest.mark.parametrize("command", ["kv.incr", "stream.subscribe"])
async def test_over_a_websocket_after_it_was_executed_and_it_is_answered_once(
    command: str, port: int, place: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    payload = {"key": "n"} if command == "kv.incr" else {"room": "r"}
    async with connect(f"ws://127.0.0.1:{port}/api/v1/ws", proxy=None) as connection:
        with monkeypatch.context() as broken:
            broken.setattr(place, "note", raising)
            await connection.send(json.dumps({"command": command, "payload": payload, "request_id": "mine"}))
            told = json.loads(await connection.recv())
        assert (told["request_id"], told["error"]["code"]) == ("mine", "INTERNAL_ERROR")
        assert told["error"]["details"]["may_have_happened"] is True
        event = {"room": "r", "event_type": "t", "data": 1}
        await connection.send(json.dumps({"command": "stream.publish", "payload": event, "request_id": "next"}))
        assert json.loads(await connection.recv())["request_id"] == "next"
        conversation: Any
        [conversation] = place.listeners
        assert not conversation.under_way
        assert not conversation._subscribing
        assert not conversation.subscriptions
    assert "a fault in the service" in caplog.text


@pytest.mark.parametrize("lane", ["native", "http", "websocket"])
async def test_in_the_audit_log_after_it_was_executed_and_it_is_answered_so(
    lane: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Audit, "executed", raising)
    place = service(ServerConfig(audit_log=str(tmp_path / "audit.jsonl")))
    create = {"command": "queue.create", "payload": {"queue": "q"}}
    if lane == "native":
        connection = line(place)
        connection.receive(request(1, "queue.create", queue="q"), request(2, "kv.exists", key="k"))
        assert await answers(connection, 2) == [(1, Kind.ANSWER, ""), (2, Kind.ANSWER, "")]
    else:
        async with running(place) as number:
            if lane == "websocket":
                async with connect(f"ws://127.0.0.1:{number}/api/v1/ws", proxy=None) as carrier:
                    await carrier.send(json.dumps(create))
                    assert json.loads(await carrier.recv())["success"] is True
            else:
                reader, writer = await asyncio.open_connection("127.0.0.1", number)
                body = json.dumps(create).encode()
                head = b"POST /api/v1/command HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
                writer.close()
    assert "a fault in the service" in caplog.text


def raising(*arguments: Any, **options: Any) -> None:
    raise RuntimeError("a fault in the service")


async def test_while_what_was_deleted_is_let_go_of(caplog: pytest.LogCaptureFixture) -> None:
    numbers = iter(range(10**9))
    engine = Engine(ids=lambda: next(numbers))
    EngineHost(engine, soon=asyncio.get_running_loop().call_soon)
    after = asyncio.Event()

    def last() -> Steps:
        after.set()
        yield

    engine.leftovers.add(fail())
    engine.leftovers.add(last())
    await after.wait()
    assert "a fault in the service" in caplog.text
    another = asyncio.Event()
    after = another
    engine.leftovers.add(last())
    await another.wait()
