"""Deadlines of which most are moved again and again: each comes in its turn, and none costs more than a little."""

from __future__ import annotations

import random
from typing import Dict, List, Tuple

import pytest

from synap.engine.deadlines import SWEPT_AT_ONCE, SWEPT_PER_PUSH, Deadlines

Entry = Tuple[float, int]


class Kept:
    """Deadlines by number, beside what is due when; counts how often an entry is looked at."""

    def __init__(self) -> None:
        self.due: Dict[int, float] = {}
        self.looks = 0
        self.deadlines: Deadlines[Entry] = Deadlines(self._holds)

    def _holds(self, entry: Entry) -> bool:
        self.looks += 1
        return self.due.get(entry[1]) == entry[0]

    def set(self, number: int, time: float) -> None:
        self.due[number] = time
        self.deadlines.push((time, number))

    def held(self) -> int:
        return len(self.deadlines.entries) + len(self.deadlines.unswept)


@pytest.mark.parametrize("seed", range(8))
def test_each_comes_in_its_turn_however_they_were_moved(seed: int) -> None:
    chance = random.Random(seed)
    kept = Kept()
    numbers = chance.choice([10, 1000, 20_000])
    now = 0.0
    for _ in range(60_000):
        what = chance.random()
        if what < 0.8:
            kept.set(chance.randrange(numbers), now + chance.randrange(1, 1000) / 8)
        elif what < 0.9:
            kept.due.pop(chance.randrange(numbers), None)
        else:
            now += chance.random() / 8
            if what > 0.999:
                assert kept.deadlines.first() == min(kept.due.values(), default=None)
            entry = kept.deadlines.pop(now)
            if entry is not None:
                assert entry[0] <= now
                assert kept.due.pop(entry[1]) == entry[0]
    left: List[Entry] = sorted((time, number) for number, time in kept.due.items())
    seen: List[Entry] = []
    while True:
        entry = kept.deadlines.pop(1e9)
        if entry is None:
            break
        if kept.due.pop(entry[1], None) is not None:
            seen.append(entry)
    assert seen == left
    assert kept.deadlines.first() is None


@pytest.mark.parametrize("moved", [True, False], ids=["the same moved", "always others"])
def test_no_entry_costs_much_however_many_there_are(moved: bool) -> None:
    kept = Kept()
    most = 0
    for number in range(300_000):
        before = kept.looks
        kept.set(number % 50_000 if moved else number, float(number))
        most = max(most, kept.looks - before)
    assert most <= SWEPT_AT_ONCE + SWEPT_PER_PUSH
    assert kept.looks <= 3 * 300_000
    assert kept.held() <= (4 if moved else 2) * len(kept.due) + SWEPT_AT_ONCE


@pytest.mark.parametrize("others", [0, 3 * SWEPT_AT_ONCE])
def test_what_is_brought_back_again_and_again_is_there_once(others: int) -> None:
    kept = Kept()
    for number in range(others):
        kept.set(number, 10.0 + number)
    kept.set(-1, 5.0)
    kept.set(-2, 5.0 + others)
    for _ in range(10 * (others + 1024)):
        kept.deadlines.push_again((5.0, -1))
        kept.deadlines.push_again((5.0 + others, -2))
    assert kept.held() <= 4 * len(kept.due) + SWEPT_AT_ONCE
    for number in range(10 * (others + 1024)):  # what comes only once is not taken for what is there already
        kept.set(number % 100 + others, 20.0 + number)
    came: List[Entry] = []
    while (entry := kept.deadlines.pop(1e9)) is not None:
        came.append(entry)
        del kept.due[entry[1]]
    assert not kept.due
    assert came == sorted(came)
