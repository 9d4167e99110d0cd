"""The two ways in which a commit is made."""

from __future__ import annotations

import pytest

from tests.helpers.driver import Service


@pytest.fixture(params=["thread", "inline"])
def commits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have commits made by the writing thread, then by the host's thread wherever that can be."""
    monkeypatch.setattr(Service, "inline", request.param == "inline")
    return str(request.param)
