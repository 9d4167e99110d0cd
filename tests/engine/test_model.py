"""The engine against a model of a few lines.

Whatever is done in whatever order, both agree; what was not committed can be taken back, and what was
survives a restart.
"""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, rule

from tests.engine.model.both import ACTIONS, Both


class EngineAndModel(RuleBasedStateMachine):
    """Lets Hypothesis choose, and find the shortest way to a difference."""

    def __init__(self) -> None:
        super().__init__()
        self.both = Both()

    @rule(action=st.sampled_from(ACTIONS), seed=st.integers(0, 1000))
    def act(self, action: str, seed: int) -> None:
        self.both.random.seed(seed)
        getattr(self.both, action)()
        self.both.both_agree()

    def teardown(self) -> None:
        self.both.drain()


TestEngineAndModel = EngineAndModel.TestCase
TestEngineAndModel.settings = settings(max_examples=100, stateful_step_count=50)


@pytest.mark.parametrize("seed", range(8))
def test_long_runs_agree_with_the_model(seed: int) -> None:
    both = Both()
    both.random.seed(seed)
    for _ in range(1500):
        getattr(both, both.random.choice(ACTIONS))()
        both.both_agree()
    both.drain()
