"""Large requests of every kind: too many items are refused before anything decodes them, what is right is executed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from synap.commands import BATCH, COMMANDS
from synap.server import keyfile
from synap.server.grants import Quota
from synap.server.service import Service
from synap.server.settings import ServerConfig
from synap.wire.codec import JSON
from synap.wire.frames import Kind
from tests.helpers import inside
from tests.helpers.frames import Frame
from tests.helpers.raw import request

TOPICS = [f"topic.{number:06}.{'x' * 20}" for number in range(5000)]


@pytest.fixture(params=["no key", "grants", "every quota"])
def line(request: pytest.FixtureRequest, tmp_path: Path) -> inside.Line:
    """A connection that checks nothing, the names, or everything for each request."""
    if request.param == "no key":
        return inside.line(inside.service())
    quota = Quota(requests=1e6, bytes=1e12, subscriptions=10, waiting=10) if request.param == "every quota" else Quota()
    keyfile.add(
        tmp_path / "keys", "k", "key", ["*:*:*" if quota.bytes else "kv:*:a*", "queue:*:q*", "pubsub:*:#"], quota
    )
    return inside.line(inside.service(ServerConfig(keys_file=str(tmp_path / "keys"))), key="key")


async def answers(line: inside.Line, *frames: bytes) -> list[Frame]:
    for one in frames:
        line.receive(one)
    session = line.session
    while not session.settled() or session.host.working_for(session):
        await asyncio.sleep(0)
    return line.frames()


@pytest.mark.parametrize(
    ("command", "payload", "field"),
    [
        ("batch", {"commands": [{"command": "a"}] * 100_000}, "commands"),
        ("kv.del", {"keys": ["a"] * 100_000}, "keys"),
        ("kv.mset", {"pairs": [{"key": "a", "value": 1}] * 100_000}, "pairs"),
        ("pubsub.subscribe", {"topics": ["a"] * 100_000}, "topics"),
        ("queue.consume_many", {"queues": ["q"] * 100_000}, "queues"),
        ("queue.publish", {"queue": "q", "message": 1, "headers": {f"{n}": "" for n in range(100_000)}}, "headers"),
    ],
)
async def test_too_many_items_are_refused_before_they_are_decoded(
    line: inside.Line, command: str, payload: dict[str, Any], field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (BATCH if command == "batch" else COMMANDS[command]).code
    decoders = list(JSON.decoders)
    decoders[code] = None
    monkeypatch.setattr(JSON, "decoders", decoders)
    monkeypatch.setattr(JSON, "decode_fields", None)
    line.session.adopt(line.session.principal.access)  # its decoders are made of the codec's
    (answer,) = await answers(line, request(1, command, **payload))
    assert answer.kind == Kind.ERROR
    error = json.loads(answer.body)
    assert error["code"] == "INVALID_PAYLOAD"
    assert error["message"].startswith(f"{field} must be ")
    assert not line.session.closed


async def test_large_batches_are_executed_in_order_with_what_comes_before_and_after(line: inside.Line) -> None:
    puts = [{"command": "kv.set", "payload": {"key": f"a{n}", "value": [n, [n], n, n, n, n]}} for n in range(9_000)]
    told = await answers(
        line,
        request(1, "kv.set", key="a0", value="first"),
        request(2, "batch", commands=puts),
        request(3, "kv.get", key="a0"),
        request(4, "batch", commands=puts[:3000], atomic=True),
        request(5, "kv.get", key="a8999"),
    )
    assert [(one.kind, one.id) for one in told] == [(Kind.ANSWER, number) for number in range(1, 6)]
    assert json.loads(told[2].body)["value"] == [0, [0], 0, 0, 0, 0]
    assert json.loads(told[4].body)["value"] == [8999, [8999], 8999, 8999, 8999, 8999]
    assert line.session.promised == 0


async def test_a_large_subscription_is_made_and_a_large_request_waits(line: inside.Line) -> None:
    (answer,) = await answers(line, request(1, "pubsub.subscribe", topics=TOPICS))
    assert answer.kind == Kind.ANSWER
    number = json.loads(answer.body)["subscription_id"]
    queues = ["q" + "ü" * 120 + str(one) for one in range(100)]
    assert await answers(line, request(2, "queue.consume_many", queues=queues, timeout=5)) == []

    assert 2 in line.session.waiting
    told = await answers(
        line,
        request(3, "pubsub.publish", topic=TOPICS[7], message=1),
        request(4, "queue.publish", queue=queues[3], message=2),
    )
    assert {(one.kind, one.id) for one in told} == {
        (Kind.MESSAGE, number),
        (Kind.ANSWER, 3),
        (Kind.ANSWER, 2),
        (Kind.ANSWER, 4),
    }
    service: Service = line.session._service
    assert service.host.requests[COMMANDS["pubsub.subscribe"].code] == 1, "it is counted once"


async def test_what_is_wrong_with_a_request_is_said_once(line: inside.Line) -> None:
    for large in ("", "x" * 100_000):
        told = await answers(line, request(9, "queue.create", queue="q", config={"wrong": large}))
        assert [(one.kind, one.id) for one in told] == [(Kind.ERROR, 9)]
