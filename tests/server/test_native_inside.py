"""What the native lane writes, and when, seen write by write."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest

from synap.commands import COMMANDS, EventAnswer
from synap.server.flow import HIGH_WATER, MAX_UNSENT
from synap.server.service import KEPT, Service, Shared
from synap.wire.codec import CODECS
from synap.wire.frames import Kind, frame
from tests.helpers.frames import Frame
from tests.helpers.inside import Line, line, service
from tests.helpers.raw import request

pytestmark = pytest.mark.usefixtures("endless_turns")

# -------------------------------------------------------------------------------------- one read, one write


def test_the_answer_to_a_lone_request_leaves_before_anything_else_happens() -> None:
    connection = line(service())
    connection.receive(request(1, "kv.set", key="k", value=1))
    assert len(connection.writes) == 1
    [answer] = connection.frames()
    assert (answer.kind, answer.id) == (Kind.ANSWER, 1)
    assert connection.session.promised == 0


async def test_all_that_one_read_asked_for_leaves_in_one_write() -> None:
    connection = line(service())
    connection.receive(
        *(request(number, "kv.incr", key="n") for number in range(1, 101)),
        request(101, "kv.ttl", key="none"),
        frame(Kind.PING, 102),
        request(103, "pubsub.subscribe", topics=["t"]),
        request(104, "pubsub.publish", topic="t", message="m"),
        request(105, "kv.get", key="n"),
    )
    assert len(connection.writes) == 1
    told = connection.frames()
    assert [answer.kind for answer in told[:103]] == [Kind.ANSWER] * 100 + [Kind.ERROR, Kind.PONG, Kind.ANSWER]
    assert [answer.id for answer in told[:103]] == list(range(1, 104))
    assert {answer.kind for answer in told[103:]} == {Kind.MESSAGE, Kind.ANSWER}
    assert len(told) == 106


async def test_what_one_turn_pushes_to_a_subscriber_leaves_in_one_write() -> None:
    place = service()
    subscriber, publisher = line(place), line(place)
    subscriber.receive(request(1, "stream.subscribe", room="r"))
    subscriber.frames()
    publisher.receive(
        *(request(number, "stream.publish", room="r", event_type="t", data=number) for number in range(1, 51))
    )
    assert (len(subscriber.writes), len(publisher.writes)) == (1, 1)
    assert [json.loads(event.body)["data"] for event in subscriber.frames()] == list(range(1, 51))


# -------------------------------------------------------------------------------------- encoded once


class Counting:
    """A codec that counts what it encodes."""

    def __init__(self, format: str) -> None:
        self.codec = CODECS[format]
        self.encoded = 0

    def encode_answer(self, answer: Any) -> bytes:
        self.encoded += 1
        return self.codec.encode_answer(answer)


def event(offset: int, data: str = "data") -> EventAnswer:
    return EventAnswer(f"e-{offset}", offset, "t", json.dumps(data).encode(), 0, {}, "r")


@pytest.mark.parametrize("format", CODECS)
@pytest.mark.parametrize("packed", [False, True])
def test_an_item_is_encoded_once_however_often_it_is_pushed(format: str, packed: bool) -> None:
    codec: Any = Counting(format)
    shared = Shared(codec, packed)
    for offset in range(3):
        item = event(offset, "x" * 5000)
        pushed = [shared.encode(item) for _ in range(50)]
        assert codec.encoded == offset + 1
        assert all(one is pushed[0] for one in pushed)
        body, flags = pushed[0]
        assert bool(flags) == packed
        assert (gzip.decompress(body) if packed else body) == CODECS[format].encode_answer(item)


@pytest.mark.parametrize("format", CODECS)
@pytest.mark.parametrize("packed", [False, True])
def test_the_items_of_a_turn_are_encoded_once_for_connections_that_each_get_all_of_them(
    format: str, packed: bool
) -> None:
    codec: Any = Counting(format)
    shared = Shared(codec, packed)
    items = [event(offset, "x" * 1000) for offset in range(20)]
    pushed = [[shared.encode(item) for item in items] for _ in range(50)]
    assert codec.encoded == 20
    assert all(one == pushed[0] for one in pushed)


@pytest.mark.parametrize("packed", [False, True])
def test_few_items_are_kept_encoded(packed: bool) -> None:
    shared = Shared(CODECS["json"], packed)
    items = [event(offset, "x" * (KEPT // 4)) for offset in range(20)]
    for item in (*items, event(20, "x" * (2 * KEPT)), *items):
        body, flags = shared.encode(item)
        whole = CODECS["json"].encode_answer(item)
        assert (gzip.decompress(body) if flags else body) == whole
        kept = [len(CODECS["json"].encode_answer(one)) for one, _ in shared._held.values()]
        assert len(kept) == 1 or sum(kept) <= KEPT


def counted(place: Service) -> dict[tuple[str, bool], Counting]:
    """Let a service count what it encodes for subscribers of each format."""
    codecs: dict[tuple[str, bool], Any] = {key: Counting(key[0]) for key in place.shared}
    for key, codec in codecs.items():
        place.shared[key] = Shared(codec, key[1])
    return codecs


def in_format(format: str, command: str, **payload: Any) -> bytes:
    return frame(Kind.REQUEST, 1, CODECS[format].encode(payload), COMMANDS[command].code)


@pytest.mark.parametrize("many", [1, 20])
@pytest.mark.parametrize(
    ("subscribe", "publish"),
    [
        (("stream.subscribe", {"room": "r"}), ("stream.publish", {"room": "r", "event_type": "t", "data": "d"})),
        (("pubsub.subscribe", {"topics": ["t"]}), ("pubsub.publish", {"topic": "t", "message": "d"})),
    ],
    ids=["room", "topic"],
)
async def test_an_item_is_encoded_once_for_all_connections_of_a_format(subscribe: Any, publish: Any, many: int) -> None:
    place = service()
    codecs = counted(place)
    subscribers = {format: [line(place, format) for _ in range(50)] for format in CODECS}
    for format, connections in subscribers.items():
        for subscriber in connections:
            subscriber.receive(in_format(format, subscribe[0], **subscribe[1]))
            subscriber.frames()
    line(place).receive(*[in_format("json", publish[0], **publish[1])] * many)
    for connections in subscribers.values():
        pushed = [subscriber.frames() for subscriber in connections]
        assert [len(frames) for frames in pushed] == [many] * 50
        assert len({tuple(frame.body for frame in frames) for frames in pushed}) == 1
    assert {key: codec.encoded for key, codec in codecs.items()} == {
        ("json", False): many,
        ("msgpack", False): many,
        ("json", True): 0,
        ("msgpack", True): 0,
    }


# -------------------------------------------------------------------------------------- many that wait


async def test_ten_thousand_requests_of_a_connection_may_wait_and_no_more() -> None:
    connection = line(service())
    connection.receive(
        *(request(number, "queue.consume", queue=f"q{number % 100}", timeout=60) for number in range(1, 10_002)),
        request(10_002, "kv.exists", key="k"),
    )
    told: list[Frame] = []
    while len(told) < 2:
        await asyncio.sleep(0)  # more than a turn's worth is done in several
        told += connection.frames()
    refused, answered = told
    assert (refused.kind, refused.id) == (Kind.ERROR, 10_001)
    assert json.loads(refused.body)["code"] == "INVALID_REQUEST"
    assert (answered.kind, answered.id) == (Kind.ANSWER, 10_002)


# -------------------------------------------------------------------------------------- a peer that never reads


async def test_what_waits_for_a_peer_that_never_reads_is_bounded_and_then_it_is_cut() -> None:
    place = service()
    deaf, publisher, other = line(place, deaf=True), line(place), line(place)
    deaf.receive(*(request(number, "queue.consume", queue="q", timeout=60) for number in range(1, 201)))
    while len(deaf.session.waiting) < 200:  # turns end after a while, and go on in the loop's next round
        await asyncio.sleep(0)
    text = "x" * 1_000_000
    published = 0
    while not deaf.over:
        published += 1
        publisher.receive(request(published, "queue.publish", queue="q", message=text))
        assert [answer.kind for answer in publisher.frames()] == [Kind.ANSWER]
        other.receive(request(published, "kv.incr", key="n"))
        assert [json.loads(answer.body)["value"] for answer in other.frames()] == [published]
        assert published < 200
    assert MAX_UNSENT < deaf.most < MAX_UNSENT + 1_100_000
    await until_gone(deaf)
    publisher.receive(request(201, "queue.publish", queue="q", message="next"))
    other.receive(request(201, "queue.consume", queue="q"))
    assert json.loads(other.frames()[0].body)["message"] == "next"
    assert deaf.session not in place.connections | place.listeners


async def test_who_talked_nonsense_may_read_to_the_end_as_long_as_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    later: list[Callable[[], None]] = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "call_later", lambda delay, what, *told: later.append(lambda: what(*told)))
    connection = line(service())
    connection.receive(request(1, "kv.set", key="k", value="x" * 500_000))
    connection.deaf = True
    connection.receive(request(2, "kv.get", key="k"), frame(255))
    for _ in range(4):
        connection.unread -= 100_000
        later.pop()()
        assert not connection.over
    later.pop()()
    assert connection.over
    await until_gone(connection)


async def until_gone(connection: Line) -> None:
    while not connection.session.closed:  # a callback of the loop's, which tells nobody
        await asyncio.sleep(0)


async def test_who_asks_one_by_one_and_takes_no_answer_is_not_read_further() -> None:
    deaf = line(service(), deaf=True)
    deaf.receive(request(1, "kv.set", key="k", value="x" * 100_000))
    number = 1
    while deaf.read and not deaf.over:
        number += 1
        deaf.receive(request(number, "kv.get", key="k"))
        assert deaf.most <= HIGH_WATER + 100_100
    assert not deaf.over


async def test_a_turn_that_fails_ends_its_connection_so_that_nobody_waits_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = service()
    connection, other = line(place), line(place)

    def fail(*arguments: Any) -> None:
        raise RuntimeError("a fault in the service")

    connection.receive(*(request(number, "kv.set", key="k", value="x" * 500_000) for number in range(1, 3)))
    connection.receive(*(request(number, "kv.get", key="k") for number in range(3, 30)))
    monkeypatch.setattr(place.host, "execute", fail)
    await until_gone(connection)
    assert "a fault in the service" in caplog.text
    monkeypatch.undo()
    other.receive(request(1, "kv.exists", key="k"))
    assert [answer.kind for answer in other.frames()] == [Kind.ANSWER]
