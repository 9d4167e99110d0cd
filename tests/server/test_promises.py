"""The sentences of SECURITY.md, and the numbers of the manual's table of limits, one by one."""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from synap.commands import COMMANDS
from synap.commands.batch import MAX_BATCH
from synap.commands.fields import MAX_HEADERS
from synap.engine.callers import STEP
from synap.engine.engine import MOST_RECIPIENTS, MOST_STEPS
from synap.engine.limits import ANSWER_BYTES, Limits, check_name
from synap.engine.priorities import Rules
from synap.errors import CODES, SynapError
from synap.host.batches import MAX_ATOMIC, MOST_LISTED, MOST_SECONDS
from synap.server.native_requests import MAX_WAITING
from synap.server.settings import OPTIONS, ServerConfig
from synap.server.transit import LEAST, SHARE
from synap.server.websocket import MAX_UNDER_WAY
from synap.testing.server import ThrowawayServer
from synap.wire.codec import JSON
from synap.wire.frames import MAX_ANSWER, Kind
from synap.wire.handshake import Hello, greet
from tests.helpers.keys import File, speak
from tests.helpers.raw import Http, Native, dial, read_head, request
from tests.server.conftest import Serve
from tests.server.test_origins import WS

ROOT = Path(__file__).parents[2]

# ------------------------------------------------------------------------------------------ SECURITY.md

OPEN = [
    ("GET", "/health"),
    ("HEAD", "/health"),
    ("GET", "/openapi.json"),
    ("GET", "/"),
    ("GET", "/console/console.js"),
    ("GET", "/console/console.css"),
    ("GET", "/console/icon.svg"),
    ("GET", "/console/session"),
]
CLOSED = [
    ("POST", "/api/v1/command"),
    ("DELETE", "/api/v1/command?request_id=a"),
    ("GET", "/api/v1/stream/subscribe?room=a"),
    ("GET", "/api/v1/admin/backup"),
    ("GET", "/metrics"),
    ("GET", "/api/v1/ws"),
    ("GET", "/api/v1/native"),
]


def knock(server: ThrowawayServer, method: str, path: str, key: str = "") -> bytes:
    """Ask for a path, with a WebSocket's or the native lane's head where it is theirs; returns the status."""
    lines = f"Host: localhost:{server.port}\r\nAccept: text/html, application/json\r\n"
    lines += f"X-API-Key: {key}\r\n" if key else ""
    body = ""
    if path == "/api/v1/native":
        head = greet("localhost", Hello(os.urandom(16).hex(), "json", False, key or None))
    else:
        if path == "/api/v1/ws":
            lines += WS
        elif method == "POST":
            body = '{"command":"queue.list","payload":{}}'
            lines += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        head = f"{method} {path} HTTP/1.1\r\n{lines}\r\n{body}".encode()
    with dial(server) as peer:
        peer.sendall(head)
        return read_head(peer).split(b" ")[1]


def test_nobody_without_a_key_gets_more_than_is_said(serve: Serve) -> None:
    service = serve("--api-key", "right")
    assert {path: knock(service, method, path) for method, path in OPEN} == {path: b"200" for _, path in OPEN}
    assert {path: knock(service, method, path) for method, path in CLOSED} == {path: b"401" for _, path in CLOSED}
    http = Http(service)
    described = json.loads(http.request("GET", "/openapi.json").body)
    http.close()
    named = {(method.upper(), path) for path, methods in described["paths"].items() for method in methods}
    tried = {(method, path.partition("?")[0]) for method, path in [*OPEN, *CLOSED]}
    assert named <= tried, "a path that is not tried here"


@pytest.mark.parametrize(
    ("grants", "all"),
    [
        (["kv:read:user:*", "queue:read:a*", "stream:read:*"], False),
        (["kv:*:*"], False),
        (["queue:read:*", "stream:*:*"], True),
        (["*:*:*"], True),
        (["kv:read:a", "admin"], True),
    ],
)
def test_who_may_not_see_every_queue_is_told_of_none_by_metrics(
    serve: Serve, tmp_path: Path, grants: list[str], all: bool
) -> None:
    file = File(tmp_path / "keys.toml", {"key": grants, "ops": ["*:*:*"]})
    service = serve("--keys-file", str(file.path), "--audit-log", str(tmp_path / "audit.jsonl"))
    speak(service, file.keys["ops"]).do("queue.publish", queue="what-others-have", message=1)
    answer = speak(service, file.keys["key"]).request("GET", "/metrics")
    assert (answer.status, b"what-others-have" in answer.body) == ((200, True) if all else (403, False))
    assert ("metrics" in (tmp_path / "audit.jsonl").read_text()) is not all


