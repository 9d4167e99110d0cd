"""The mark: whatever part of a write reaches the disk, one of its two slots can be read."""

from __future__ import annotations

import os
from typing import Any

import pytest

from synap.storage.layout import MARK
from synap.storage.mark import Mark, read_mark

IDENTITY = b"i" * 16


@pytest.mark.parametrize("landed", [0.0, 0.1, 0.5, 0.9])
def test_a_torn_write_leaves_the_slot_before(tmp_path: Any, landed: float) -> None:
    directory, path = str(tmp_path), tmp_path / MARK
    mark = Mark(directory, IDENTITY)
    try:
        mark.settle(1)
        for number in range(2, 7):
            before = path.read_bytes()
            mark.put(number, number)
            after = path.read_bytes()
            changed = [at for at in range(len(after)) if before[at : at + 1] != after[at : at + 1]]
            torn = bytearray(after)
            for at in changed[int(len(changed) * landed) :]:
                torn[at] = before[at]
            path.write_bytes(torn)
            found = read_mark(directory)
            assert found is not None
            assert (found.identity, found.written) == (IDENTITY, number - 1)
            path.write_bytes(after)
            whole = read_mark(directory)
            assert whole is not None
            assert whole.written == number
    finally:
        mark.close()
    assert os.path.getsize(path) <= 1024
