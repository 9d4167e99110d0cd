"""Both colours."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["async", "sync"])
def colour(request: pytest.FixtureRequest) -> str:
    return str(request.param)
