"""Times of the engine and what the wall clock showed, over steps of the wall clock."""

from __future__ import annotations

import pytest

from synap.engine.timeline import Timeline

BEGIN = 1_700_000_000.0


@pytest.mark.parametrize("moment", [-5000.0, -1.0, 0.0, 500.0, 1000.0, 5000.0])
def test_a_timestamp_is_read_by_the_clock_of_its_time(moment: float) -> None:
    timeline = Timeline()
    timeline.add(BEGIN, 600.0)
    timeline.add(BEGIN + 1000, 4200.0)
    assert timeline.time(timeline.at(BEGIN + moment)) == BEGIN + moment


def test_a_step_that_is_known_is_told_once() -> None:
    timeline = Timeline()
    timeline.add(BEGIN, 600.0)
    timeline.add(BEGIN, 600.0)
    timeline.add(BEGIN - 10, 5.0)
    assert timeline.steps == [(BEGIN, 600.0)]
    assert timeline.ahead == 600.0
