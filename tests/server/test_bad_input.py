"""What the plain lane refuses: each with a clear error, nothing lost, and the connection usable where it can be."""

from __future__ import annotations

import gzip
import json
import random
import socket
from contextlib import suppress
from typing import Any

import msgpack
import msgspec
import pytest

from synap import commands
from synap.shapes import VALUE
from synap.testing.server import ThrowawayServer
from synap.wire.large import LARGE
from tests.helpers.raw import Http, dial, read_all, read_head
from tests.server.conftest import name

PACK = "application/msgpack"
ROOF = 10 * 1024 * 1024


# -------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"nonsense",
        b'{"command": "kv.get", "payload": {"key": "a"}',
        b'{"command": "kv.get", "payload": {"key": "a"}} trailing',
        b'{"command": 5, "payload": {}}',
        b'{"payload": {}}',
        b'{"command": "kv.get", "payload": {"key": "a"}, "surprise": 1}',
        b'{"command": "kv.get", "payload": {"key": "a"}, "request_id": 7}',
        b'{"command": "kv.get", "payload": {"key": "a"}, "request_id": "' + b"x" * 300 + b'"}',
        b'{"type": "batch"}',
        b'{"type": "batch", "commands": {}}',
        b'{"type": "batch", "commands": [{"payload": {}}]}',
        b'\xff\xfe{"command"',
        b"\x00" * 100,
    ],
)
def test_malformed_json_is_refused_and_the_connection_goes_on(http: Http, body: bytes) -> None:
    answer = http.post(body)
    assert (answer.status, answer.error["code"]) == (400, "INVALID_REQUEST")
    assert http.do("queue.list").status == 200


@pytest.mark.parametrize("body", [b"\xc1", b"\xdf\xff\xff\xff\xff", b"\x81", b"{}", b"\x93\x01\x02", b"\xd9\xff"])
def test_malformed_messagepack_is_refused(http: Http, body: bytes) -> None:
    answer = http.post(body, content_type=PACK, accept="application/json")
    assert (answer.status, answer.error["code"]) == (400, "INVALID_REQUEST")
    assert http.do("queue.list").status == 200


def test_a_map_with_keys_that_are_no_strings_is_refused(http: Http) -> None:
    body = msgpack.packb({"command": "kv.set", "payload": {"key": "k", "value": {1: 2}}})
    assert http.post(body, content_type=PACK, accept="application/json").error["code"] == "INVALID_PAYLOAD"


def test_json_nested_ten_thousand_deep_is_refused(http: Http) -> None:
    deep = b"[" * 10_000 + b"]" * 10_000
    for body in (deep, b'{"command": "kv.set", "payload": {"key": "deep", "value": %b}}' % deep):
        answer = http.post(body)
        assert answer.status in (400, 422)
        assert answer.error["code"] in ("INVALID_REQUEST", "INVALID_PAYLOAD")
    assert http.do("queue.list").status == 200


WRONG: list[Any] = [None, True, "text", 7, -1, 1.5, 10**30, [], {}, [[]], {"a": 1}]


def fields() -> list[tuple[str, str]]:
    named = []
    for command in commands.COMMANDS.values():
        values = {field.name for field in command.value_fields if field.kind == VALUE}
        for field in msgspec.structs.fields(command.payload):
            if field.encode_name not in values:
                named.append((command.name, field.encode_name))
    return named


def valid(command: commands.Command) -> dict[str, Any]:
    """A payload that the command takes."""
    known: dict[str, Any] = {
        "key": "k", "value": 1, "keys": ["k"], "ttl": 5, "pairs": [{"key": "k", "value": 1}], "queue": "fields",
        "message": 1, "message_id": "m", "ack_deadline": 5, "room": "fields", "event_type": "t", "data": 1,
        "subscription_id": 1, "topic": "t", "topics": ["t"], "prefix": "p",
        "queues": ["q"], "name": "n", "offset": 0,
    }  # fmt: skip
    return {
        field.encode_name: known[field.encode_name]
        for field in msgspec.structs.fields(command.payload)
        if field.required
    }


