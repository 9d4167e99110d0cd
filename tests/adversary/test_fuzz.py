"""Bytes that nobody should send: only documented outcomes, and the service goes on for everybody else."""

from __future__ import annotations

import json
import os
import random
import socket
from typing import Iterator, List, Tuple

import pytest

from synap import SynapClient
from synap.commands import BY_CODE
from synap.errors import CODES
from synap.testing import ThrowawayServer
from synap.wire.codec import CODECS
from synap.wire.frames import GZIP, HEADER, MAX_BODY, RETRY, Kind, frame
from synap.wire.handshake import Hello, greet
from tests.helpers.frames import FrameReader
from tests.helpers.raw import dial

CONNECTIONS = 150
SEED = "bytes that nobody should send"


def seeds() -> random.Random:
    """Dice that fall the same way each time, so that a failure can be seen again."""
    return random.Random(SEED)


@pytest.fixture
def bystander(server: ThrowawayServer) -> Iterator[SynapClient]:
    """Somebody else who uses the service meanwhile and notices nothing."""
    with SynapClient(url=server.url, retries=0) as client:
        client.kv.set("bystander", 0)
        yield client
        assert client.kv.incr("bystander") == 1
        client.kv.delete("bystander")


def upgraded(server: ThrowawayServer, format: str = "json", compression: bool = False) -> Tuple[socket.socket, bytes]:
    """Open a native connection; returns it and what came after the handshake."""
    sock = dial(server)
    sock.sendall(greet(f"127.0.0.1:{server.port}", Hello(os.urandom(16).hex(), format, compression, None)))
    received = b""
    while b"\r\n\r\n" not in received:
        data = sock.recv(65_536)
        assert data, received
        received += data
    head, _, rest = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 "), head
    return sock, rest


def all_that_comes(sock: socket.socket) -> bytes:
    """Say that nothing more is to be sent, and read until the service closes."""
    received = b""
    try:
        sock.shutdown(socket.SHUT_WR)
        while True:
            data = sock.recv(65_536)
            if not data:
                return received
            received += data
    except ConnectionError:
        return received


def valid_request(dice: random.Random, format: str, id: int) -> bytes:
    """Make a request as it should be."""
    codec = CODECS[format]
    command, payload = dice.choice(
        [
            (1, {"key": "fuzz", "value": {"a": [1, 2.5, None]}}),
            (2, {"key": "fuzz"}),
            (5, {"key": "fuzz:n", "amount": 3}),
            (23, {"queue": "fuzz", "message": "m", "priority": 3}),
            (24, {"queue": "fuzz", "timeout": 0}),
            (40, {"room": "fuzz", "event_type": "t", "data": 1}),
            (41, {"room": "fuzz", "from_offset": -1}),
            (60, {"topic": "fuzz", "message": 1}),
            (61, {"topics": ["fuzz"]}),
            (100, {"commands": [{"command": "kv.get", "payload": {"key": "fuzz"}}]}),
        ]
    )
    return frame(Kind.REQUEST, id, codec.encode(payload), command)


def spoiled(dice: random.Random, data: bytes) -> bytes:
    """Spoil some bytes."""
    spoilt = bytearray(data)
    for _ in range(dice.randrange(1, 5)):
        way, place = dice.randrange(4), dice.randrange(len(spoilt)) if spoilt else 0
        if not spoilt or way == 0:
            spoilt.insert(place, dice.randrange(256))
        elif way == 1:
            spoilt[place] = dice.randrange(256)
        elif way == 2:
            del spoilt[place]
        else:
            spoilt[place] ^= 1 << dice.randrange(8)
    return bytes(spoilt)


def check_frames(data: bytes, format: str) -> None:
    """See that the service said nothing but whole frames, and no errors but documented ones."""
    reader = FrameReader()
    for kind, flags, _, id, body in reader.feed(data):
        assert kind in (Kind.ANSWER, Kind.ERROR, Kind.EVENT, Kind.MESSAGE, Kind.ENDED, Kind.PONG, Kind.GOAWAY)
        if kind in (Kind.ERROR, Kind.ENDED) and not flags & GZIP:
            error = CODECS[format].decode_error(body)
            assert error.code in CODES, (id, error)
            assert error.code != "INTERNAL_ERROR", error
    assert reader.pending == 0


@pytest.mark.parametrize("format", ["json", "msgpack"])
def test_spoiled_frames_give_documented_errors_and_nothing_else(
    server: ThrowawayServer, bystander: SynapClient, format: str
) -> None:
    dice = seeds()
    for turn in range(CONNECTIONS):
        sock, received = upgraded(server, format, compression=turn % 3 == 0)
        with sock:
            data = b"".join(valid_request(dice, format, id) for id in range(1, dice.randrange(2, 8)))
            try:
                sock.sendall(spoiled(dice, data))
            except ConnectionError:
                continue
            check_frames(received + all_that_comes(sock), format)


