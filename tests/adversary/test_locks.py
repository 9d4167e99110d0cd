"""Locks that run out under their holders, holders that are killed or stand still: fences tell who came later."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.adversary.locks import Resource, check_log, process_rounds, rounds


async def test_fences_tell_who_came_later_in_every_round() -> None:
    fates = await rounds(400, seed=1)
    assert {"given back", "abandoned"} <= set(fates)
    assert any("lost" in fate for fate in fates), fates


def test_processes_that_are_stopped_and_killed_change_nothing_twice(tmp_path: Path) -> None:
    resource = process_rounds(6, os.fspath(tmp_path))
    assert resource.value > 0


@pytest.mark.parametrize("log", [[(1, "a", 1), (1, "b", 2)], [(2, "a", 1), (1, "b", 2)], [(1, "a", 1), (2, "b", 1)]])
def test_the_check_finds_what_it_looks_for(log: list[tuple[int, str, int]]) -> None:
    with pytest.raises(AssertionError):
        check_log(log)
    assert Resource().value == 0