@pytest.mark.parametrize(("command", "field"), fields(), ids=lambda part: part)
def test_a_field_of_the_wrong_type_is_named(http: Http, command: str, field: str) -> None:
    entry = commands.COMMANDS[command]
    refused = 0
    for wrong in WRONG:
        if (field, wrong) == ("disconnect", 7):
            continue  # right, and may be the number of this very connection
        answer = http.post({"command": command, "payload": {**valid(entry), field: wrong}})
        if answer.status == 422 and answer.error["code"] == "WRONG_TYPE":
            continue  # right, and another test has stored a text under that key
        if answer.status == 422:
            refused += 1
            assert answer.error["code"] == "INVALID_PAYLOAD"
            assert field in answer.error["message"] or field in json.dumps(answer.error["details"]), answer.error
        else:
            assert answer.status in (200, 400, 404), answer.document
    assert refused >= 5
    assert http.do("queue.list").status == 200


@pytest.mark.parametrize("command", sorted(commands.COMMANDS))
def test_an_unknown_field_is_named(http: Http, command: str) -> None:
    payload = {**valid(commands.COMMANDS[command]), "surprise": 1}
    answer = http.post({"command": command, "payload": payload})
    assert (answer.status, answer.error["code"]) == (422, "INVALID_PAYLOAD")
    assert "'surprise'" in answer.error["message"]


@pytest.mark.parametrize("command", sorted(name for name, entry in commands.COMMANDS.items() if valid(entry)))
def test_a_missing_field_is_named(http: Http, command: str) -> None:
    answer = http.post({"command": command, "payload": {}})
    assert (answer.status, answer.error["code"]) == (422, "INVALID_PAYLOAD")
    assert "needs the field" in answer.error["message"]


def test_an_unknown_command_is_refused_with_the_nearest(http: Http) -> None:
    answer = http.post({"command": "kv.gett", "payload": {"key": "a"}})
    assert (answer.status, answer.error["code"]) == (400, "INVALID_COMMAND")
    assert "'kv.get'" in answer.error["message"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "application/x-www-form-urlencoded"])
def test_an_unknown_content_type_is_refused(http: Http, content_type: str) -> None:
    answer = http.post({"command": "queue.list", "payload": {}}, content_type=content_type)
    assert (answer.status, answer.error["code"]) == (400, "INVALID_REQUEST")
    assert content_type in answer.error["message"]


def test_an_accept_that_allows_neither_format_is_refused(http: Http) -> None:
    answer = http.post({"command": "queue.list", "payload": {}}, accept="text/html")
    assert (answer.status, answer.error["code"]) == (400, "INVALID_REQUEST")


def test_an_unknown_content_encoding_is_refused(http: Http) -> None:
    answer = http.post({"command": "queue.list", "payload": {}}, content_encoding="br")
    assert (answer.status, answer.error["code"]) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize(
    "body", [b"not gzip", gzip.compress(b"{}", mtime=0)[:-4], gzip.compress(b"{}", mtime=0) + b"more"]
)
def test_a_broken_gzip_is_refused(http: Http, body: bytes) -> None:
    answer = http.post(body, content_encoding="gzip")
    assert (answer.status, answer.error["code"]) == (400, "INVALID_REQUEST")
    assert http.do("queue.list").status == 200


@pytest.mark.parametrize(("size", "level", "least", "most"), [(200, 1, LARGE, 1024 * 1024), (20, 9, 0, LARGE)])
def test_a_small_gzip_that_inflates_past_the_limit_is_refused(
    server: ThrowawayServer, size: int, level: int, least: int, most: int
) -> None:
    """In a thread where it is large, at once where it is not."""
    http = Http(server)
    bomb = gzip.compress(b"0" * (size * 1024 * 1024), level)
    assert least < len(bomb) < most
    answer = http.post(bomb, content_encoding="gzip")
    assert (answer.status, answer.error["code"]) == (413, "PAYLOAD_TOO_LARGE")
    http.close()


