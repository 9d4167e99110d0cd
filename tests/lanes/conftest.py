"""A real service for the lanes, and lanes of both colours."""

from __future__ import annotations

import itertools
from typing import Callable, Iterator

import pytest

from synap.testing.server import ThrowawayServer, can_serve
from tests.lanes.lanes import COLOURS

_names = itertools.count()


@pytest.fixture(params=COLOURS)
def colour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def service() -> Iterator[ThrowawayServer]:
    """A service in memory, shared by the tests of this folder."""
    if not can_serve():
        pytest.skip("this Python can't run the service")
    with ThrowawayServer() as server:
        yield server


@pytest.fixture
def name() -> Callable[[], str]:
    """Makes names that no other test uses."""
    return lambda: f"t{next(_names)}"
