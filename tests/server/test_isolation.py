"""What goes wrong with one answer, push or subscriber touches nobody else."""

from __future__ import annotations

import json
import logging
from typing import Any

import msgpack
import pytest

from synap import commands
from synap.commands import STREAM_PUBLISH
from synap.engine.callers import Caller
from synap.engine.engine import Engine
from synap.errors import SynapError
from synap.host import ANSWER, Batch, EngineHost, Log, Output, Session
from synap.server.service import Service
from synap.server.settings import ServerConfig
from synap.wire.codec import JSON, MSGPACK, Codec
from synap.wire.frames import Kind, frame
from tests.helpers.inside import Line, line, service
from tests.helpers.raw import request

pytestmark = pytest.mark.usefixtures("endless_turns")

c: Any = commands
"""The payloads; here their values are stored bytes already."""

DEEP = b"[" * 5000 + b"]" * 5000
"""A value as earlier versions took it, which a reader of the other format can't be shown."""


def packed(number: int, command: str, **payload: Any) -> bytes:
    code = commands.COMMANDS[command].code
    return frame(Kind.REQUEST, number, msgpack.packb(payload), code=code)


def numbered_kinds(connection: Line) -> list[tuple[int, int]]:
    return [(told.id, told.kind) for told in connection.frames()]


@pytest.fixture
def place() -> Service:
    made = service()
    store(made.host, c.KvSet("deep", DEEP))
    return made


def store(host: Any, payload: Any) -> None:
    """Store what is refused at the door today."""
    host.engine.execute(payload, host.clock(), Caller())


async def test_a_value_that_can_t_be_shown_is_an_error_to_its_own_reader(place: Service) -> None:
    connection = line(place, "msgpack")
    connection.receive(
        packed(1, "kv.set", key="a", value=1),
        packed(2, "kv.get", key="deep"),
        packed(3, "kv.get", key="a"),
    )
    told = connection.frames()
    assert [(one.id, one.kind) for one in told] == [(1, Kind.ANSWER), (2, Kind.ERROR), (3, Kind.ANSWER)]
    assert msgpack.unpackb(told[1].body)["code"] == "WRONG_TYPE"
    connection.receive(packed(4, "kv.get", key="a"))
    assert numbered_kinds(connection) == [(4, Kind.ANSWER)]


async def test_an_event_that_can_t_be_shown_ends_one_subscription_with_a_word(place: Service) -> None:
    packer, other, reader = line(place, "msgpack"), line(place, "msgpack"), line(place, "json")
    packer.receive(packed(1, "stream.subscribe", room="r"))
    reader.receive(request(1, "stream.subscribe", room="r"))
    other.receive(packed(1, "stream.subscribe", room="other"))
    for connection in (packer, other, reader):
        connection.frames()
    store(place.host, c.StreamPublish("r", "t", DEEP))
    place.host.end_turn()
    [ended] = packer.frames()
    assert ended.kind == Kind.ENDED
    assert msgpack.unpackb(ended.body)["code"] == "WRONG_TYPE"
    assert [told.kind for told in reader.frames()] == [Kind.EVENT]
    reader.receive(
        request(2, "stream.publish", room="r", event_type="t", data=2),
        request(3, "stream.publish", room="other", event_type="t", data=3),
    )
    assert sorted(told.kind for told in reader.frames()) == sorted([Kind.EVENT, Kind.ANSWER, Kind.ANSWER])
    assert [told.kind for told in other.frames()] == [Kind.EVENT]
    assert packer.frames() == []


class Broken(Session):
    """A session of a lane with a bug: it raises where it should send."""

    __slots__ = ("aborted",)

    def __init__(self, host: EngineHost) -> None:
        super().__init__(host, JSON)
        self.aborted = False

    def push(self, subscription_id: int, item: Any) -> bool:
        raise RuntimeError("a bug of a lane")

    def deliver(self, output: list[Output]) -> None:
        raise RuntimeError("a bug of a lane")

    def has_room(self) -> bool:
        return True

    def abort(self) -> None:
        self.aborted = True


class Listening(Session):
    """Keeps what it is told."""

    __slots__ = ("told",)

    def __init__(self, host: EngineHost, codec: Codec = JSON) -> None:
        super().__init__(host, codec)
        self.told: list[Output] = []

    def deliver(self, output: list[Output]) -> None:
        self.told += output

    def has_room(self) -> bool:
        return True


