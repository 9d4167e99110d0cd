"""A stream of bytes gives the same frames however it is cut."""

from __future__ import annotations

import random
from typing import List

import pytest
from tests.helpers.frames import Frame

from synap.errors import SynapError
from synap.wire.frames import HEADER, FrameReader, Kind, frame

SENT = [
    Frame(Kind.REQUEST, 0, 1, 1, b'{"key":"a","value":1}'),
    Frame(Kind.PING, 0, 0, 7, b""),
    Frame(Kind.REQUEST, 1, 2, 2, b"x" * 5000),
    Frame(Kind.DONE, 0, 0, 2, b""),
    Frame(Kind.ANSWER, 0, 0, 3, bytes(range(256)) * 1200),
    Frame(Kind.EVENT, 2, 0, 4, b"y"),
]
STREAM = b"".join(frame(sent.kind, sent.id, sent.body, sent.code, sent.flags) for sent in SENT)


def read(pieces: List[bytes]) -> List[Frame]:
    reader = FrameReader()
    frames = [Frame(*received) for piece in pieces for received in reader.feed(piece)]
    assert reader.pending == 0
    return frames


@pytest.mark.parametrize("size", [1, 2, 11, 12, 13, 4095, 4096, 100_000, len(STREAM)])
def test_pieces_of_one_size(size: int) -> None:
    assert read([STREAM[at : at + size] for at in range(0, len(STREAM), size)]) == SENT


@pytest.mark.parametrize("seed", range(30))
def test_pieces_of_random_sizes(seed: int) -> None:
    dice = random.Random(seed)
    most = dice.choice([3, 40, 5000, 200_000])
    pieces, at = [], 0
    while at < len(STREAM):
        size = dice.randint(0, most)
        pieces.append(STREAM[at : at + size])
        at += size
    assert read(pieces) == SENT


def test_other_kinds_of_buffers_are_taken_too() -> None:
    reader = FrameReader()

    assert [*reader.feed(bytearray(STREAM[:20])), *reader.feed(memoryview(STREAM)[20:])] == SENT


def test_what_is_held_of_an_unfinished_frame_is_counted() -> None:
    reader = FrameReader()

    reader.feed(STREAM[:5])
    assert reader.pending == 5
    reader.feed(STREAM[5:20])
    assert reader.pending == 20


def test_a_body_that_drips_in_is_kept_in_one_piece() -> None:
    reader = FrameReader()
    reader.feed(HEADER.pack(100_000, Kind.REQUEST, 0, 1, 1))
    for _ in range(50_000):
        reader.feed(b"z")

    assert len(reader._pieces) == 1


def test_a_body_beyond_the_limit_is_refused_at_its_header() -> None:
    reader = FrameReader(limit=1000)

    with pytest.raises(SynapError, match="may have 1000 bytes") as refused:
        reader.feed(HEADER.pack(1001, Kind.REQUEST, 0, 1, 1))
    assert refused.value.code == "PAYLOAD_TOO_LARGE"
    assert reader.pending == 0


@pytest.mark.parametrize("fault", [frame(0), frame(12), HEADER.pack(1001, Kind.REQUEST, 0, 1, 1)])
@pytest.mark.parametrize("cut", [0, 5, 20, 40])
def test_the_frames_before_a_fault_are_not_lost(fault: bytes, cut: int) -> None:
    reader = FrameReader(limit=1000)
    stream = frame(Kind.PING, 1) + frame(Kind.REQUEST, 2, b"body", 5)

    frames = reader.feed(stream[:cut])
    with pytest.raises(SynapError):
        reader.feed(stream[cut:] + fault + frame(Kind.PING, 3))
    assert [*frames, *reader.last] == [Frame(Kind.PING, 0, 0, 1, b""), Frame(Kind.REQUEST, 0, 5, 2, b"body")]


def test_large_bodies_that_are_received_in_place_are_not_mixed_up() -> None:
    bodies = [bytes([number]) * (200_000 + number) for number in range(12)]
    stream = b"".join(frame(Kind.ANSWER, 1, body) for body in bodies)
    reader = FrameReader()
    frames: List[Frame] = []
    while stream:
        buffer = reader.buffer()
        count = min(len(buffer), len(stream))
        buffer[:count] = stream[:count]
        frames += [Frame(*one) for one in reader.filled(count)]
        stream = stream[count:]
    assert [bytes(one.body) for one in frames] == bodies
    assert reader.empty
