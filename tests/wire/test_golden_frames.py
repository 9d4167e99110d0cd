"""The golden frames: bytes that a client in another language can test itself against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

import pytest
from tests.helpers.frames import Frame, FrameReader

from synap.commands import BY_CODE, COMMANDS
from synap.wire.codec import CODECS
from synap.wire.compression import compress, decompress
from synap.wire.frames import GZIP, HEADER, MAX_BODY, Kind, frame
from synap.wire.handshake import Hello, accept, greet, parse_head, parse_hello

HERE = Path(__file__).parent
GOLDEN: List[Dict[str, Any]] = json.loads((HERE / "golden_frames.json").read_text("utf-8"))
HANDSHAKE: Dict[str, Any] = json.loads((HERE / "golden_handshake.json").read_text("utf-8"))


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden["name"])
def test_a_golden_frame_is_read_as_it_says(golden: Dict[str, Any]) -> None:
    frames = FrameReader().feed(bytes.fromhex(golden["frame"]))
    assert len(frames) == 1
    read = frames[0]
    assert read == Frame(golden["kind"], golden["flags"], golden["code"], golden["id"], read.body)
    codec = CODECS[golden["format"]]
    if read.flags & GZIP:
        read = read._replace(body=decompress(read.body, MAX_BODY))
    if read.kind == Kind.REQUEST:
        command = BY_CODE[read.code]
        assert command.name == golden["command"]
        codec.decode_payload(command, read.body)
    if golden["body"] is None:
        assert read.body == b""
    else:
        assert codec.decode(read.body) == golden["body"]


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden["name"])
def test_a_golden_frame_is_written_as_it_says(golden: Dict[str, Any]) -> None:
    body = b"" if golden["body"] is None else CODECS[golden["format"]].encode(golden["body"])
    if golden["flags"] & GZIP:  # other versions of zlib write other bytes that inflate to the same
        body = compress(body)
    written = frame(golden["kind"], golden["id"], body, golden["code"], golden["flags"])
    if golden["flags"] & GZIP:
        expected = bytes.fromhex(golden["frame"])
        assert written[4 : HEADER.size] == expected[4 : HEADER.size]
        assert decompress(written[HEADER.size :], MAX_BODY) == decompress(expected[HEADER.size :], MAX_BODY)
    else:
        assert written.hex() == golden["frame"]


@pytest.mark.parametrize("golden", HANDSHAKE["requests"], ids=lambda golden: golden["format"])
def test_the_golden_beginning_is_read_and_written_as_it_says(golden: Dict[str, Any]) -> None:
    hello = Hello(golden["session"], golden["format"], golden["compression"], golden["api_key"])
    said = golden["bytes"].encode("ascii")
    assert greet("localhost:15500", hello) == said
    assert said.endswith(b"\r\n\r\n")
    assert parse_hello(said[:-4]) == hello


def test_the_golden_consent_is_read_and_written_as_it_says() -> None:
    golden = HANDSHAKE["consent"]
    said = golden["bytes"].encode("ascii")
    assert accept(golden["version"], golden["max_body"]) == said
    line, headers = parse_head(said[:-4])
    assert line == "HTTP/1.1 101 Switching Protocols"
    assert headers == {
        "connection": "Upgrade",
        "upgrade": "synap/1",
        "synap-version": golden["version"],
        "synap-max-body": str(golden["max_body"]),
    }


def test_compressed_frames_are_among_the_golden_ones() -> None:
    packed = {(golden["kind"], golden["format"]) for golden in GOLDEN if golden["flags"] & GZIP}
    assert packed == {(kind, format) for kind in (Kind.REQUEST, Kind.ANSWER) for format in CODECS}


def test_every_command_has_a_golden_request_in_both_formats() -> None:
    asked = {(golden["command"], golden["format"]) for golden in GOLDEN if golden["kind"] == Kind.REQUEST}
    assert asked == {(name, format) for name in (*COMMANDS, "batch") for format in CODECS}


def test_every_kind_of_frame_has_a_golden_one() -> None:
    kinds = {value for name, value in vars(Kind).items() if name.isupper()}
    assert {golden["kind"] for golden in GOLDEN} == kinds