@pytest.mark.parametrize("facility", ["stream", "pubsub"])
def test_a_subscriber_that_raises_when_pushed_to_ends_alone(
    place: Service, facility: str, caplog: pytest.LogCaptureFixture
) -> None:
    host: Any = place.host
    broken, listening = Broken(host), Listening(host)
    subscribe = c.StreamSubscribe("r") if facility == "stream" else c.PubSubSubscribe(["t"])
    publish = c.StreamPublish("r", "t", b"1") if facility == "stream" else c.PubSubPublish("t", b"1")
    for session in (broken, listening):
        host.engine.execute(subscribe, host.clock(), session)
    with caplog.at_level(logging.CRITICAL, "synap.host"):
        store(host, publish)
        host.end_turn()
    assert len(listening.told) == 1
    assert broken.aborted


def test_a_session_that_can_t_be_delivered_to_ends_alone(place: Service, caplog: pytest.LogCaptureFixture) -> None:
    host: Any = place.host
    broken, listening = Broken(host), Listening(host)
    with caplog.at_level(logging.CRITICAL, "synap.host"):
        for session in (broken, listening):
            host.execute(session, 1, commands.KV_GET, b'{"key":"a"}')
        host.end_turn()
    assert broken.aborted
    assert [(what, number) for what, number, _, _ in listening.told] == [(ANSWER, 1)]
    assert host.errors["INTERNAL_ERROR"] == 1


