"""Nonsense on the native lane: it is told, and everything before it is answered."""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from synap.commands import BY_CODE
from synap.errors import CODES
from synap.testing.server import ThrowawayServer
from synap.wire.frames import GZIP, HEADER, RETRY, Kind, frame
from tests.helpers.frames import Frame
from tests.helpers.raw import Http, Native, last_word, request
from tests.server.conftest import name

Attach = Callable[..., Native]


NONSENSE = [
    frame(0),
    frame(12),
    frame(255),
    frame(Kind.ANSWER, 1, b"{}"),
    frame(Kind.ERROR, 0, b"{}"),
    frame(Kind.EVENT, 1, b"{}"),
    frame(Kind.GOAWAY),
    request(0, "kv.get", key="k"),
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
]


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_nonsense_is_told_and_disconnected(attach: Attach, nonsense: bytes) -> None:
    native = attach()
    native.send(nonsense)
    assert last_word(native) in ("INVALID_REQUEST", "PAYLOAD_TOO_LARGE")


def test_a_body_over_the_limit_is_refused_by_its_header(attach: Attach) -> None:
    native = attach()
    native.send(HEADER.pack(10 * 1024 * 1024 + 1, Kind.REQUEST, 0, 1, 1))
    assert last_word(native) == "PAYLOAD_TOO_LARGE"


@pytest.mark.parametrize("kept", ["in memory", "on disk"])
def test_what_was_asked_before_nonsense_is_done_and_answered_and_nothing_after_it(
    serve: Any, attach: Attach, tmp_path: Path, kept: str
) -> None:
    server = serve() if kept == "in memory" else serve(data=tmp_path)
    more = [HEADER.pack(10 * 1024 * 1024 + 1, Kind.REQUEST, 0, 1, 9), frame(Kind.REQUEST, 9, b"not gzip", 1, GZIP)]
    for nonsense in NONSENSE + more:
        native, key = attach(server), name()
        native.send(
            request(1, "kv.incr", key=key),
            request(2, "kv.ttl", key="none"),
            frame(Kind.PONG, 3),
            request(4, "kv.incr", key=key),
            nonsense,
            request(5, "kv.incr", key=key),
        )
        told = list(all_frames(native))
        assert [(answer.kind, answer.id) for answer in told] == [
            (Kind.ANSWER, 1),
            (Kind.ERROR, 2),
            (Kind.ANSWER, 4),
            (Kind.ERROR, 0),
        ]
        assert json.loads(told[2].body) == {"value": 2}
        assert attach(server).do(1, "kv.get", key=key)["value"] == 2


def test_what_was_put_off_before_nonsense_is_answered_too(attach: Attach) -> None:
    native, key = attach(), name()
    native.do(1, "kv.set", key=key, value="x" * 500_000)
    native.send(*(request(number, "kv.get", key=key) for number in range(2, 30)), frame(255))
    ids = [answer.id for answer in all_frames(native)]
    assert ids == [*range(2, 30), 0]


def all_frames(native: Native) -> Iterator[Frame]:
    """Every frame until the service ends the connection."""
    try:
        while True:
            yield native.read()
    except EOFError:
        return


def test_frames_may_come_in_single_bytes(attach: Attach) -> None:
    native = attach()
    native.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in request(1, "kv.exists", key=name()):
        native.send(bytes([byte]))
    assert native.read().body == b'{"exists":false}'


@pytest.mark.parametrize("seed", range(20))
def test_fuzzed_frames_have_documented_outcomes_only(
    server: ThrowawayServer, attach: Attach, http: Http, seed: int
) -> None:
    chance = random.Random(seed)
    for _ in range(25):
        native = attach(format=chance.choice(["json", "msgpack"]))
        native.send(*(fuzzed(chance) for _ in range(chance.randint(1, 8))))
        native.socket.shutdown(socket.SHUT_WR)
        try:
            while True:
                told = native.read()
                assert told.kind in (Kind.ANSWER, Kind.ERROR, Kind.EVENT, Kind.MESSAGE, Kind.ENDED, Kind.PONG)
                if told.kind == Kind.ERROR:
                    error = json.loads(told.body) if native_json(told.body) else msgpack.unpackb(told.body)
                    assert error["code"] in CODES
                    assert error["code"] != "INTERNAL_ERROR", error
        except (EOFError, ConnectionResetError):
            pass
        native.close()
    assert http.do("queue.list").status == 200


def native_json(body: bytes) -> bool:
    return body.startswith(b"{")


def fuzzed(chance: random.Random) -> bytes:
    """A frame that is nearly right, or bytes that are no frame at all."""
    command = chance.choice([command for command in BY_CODE.values() if command.name != "admin.shutdown"])
    payload: dict[str, Any] = {
        key: chance.choice([None, True, 0, -1, 2**64, 1.5, "", "k", ["k"], {"a": []}])
        for key in chance.choices([*command.payload.__struct_fields__, "surprise"], k=chance.randint(0, 2))
    }
    body = chance.choice([json.dumps(payload).encode(), msgpack.packb(payload, default=str), os.urandom(8), b""])
    made = bytearray(
        frame(
            chance.choice([Kind.REQUEST] * 12 + [Kind.CANCEL, Kind.DONE, Kind.PING, Kind.PONG, chance.randint(0, 255)]),
            chance.choice([1, 2, 3, chance.randint(0, 2**32 - 1)]),
            body,
            command.code if chance.random() < 0.9 else chance.randint(0, 65535),
            chance.choice([0, 0, 0, RETRY, GZIP, RETRY | GZIP, chance.randint(0, 255)]),
        )
    )
    while chance.random() < 0.15:
        made[chance.randrange(len(made))] ^= 1 << chance.randrange(8)
    return bytes(made[: chance.randint(0, len(made))]) if chance.random() < 0.05 else bytes(made)
