"""What the native lane writes, and when, seen write by write."""

from __future__ import annotations

import json

from synap.wire.frames import Kind, frame
from tests.server.inside import line, service
from tests.server.raw import request

# -------------------------------------------------------------------------------------- one read, one write


def test_the_answer_to_a_lone_request_leaves_before_anything_else_happens() -> None:
    connection = line(service())
    connection.receive(request(1, "kv.set", key="k", value=1))
    assert len(connection.writes) == 1
    [answer] = connection.frames()
    assert (answer.kind, answer.id) == (Kind.ANSWER, 1)


def test_all_that_one_read_asked_for_leaves_in_one_write() -> None:
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


def test_what_one_turn_pushes_to_a_subscriber_leaves_in_one_write() -> None:
    place = service()
    subscriber, publisher = line(place), line(place)
    subscriber.receive(request(1, "stream.subscribe", room="r"))
    subscriber.frames()
    publisher.receive(
        *(request(number, "stream.publish", room="r", event_type="t", data=number) for number in range(1, 51))
    )
    assert (len(subscriber.writes), len(publisher.writes)) == (1, 1)
    assert [json.loads(event.body)["data"] for event in subscriber.frames()] == list(range(1, 51))