def test_random_bytes_after_the_handshake_are_told_and_disconnected(
    server: ThrowawayServer, bystander: SynapClient
) -> None:
    dice = seeds()
    for _ in range(CONNECTIONS):
        sock, received = upgraded(server)
        with sock:
            try:
                sock.sendall(bytes(dice.randrange(256) for _ in range(dice.randrange(1, 2_000))))
            except ConnectionError:
                continue
            check_frames(received + all_that_comes(sock), "json")


@pytest.mark.parametrize("kind", [0, Kind.ANSWER, Kind.ERROR, Kind.EVENT, Kind.GOAWAY, 12, 255])
def test_a_frame_of_a_kind_that_clients_do_not_send_is_refused(
    server: ThrowawayServer, bystander: SynapClient, kind: int
) -> None:
    sock, received = upgraded(server)
    with sock:
        sock.sendall(frame(kind, 1, b"{}"))
        data = received + all_that_comes(sock)
    [answer] = FrameReader().feed(data)
    assert (answer.kind, answer.id) == (Kind.ERROR, 0)
    assert CODECS["json"].decode_error(answer.body).code == "INVALID_REQUEST"


def test_a_frame_that_is_too_large_is_refused_at_its_header(server: ThrowawayServer, bystander: SynapClient) -> None:
    sock, received = upgraded(server)
    with sock:
        sock.sendall(HEADER.pack(MAX_BODY + 1, Kind.REQUEST, 0, 2, 1))  # and no body
        while not received:
            received = sock.recv(65_536)
    [answer] = FrameReader().feed(received)
    assert (answer.kind, answer.id) == (Kind.ERROR, 0)
    assert CODECS["json"].decode_error(answer.body).code == "PAYLOAD_TOO_LARGE"


def test_an_unknown_command_number_is_one_requests_error(server: ThrowawayServer, bystander: SynapClient) -> None:
    unknown = next(code for code in range(1, 65_535) if code not in BY_CODE)
    sock, received = upgraded(server)
    with sock:
        sock.sendall(frame(Kind.REQUEST, 1, b"{}", unknown) + frame(Kind.REQUEST, 2, b'{"key":"none"}', 2))
        frames = {answer.id: answer for answer in FrameReader().feed(received + all_that_comes(sock))}
    assert CODECS["json"].decode_error(frames[1].body).code == "INVALID_COMMAND"
    assert frames[2].kind == Kind.ANSWER


def test_flags_that_do_not_fit_the_body_are_one_requests_error(server: ThrowawayServer, bystander: SynapClient) -> None:
    sock, received = upgraded(server, compression=True)
    with sock:
        sock.sendall(
            frame(Kind.REQUEST, 1, b'{"key":"none"}', 2, GZIP)
            + frame(Kind.REQUEST, 2, b'{"key":"none"}', 2, RETRY)
            + frame(Kind.REQUEST, 3, b'{"key":"none"}', 2)
        )
        frames = {answer.id: answer for answer in FrameReader().feed(received + all_that_comes(sock))}
    assert 0 in frames or frames[1].kind == Kind.ERROR
    if 0 not in frames:
        assert frames[2].kind == frames[3].kind == Kind.ANSWER


def test_a_frame_that_never_ends_holds_up_nobody(server: ThrowawayServer, bystander: SynapClient) -> None:
    socks: List[socket.socket] = []
    for _ in range(50):
        sock, _ = upgraded(server)
        sock.sendall(HEADER.pack(MAX_BODY, Kind.REQUEST, 0, 2, 1) + b'{"key"')
        socks.append(sock)
    assert bystander.kv.get("bystander").value == 0
    for sock in socks:
        sock.close()


@pytest.mark.parametrize("path", ["/api/v1/command", "/api/v1/ws", "/api/v1/native", "/health", "/"])
def test_spoiled_http_gives_a_status_or_a_closed_connection(
    server: ThrowawayServer, bystander: SynapClient, path: str
) -> None:
    dice = seeds()
    body = json.dumps({"command": "kv.get", "payload": {"key": "fuzz"}}).encode()
    whole = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    for _ in range(CONNECTIONS):
        with dial(server) as sock:
            try:
                sock.sendall(spoiled(dice, whole))
            except ConnectionError:
                continue
            answer = all_that_comes(sock)
            if answer:
                status = int(answer.split(b" ", 2)[1])
                assert status != 500, answer
                assert 100 <= status < 600


def test_spoiled_json_bodies_are_refused_as_json(server: ThrowawayServer, bystander: SynapClient) -> None:
    dice = seeds()
    body = json.dumps(
        {"command": "kv.set", "payload": {"key": "fuzz", "value": [1, {"a": 2.5}], "ttl": 60}, "request_id": "fuzz"}
    ).encode()
    for _ in range(CONNECTIONS):
        spoilt = spoiled(dice, body)
        head = (
            "POST /api/v1/command HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Connection: close\r\nContent-Length: {len(spoilt)}\r\n\r\n"
        ).encode()
        with dial(server) as sock:
            sock.sendall(head + spoilt)
            answer = all_that_comes(sock)
        status = int(answer.split(b" ", 2)[1])
        assert status in (200, 400, 404, 413, 422), answer
        said = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert said["success"] is (status == 200)
        if status != 200:
            assert said["error"]["code"] in CODES
            assert said["error"]["message"]
