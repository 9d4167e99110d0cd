"""The golden frames: bytes that a client in another language can test itself against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

import pytest

from synap.commands import BY_CODE, COMMANDS
from synap.wire.codec import CODECS
from synap.wire.frames import Frame, FrameReader, Kind, frame

GOLDEN: List[Dict[str, Any]] = json.loads((Path(__file__).parent / "golden_frames.json").read_text("utf-8"))


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden["name"])
def test_a_golden_frame_is_read_as_it_says(golden: Dict[str, Any]) -> None:
    frames = FrameReader().feed(bytes.fromhex(golden["frame"]))
    assert len(frames) == 1
    read = frames[0]
    assert read == Frame(golden["kind"], golden["flags"], golden["code"], golden["id"], read.body)
    codec = CODECS[golden["format"]]
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
    written = frame(golden["kind"], golden["id"], body, golden["code"], golden["flags"])
    assert written.hex() == golden["frame"]


def test_every_command_has_a_golden_request_in_both_formats() -> None:
    asked = {(golden["command"], golden["format"]) for golden in GOLDEN if golden["kind"] == Kind.REQUEST}
    assert asked == {(name, format) for name in (*COMMANDS, "batch") for format in CODECS}


def test_every_kind_of_frame_has_a_golden_one() -> None:
    kinds = {value for name, value in vars(Kind).items() if name.isupper()}
    assert {golden["kind"] for golden in GOLDEN} == kinds
