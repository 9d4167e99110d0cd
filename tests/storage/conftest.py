"""The two ways in which a commit is made."""

from __future__ import annotations

import os
import shutil
from typing import Dict

import pytest

from tests.helpers.driver import Service


@pytest.fixture(params=["thread", "inline"])
def commits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have commits made by the writing thread, then by the host's thread wherever that can be."""
    monkeypatch.setattr(Service, "inline", request.param == "inline")
    return str(request.param)


def put(directory: str, files: Dict[str, bytes]) -> None:
    """Make a directory of just these files."""
    shutil.rmtree(directory, ignore_errors=True)
    os.mkdir(directory)
    for name, content in files.items():
        with open(os.path.join(directory, name), "wb") as file:
            file.write(content)
