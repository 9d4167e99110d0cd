"""A URL's scheme names what opens the engine: built in, or registered by an installed package."""

from __future__ import annotations

from pathlib import Path

import pytest

from synap.errors import SynapError
from synap.host import EngineHost
from synap.host.registry import Home, open_engine
from synap.testing import ThrowawayServer
from synap.testing.server import can_serve

HOME = Home(call=lambda function, *arguments: None, alarm=lambda when: None)

OPENER = """
from synap.host.registry import Opened, open_memory

def open_toy(scheme, address, home):
    opened = open_memory(scheme, address, home)
    opened.host.address = address
    return opened
"""


def test_memory_is_built_in() -> None:
    assert isinstance(open_engine("memory", "", HOME).host, EngineHost)


def test_a_scheme_nobody_registered_is_refused_with_those_there_are() -> None:
    with pytest.raises(SynapError, match="no engine is registered for mongodb://; there is memory://") as told:
        open_engine("mongodb", "x", HOME)
    assert told.value.code == "INVALID_REQUEST"


def test_an_installed_package_adds_a_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_engine.py").write_text(OPENER)
    described = tmp_path / "toy_engine-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-engine\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text("[synap.engines]\ntoy = toy_engine:open_toy\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    opened = open_engine("toy", "somewhere", HOME)
    assert isinstance(opened.host, EngineHost)
    assert opened.host.__dict__["address"] == "somewhere"


@pytest.mark.skipif(not can_serve(), reason="the service needs Python 3.10 or newer")
def test_a_service_takes_the_engine_that_a_url_names() -> None:
    with ThrowawayServer(arguments=["--engine", "memory://"]) as server:
        assert server.running
