"""What the service remembers of a key's grants, and how it counts a key's bytes, inside one process.

A connection of the native lane decodes and checks a request in one go where its key was let through before. Nothing
gets past the grants that way: no other name, no large value, no request that waited while they were taken away.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synap.commands import COMMANDS, KV_SET, Command
from synap.server import keyfile
from synap.server.grants import Quota
from synap.server.service import Service
from synap.server.settings import ServerConfig
from synap.wire.codec import built
from synap.wire.frames import GZIP, Kind, frame
from tests.helpers import inside
from tests.helpers.frames import Frame
from tests.helpers.raw import request
from tests.server.test_bad_input import valid

NAMED = [one for one in COMMANDS.values() if one.verb in ("read", "write", "consume", "manage")]
LISTS = ("kv.scan", "queue.list", "stream.rooms", "pubsub.topics", "pubsub.stats")
NONE = Quota()
Make = Callable[..., Service]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Make a service with one key, `k`, in a file."""

    def made(*grants: str, quota: Quota = NONE, **settings: Any) -> Service:
        keyfile.add(tmp_path / "keys", "k", "key", list(grants), quota)
        return inside.service(ServerConfig(keys_file=str(tmp_path / "keys"), **settings))

    return made


def narrow(service: Service, *grants: str) -> None:
    path = service.config.keys_file
    assert path is not None
    keyfile.remove(path, "k")
    keyfile.add(path, "k", "key", list(grants), Quota())
    service.reload_keys()


def about(command: Command, name: str) -> dict[str, Any]:
    fields = {**valid(command)}
    one: Any = {"key": name, "value": 1} if command.name_field == "pairs" else name
    fields[command.name_field] = [one] if isinstance(fields.get(command.name_field), list) else one
    return fields


def code_of(answer: Frame) -> str:
    return str(json.loads(answer.body)["code"]) if answer.kind == Kind.ERROR else "ok"


async def answers(line: inside.Line, *frames: bytes) -> list[Frame]:
    line.receive(*frames)
    while not line.session.settled():
        await asyncio.sleep(0)  # the rest has a turn of its own
    return [one for one in line.frames() if one.kind in (Kind.ANSWER, Kind.ERROR)]


async def told(line: inside.Line, *frames: bytes) -> list[str]:
    return [code_of(one) for one in await answers(line, *frames)]


@pytest.mark.parametrize("command", [one for one in NAMED if one.name not in LISTS], ids=lambda one: one.name)
@pytest.mark.parametrize("pattern", ["mine", "mine*", "m*e", "mine-*"])
async def test_a_name_that_was_let_through_lets_no_other_through(make: Make, command: Command, pattern: str) -> None:
    grant = f"{command.group}:{command.verb}:{'mine' if command.group == 'pubsub' else pattern}"
    service = make(grant)
    line = inside.line(service, key="key")
    name = "mine-1" if pattern == "mine-*" and command.group != "pubsub" else "mine"

    def mine(number: int) -> bytes:
        return request(number, command.name, **about(command, name))

    def theirs(number: int) -> bytes:
        return request(number, command.name, **about(command, "their"))

    if command.by_prefix and pattern in ("mine", "m*e"):
        assert await told(line, mine(1), theirs(2)) == ["FORBIDDEN"] * 2, "not all names with the prefix are"
        return
    assert "FORBIDDEN" not in await told(line, mine(1))
    assert await told(line, theirs(2)) == ["FORBIDDEN"]
    several = await told(line, mine(3), theirs(4), mine(5), theirs(6))
    assert several.count("FORBIDDEN") == 2
    batch = [{"command": command.name, "payload": about(command, one)} for one in (name, "their")]
    line.receive(request(7, "batch", commands=batch))
    (answer,) = (one for one in line.frames() if one.id == 7)
    codes = [(one.get("error") or {}).get("code") for one in json.loads(answer.body)["results"]]
    assert codes[1] == "FORBIDDEN"
    assert codes[0] != "FORBIDDEN"
    narrow(service, "kv:read:else")
    if not line.over:
        assert await told(line, mine(8), mine(9)) == ["FORBIDDEN"] * 2, "what was remembered goes with the grant"


@pytest.mark.parametrize("size", [10, 70_000, 200_000])
@pytest.mark.parametrize("alone", [True, False])
async def test_a_large_value_needs_the_grant_too(make: Make, tmp_path: Path, size: int, alone: bool) -> None:
    service = make("kv:write:mine", "kv:read:*", audit_log=str(tmp_path / "audit"))
    line = inside.line(service, key="key")
    assert await told(line, request(1, "kv.set", key="mine", value="x")) == ["ok"]
    large = request(2, "kv.set", key="their", value="x" * size)
    times = 1 if alone else 2
    assert await told(line, *[large] * times) == ["FORBIDDEN"] * times
    assert await told(line, request(3, "kv.set", key="mine", value="x" * size)) == ["ok"]
    (answer,) = await answers(line, request(4, "kv.get", key="their"))
    assert json.loads(answer.body)["found"] is False
    lines = [json.loads(one) for one in (tmp_path / "audit").read_text().splitlines()]
    assert {(one["what"], one["outcome"], *one["names"]) for one in lines} == {("kv.set", "FORBIDDEN", "their")}
    assert len(lines) == times


