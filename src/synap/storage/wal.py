"""The frames of SQLite's write-ahead log, for when one of them is damaged.

Each frame's checksum goes on from that of the frame before, so SQLite ends at the first that doesn't match: one
flipped bit hides every later commit. Read frame by frame, each against what its predecessor says of itself, the
others can still be told sound. The format is the one in https://www.sqlite.org/fileformat2.html#walformat.
"""

from __future__ import annotations

import os
import struct
import sys
from array import array
from typing import List, NamedTuple, Tuple

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_MAGIC = 0x377F0682
_VERSION = 3_007_000

Sum = Tuple[int, int]


class Frame(NamedTuple):
    """One frame: its number from 1, where it begins in the file, its bytes with header, and whether they are what was
    written.
    """

    number: int
    offset: int
    content: bytes
    sound: bool


def _add(sum: Sum, data: bytes, big: bool) -> Sum:
    words = array("I", data)
    if (sys.byteorder == "big") is not big:
        words.byteswap()
    first, second = sum
    numbers = iter(words)
    for even, odd in zip(numbers, numbers):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second


def read_frames(content: bytes, page: int) -> List[Frame]:
    """Read the frames of a write-ahead log, those of an earlier use of its file included (they are not sound)."""
    if len(content) < _HEADER.size + _FRAME.size:
        return []
    magic, *_, first, second = _HEADER.unpack_from(content)
    big = magic == _MAGIC | 1
    # What the next frame's checksum goes on from: what stands there, or what it should be.
    possible = [(first, second), _add((0, 0), content[:24], big)]
    salts = _salts(content, page)
    frames = []
    size = _FRAME.size + page
    unwritten = bytes(size)
    for number, offset in enumerate(range(_HEADER.size, len(content) - size + 1, size), 1):
        frame = content[offset : offset + size]
        if frame == unwritten:
            frames.append(Frame(number, offset, frame, sound=False))
            possible = [(0, 0)]
            continue
        _, _, salt, other, first, second = _FRAME.unpack_from(frame)
        sums = [_add(_add(before, frame[:8], big), frame[_FRAME.size :], big) for before in possible]
        sound = (salt, other) == salts and (first, second) in sums
        frames.append(Frame(number, offset, frame, sound))
        possible = [(first, second)] if sound else [(first, second), *sums]
        if len(frames) > 1 and not sound and not frames[-2].sound:
            possible = possible[:3]
    return frames


def _salts(content: bytes, page: int) -> Tuple[int, int]:
    """Find the salts of the present use of the file: those of most of the header and the first frames."""
    seen = [_HEADER.unpack_from(content)[4:6]]
    for offset in range(_HEADER.size, min(len(content), _HEADER.size + 3 * (_FRAME.size + page)), _FRAME.size + page):
        if offset + _FRAME.size <= len(content):
            seen.append(_FRAME.unpack_from(content, offset)[2:4])
    salt, other = max(seen, key=seen.count)
    return salt, other


def broken_frames(path: str, page: int) -> List[Frame]:
    """Find the frames that are damaged: not sound, with sound ones behind them. An unfinished end is no damage."""
    try:
        with open(path, "rb") as file:
            frames = read_frames(file.read(), page)
    except FileNotFoundError:
        return []
    last = max((frame.number for frame in frames if frame.sound), default=0)
    return [frame for frame in frames if frame.number < last and not frame.sound]


def mend(path: str, page: int) -> int:
    """Write a write-ahead log anew without the frames that are damaged; returns how many were left out."""
    if not os.path.exists(path):
        return 0
    with open(path, "rb") as file:
        content = file.read()
    frames = read_frames(content, page)
    sound = [frame for frame in frames if frame.sound]
    if not sound:
        return 0
    magic, _, _, sequence, *_ = _HEADER.unpack_from(content)
    magic = magic if magic in (_MAGIC, _MAGIC | 1) else _MAGIC
    big = magic == _MAGIC | 1
    salts = _salts(content, page)
    head = struct.pack(">6I", magic, _VERSION, page, sequence, *salts)
    sum = _add((0, 0), head, big)
    pieces = [head, struct.pack(">2I", *sum)]
    for frame in sound:
        sum = _add(_add(sum, frame.content[:8], big), frame.content[_FRAME.size :], big)
        pieces += [frame.content[:16], struct.pack(">2I", *sum), frame.content[_FRAME.size :]]
    with open(path, "wb") as file:
        file.write(b"".join(pieces))
    return sound[-1].number - len(sound)