class Slow(Log):
    """A log that reports when a test says so, and refuses to take what it is told to refuse."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.refuses = False

    def submit(self, batch: Batch, alone: bool) -> bool:
        if self.refuses:
            raise ValueError("a record can't be written")
        self.batches.append(batch)
        return False


def durable() -> tuple[EngineHost, Slow]:
    slow = Slow()
    numbers = iter(range(10**9))
    return EngineHost(Engine(ids=lambda: next(numbers)), log=slow), slow


def test_one_session_that_fails_at_a_commit_takes_no_other_s_answer(caplog: pytest.LogCaptureFixture) -> None:
    host, slow = durable()
    broken, listening = Broken(host), Listening(host)
    with caplog.at_level(logging.CRITICAL, "synap.host"):
        for number, session in enumerate((broken, listening)):
            host.execute(session, number, commands.KV_SET, b'{"key":"a","value":1}')
        host.end_turn()
        [batch] = slow.batches
        host.committed(batch)
    assert [number for _, number, _, _ in listening.told] == [1]
    assert broken.aborted
    assert host.settled()


def test_a_batch_that_the_log_can_t_take_is_taken_back_and_answered_with_errors(
    caplog: pytest.LogCaptureFixture,
) -> None:
    host, slow = durable()
    listening = Listening(host)
    slow.refuses = True
    with caplog.at_level(logging.CRITICAL, "synap.host"):
        host.execute(listening, 1, commands.KV_SET, b'{"key":"a","value":1}')
        host.end_turn()
    [(_, number, error, _)] = listening.told
    assert (number, error.code) == (1, "INTERNAL_ERROR")
    slow.refuses = False
    host.execute(listening, 2, commands.KV_GET, b'{"key":"a"}')
    host.end_turn()
    assert listening.told[1][2].found is False


def test_a_command_that_crashes_halfway_is_put_right(caplog: pytest.LogCaptureFixture) -> None:
    host, slow = durable()
    listening = Listening(host)
    host.execute(listening, 1, commands.KV_SET, b'{"key":"a","value":1}')
    host.end_turn()
    host.committed(slow.batches.pop())
    runs, code = host.engine.runs, commands.KV_SET.code
    execute = runs[code]

    def crash(*arguments: Any) -> Any:
        execute(*arguments)
        raise RuntimeError("a bug of the engine")

    with caplog.at_level(logging.CRITICAL, "synap.host"):
        runs[code] = crash
        host.execute(listening, 2, commands.KV_SET, b'{"key":"a","value":2}')
        runs[code] = execute
        host.execute(listening, 3, commands.KV_SET, b'{"key":"b","value":3}')
        host.execute(listening, 4, commands.KV_GET, b'{"key":"a"}')
        host.end_turn()
        host.committed(slow.batches.pop())
    outcomes = {number: content for _, number, content, _ in listening.told}
    assert outcomes[2].code == "INTERNAL_ERROR"
    assert outcomes[3].success
    assert outcomes[4].value == b"1"


def test_a_command_of_a_batch_that_crashes_halfway_is_put_right(caplog: pytest.LogCaptureFixture) -> None:
    host, slow = durable()
    listening = Listening(host)
    keys = host.engine.keys
    put, crashes = keys._put, ["b"]

    def crash(key: str, *arguments: Any, **named: Any) -> None:
        put(key, *arguments, **named)
        if key in crashes:
            raise RuntimeError("a bug of the engine")

    keys._put = crash  # type: ignore[method-assign]
    each = b'{"command":"kv.set","payload":{"key":"%b","value":1}}'
    body = b'{"commands":[%b]}' % b",".join([each % name for name in (b"a", b"b", b"c")])
    with caplog.at_level(logging.CRITICAL, "synap.host"):
        host.execute(listening, 1, commands.BATCH, body)
        host.end_turn()
    host.committed(slow.batches.pop())
    outcomes = [outcome.status for outcome in listening.told[0][2].results]
    assert outcomes == ["success", "error", "success"]
    assert [keys.values.get(name) for name in "abc"] == [b"1", None, b"1"]


def test_health_is_honest_when_the_log_stops_reporting() -> None:
    host, slow = durable()
    listening = Listening(host)
    host.execute(listening, 1, commands.KV_SET, b'{"key":"a","value":1}')
    host.end_turn()
    assert host.health()["status"] == "ok"
    host.pending[0].since -= 11
    assert host.health()["status"] == "degraded"
    assert host.health()["reason"] == "the log has not reported for 11 s"
    host.committed(slow.batches.pop())
    assert host.health()["status"] == "ok"


def test_health_is_honest_when_what_is_due_is_not_done() -> None:
    now = [1000.0]
    numbers = iter(range(10**9))
    host = EngineHost(Engine(ids=lambda: next(numbers)), clock=lambda: now[0])
    listening = Listening(host)
    host.execute(listening, 1, commands.QUEUE_CONSUME, b'{"queue":"q","timeout":5}')
    host.end_turn()
    now[0] += 16
    assert host.health()["reason"] == "what was due 11 s ago has not been done"
    host.wake()
    assert host.health()["status"] == "ok"


NESTED = [("[", "]"), ('{"a":', "}")]


@pytest.mark.parametrize(("opening", "closing"), NESTED)
@pytest.mark.parametrize(("depth", "taken"), [(200, True), (201, False), (976, False), (983, False), (10_000, False)])
def test_depth_is_bounded_at_the_door(opening: str, closing: str, depth: int, taken: bool) -> None:
    inner = "" if opening == "[" else "1"
    text = (opening * depth + inner + closing * depth).encode()
    packing = {"[": b"\x91", '{"a":': b"\x81\xa1a"}[opening] * (depth - 1) + {"[": b"\x90", '{"a":': b"\x80"}[opening]
    bodies = {
        JSON: b'{"room":"r","event_type":"t","data":%b}' % text,
        MSGPACK: b"\x83\xa4room\xa1r\xaaevent_type\xa1t\xa4data" + packing,
    }
    for codec, body in bodies.items():
        if taken:
            payload = codec.decode_payload(STREAM_PUBLISH, body)
            for reader in (JSON, MSGPACK):
                reader.encode_answer(commands.EventAnswer("e", 0, "t", payload.data, 0, {}, "r"))
        else:
            with pytest.raises(SynapError) as refused:
                codec.decode_payload(STREAM_PUBLISH, body)
            assert refused.value.code == "INVALID_PAYLOAD"
            assert "nested" in refused.value.message


async def test_depth_is_bounded_on_the_native_lane(place: Service) -> None:
    connection = line(place)
    for number, depth in enumerate((200, 201, 976, 10_000), 1):
        body = b'{"key":"k","value":%b}' % (b"[" * depth + b"]" * depth)
        connection.receive(frame(Kind.REQUEST, number, body, code=commands.KV_SET.code))
    told = connection.frames()
    assert [one.kind for one in told] == [Kind.ANSWER] + 3 * [Kind.ERROR]
    assert all(json.loads(one.body)["code"] == "INVALID_PAYLOAD" for one in told[1:])


def test_settings_of_a_service_are_usable_here() -> None:
    assert Service(durable()[0], ServerConfig()).health()["durable"] is True
