"""What was answered is there after kill -9, at any moment and at each named point, over and over on one directory."""

from __future__ import annotations

import os
from typing import Any

import pytest

from synap.errors import SynapError
from synap.storage.crashpoints import POINTS, CrashPoints
from tests.helpers.thorough import rounds
from tests.storage.soak import Rounds

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")

ROUNDS = rounds(16, 60)
AT_POINTS = 5
"""For each named point (the first four are those of a commit). Together with ROUNDS of a long run: a hundred."""


@pytest.mark.parametrize("commits", ["thread", "inline"])
def test_killed_at_moments_of_chance(tmp_path: Any, commits: str) -> None:
    with Rounds(str(tmp_path / "data"), 4711, commits) as made:
        for _ in range(ROUNDS):
            made.run()
    assert made.killed > ROUNDS // 2
    assert len(made.ledger.acked) > rounds(25, 100)
    assert len(made.ledger.events) > rounds(25, 100)


@pytest.mark.parametrize(
    ("commits", "point"), [("thread", point) for point in POINTS] + [("inline", point) for point in POINTS[:4]]
)
def test_killed_at_a_named_point(tmp_path: Any, point: str, commits: str) -> None:
    with Rounds(str(tmp_path / "data"), POINTS.index(point), commits) as made:
        for nth in (1, 2, 3, None, None)[:AT_POINTS]:
            made.run(point, nth)
    assert made.killed >= 3, "the point was not reached"


def test_an_unknown_point_is_refused() -> None:
    with pytest.raises(SynapError, match="must be one of before-append"):
        CrashPoints({"SYNAP_CRASH_AT": "somewhere"})