def test_what_is_stored_and_what_opens_is_in_no_log_metric_or_error_of_others(serve: Serve, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    key, secret = "the-key-of-somebody-1", "what-somebody-stored"
    service = serve("--admin-key", key, "--access-log", "--log-level", "debug", "--audit-log", str(audit))
    http = Http(service, X_API_Key=key)
    value = {"a": secret}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("kv.set", {"key": "k", "value": value}),
        ("kv.incr", {"key": "k"}),
        ("queue.publish", {"queue": "q", "message": value, "headers": {"h": secret}}),
        ("queue.purge", {"queue": "q"}),
        ("stream.publish", {"room": "r", "event_type": "t", "data": value}),
        ("pubsub.publish", {"topic": "t", "message": value}),
        ("kv.set", {"key": "n", "value": secret}),
        ("kv.clear", {"prefix": "n"}),
        ("queue.create", {"queue": "q", "config": {"max_depth": secret}}),
    ]
    for command, payload in asked:
        http.do(command, **payload)
    wrong = http.do("kv.incr", key="k")
    assert wrong.status == 422
    scrape = http.request("GET", "/metrics").body.decode()
    stats = http.do("admin.stats").body.decode()
    http.post(b'{"command": "kv.set", "payload": {"key": "k", "value": "' + secret.encode())
    http.close()
    stranger = Http(service, X_API_Key=key + "x")
    stranger.do("kv.get", key="k")
    stranger.close()
    service.stop()
    said = "".join(service.output) + audit.read_text()
    for where in (said, scrape, stats, wrong.body.decode()):
        assert secret not in where
        assert key not in where


# ------------------------------------------------------------------------------------------ the table of limits


def table() -> dict[str, tuple[str, str]]:
    """What the manual says: the limit and the option, by what is limited."""
    text = (ROOT / "docs" / "operations.md").read_text().partition("## Limits")[2]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]*)\|", text.partition("\n\n`--memory-limit`")[0], re.MULTILINE)
    return {what.strip(): (limit.strip(), option.strip()) for what, limit, option in rows if not what.startswith("--")}


def test_nobody_is_told_to_raise_what_is_at_its_most() -> None:
    most = {option.name: option.most for option in OPTIONS}["max_body"]
    assert most == ServerConfig().max_body
    assert "raise" not in CODES["PAYLOAD_TOO_LARGE"].advice


def test_the_manual_s_limits_are_the_service_s() -> None:
    config, limits, rules = ServerConfig(), Limits(), Rules()
    expected = {
        "what": "limit",
        "a request's body": f"{config.max_body // 1024**2} MiB, which is the most, also after decompression; "
        "at most a fifth of `--transit-limit`, where that is given",
        "commands in a batch": f"{MAX_BATCH:,}; an atomic one {MAX_ATOMIC:,}",
        "keys, or pairs, of one `mget`, `mset` or `del`": "10,000",
        "keys, messages, events and names in the answers of one batch": f"{MOST_LISTED:,}",
        "bytes of the answers of one batch": f"{MAX_ANSWER // 1024**2} MiB",
        "values, headers and metadata of what one `consume_many`, page of `peek` or page of `history` holds": (
            f"{ANSWER_BYTES // 1024**2} MiB, but at least one message or event"
        ),
        "what the long commands of an atomic batch go over: keys, messages of deep queues, names, patterns": (
            f"about {MOST_STEPS * STEP:,}"
        ),
        "subscriptions and waiting consumers that an atomic batch reaches, counted for each of its commands": (
            f"{MOST_RECIPIENTS:,}"
        ),
        "processor time of an atomic batch": f"{MOST_SECONDS:g} s",
        "unfinished bodies, untaken answers and what is being translated or compressed, of all peers together": (
            f"a quarter of `--memory-limit`, at least {LEAST // 1024**2} MiB"
        ),
        "how long a peer may take nothing of what waits for it": f"{config.unread_timeout:g} s",
        "a key": "1,024 bytes of UTF-8",
        "names of queues, rooms, topics": "256 bytes",
        "connections": (
            f"{config.max_connections:,}; fewer where the system allows less than 128 open files more (`ulimit -Hn`)"
        ),
        "messages in a queue": f"{rules.max_depth:,}",
        "events in a room": f"{config.room_events:,}, {config.room_age / 3600:g} h",
        "queues; rooms": f"{limits.queues:,} each",
        "headers of a message, metadata": f"{MAX_HEADERS} strings",
        "consumers that wait on a queue; requests that wait on a connection": f"{limits.waiting:,}; {MAX_WAITING:,}",
        "subscriptions of a connection; durable names of a room": f"{limits.subscriptions:,} each",
        "answers remembered for retries": (
            f"{limits.replies:,} of at most {limits.reply_bytes // 1024**2} MiB together, and of a quarter of "
            f"`--memory-limit`; {limits.reply_age / 60:g} minutes"
        ),
        "requests a second": "none",
        "memory": "80 % of what the machine, or its cgroup, has",
    }
    assert {what: limit for what, (limit, _) in table().items() if not set(limit) <= {"-"}} == expected
    assert SHARE == 4
    assert config.rate_limit is None
    assert limits.room_events == config.room_events
    assert (limits.rooms, limits.names, MAX_UNDER_WAY) == (limits.queues, limits.subscriptions, MAX_WAITING)
    for _, option in table().values():
        for named in re.findall(r"`--([a-z-]+)`", option):
            assert hasattr(config, named.replace("-", "_")), named