def test_a_body_over_the_limit_is_refused_before_it_is_sent(server: ThrowawayServer) -> None:
    with dial(server) as connection:
        head = (
            b"POST /api/v1/command HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        connection.sendall(head % (ROOF + 1))
        answer = read_head(connection)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in answer.lower()


def test_a_body_over_the_limit_that_is_sent_all_the_same_gets_to_read_why(server: ThrowawayServer) -> None:
    http = Http(server)
    answer = http.post(b" " * (ROOF + 1))
    assert (answer.status, answer.error["code"]) == (413, "PAYLOAD_TOO_LARGE")
    http.close()


def test_a_chunked_body_over_the_limit_is_refused(server: ThrowawayServer) -> None:
    with dial(server) as connection:
        connection.sendall(
            b"POST /api/v1/command HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
        for _ in range(11):
            connection.sendall(chunk)
        assert read_head(connection).startswith(b"HTTP/1.1 413 ")


def test_a_body_at_the_limit_is_taken(server: ThrowawayServer) -> None:
    http = Http(server)
    key = name()
    frame = len(json.dumps({"command": "kv.set", "payload": {"key": key, "value": ""}}))
    answer = http.post({"command": "kv.set", "payload": {"key": key, "value": "x" * (ROOF - frame)}})
    assert answer.payload["success"] is True
    assert len(http.do("kv.get", key=key).payload["value"]) == ROOF - frame
    http.do("kv.del", keys=[key])
    http.close()


def test_a_batch_of_100_001_is_refused(server: ThrowawayServer) -> None:
    http = Http(server)
    item = b'{"command":"kv.exists","payload":{"key":"k"}}'
    body = b'{"type":"batch","commands":[%b]}' % b",".join([item] * 100_001)
    answer = http.post(body)
    assert (answer.status, answer.error["code"]) == (400, "INVALID_REQUEST")
    assert http.do("queue.list").status == 200
    http.close()


def test_an_answer_that_would_be_huge_is_refused_without_being_built(server: ThrowawayServer) -> None:
    http = Http(server)
    key = name()
    http.do("kv.set", key=key, value="x" * 5_000_000)
    answer = http.post({"command": "kv.mget", "payload": {"keys": [key] * 10_000}})
    assert (answer.status, answer.error["code"]) == (413, "PAYLOAD_TOO_LARGE")
    http.close()
    batch = http.post({"type": "batch", "commands": [{"command": "kv.get", "payload": {"key": key}}] * 1000})
    codes = [outcome["error"]["code"] if "error" in outcome else "" for outcome in batch.document["results"]]
    assert codes == [""] * 13 + ["PAYLOAD_TOO_LARGE"] * 987  # 65 MB, and each of the others by itself
    http.close()
    http.do("kv.del", keys=[key])
    http.close()


@pytest.mark.parametrize(
    "command", ["stream.subscribe", "pubsub.subscribe", "stream.unsubscribe", "pubsub.unsubscribe"]
)
def test_subscribing_needs_a_connection_that_stays(http: Http, command: str) -> None:
    answer = http.post({"command": command, "payload": valid(commands.COMMANDS[command])})
    assert (answer.status, answer.error["code"]) == (400, "INVALID_COMMAND")
    assert "/api/v1/ws" in answer.error["message"]


@pytest.mark.parametrize("command", ["queue.consume", "stream.subscribe", "pubsub.subscribe", "admin.stats"])
def test_what_waits_subscribes_or_administers_is_refused_in_a_batch(http: Http, command: str) -> None:
    item = {"command": command, "payload": valid(commands.COMMANDS[command])}
    answer = http.post({"type": "batch", "commands": [item]})
    assert answer.document["results"][0]["error"]["code"] in ("INVALID_REQUEST", "INVALID_COMMAND")


# -------------------------------------------------------------------------------------- below HTTP


@pytest.mark.parametrize(
    "nonsense", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"HELLO\r\n\r\n", b"GET\r\n\r\n", b"\x00" * 64]
)
def test_what_is_no_http_is_answered_and_disconnected(server: ThrowawayServer, nonsense: bytes) -> None:
    with dial(server) as connection:
        connection.sendall(nonsense)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "INVALID_REQUEST"


@pytest.mark.parametrize("seed", range(10))
def test_bytes_that_are_no_http_are_told_and_nothing_else_happens(
    server: ThrowawayServer, http: Http, seed: int
) -> None:
    chance = random.Random(seed)
    good = b"POST /api/v1/command HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    for _ in range(20):
        said = bytearray(good * chance.randint(1, 3))
        for _ in range(chance.randint(1, 6)):
            said[chance.randrange(len(said))] = chance.randrange(256)
        with dial(server) as connection, suppress(ConnectionError):
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            answers = read_all(connection)
            assert not answers or answers.startswith(b"HTTP/1.1 "), answers
            assert b"HTTP/1.1 500" not in answers
    assert http.do("queue.list").status == 200


@pytest.mark.parametrize("path", ["/api/v1/command", "/api/v1/native"])
def test_a_head_without_an_end_is_refused(server: ThrowawayServer, path: str) -> None:
    with dial(server) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nX-Long: ".encode())
        for _ in range(40):
            try:
                connection.sendall(b"y" * 1024)
            except (BrokenPipeError, ConnectionResetError):
                break
        assert read_all(connection)[:12] in (b"HTTP/1.1 400", b"")


def test_a_head_that_does_not_come_is_given_up(serve: Any) -> None:
    server = serve("--handshake-timeout", "0.3")
    for begin in (
        b"",
        b"GET /api/v1/na",
        b"GET /api/v1/native HTTP/1.1\r\n",
        b"POST /api/v1/command HTTP/1.1\r\nHost:",
    ):
        with dial(server) as connection:
            connection.sendall(begin)
            read_all(connection)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/", 404),
        ("GET", "/api/v1/command", 405),
        ("PUT", "/api/v1/command", 405),
        ("OPTIONS", "/api/v1/command", 405),
        ("POST", "/health", 405),
        ("GET", "/api/v1/ws", 426),
        ("GET", "/api/v1/native", 426),
        ("POST", "/api/v1/native", 405),
    ],
)
def test_wrong_places_answer_json(server: ThrowawayServer, method: str, path: str, status: int) -> None:
    http = Http(server)
    answer = http.request(method, path)
    assert answer.status == status
    assert answer.error["code"] == "INVALID_REQUEST"
    if status == 405:
        assert answer.headers["allow"]
    if status == 426:
        assert answer.headers["upgrade"]
    http.close()


