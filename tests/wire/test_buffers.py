"""A buffer is used again once nothing refers to it, and not before."""

from __future__ import annotations

import sys
from typing import Any, List

import msgspec
import pytest

from synap.wire.buffers import Buffers
from synap.wire.frames import Frame, FrameReader, Kind, frame

COUNTS = hasattr(sys, "getrefcount")
SIZE = 200_000


def owner(view: memoryview) -> int:
    return id(view.obj)


def test_a_buffer_that_nothing_refers_to_is_used_again() -> None:
    buffers = Buffers()
    first = owner(buffers.take(SIZE))

    for size in (SIZE, SIZE - 1, 70_000):
        view = buffers.take(size)
        assert len(view) == size
        assert (owner(view) == first) is COUNTS
        del view


@pytest.mark.parametrize("hold", [lambda view: view, lambda view: view[5:6], lambda view: view.obj, memoryview])
def test_a_buffer_that_something_refers_to_is_not(hold: Any) -> None:
    buffers = Buffers()
    view = buffers.take(SIZE)
    view[:] = b"a" * SIZE
    held = hold(view)
    del view

    others = [buffers.take(SIZE) for _ in range(20)]
    for other in others:
        other[:] = b"b" * SIZE

    assert bytes(held)[:1] == b"a"
    assert len({owner(other) for other in others}) == len(others)


@pytest.mark.parametrize("kind", [msgspec.Raw, memoryview, bytes])
def test_what_was_decoded_from_a_buffer_stays_as_it_is(kind: Any) -> None:
    decode = msgspec.msgpack.Decoder(kind).decode
    buffers = Buffers()
    kept: List[Any] = []
    for number in range(20):
        body = msgspec.msgpack.encode(bytes([number]) * SIZE)
        view = buffers.take(len(body))
        view[:] = body
        kept.append(decode(view))
        del view

    for number, value in enumerate(kept):
        content = bytes(value)[5:] if kind is msgspec.Raw else bytes(value)
        assert content == bytes([number]) * SIZE


def test_no_more_is_kept_than_may_be() -> None:
    buffers = Buffers(kept=3 * SIZE)
    for sizes in ([SIZE] * 10, [2 * SIZE] * 3, [4 * SIZE], [SIZE, 3 * SIZE], [100] * 100):
        views = [buffers.take(size) for size in sizes]
        assert sum(map(len, buffers._buffers)) <= 3 * SIZE
        del views
    assert [len(buffers.take(size)) for size in (3 * SIZE, 4 * SIZE)] == [3 * SIZE, 4 * SIZE]


def received(reader: FrameReader, stream: bytes) -> List[Frame]:
    """The frames of a stream that is received into the reader's buffers."""
    frames: List[Frame] = []
    while stream:
        buffer = reader.buffer()
        count = min(len(buffer), len(stream))
        buffer[:count] = stream[:count]
        frames += reader.filled(count)
        stream = stream[count:]
    return frames


def test_large_bodies_that_are_still_in_use_are_not_mixed_up() -> None:
    bodies = [bytes([number]) * (SIZE + number) for number in range(12)]
    reader = FrameReader()

    frames = received(reader, b"".join(frame(Kind.ANSWER, 1, body) for body in bodies))

    assert [bytes(one.body) for one in frames] == bodies


def test_large_bodies_that_are_done_with_share_a_buffer() -> None:
    reader = FrameReader()
    owners = set()
    for number in range(12):
        [one] = received(reader, frame(Kind.ANSWER, 1, bytes([number]) * SIZE))
        assert bytes(one.body) == bytes([number]) * SIZE
        owners.add(owner(one.body))  # type: ignore[arg-type]
        del one
    if COUNTS:
        assert len(owners) == 1
