"""The native lane, frame by frame."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest

from synap._version import __version__
from synap.commands import COMMANDS
from synap.testing.server import ThrowawayServer
from synap.wire.codec import CODECS
from synap.wire.frames import GZIP, HEADER, RETRY, Kind, frame
from synap.wire.handshake import Hello, greet
from tests.helpers.frames import FrameReader
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import Http, Native, dial, last_word, read_all, read_head, request
from tests.server.conftest import name

Attach = Callable[..., Native]

SESSION = "0123456789abcdef0123456789abcdef"


# -------------------------------------------------------------------------------------- the beginning


def hello(session: str = SESSION, format: str = "json", **headers: str) -> bytes:
    text = greet("localhost", Hello(session, format, False, None)).decode()[:-2]
    return (
        text + "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()) + "\r\n"
    ).encode()


def test_the_answer_tells_version_and_limit(server: ThrowawayServer) -> None:
    with dial(server) as connection:
        connection.sendall(hello())
        head = read_head(connection).decode().lower()
    assert head.startswith("http/1.1 101 ")
    assert "upgrade: synap/1\r\n" in head
    assert "synap-version: " in head
    assert "synap-max-body: 10485760\r\n" in head


WIRE = Path(__file__).parents[1] / "wire"


def test_the_service_understands_the_golden_bytes(server: ThrowawayServer) -> None:
    handshake = json.loads((WIRE / "golden_handshake.json").read_text("utf-8"))
    golden = json.loads((WIRE / "golden_frames.json").read_text("utf-8"))
    for greeting in handshake["requests"]:
        asked = [one for one in golden if one["format"] == greeting["format"] and one["command"] == "kv.set"]
        assert {one["flags"] for one in asked} == {0, GZIP}
        with dial(server) as connection:
            connection.sendall(greeting["bytes"].encode() + b"".join(bytes.fromhex(one["frame"]) for one in asked))
            head = read_head(connection).decode()
            connection.shutdown(socket.SHUT_WR)
            told = FrameReader().feed(read_all(connection))
        expected = handshake["consent"]["bytes"].replace(handshake["consent"]["version"], __version__)
        assert head == expected
        assert [(answer.kind, answer.id) for answer in told] == [(Kind.ANSWER, one["id"]) for one in asked]


def test_frames_may_follow_the_greeting_at_once(server: ThrowawayServer) -> None:
    with dial(server) as connection:
        connection.sendall(hello() + frame(Kind.PING, 7))
        read_head(connection)
        assert HEADER.unpack(connection.recv(12))[1::3] == (Kind.PONG, 7)


def test_a_greeting_may_come_in_single_bytes(server: ThrowawayServer) -> None:
    with dial(server) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in hello():
            connection.sendall(bytes([byte]))
        assert read_head(connection).startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize(
    ("greeting", "status"),
    [
        (b"GET /api/v1/native HTTP/1.1\r\nHost: x\r\n\r\n", 426),
        (b"GET /api/v1/native HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: synap/9\r\n\r\n", 426),
        (hello().replace(b"Connection: Upgrade\r\n", b""), 400),
        (hello(session="short"), 400),
        (hello(session=SESSION.upper()), 400),
        (hello(format="xml"), 400),
        (hello().replace(b"Host: localhost", b"nonsense"), 400),
        (hello(Origin="https://evil.example"), 403),
    ],
)
def test_a_wrong_greeting_is_refused_in_json(server: ThrowawayServer, greeting: bytes, status: int) -> None:
    with dial(server) as connection:
        connection.sendall(greeting)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(body)["error"]["code"] in ("INVALID_REQUEST", "FORBIDDEN")


def test_keys_are_checked(serve: Any) -> None:
    server = serve("--api-key", "right")
    for headers, status in (({}, 401), ({"X_API_Key": "wrong"}, 401), ({"X_API_Key": "right"}, 101)):
        with dial(server) as connection:
            connection.sendall(hello(**headers))
            head = read_head(connection)
            assert head.startswith(b"HTTP/1.1 %d " % status)
            assert (b"www-authenticate: bearer" in head.lower()) == (status == 401)


# -------------------------------------------------------------------------------------- requests


def test_requests_and_answers_in_messagepack(attach: Attach) -> None:
    native, key = attach(format="msgpack"), name()
    native.send(frame(Kind.REQUEST, 1, msgpack.packb({"key": key, "value": b"\xff"}), COMMANDS["kv.set"].code))
    assert msgpack.unpackb(native.read().body) == {"success": True, "key": key}
    native.send(frame(Kind.REQUEST, 2, msgpack.packb({"key": key}), COMMANDS["kv.get"].code))
    assert msgpack.unpackb(native.read().body) == {"found": True, "value": b"\xff", "ttl": None}


def test_an_error_has_the_id_of_its_request_and_the_connection_goes_on(attach: Attach) -> None:
    native = attach()
    native.send(request(5, "kv.ttl", key=name()), request(6, "kv.get", surprise=1), frame(Kind.REQUEST, 7, b"{", 2))
    errors = [native.read() for _ in range(3)]
    assert [(error.kind, error.id) for error in errors] == [(Kind.ERROR, 5), (Kind.ERROR, 6), (Kind.ERROR, 7)]
    codes = [json.loads(error.body)["code"] for error in errors]
    assert codes == ["KEY_NOT_FOUND", "INVALID_PAYLOAD", "INVALID_REQUEST"]
    assert native.do(8, "kv.exists", key=name()) == {"exists": False}


@pytest.mark.parametrize("code", [0, 98, 99, 127, 128, 65535])
def test_an_unknown_command_number_is_an_error(attach: Attach, code: int) -> None:
    native = attach()
    native.send(frame(Kind.REQUEST, 1, b"{}", code))
    error = native.read()
    assert (error.kind, error.id, json.loads(error.body)["code"]) == (Kind.ERROR, 1, "INVALID_COMMAND")


ODD = b'[ 1e2 ,{"b" :2.50,\t"a":  "\\u0041/\\/"}, -0.0 ]'
PACKED = bytes.fromhex("94 cd0005 d90161 ca3fc00000 dc0001 c3".replace(" ", ""))
"""Values that nobody would write in this way who built them anew."""


@pytest.mark.parametrize(("format", "value"), [("json", ODD), ("msgpack", PACKED)])
def test_a_value_is_handed_out_as_the_bytes_that_came_in(attach: Attach, format: str, value: bytes) -> None:
    native, place = attach(format=format), name()

    def ask(number: int, command: str, **payload: Any) -> bytes:
        encode = CODECS[format].encode
        payload = {key: msgspec.Raw(value) if told is ODD else told for key, told in payload.items()}
        native.send(frame(Kind.REQUEST, number, encode(payload), COMMANDS[command].code))
        return native.read().body

    ask(1, "stream.subscribe", room=place)
    ask(2, "pubsub.subscribe", topics=[place])
    ask(3, "kv.set", key=place, value=ODD)
    ask(4, "queue.publish", queue=place, message=ODD)
    pushed = [ask(5, "stream.publish", room=place, event_type="t", data=ODD), native.read().body]
    pushed += [ask(6, "pubsub.publish", topic=place, message=ODD), native.read().body]
    assert sum(value in body for body in pushed) == 2
    assert value in ask(7, "kv.get", key=place)
    assert value in ask(8, "kv.mget", keys=[place])
    assert value in ask(9, "queue.consume", queue=place)
    assert value in ask(10, "stream.history", room=place)
    assert CODECS[format].decode(value) is not None


def test_a_batch_is_a_request(attach: Attach) -> None:
    native, key = attach(), name()
    commands = [{"command": "kv.incr", "payload": {"key": key}}, {"command": "kv.nope"}]
    results = native.do(1, "batch", commands=commands)["results"]
    assert results[0] == {"status": "success", "payload": {"value": 1}}
    assert results[1]["error"]["code"] == "INVALID_COMMAND"


def test_a_retried_write_is_answered_as_it_was(attach: Attach) -> None:
    native, key = attach(), name()
    assert native.do(1, "kv.incr", key=key) == {"value": 1}
    assert native.do(1, "kv.incr", RETRY, key=key) == {"value": 1}
    later = attach(session=native.session)
    assert later.do(1, "kv.incr", RETRY, key=key) == {"value": 1}
    assert later.do(2, "kv.incr", RETRY, key=key) == {"value": 2}


def test_a_retried_batch_that_only_settles_is_answered_as_it_was(attach: Attach) -> None:
    native, queue = attach(), name()
    native.do(1, "queue.publish", queue=queue, message="m")
    held = native.do(2, "queue.consume", queue=queue)
    ack = {"queue": queue, "message_id": held["message_id"], "lease": held["lease"]}
    commands = [{"command": "queue.ack", "payload": ack}]
    first = native.do(3, "batch", commands=commands)["results"]
    assert [result["status"] for result in first] == ["success"]
    assert native.do(3, "batch", RETRY, commands=commands)["results"] == first


def test_done_lets_the_service_forget(attach: Attach) -> None:
    native, key = attach(), name()
    native.do(1, "kv.incr", key=key)
    native.do(2, "kv.incr", key=key)
    native.send(frame(Kind.DONE, 2))
    assert native.do(2, "kv.incr", RETRY, key=key) == {"value": 2}
    assert native.do(1, "kv.incr", RETRY, key=key) == {"value": 3}


def test_ping_is_answered_with_the_health(attach: Attach) -> None:
    native = attach()
    native.send(frame(Kind.PING, 9))
    pong = native.read()
    assert (pong.kind, pong.id) == (Kind.PONG, 9)
    assert json.loads(pong.body)["status"] == "ok"


def test_a_cancelled_consume_gets_no_message(attach: Attach) -> None:
    native, queue = attach(), name()
    native.send(request(1, "queue.consume", queue=queue, timeout=60), frame(Kind.CANCEL, 1))
    assert native.do(2, "queue.stats", queue=queue)["consumers"] == 0
    native.do(3, "queue.publish", queue=queue, message="m")
    assert native.do(4, "queue.consume", queue=queue)["message"] == "m"


def test_a_message_that_a_cancelled_consume_was_given_goes_back(attach: Attach) -> None:
    native, queue = attach(), name()
    native.do(1, "queue.publish", queue=queue, message="m")
    native.do(2, "queue.consume", queue=queue)
    native.send(frame(Kind.CANCEL, 2))
    again = native.do(3, "queue.consume", queue=queue)
    assert (again["message"], again["retry_count"]) == ("m", 0)


def test_a_second_consume_under_the_number_of_one_that_waits_is_refused(attach: Attach) -> None:
    native, queue = attach(), name()
    native.send(
        request(1, "queue.consume", queue=queue, timeout=60), request(1, "queue.consume", queue=queue, timeout=60)
    )
    error = native.read()
    assert (error.kind, error.id, json.loads(error.body)["code"]) == (Kind.ERROR, 1, "INVALID_REQUEST")


def test_a_session_that_comes_back_takes_its_place_over(attach: Attach) -> None:
    first, queue = attach(), name()
    first.send(request(1, "queue.consume", queue=queue, timeout=60))
    first.do(2, "stream.subscribe", room=queue)
    second = attach(session=first.session)
    assert first.ended()
    assert second.do(3, "queue.stats", queue=queue)["consumers"] == 0
    assert second.do(4, "stream.stats", room=queue)["subscribers"] == 0
    second.send(request(5, "queue.consume", queue=queue, timeout=60))
    second.send(request(6, "queue.publish", queue=queue, message="m"))
    answers = {answer.id: json.loads(answer.body) for answer in (second.read(), second.read())}
    assert answers[5]["message"] == "m"


def test_a_connection_that_goes_leaves_nothing_behind(attach: Attach) -> None:
    native, other, place = attach(), attach(), name()
    native.do(1, "stream.subscribe", room=place)
    native.do(2, "pubsub.subscribe", topics=[place])
    native.send(request(3, "queue.consume", queue=place, timeout=60))
    assert native.do(4, "queue.stats", queue=place)["consumers"] == 1
    native.close()
    number = 1
    while other.do(number, "queue.stats", queue=place)["consumers"]:
        number += 1
    assert other.do(number + 1, "stream.stats", room=place)["subscribers"] == 0
    assert other.do(number + 2, "pubsub.publish", topic=place, message=1)["subscribers_matched"] == 0


# -------------------------------------------------------------------------------------- gzip


def test_large_answers_are_compressed_where_the_client_asked(attach: Attach) -> None:
    native, key, value = attach(gzip=True), name(), "x" * 5000
    native.send(frame(Kind.REQUEST, 1, gzip.compress(json.dumps({"key": key, "value": value}).encode()), 1, GZIP))
    assert native.read().flags == 0
    native.send(request(2, "kv.get", key=key))
    answer = native.read()
    assert answer.flags == GZIP
    assert json.loads(gzip.decompress(answer.body))["value"] == value
    plain = attach()
    assert plain.do(1, "kv.get", key=key)["value"] == value


def test_large_events_are_compressed_once_for_those_who_asked(attach: Attach) -> None:
    plain, packed, room = attach(), attach(gzip=True), name()
    for subscriber in (plain, packed):
        subscriber.do(1, "stream.subscribe", room=room)
    attach().do(1, "stream.publish", room=room, event_type="t", data="x" * 5000)
    bare, small = plain.read(), packed.read()
    assert (bare.kind, bare.flags, small.kind, small.flags) == (Kind.EVENT, 0, Kind.EVENT, GZIP)
    assert gzip.decompress(small.body) == bare.body


def test_a_body_that_inflates_past_the_limit_ends_the_connection(attach: Attach) -> None:
    native = attach()
    native.send(frame(Kind.REQUEST, 1, gzip.compress(b"0" * (64 * 1024 * 1024), 1), 1, GZIP))
    assert last_word(native) == "PAYLOAD_TOO_LARGE"


def test_a_broken_gzip_ends_the_connection(attach: Attach) -> None:
    native = attach()
    native.send(frame(Kind.REQUEST, 1, b"not gzip", 1, GZIP))
    assert last_word(native) == "INVALID_REQUEST"


def test_a_gzip_of_several_members_ends_the_connection(attach: Attach) -> None:
    native = attach()
    native.send(frame(Kind.REQUEST, 1, gzip.compress(b'{"key":') + gzip.compress(b'"k"}'), 2, GZIP))
    assert last_word(native) == "INVALID_REQUEST"


def test_a_small_answer_is_not_compressed_nor_is_an_error(attach: Attach) -> None:
    native = attach(gzip=True)
    overhead = len(b'{"found":true,"value":"","ttl":null}')
    for number, (size, flags) in enumerate([(1023, 0), (1024, GZIP)], 1):
        key = name()
        native.do(2 * number, "kv.set", key=key, value="x" * (size - overhead))
        native.send(request(2 * number + 1, "kv.get", key=key))
        assert native.read().flags == flags
    key = name() + "x" * 900
    native.do(8, "kv.set", key=key, value="no number")
    native.send(request(9, "kv.incr", key=key))
    told = native.read()
    assert (told.kind, told.flags) == (Kind.ERROR, 0)
    assert len(told.body) > 1024


def test_what_is_pushed_has_the_documented_fields(attach: Attach) -> None:
    native, place = attach(), name()
    room = native.do(1, "stream.subscribe", room=place)["subscription_id"]
    topic = native.do(2, "pubsub.subscribe", topics=[place])["subscription_id"]
    attach().do(1, "stream.publish", room=place, event_type="t", data=1)
    event = native.read()
    assert (event.kind, event.id) == (Kind.EVENT, room)
    assert list(json.loads(event.body)) == [
        "event_id",
        "offset",
        "event_type",
        "data",
        "timestamp",
        "metadata",
        "room",
    ]
    attach().do(1, "pubsub.publish", topic=place, message=1)
    message = native.read()
    assert (message.kind, message.id) == (Kind.MESSAGE, topic)
    assert list(json.loads(message.body)) == ["topic", "message", "metadata", "timestamp", "message_id"]


# -------------------------------------------------------------------------------------- slow peers


def test_a_slow_reader_of_a_room_gets_every_event_in_the_end(attach: Attach) -> None:
    reader, writer, room = attach(), attach(), name()
    reader.do(1, "stream.subscribe", room=room)
    text = "x" * 20_000
    for number in range(1, 1001):
        writer.do(number, "stream.publish", room=room, event_type="t", data=text)
    events = [reader.read() for _ in range(1000)]
    assert [json.loads(event.body)["offset"] for event in events] == list(range(1000))
    writer.do(2000, "stream.delete", room=room)


def test_a_slow_subscriber_to_a_topic_is_told_and_dropped_and_nobody_else_is(serve: Any, attach: Attach) -> None:
    server = serve("--pubsub-buffer", "256KiB")
    slow, quick, writer = attach(server), attach(server), attach(server)
    topic, text = name(), "x" * 20_000
    for subscriber in (slow, quick):
        subscriber.do(1, "pubsub.subscribe", topics=[topic])
    number = 0
    while True:
        number += 1
        matched = writer.do(number, "pubsub.publish", topic=topic, message=text)["subscribers_matched"]
        assert quick.read().kind == Kind.MESSAGE
        if matched == 1:
            break
    received = 0
    while (told := slow.read()).kind == Kind.MESSAGE:
        received += 1
    assert received < number
    assert told.kind == Kind.ENDED
    assert json.loads(told.body)["code"] == "SLOW_CONSUMER"
    assert slow.do(2, "kv.exists", key="still usable") == {"exists": False}


def test_a_peer_that_asks_and_never_reads_is_not_read_any_further(attach: Attach, http: Http) -> None:
    greedy, key = attach(), name()
    http.do("kv.set", key=key, value="x" * 1_000_000)
    before = memory(http)
    greedy.socket.settimeout(1.0)
    asked = 0
    try:
        while True:
            greedy.send(*(request(asked + step, "kv.get", key=key) for step in range(1, 1001)))
            asked += 1000
            assert asked < 500_000
    except TimeoutError:
        pass
    assert memory(http) - before < 50_000_000
    greedy.socket.settimeout(PATIENCE)
    assert [greedy.read().id for _ in range(100)] == list(range(1, 101))
    http.do("kv.del", keys=[key])


def test_a_peer_that_waits_for_messages_and_never_reads_is_cut_and_others_go_on(attach: Attach, http: Http) -> None:
    deaf, publisher, queue = attach(), attach(), name()
    deaf.send(*(request(number, "queue.consume", queue=queue, timeout=60) for number in range(1, 31)))
    text, published = "x" * 9_000_000, 0
    while published == 0 or http.do("queue.stats", queue=queue).payload["consumers"]:
        published += 1
        publisher.do(published, "queue.publish", queue=queue, message=text)
        assert published < 30  # as many would have been taken, had nothing bounded it
    received = 0
    with contextlib.suppress(EOFError, ConnectionResetError):
        while deaf.read().kind == Kind.ANSWER:
            received += 1
    assert received < published
    http.do("queue.delete", queue=queue)


def memory(http: Http) -> float:
    """Bytes the service's process holds."""
    figure = re.search(rb"^process_resident_memory_bytes (.*)$", http.request("GET", "/metrics").body, re.MULTILINE)
    assert figure is not None
    return float(figure[1])


