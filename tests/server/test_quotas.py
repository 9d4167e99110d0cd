"""Quotas of keys, and the rate limit."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from synap.server.grants import Quota
from synap.server.settings import ServerConfig
from synap.testing.server import ThrowawayServer
from synap.wire.frames import MAX_ANSWER, Kind
from synap.wire.handshake import Hello, greet
from tests.helpers import inside
from tests.helpers.frames import FrameReader
from tests.helpers.keys import File, speak
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import Native, dial, read_head, request, wait_for
from tests.helpers.still_rates import StillRates
from tests.server.test_balance import WebSocket
from tests.server.test_translations import Asgi
from tests.server.test_withdrawn import host_of, until

Serve = Callable[..., ThrowawayServer]


def test_quotas(serve: Serve, tmp_path: Path, still_rates: StillRates) -> None:
    quotas = {"little": Quota(requests=5), "few": Quota(connections=1, subscriptions=1, waiting=1)}
    file = File(tmp_path / "keys.toml", {name: ["*:*:*"] for name in ("little", "much", "few")}, **quotas)
    service = serve("--keys-file", str(file.path), environment=still_rates.environment)
    http, other = (speak(service, file.keys[name]) for name in ("little", "much"))
    assert 429 in [http.do("kv.exists", key="a").status for _ in range(20)]
    assert {other.do("kv.exists", key="a").status for _ in range(20)} == {200}
    url = service.url.replace("http", "ws") + "/api/v1/ws"
    headers = {"X-API-Key": file.keys["few"]}
    with connect(url, additional_headers=headers, open_timeout=PATIENCE) as socket:
        with pytest.raises(Exception, match="429"):
            connect(url, additional_headers=headers, open_timeout=PATIENCE)
        answers = []
        for _ in range(2):
            socket.send(json.dumps({"command": "pubsub.subscribe", "payload": {"topics": ["a"]}}))
            answers.append(json.loads(socket.recv(PATIENCE)))
    assert [answer["success"] for answer in answers] == [True, False]
    assert "1 subscriptions" in answers[1]["error"]["message"]
    assert answers[1]["error"]["details"] == {"retry_after": 1.0}
    with connect(url, additional_headers=headers, open_timeout=PATIENCE) as socket:
        for number in range(2):
            payload = {"queue": "q", "timeout": PATIENCE}
            socket.send(json.dumps({"command": "queue.consume", "payload": payload, "request_id": f"r{number}"}))
        refusal = json.loads(socket.recv(PATIENCE))
    assert (refusal["request_id"], refusal["error"]["code"]) == ("r1", "RATE_LIMIT_EXCEEDED")
    assert refusal["error"]["details"] == {"retry_after": 1.0}


def test_what_waits_over_plain_http_is_counted_over_all_connections_of_a_key(serve: Serve, tmp_path: Path) -> None:
    """There a connection has one request at a time, and as many connections as its holder likes."""
    file = File(tmp_path / "keys.toml", {"few": ["*:*:*"], "other": ["*:*:*", "admin"]}, few=Quota(waiting=1))
    service = serve("--keys-file", str(file.path))
    first, second, other = (speak(service, file.keys[name]) for name in ("few", "few", "other"))
    consume = {"command": "queue.consume", "payload": {"queue": "q", "timeout": PATIENCE}}
    first.connection.request(
        "POST", "/api/v1/command", json.dumps(consume), {"content-type": "application/json", **first.headers}
    )
    wait_for(lambda: other.do("queue.stats", queue="q").document.get("payload", {}).get("consumers") == 1)
    refused = second.post(consume)
    assert (refused.status, refused.error["details"]) == (429, {"retry_after": 1.0})
    assert refused.headers["retry-after"] == "1"
    other.do("queue.publish", queue="q", message=1)
    assert first.connection.getresponse().status == 200
    other.do("queue.publish", queue="q", message=2)
    assert second.post(consume).payload["message"] == 2


@pytest.mark.parametrize("lane", ["http", "websocket"])
async def test_what_came_behind_an_exclusive_job_waits_within_that_quota(lane: str, tmp_path: Path) -> None:
    """None of it waited yet when it came, and nobody looked when it began to."""
    file = File(tmp_path / "keys.toml", {"few": ["*:*:*"]}, few=Quota(waiting=1))
    place = inside.service(ServerConfig(keys_file=str(file.path)))
    host = host_of(place)
    consume = json.dumps({"command": "queue.consume", "payload": {"queue": "q", "timeout": 60}}).encode()
    headers = {"content_type": "application/json", "x_api_key": file.keys["few"]}
    host.busy = host.jobs.exclusive = True
    if lane == "http":
        asked = [Asgi(place, consume, **headers) for _ in range(3)]
    else:
        socket = WebSocket(place, x_api_key=file.keys["few"])
        for _ in range(3):
            socket.ask(consume, "json")
    await until(lambda: len(host.jobs.waiting) == 3)
    host.jobs.exclusive = False
    while host.busy:
        host.work()
    assert len(host.engine.deliveries.waiting) == 1
    assert host.errors["RATE_LIMIT_EXCEEDED"] == 2
    if lane == "http":
        for one in asked:
            one.gone.set()
        await asyncio.gather(*(one.task for one in asked))
    else:
        socket.abort()
        await socket.task
    assert not host.engine.deliveries.waiting


def test_what_is_under_way_without_waiting_for_a_message_is_no_part_of_that_quota(serve: Serve, tmp_path: Path) -> None:
    """Over a WebSocket a consume was refused while the disk had not yet got an earlier write."""
    file = File(tmp_path / "keys.toml", {"few": ["*:*:*"]}, few=Quota(waiting=1))
    service = serve("--keys-file", str(file.path), data=tmp_path / "data")
    url = service.url.replace("http", "ws") + "/api/v1/ws"
    with connect(url, additional_headers={"X-API-Key": file.keys["few"]}, open_timeout=PATIENCE) as socket:
        for number in range(200):
            socket.send(json.dumps({"command": "kv.set", "payload": {"key": f"k{number}", "value": number}}))
            socket.send(json.dumps({"command": "queue.consume", "payload": {"queue": "q"}}))
        answers = [json.loads(socket.recv(PATIENCE)) for _ in range(400)]
    assert [one["error"] for one in answers if not one["success"]] == []


def test_a_quota_of_bytes_holds_on_every_lane(serve: Serve, tmp_path: Path, still_rates: StillRates) -> None:
    file = File(tmp_path / "keys.toml", {"little": ["*:*:*"], "much": ["*:*:*"]}, little=Quota(bytes=10_000))
    service = serve("--keys-file", str(file.path), environment=still_rates.environment)
    http, other = (speak(service, file.keys[name]) for name in ("little", "much"))
    asked = {"command": "kv.set", "payload": {"key": "k", "value": "x" * 4000}}
    refused = [http.post(asked) for _ in range(3)][-1]
    assert refused.status == 429
    assert "10000 bytes a second" in refused.error["message"]
    assert {other.post(asked).status for _ in range(10)} == {200}
    native = dial(service)
    native.sendall(greet("x", Hello(os.urandom(16).hex(), "json", False, file.keys["little"])))
    read_head(native)
    native.sendall(b"".join(request(number, "kv.set", key="k", value="x" * 4000) for number in range(1, 21)))
    reader = FrameReader(MAX_ANSWER)
    told: list[Any] = []
    while len(told) < 20:
        told += reader.feed(native.recv(65536))
    native.close()
    assert Kind.ERROR in [one.kind for one in told]
    url = service.url.replace("http", "ws") + "/api/v1/ws"
    with connect(url, additional_headers={"X-API-Key": file.keys["little"]}, open_timeout=PATIENCE) as socket:
        for _ in range(20):
            socket.send(json.dumps(asked))
        codes = [json.loads(socket.recv(PATIENCE)).get("error", {}).get("code") for _ in range(20)]
    assert "RATE_LIMIT_EXCEEDED" in codes


def test_what_can_not_be_read_counts_too(serve: Serve, tmp_path: Path, still_rates: StillRates) -> None:
    quotas = {"few": Quota(requests=5), "little": Quota(bytes=10_000)}
    file = File(tmp_path / "keys.toml", {name: ["*:*:*"] for name in quotas}, **quotas)
    service = serve("--keys-file", str(file.path), environment=still_rates.environment)
    url = service.url.replace("http", "ws") + "/api/v1/ws"
    for name in quotas:
        with connect(url, additional_headers={"X-API-Key": file.keys[name]}, open_timeout=PATIENCE) as socket:
            answers = []
            for nonsense in ({"command": "no.such", "payload": {"key": "x" * 4000}}, {"payload": "x" * 4000}):
                for number in range(20):
                    socket.send(json.dumps({**nonsense, "request_id": f"r{number}"}))
                    answers.append(json.loads(socket.recv(PATIENCE)))
            assert [one["request_id"] for one in answers] == [f"r{number}" for number in range(20)] * 2
            assert "RATE_LIMIT_EXCEEDED" in {one["error"]["code"] for one in answers}, name


def test_a_changed_quota_holds_for_connections_that_are_open(
    serve: Serve, tmp_path: Path, still_rates: StillRates
) -> None:
    file = File(tmp_path / "keys.toml", {"worker": ["*:*:*"]})
    service = serve("--keys-file", str(file.path), environment=still_rates.environment)
    url = service.url.replace("http", "ws") + "/api/v1/ws"
    with connect(url, additional_headers={"X-API-Key": file.keys["worker"]}, open_timeout=PATIENCE) as socket:

        def ask() -> bool:
            socket.send(json.dumps({"command": "kv.exists", "payload": {"key": "a"}}))
            return bool(json.loads(socket.recv(PATIENCE))["success"])

        assert all(ask() for _ in range(20))
        file.change("worker", ["*:*:*"], Quota(requests=2))
        service.signal(signal.SIGHUP)
        assert any(not ask() for _ in range(2_000)), "the open connection is bound by the new quota"


def test_a_rate_limit_counts_commands_not_batches(serve: Serve, still_rates: StillRates) -> None:
    service = serve("--rate-limit", "10", environment=still_rates.environment)
    commands = [{"command": "kv.set", "payload": {"key": "k", "value": 1}}] * 8
    http = speak(service)
    assert [http.post({"type": "batch", "commands": commands}).status for _ in range(2)] == [200, 429]
    native = Native(service)
    native.send(*(request(number, "batch", commands=commands) for number in range(1, 4)))
    kinds = [native.read().kind for _ in range(3)]
    assert Kind.ERROR in kinds
    native.close()
    other = serve("--rate-limit", "10", environment=still_rates.environment)
    with connect(other.url.replace("http", "ws") + "/api/v1/ws", open_timeout=PATIENCE) as socket:
        for _ in range(3):
            socket.send(json.dumps({"type": "batch", "commands": commands}))
        answers = [json.loads(socket.recv(PATIENCE)) for _ in range(3)]
    assert "RATE_LIMIT_EXCEEDED" in [answer.get("error", {}).get("code") for answer in answers]
