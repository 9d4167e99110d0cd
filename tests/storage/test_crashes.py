"""What was answered is there after kill -9, at any moment and at each named point, over and over on one directory."""

from __future__ import annotations

import os
from typing import Any

import pytest

from synap.errors import SynapError
from synap.storage.crashpoints import POINTS, CrashPoints
from tests.storage.soak import Rounds

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")

ROUNDS = 60
AT_POINTS = 5
"""For each named point. Together with ROUNDS: a hundred."""


@pytest.mark.timeout(240)
def test_killed_at_moments_of_chance(tmp_path: Any) -> None:
    rounds = Rounds(str(tmp_path / "data"), 4711)
    for _ in range(ROUNDS):
        rounds.run()
    assert rounds.killed > ROUNDS // 2
    assert len(rounds.ledger.acked) > 100
    assert len(rounds.ledger.events) > 100


@pytest.mark.timeout(120)
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_named_point(tmp_path: Any, point: str) -> None:
    rounds = Rounds(str(tmp_path / "data"), POINTS.index(point))
    for nth in (1, 2, 3, None, None)[:AT_POINTS]:
        rounds.run(point, nth)
    assert rounds.killed >= 3, "the point was not reached"


def test_an_unknown_point_is_refused() -> None:
    with pytest.raises(SynapError, match="must be one of before-append"):
        CrashPoints({"SYNAP_CRASH_AT": "somewhere"})