def test_an_answer_too_large_for_any_client_is_an_error(attach: Attach) -> None:
    native, key = attach(), name()
    native.do(1, "kv.set", key=key, value="x" * 5_000_000)
    native.send(request(2, "kv.mget", keys=[key] * 1000))
    error = native.read()
    assert (error.kind, json.loads(error.body)["code"]) == (Kind.ERROR, "PAYLOAD_TOO_LARGE")
    native.do(3, "kv.del", keys=[key])


def test_ten_megabytes_go_in_and_out(attach: Attach) -> None:
    native, key = attach(), name()
    value = "x" * (10 * 1024 * 1024 - 100)
    native.do(1, "kv.set", key=key, value=value)
    assert native.do(2, "kv.get", key=key)["value"] == value
    native.do(3, "kv.del", keys=[key])


def test_a_peer_that_does_not_read_is_not_read_further(server: ThrowawayServer) -> None:
    connection = Native(server)
    try:
        connection.do(1, "kv.set", key="unread", value="x" * 200_000)
        keys = ["unread", *(f"{number:01000}" for number in range(500))]
        asked = 0
        connection.socket.settimeout(2)
        try:
            while asked < 300:
                connection.send(request(2 + asked, "kv.mget", keys=keys))
                asked += 1
        except (TimeoutError, ConnectionError):
            pass  # it has to wait, or was shown the door
        assert asked < 100, "50 MB of requests were taken from a peer that takes no answer"
    finally:
        connection.close()