def test_pipelined_requests_are_answered_in_order(server: ThrowawayServer) -> None:
    body = b'{"command":"queue.list","request_id":"%d"}'
    with dial(server) as connection:
        for number in range(5):
            document = body % number
            connection.sendall(
                b"POST /api/v1/command HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n%b\r\n%b"
                % (len(document), b"Connection: close\r\n" if number == 4 else b"", document)
            )
        answers = read_all(connection)
    assert [answers.count(b'"request_id":"%d"' % number) for number in range(5)] == [1] * 5
    places = [answers.index(b'"request_id":"%d"' % number) for number in range(5)]
    assert places == sorted(places)


def test_an_offer_of_http_2_is_not_taken_and_does_no_harm(http: Http) -> None:
    body = b'{"command":"kv.set","payload":{"key":"h2c","value":"\\r\\nupgrade: h2c"}}'
    offer = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAMAAABkAARAAAAAAAIAAAAA"}
    assert http.post(body, **offer).payload["success"] is True
    assert http.do("kv.get", key="h2c").payload["value"] == "\r\nupgrade: h2c"


def test_a_foreign_web_page_is_refused(server: ThrowawayServer) -> None:
    http = Http(server)
    document = {"command": "queue.list", "payload": {}}
    assert http.post(document, origin=f"http://localhost:{server.port}", host=f"localhost:{server.port}").status == 200
    for origin, host in (
        ("https://evil.example", "127.0.0.1"),
        ("http://evil.example", "evil.example"),
        ("null", "localhost"),
        ("http://localhost:3000", f"localhost:{server.port}"),
        ("http://localhost", f"localhost:{server.port}"),
    ):
        answer = http.post(document, origin=origin, host=host)
        assert (answer.status, answer.error["code"]) == (403, "FORBIDDEN")
    http.close()
