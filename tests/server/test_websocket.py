"""`GET /api/v1/ws`: the plain lane's messages over a WebSocket."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from http.client import HTTPResponse
from typing import Any

import msgpack
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from synap.testing.server import ThrowawayServer
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import Http, dial, read_all, read_head, wait_for
from tests.helpers.still_rates import StillRates
from tests.server.conftest import name

Open = Callable[..., ClientConnection]


@pytest.fixture
def websocket(server: ThrowawayServer) -> Iterator[Open]:
    with ExitStack() as opened:

        def start(to: ThrowawayServer = server, path: str = "/api/v1/ws", **options: Any) -> ClientConnection:
            connection: ClientConnection = opened.enter_context(
                connect(f"ws://127.0.0.1:{to.port}{path}", max_size=None, proxy=None, **options)
            )
            return connection

        yield start


def say(connection: ClientConnection, command: str, request_id: str = "r", /, **payload: Any) -> None:
    connection.send(json.dumps({"command": command, "payload": payload, "request_id": request_id}))


def hear(connection: ClientConnection) -> Any:
    message = connection.recv(timeout=PATIENCE)
    return json.loads(message) if isinstance(message, str) else msgpack.unpackb(message)


def ask(connection: ClientConnection, command: str, request_id: str = "r", /, **payload: Any) -> Any:
    say(connection, command, request_id, **payload)
    return hear(connection)


def test_requests_are_answered_by_their_id(websocket: Open) -> None:
    connection, key = websocket(), name()
    say(connection, "kv.set", "one", key=key, value=1)
    say(connection, "kv.get", "two", key=key)
    connection.send(
        json.dumps({"type": "batch", "commands": [{"command": "kv.get", "payload": {"key": key}}], "request_id": "3"})
    )
    answers = {answer["request_id"]: answer for answer in (hear(connection) for _ in range(3))}
    assert answers["one"]["payload"]["success"] is True
    assert answers["two"]["payload"]["value"] == 1
    assert answers["3"]["results"][0]["payload"]["value"] == 1


def test_a_waiting_consume_does_not_hold_up_others(websocket: Open) -> None:
    connection, queue = websocket(), name()
    say(connection, "queue.consume", "waits", queue=queue, timeout=20)
    say(connection, "queue.publish", "goes", queue=queue, message="m")
    answers = {answer["request_id"]: answer for answer in (hear(connection) for _ in range(2))}
    assert answers["goes"]["success"] is True
    assert answers["waits"]["payload"]["message"] == "m"


def test_binary_frames_are_messagepack_and_are_answered_in_kind(websocket: Open) -> None:
    connection, key = websocket(), name()
    connection.send(msgpack.packb({"command": "kv.set", "payload": {"key": key, "value": b"\xff"}, "request_id": "b"}))
    message = connection.recv(timeout=PATIENCE)
    assert isinstance(message, bytes)
    assert msgpack.unpackb(message)["request_id"] == "b"
    assert ask(connection, "kv.get", key=key)["payload"]["value"] == "/w=="


@pytest.mark.parametrize(
    "nonsense",
    ["", "nonsense", "[]", "{", '{"command": "kv.get"}', '{"type": "event"}', "[" * 10_000, b"", b"\xc1", b"{}"],
)
def test_a_frame_that_is_no_request_is_an_error_and_the_connection_goes_on(websocket: Open, nonsense: Any) -> None:
    connection = websocket()
    connection.send(nonsense)
    answer = hear(connection)
    assert answer["success"] is False
    assert answer["error"]["code"] in ("INVALID_REQUEST", "INVALID_PAYLOAD")
    assert ask(connection, "queue.list")["success"] is True


def test_an_error_carries_the_id_of_its_request(websocket: Open) -> None:
    answer = ask(websocket(), "kv.gett", "mine", key="k")
    assert (answer["request_id"], answer["error"]["code"]) == ("mine", "INVALID_COMMAND")


@pytest.mark.parametrize(
    "broken", [{"command": "queue.list", "filed": 1}, {"command": 5}, {"command": "queue.list", "type": 1}, {}]
)
def test_so_does_the_error_of_what_is_no_whole_request(websocket: Open, http: Http, broken: dict[str, Any]) -> None:
    connection, document = websocket(), {**broken, "request_id": "mine"}
    for frame in (json.dumps(document), msgpack.packb(document)):
        connection.send(frame)
        answer = connection.recv(timeout=PATIENCE)
        read = json.loads(answer) if isinstance(answer, str) else msgpack.unpackb(answer)
        assert (read["request_id"], read["error"]["code"]) == ("mine", "INVALID_REQUEST")
    assert http.post(document).document["request_id"] == "mine"


def test_text_that_is_not_utf8_closes_the_connection(websocket: Open) -> None:
    connection = websocket()
    connection.send(b"\xff\xff", text=True)
    with pytest.raises(ConnectionClosed):
        connection.recv(timeout=PATIENCE)


def test_a_message_over_the_limit_closes_the_connection(websocket: Open) -> None:
    connection = websocket()
    with suppress(ConnectionClosed):
        connection.send(" " * (10 * 1024 * 1024 + 1))
    with pytest.raises(ConnectionClosed):
        connection.recv(timeout=PATIENCE)
    assert connection.close_code in (1006, 1009)


def test_events_of_a_room_are_pushed_history_first(websocket: Open, http: Http) -> None:
    connection, room = websocket(), name()
    for number in range(3):
        http.do("stream.publish", room=room, event_type="t", data=number)
    answer = ask(connection, "stream.subscribe", room=room, from_offset=1)
    subscription = answer["payload"]["subscription_id"]
    http.do("stream.publish", room=room, event_type="t", data=3, metadata={"by": "me"})
    pushed = [hear(connection) for _ in range(3)]
    assert [event["offset"] for event in pushed] == [1, 2, 3]
    last = pushed[-1]
    assert {**last, "event_id": "", "timestamp": 0} == {
        "type": "event", "subscription_id": subscription, "room": room, "event_id": "", "offset": 3,
        "event_type": "t", "data": 3, "metadata": {"by": "me"}, "timestamp": 0,
    }  # fmt: skip


def test_messages_of_topics_are_pushed_until_unsubscribed(websocket: Open, http: Http) -> None:
    connection, topic = websocket(), name()
    subscription = ask(connection, "pubsub.subscribe", topics=[f"{topic}.*"])["payload"]["subscription_id"]
    assert http.do("pubsub.publish", topic=f"{topic}.a", message=[1]).payload["subscribers_matched"] == 1
    pushed = hear(connection)
    assert (pushed["type"], pushed["subscription_id"], pushed["topic"]) == ("message", subscription, f"{topic}.a")
    assert pushed["message"] == [1]
    assert ask(connection, "pubsub.unsubscribe", subscription_id=subscription)["payload"]["unsubscribed"] is True
    assert http.do("pubsub.publish", topic=f"{topic}.a", message=2).payload["subscribers_matched"] == 0


def test_a_subscription_pushes_in_the_format_it_was_asked_for_in(websocket: Open, http: Http) -> None:
    connection, room = websocket(), name()
    connection.send(msgpack.packb({"command": "stream.subscribe", "payload": {"room": room}, "request_id": "s"}))
    assert hear(connection)["success"] is True
    http.do("stream.publish", room=room, event_type="t", data="d")
    message = connection.recv(timeout=PATIENCE)
    assert isinstance(message, bytes)
    assert msgpack.unpackb(message)["data"] == "d"


def test_a_deleted_room_ends_its_subscriptions(websocket: Open, http: Http) -> None:
    connection, room = websocket(), name()
    subscription = ask(connection, "stream.subscribe", room=room)["payload"]["subscription_id"]
    http.do("stream.delete", room=room)
    ended = hear(connection)
    assert (ended["type"], ended["subscription_id"]) == ("ended", subscription)
    assert ended["error"]["code"]


def test_a_connection_that_goes_leaves_nothing_behind(websocket: Open, http: Http) -> None:
    connection, place = websocket(), name()
    ask(connection, "stream.subscribe", room=place)
    ask(connection, "pubsub.subscribe", topics=[place])
    say(connection, "queue.consume", queue=place, timeout=30)
    assert ask(connection, "queue.stats", queue=place)["payload"]["consumers"] == 1
    connection.close()
    while http.do("queue.stats", queue=place).payload["consumers"]:
        pass
    assert http.do("stream.stats", room=place).payload["subscribers"] == 0
    assert http.do("pubsub.publish", topic=place, message=1).payload["subscribers_matched"] == 0


def test_a_write_sent_again_takes_effect_once_on_whichever_lane(websocket: Open, http: Http) -> None:
    connection, key, request_id = websocket(), name(), f"{name()}:1"
    assert ask(connection, "kv.incr", request_id, key=key)["payload"]["value"] == 1
    again = http.post({"command": "kv.incr", "payload": {"key": key}, "request_id": request_id})
    assert again.payload["value"] == 1


def test_a_slow_reader_of_a_room_is_sent_everything_in_the_end(websocket: Open, server: ThrowawayServer) -> None:
    reader, writer = websocket(max_queue=1), Http(server)
    room = name()
    ask(reader, "stream.subscribe", room=room)
    text = "x" * 50_000
    for start in range(0, 600, 100):
        events = [
            {"command": "stream.publish", "payload": {"room": room, "event_type": "t", "data": [start + step, text]}}
            for step in range(100)
        ]
        assert writer.post({"type": "batch", "commands": events}).status == 200
    assert [hear(reader)["data"][0] for _ in range(600)] == list(range(600))
    writer.do("stream.delete", room=room)
    writer.close()


@pytest.mark.parametrize("path", ["/api/v1/wss", "/", "/api/v1/command"])
def test_elsewhere_there_is_no_websocket(websocket: Open, path: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        websocket(path=path)
    assert refused.value.response.status_code == 404
    assert json.loads(refused.value.response.body)["error"]["code"] == "INVALID_REQUEST"


def test_a_foreign_web_page_is_refused(websocket: Open) -> None:
    with pytest.raises(InvalidStatus) as refused:
        websocket(origin="https://evil.example")
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize(
    ("method", "handshake", "status", "told"),
    [
        ("GET", b"Sec-WebSocket-Version: 8\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n", 400, "Version"),
        ("GET", b"Sec-WebSocket-Version: 13\r\n", 400, "Key"),
        ("POST", b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n", 405, "POST"),
    ],
)
def test_a_handshake_that_is_wrong_is_refused_in_json(
    server: ThrowawayServer, method: str, handshake: bytes, status: int, told: str
) -> None:
    """It was a line of plain text."""
    with dial(server) as connection:
        begin = b"%b /api/v1/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" % method.encode()
        connection.sendall(begin + handshake + b"\r\n")
        answer = HTTPResponse(connection)
        answer.begin()
        document = json.loads(answer.read())
    assert (answer.status, answer.getheader("content-type")) == (status, "application/json")
    assert (document["success"], document["error"]["code"]) == (False, "INVALID_REQUEST")
    assert told in document["error"]["message"]


@pytest.mark.parametrize("seed", range(10))
def test_bytes_that_are_no_frames_end_the_connection_and_nothing_else(
    server: ThrowawayServer, http: Http, seed: int
) -> None:
    chance = random.Random(seed)
    for _ in range(10):
        with dial(server) as connection:
            connection.sendall(
                b"GET /api/v1/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            assert read_head(connection).startswith(b"HTTP/1.1 101 ")
            with suppress(ConnectionError):
                connection.sendall(chance.randbytes(chance.randint(1, 200)))
                connection.shutdown(socket.SHUT_WR)
                read_all(connection)
    assert http.do("queue.list").status == 200


def test_keys_are_checked_on_the_upgrade(serve: Any, websocket: Open) -> None:
    server = serve("--api-key", "right")
    for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic right"}):
        with pytest.raises(InvalidStatus) as refused:
            websocket(server, additional_headers=headers)
        response = refused.value.response
        assert response.status_code == 401
        assert response.headers["content-type"] == "application/json"
        assert json.loads(response.body)["error"]["code"] == "UNAUTHORIZED"
    for headers in ({"X-API-Key": "right"}, {"Authorization": "Bearer right"}):
        assert ask(websocket(server, additional_headers=headers), "queue.list")["success"] is True
    server.stop()
    assert not [line for line in server.output if "ERROR" in line]


def test_messages_take_tokens_of_the_rate_limit(
    serve: Callable[..., ThrowawayServer], websocket: Open, still_rates: StillRates
) -> None:
    limited = serve("--rate-limit", "5", environment=still_rates.environment)
    connection = websocket(limited)
    for number in range(20):
        say(connection, "kv.get", str(number), key="k")
    answers = [hear(connection) for _ in range(20)]
    refused = [answer["error"]["code"] for answer in answers if answer["status"] == "error"]
    assert set(refused) == {"RATE_LIMIT_EXCEEDED"}
    assert len(refused) == 16  # the handshake takes a token too


def test_a_consume_that_waits_on_a_closed_connection_takes_no_message(websocket: Open, http: Http) -> None:
    queue = name()
    connection = websocket()
    say(connection, "queue.consume", "waits", queue=queue, timeout=60)
    wait_for_consumers(http, queue, 1)
    connection.socket.close()
    wait_for_consumers(http, queue, 0)
    http.do("queue.publish", queue=queue, message="kept")
    assert http.do("queue.consume", queue=queue).payload["message"] == "kept"


def wait_for_consumers(http: Http, queue: str, count: int) -> None:
    """Wait until `count` consumers wait at a queue."""

    def are_there() -> bool:
        stats = http.do("queue.stats", queue=queue)
        return stats.status == 200 and bool(stats.payload["consumers"] == count)

    wait_for(are_there)
