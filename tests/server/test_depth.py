"""How deep values may be nested: 200 levels, for every command, lane and format, whatever else is in the request.

What an earlier version stored deeper is an error to its reader, and to nobody else.
"""

from __future__ import annotations

import gzip
import json
from typing import Any

import msgspec
import pytest
from websockets.sync.client import connect

from synap.commands import COMMANDS, Command
from synap.errors import SynapError
from synap.shapes import VALUE
from synap.testing.server import ThrowawayServer
from synap.wire.codec import JSON, MSGPACK, Codec
from synap.wire.frames import Kind
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import Http, Native

MOST = 200
NAMES = {
    "key": "k",
    "queue": "q",
    "room": "r",
    "topic": "t",
    "event_type": "e",
    "prefix": "",
    "ttl": 9,
    "keys": ["k"],
    "value": 1,
}
HEAVY = "[{" * 100_000
"""Brackets in a text, which nest nothing."""


def lists(depth: int) -> Any:
    nested: Any = []
    for _ in range(depth - 1):
        nested = [nested]
    return nested


def mixed(depth: int) -> Any:
    """Lists and dictionaries by turns, with much beside them."""
    nested: Any = {"a": HEAVY}
    for level in range(depth - 1):
        nested = [HEAVY[: 9 * (level == 5)], nested, '\\"]}'] if level % 2 else {"b": "]", "a\\": nested, "c": "}"}
    return nested


def fields() -> list[tuple[Command, str]]:
    """Every field of a command that takes a value."""
    return [(command, name) for command in COMMANDS.values() for name, _, _ in command.value_fields]


def payload(command: Command, field: str, value: bytes, codec: Codec) -> bytes:
    """A payload with a value in a field, as bytes, and all other fields right."""
    raw = msgspec.Raw(value)
    kind = next(kind for name, kind, _ in command.value_fields if name == field)
    whole = {name: NAMES[name] for name in command.payload.__struct_fields__ if name in NAMES}
    content: Any = raw if kind == VALUE else [{"key": "k", "value": raw}]
    return codec.encode({**whole, field: content})


@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])
@pytest.mark.parametrize("make", [lists, mixed])
@pytest.mark.parametrize(("command", "field"), fields(), ids=lambda what: getattr(what, "name", what))
def test_no_command_takes_a_value_that_is_too_deep(command: Command, field: str, make: Any, codec: Codec) -> None:
    encode = msgspec.json.encode if codec is JSON else msgspec.msgpack.encode
    codec.decode_payload(command, payload(command, field, encode(make(MOST)), codec))
    with pytest.raises(SynapError, match="nested") as refused:
        codec.decode_payload(command, payload(command, field, encode(make(MOST + 1)), codec))
    assert refused.value.code == "INVALID_PAYLOAD"


@pytest.mark.parametrize("depth", [201, 1_000, 100_000])
@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])
@pytest.mark.parametrize("command", list(COMMANDS.values()), ids=lambda command: command.name)
def test_what_is_deep_where_no_value_belongs_is_refused_too(command: Command, codec: Codec, depth: int) -> None:
    deep = b"[" * depth + b"]" * depth if codec is JSON else b"\x91" * (depth - 1) + b"\x90"
    for field in (*command.payload.__struct_fields__, "unknown"):
        body = codec.encode({field: msgspec.Raw(deep)})
        with pytest.raises(SynapError) as refused:
            codec.decode_payload(command, body)
        assert refused.value.code in ("INVALID_PAYLOAD", "INVALID_REQUEST")


def test_brackets_in_a_text_are_text(http: Http) -> None:
    for value in (HEAVY, [HEAVY, {"\\": HEAVY}], "\\" * 999 + '"' + HEAVY, ["[" * 500] * 3):
        assert http.do("kv.set", key="text", value=value).status == 200
        assert http.do("kv.get", key="text").payload["value"] == value


DEPTHS = [MOST, MOST + 1, 976, 10_000, 200_000]


@pytest.mark.parametrize("squeezed", [False, True], ids=["as it is", "gzip"])
@pytest.mark.parametrize("batch", [False, True], ids=["alone", "in a batch"])
@pytest.mark.parametrize("padding", [b"1", b'"' + b"x" * 9_000 + b'"'], ids=["little", "large"])
def test_http_takes_no_value_that_is_too_deep(http: Http, padding: bytes, batch: bool, squeezed: bool) -> None:
    for depth in DEPTHS:
        value = b"[%b," % padding + b"[" * (depth - 1) + b"]" * depth
        body = b'{"command":"kv.set","payload":{"key":"deep","value":%b}}' % value
        if batch:
            body = b'{"type":"batch","commands":[%b,{"command":"kv.exists","payload":{"key":"a"}}]}' % body
        body, headers = (gzip.compress(body), {"content_encoding": "gzip"}) if squeezed else (body, {})
        reply = http.post(body, **headers)
        told = reply.document["results"][0] if batch and reply.status == 200 else reply.document
        assert (told["status"] == "success") is (depth == MOST), (depth, told)
        if depth > MOST:
            assert told["error"]["code"] in ("INVALID_PAYLOAD", "INVALID_REQUEST")
        assert http.do("kv.exists", key="a").status == 200


def test_a_websocket_takes_no_value_that_is_too_deep(server: ThrowawayServer) -> None:
    with connect(server.url.replace("http", "ws") + "/api/v1/ws", open_timeout=PATIENCE) as socket:
        for depth in DEPTHS:
            socket.send('{"command":"kv.set","payload":{"key":"deep","value":%s}}' % ("[" * depth + "]" * depth))
            assert json.loads(socket.recv(PATIENCE))["success"] is (depth == MOST)
            packed = (
                b"\x82\xa7command\xa6kv.set\xa7payload\x82\xa3key\xa4deep\xa5value" + b"\x91" * (depth - 1) + b"\x90"
            )
            socket.send(packed)
            answer = msgspec.msgpack.decode(socket.recv(PATIENCE, decode=False))
            assert answer["success"] is (depth == MOST)


@pytest.mark.parametrize("format", ["json", "msgpack"])
def test_the_native_lane_takes_no_value_that_is_too_deep(server: ThrowawayServer, format: str) -> None:
    from synap.wire.frames import frame

    connection = Native(server, format)
    code = COMMANDS["stream.publish"].code
    for number, depth in enumerate(DEPTHS, 1):
        if format == "json":
            body = b'{"room":"deep","event_type":"t","data":%b}' % (b"[" * depth + b"]" * depth)
        else:
            body = b"\x83\xa4room\xa4deep\xaaevent_type\xa1t\xa4data" + b"\x91" * (depth - 1) + b"\x90"
        connection.send(frame(Kind.REQUEST, number, body, code))
        assert connection.read().kind == (Kind.ANSWER if depth == MOST else Kind.ERROR)
    connection.close()