async def test_a_request_that_waits_behind_another_is_looked_at_when_its_turn_comes(make: Make) -> None:
    service = make("kv:*:mine")
    host: Any = service.host
    line = inside.line(service, key="key")
    assert await told(line, request(1, "kv.set", key="mine", value=1)) == ["ok"]
    host.busy = host.jobs.exclusive = True
    line.receive(request(2, "kv.set", key="mine", value=2))
    assert line.frames() == []
    narrow(service, "kv:read:mine")
    host.jobs.exclusive = False
    host.work()
    assert await told(line) == ["FORBIDDEN"]
    (answer,) = await answers(line, request(3, "kv.get", key="mine"))
    assert json.loads(answer.body)["value"] == 1


async def test_what_is_refused_in_a_batch_is_in_the_audit_log_once(make: Make, tmp_path: Path) -> None:
    service = make("kv:write:mine", "queue:manage:mine", audit_log=str(tmp_path / "audit"))
    line = inside.line(service, key="key")
    items = [
        {"command": "kv.get", "payload": {"key": "their"}},
        {"command": "queue.delete", "payload": {"queue": "their"}},
        {"command": "queue.create", "payload": {"queue": "mine"}},
    ]
    assert await told(line, request(1, "batch", commands=items)) == ["ok"]
    lines = [json.loads(one) for one in (tmp_path / "audit").read_text().splitlines()]
    assert sorted((one["what"], one["outcome"]) for one in lines) == [
        ("kv.get", "FORBIDDEN"),
        ("queue.create", "ok"),
        ("queue.delete", "FORBIDDEN"),
    ]


async def test_who_may_do_everything_pays_nothing_for_the_look_at_names(make: Make) -> None:
    session = inside.line(make("*:*:*"), key="key").session
    plain = session.codec.decoders
    assert all(built(session.decoders[one.code]) is plain[one.code] for one in NAMED)


# ------------------------------------------------------------------------------------------ bytes


def counted(service: Service) -> int:
    """The bytes that were counted for the key; time stands still."""
    return round(service._sizes.bucket("k", 1e6).full * 1e6)


def bodies(*frames: bytes) -> int:
    return sum(len(one) - 12 for one in frames)


async def test_each_byte_of_requests_is_counted_once_however_they_come(make: Make) -> None:
    service = make("kv:*:a*", quota=Quota(bytes=1e6))
    line = inside.line(service, key="key")
    due = 0
    one = request(1, "kv.set", key="a", value="x" * 100)
    for frames in ([one], [one] * 5, [one] * 400):
        await told(line, *frames)
        due += bodies(*frames)
        assert counted(service) == due
    for piece in (one[:5], one[5:50], one[50:] + one + one[:20], one[20:]):
        await told(line, piece)
    due += bodies(one, one, one)
    assert counted(service) == due
    packed = json.dumps({"key": "a", "value": "x" * 5000}).encode()
    await told(line, frame(Kind.REQUEST, 1, gzip.compress(packed), KV_SET.code, GZIP), one)
    due += len(packed) + bodies(one)
    assert counted(service) == due
    await told(line, frame(Kind.PING, 1, b"x" * 50), one, frame(Kind.CANCEL, 9))
    due += bodies(one)
    assert counted(service) == due


async def test_beyond_the_quota_of_bytes_requests_are_refused_and_what_fits_is_not(make: Make) -> None:
    service = make("kv:*:a*", quota=Quota(bytes=1000))
    line = inside.line(service, key="key")
    one = request(1, "kv.set", key="a", value="x" * 275)  # 300 bytes
    assert bodies(one) == 300
    assert await told(line, *[one] * 5) == ["ok"] * 3 + ["RATE_LIMIT_EXCEEDED"] * 2
    assert await told(line, one) == ["RATE_LIMIT_EXCEEDED"]
    assert await told(line, request(2, "kv.get", key="a")) == ["ok"], "a smaller one still fits"


async def test_a_quota_of_both_takes_neither_where_one_is_used_up(make: Make) -> None:
    service = make("kv:*:a*", quota=Quota(bytes=1e6, requests=3))
    line = inside.line(service, key="key")
    one = request(1, "kv.exists", key="a")
    assert await told(line, *[one] * 3) == ["ok"] * 3
    before = counted(service)
    assert await told(line, one) == ["RATE_LIMIT_EXCEEDED"]
    assert counted(service) - before <= bodies(one)
