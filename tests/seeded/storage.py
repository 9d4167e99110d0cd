"""Bugs planted in the storage."""

from __future__ import annotations

from tests.seeded.seed import Seed

SEEDS = (
    Seed(
        "everysec is put off at each commit",
        "storage/commit.py",
        'if self._next_sync is None and self.fsync == "everysec":',
        'if self.fsync == "everysec":',
        "tests/storage/test_everysec.py",
    ),
    Seed(
        "the mark is written to one slot only",
        "storage/mark.py",
        "self._slot ^= 1",
        "self._slot = 0",
        "tests/storage/test_mark.py",
    ),
)
