"""Large answers in pieces, and in steps: the same bytes as at once."""

from __future__ import annotations

import asyncio
import functools
import gzip
import socket
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from websockets.asyncio.client import connect

from synap.commands import (
    KV_SET,
    BatchAnswer,
    BatchOutcome,
    ErrorAnswer,
    GetAnswer,
    HistoryAnswer,
    MGetAnswer,
    SuccessAnswer,
)
from synap.engine.callers import Caller
from synap.errors import SynapError
from synap.server import apart, translations
from synap.server.apart import APART, Encoded
from synap.server.service import Service
from synap.wire.codec import CODECS, JSON
from synap.wire.envelope import WIRES
from tests.helpers.inside import running, service
from tests.helpers.patience import PATIENCE

ENCODE: dict[str, Callable[[Any], bytes]] = {"json": msgspec.json.encode, "msgpack": msgspec.msgpack.encode}
UPGRADE = (
    b"GET /api/v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
DECODE: dict[str, Callable[[Any], Any]] = {"json": msgspec.json.decode, "msgpack": msgspec.msgpack.decode}


def answers(encode: Callable[[Any], bytes]) -> dict[str, Any]:
    """Answers with lists of values."""
    small, large = GetAnswer(True, encode({"a": [1, "x" * 3000]}), 5), GetAnswer(True, encode("y" * 100_000), None)
    several = [small, GetAnswer(False, None, None), large, small, large]
    error = ErrorAnswer("INVALID_PAYLOAD", "no", {})
    outcomes = [
        BatchOutcome("success", small),
        BatchOutcome("error", None, error),
        BatchOutcome("success", SuccessAnswer()),
        BatchOutcome("success", MGetAnswer([large, small])),
    ]
    return {
        "one": MGetAnswer([small]),
        "fifteen": MGetAnswer(several * 3),
        "sixteen": MGetAnswer([*several * 3, large]),
        "many": MGetAnswer([small] * 66_000),
        "batch": BatchAnswer(outcomes * 100),
        "nothing": HistoryAnswer([], 0, 0),
    }


@pytest.mark.parametrize("name", answers(msgspec.json.encode))
@pytest.mark.parametrize("enveloped", [False, True])
@pytest.mark.parametrize("format", ["json", "msgpack"])
def test_in_steps_an_answer_is_the_same_bytes(
    format: str, name: str, enveloped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = answers(ENCODE[format])[name]
    if enveloped:
        whole = WIRES[format].answer("mine", answer)
        wrap: Any = functools.partial(WIRES[format].enveloped, "mine")
    else:
        whole = CODECS[format].encode_answer(answer)
        wrap = lambda shell: shell  # noqa: E731  # what `in_steps` does by itself
        assert b"".join(APART[format].pieces(answer)) == whole
    for step in (1, 5000, apart.STEP):
        if step == 1 and name == "many":
            continue
        monkeypatch.setattr(apart, "STEP", step)
        steps = APART[format].in_steps(answer, wrap)
        assert steps is not None
        made = []
        while True:
            try:
                made.append(next(steps))
            except StopIteration as done:
                encoded = done.value
                break
        assert isinstance(encoded, Encoded)
        assert b"".join(encoded.pieces) == whole
        assert encoded.size == len(whole)
        assert sum(map(int, filter(None, made))) == len(whole), "also what is around the list counts"
        if name == "many":
            assert len(made) > 100


class Asked:
    """Who waits for an answer of some megabytes that is encoded in turns."""

    def __init__(self) -> None:
        self.turns: list[int] = []

    def watch(self, monkeypatch: pytest.MonkeyPatch, service: Service) -> None:
        """Note after which bytes others may have their turns."""
        turn = service.translations._turn

        def noted(one: Any) -> Any:
            outcome = turn(one)
            self.turns.append(one.made)
            return outcome

        monkeypatch.setattr(service.translations, "_turn", noted)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setattr(translations, "TURN", 0.0001)  # most steps are a turn
    return service()


LIST = ["x" * 1000] * 3000
KEYS = [f"k{number}" for number in range(len(LIST))]
MSET: Any = {"pairs": [{"key": key, "value": value} for key, value in zip(KEYS, LIST)]}
ENDS = {"kv.mget": {"keys": KEYS}, "batch": [{"command": "kv.get", "payload": {"key": key}} for key in KEYS]}


def message(command: str, encode: Callable[[Any], bytes]) -> bytes:
    if command == "batch":
        return encode({"type": "batch", "request_id": "mine", "commands": ENDS["batch"]})
    return encode({"command": command, "request_id": "mine", "payload": ENDS[command]})


def values(told: Any) -> list[str]:
    """What an answer lists."""
    assert told["request_id"] == "mine"
    assert told["success"] is True
    if told["type"] == "batch_response":
        return [one["payload"]["value"] for one in told["results"]]
    return [one["value"] for one in told["payload"]["values"]]


@pytest.mark.parametrize("squeezed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("command", ["kv.mget", "batch"])
@pytest.mark.parametrize("format", ["json", "msgpack"])
async def test_a_long_list_over_http_is_encoded_in_turns(
    format: str, command: str, squeezed: bool, place: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked()
    asked.watch(monkeypatch, place)
    async with running(place) as port:

        async def post(body: bytes) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            more = "Accept-Encoding: gzip\r\n" if squeezed else ""
            head = f"POST /api/v1/command HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/{format}\r\n{more}"
            writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
            head_, _, answer = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
            assert head_.startswith(b"HTTP/1.1 200 ")
            assert f"content-length: {len(answer)}".encode() in head_
            return gzip.decompress(answer) if b"content-encoding: gzip" in head_ else answer

        await post(ENCODE[format]({"command": "kv.mset", "payload": MSET}))
        assert values(DECODE[format](await post(message(command, ENCODE[format])))) == LIST
    assert len(asked.turns) > 5
    assert not place.transit.bodies


@pytest.mark.parametrize("command", ["kv.mget", "batch"])
@pytest.mark.parametrize("format", ["json", "msgpack"])
async def test_a_long_list_over_a_websocket_is_encoded_in_turns(
    format: str, command: str, place: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked()
    asked.watch(monkeypatch, place)

    def sent(body: bytes) -> Any:
        return body.decode() if format == "json" else body

    async with running(place) as port:
        url = f"ws://127.0.0.1:{port}/api/v1/ws"
        async with connect(url, proxy=None, max_size=None) as connection:
            await connection.send(sent(ENCODE[format]({"command": "kv.mset", "payload": MSET})))
            await connection.recv()
            await connection.send(sent(message(command, ENCODE[format])))
            await connection.send(sent(ENCODE[format]({"command": "kv.exists", "payload": {"key": "k"}})))
            answers = [await connection.recv() for _ in range(2)]
            assert all(isinstance(answer, str if format == "json" else bytes) for answer in answers)
            small, large = sorted(answers, key=len)
            assert DECODE[format](small)["success"] is True
            assert values(DECODE[format](large)) == LIST
    assert len(asked.turns) > 5
    assert not place.transit.bodies


@pytest.mark.parametrize("lane", ["http", "websocket"])
async def test_what_a_peer_does_not_read_of_a_long_list_counts_and_is_let_go_of(lane: str, place: Service) -> None:
    host: Any = place.host
    async with running(place) as port:
        loop = asyncio.get_running_loop()
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await loop.sock_connect(connection, ("127.0.0.1", port))
        host.engine.execute(JSON.decode_payload(KV_SET, b'{"key":"k","value":"%b"}' % (b"x" * 1000)), 0.0, Caller())
        body = msgspec.json.encode({"command": "kv.mget", "payload": {"keys": ["k"] * 9000}})
        head = b"POST /api/v1/command HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        if lane == "http":
            await loop.sock_sendall(connection, head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        else:
            await loop.sock_sendall(connection, UPGRADE)
            assert (await loop.sock_recv(connection, 1000)).startswith(b"HTTP/1.1 101 ")
            await loop.sock_sendall(connection, bytes([0x81, 0xFF, *len(body).to_bytes(8, "big"), 0, 0, 0, 0]) + body)
        end = time.monotonic() + PATIENCE

        def held() -> int:
            return sum(size for _, size in place.transit._held())

        while held() < 1_500_000 or place.translations._under_way:
            assert time.monotonic() < end, held()
            await asyncio.sleep(0.01)
        place.transit.limit = 100_000
        place.transit.look()
        while held() > 100_000 or place.connections:
            assert time.monotonic() < end, (held(), place.connections)
            await asyncio.sleep(0.01)
        connection.close()


def test_what_is_around_a_list_counts_towards_the_most_that_an_answer_may_have(
    monkeypatch: pytest.MonkeyPatch, place: Service
) -> None:
    answer = answers(msgspec.json.encode)["fifteen"]
    size = len(CODECS["json"].encode_answer(answer))
    monkeypatch.setattr(translations, "TURN", 10.0)
    for most in (size, size - 1):
        monkeypatch.setattr(translations, "MAX_ANSWER", most)
        steps = APART["json"].in_steps(answer)
        assert steps is not None
        one = translations._Translation(answer, steps, size, False)
        one.readers.append(Wanted())
        outcome = place.translations._turn(one)
        assert isinstance(outcome, Encoded if most == size else SynapError)


class Wanted:
    def wanted(self) -> bool:
        return True

    def translated(self, outcome: Any) -> None:
        """Take it."""


def test_an_answer_without_a_list_of_values_has_no_steps() -> None:
    assert APART["json"].in_steps(GetAnswer(True, b'"x"', None)) is None
    assert APART["json"].in_steps(SuccessAnswer()) is None
