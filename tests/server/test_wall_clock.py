"""A service whose wall clock is set while it runs: nothing that lasts ends early, nothing hangs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from synap import SynapClient
from synap.testing.server import ThrowawayServer
from tests.helpers.patience import PATIENCE

SHIM = """
import os, time
_file, _time, _ns = os.environ["WALL_CLOCK"], time.time, time.time_ns
def _ahead():
    with open(_file) as file:
        return float(file.read() or 0)
time.time = lambda: _time() + _ahead()
time.time_ns = lambda: _ns() + int(_ahead() * 1e9)
"""

Step = Callable[[float], None]


@pytest.fixture(params=["memory", "data"])
def stepped(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[tuple[ThrowawayServer, Step]]:
    """A service, and what sets its `time.time()` ahead by some seconds; the monotonic clock is left alone."""
    (tmp_path / "sitecustomize.py").write_text(SHIM)
    ahead = tmp_path / "ahead"
    ahead.write_text("0")

    def step(seconds: float) -> None:
        (tmp_path / "new").write_text(str(seconds))
        os.replace(tmp_path / "new", ahead)

    environment = {"PYTHONPATH": os.fspath(tmp_path), "WALL_CLOCK": os.fspath(ahead)}
    data = None if request.param == "memory" else tmp_path / "data"
    with ThrowawayServer(data=data, environment=environment) as server:
        yield server, step


@pytest.mark.parametrize("jump", [900.0, -3600.0, 10 * 86_400.0])
def test_a_wall_clock_that_jumps(stepped: tuple[ThrowawayServer, Step], jump: float) -> None:
    server, step = stepped
    with SynapClient(url=server.url, timeout=PATIENCE) as client:
        client.kv.set("key", 1, ttl=1)
        client.kv.set("kept", 1, ttl=600)
        client.queue.publish("q", "held")
        assert client.queue.consume("q", ack_deadline=600) is not None
        step(jump)
        client.queue.publish("delayed", "x", delay=0.3)
        began = time.monotonic()
        message = client.queue.consume("delayed", timeout=PATIENCE)
        assert message is not None
        assert message.message == "x"
        assert client.queue.consume("nothing", timeout=0.3) is None
        assert time.monotonic() - began < PATIENCE
        assert client.kv.get("kept").found
        assert client.queue.consume("q") is None
        while client.kv.get("key").found:
            assert time.monotonic() - began < PATIENCE
        assert 0 <= client.health()["uptime_secs"] < PATIENCE
        assert client.stream.publish("room", "now", 1).offset == 0
        shown = client.stream.history("room").events[0].timestamp
        assert shown == pytest.approx(time.time() + jump, abs=PATIENCE)