@pytest.mark.parametrize(
    ("command", "field", "one"),
    [
        ("kv.mget", "keys", "k"),
        ("kv.del", "keys", "k"),
        ("kv.mset", "pairs", {"key": "k", "value": 1}),
        ("pubsub.subscribe", "topics", "t"),
    ],
)
def test_lists_of_ten_thousand_are_taken_and_longer_ones_not(command: str, field: str, one: Any) -> None:
    JSON.decode_payload(COMMANDS[command], msgspec.json.encode({field: [one] * 10_000}))
    with pytest.raises(SynapError, match="10,000"):
        JSON.decode_payload(COMMANDS[command], msgspec.json.encode({field: [one] * 10_001}))


def test_so_many_requests_may_wait_on_a_connection_and_one_more_is_refused(serve: Serve) -> None:
    connection = Native(serve())
    waits = [request(number, "queue.consume", queue="q", timeout=600) for number in range(1, MAX_WAITING + 2)]
    connection.send(*waits)
    refused = connection.read()
    assert (refused.kind, refused.id) == (Kind.ERROR, MAX_WAITING + 1)
    assert json.loads(refused.body)["code"] == "INVALID_REQUEST"
    connection.close()


@pytest.mark.parametrize("letter", ["a", "ü", "語", "🙂"])
def test_names_are_bounded_in_bytes(http: Http, letter: str) -> None:
    size = len(letter.encode())
    assert http.do("kv.set", key=letter * (1024 // size), value=1).status == 200
    assert http.do("kv.set", key=letter * (1024 // size + 1), value=1).status == 422
    named: list[tuple[str, str, dict[str, Any]]] = [
        ("queue.create", "queue", {"config": {"dead_letter": False}}),
        ("stream.publish", "room", {"event_type": "t", "data": 1}),
        ("pubsub.publish", "topic", {"message": 1}),
    ]
    for command, field, more in named:
        assert http.do(command, **{field: letter * (256 // size)}, **more).status == 200, command
        assert http.do(command, **{field: letter * (256 // size + 1)}, **more).status == 422, command
    check_name("queue", letter * (256 // size))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzipped"])
def test_a_body_has_ten_mebibytes_also_after_decompression(server: ThrowawayServer, packed: bool) -> None:
    def send(length: int) -> int:
        frame = b'{"command":"kv.set","payload":{"key":"large","value":"%b"}}'
        body = frame % (b"x" * (length - len(frame) + 2))
        assert len(body) == length
        http = Http(server)
        try:
            if packed:
                return http.post(gzip.compress(body, 1), content_encoding="gzip").status
            return http.post(body).status
        except (ConnectionError, socket.timeout):
            return 413
        finally:
            http.close()

    assert send(10 * 1024 * 1024) == 200
    assert send(10 * 1024 * 1024 + 1) == 413
