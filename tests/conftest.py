"""What the whole suite shares.

The service needs Python 3.10. On an older one, the tests that need a service run against one that another Python
runs, where `SYNAP_TEST_SERVER_PYTHON` names it; without that, or for what is the service's own code, they are not
collected, and the run's header says so.
"""

from __future__ import annotations

import gc
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, Optional

import pytest
from hypothesis import HealthCheck, settings

from synap.lanes import upgrades
from synap.testing import plugin
from synap.testing.server import SERVER_PYTHON, ThrowawayServer, can_serve
from tests.helpers.patience import PATIENCE
from tests.helpers.still_rates import StillRates

if TYPE_CHECKING:
    from synap.testing.cluster import ThrowawayCluster

settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")  # a machine that is busy finds no fault

SERVER_CODE = ["server", "cli", "docs", "bench", "cluster", "contrib", "deploy"]
"""Folders that test what only Python 3.10 and newer has: the service, the cluster's servers, frameworks of today."""

BY_NAME = [Path(__file__).parent / folder for folder in ("console", "proxies")]
"""Folders of tests that need programs which don't come from PyPI: a browser, nginx."""

collect_ignore: List[str] = []
if sys.version_info < (3, 10):
    collect_ignore += SERVER_CODE
if not can_serve():
    collect_ignore += ["guide", "adversary"]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> Optional[bool]:
    """Leave out folders whose tests need programs of the system, unless they are named."""
    if collection_path in BY_NAME and not any(collection_path.name in argument.split("/") for argument in config.args):
        return True
    return None


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "only(*kinds): conformance targets a test runs on")
    config.addinivalue_line("markers", "without(*kinds): conformance targets a test doesn't run on")
    config.addinivalue_line("markers", "once_per_place: a conformance test that takes its time")
    if plugin not in config.pluginmanager.get_plugins():  # registered by its entry point where the package is installed
        config.pluginmanager.register(plugin, "synap")


def pytest_collection_finish() -> None:
    look_away()


def look_away() -> None:
    """Look away from everything there is, so that collecting after each test costs little."""
    gc.collect()
    gc.freeze()


_looked_away_for: List[Path] = []
"""The file whose tests run."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before a test, look away from what earlier ones left, which stays for long: results, shared servers, modules."""
    if _looked_away_for != [item.path]:
        _looked_away_for[:] = [item.path]
        gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def leaves_nothing_open() -> Iterator[None]:
    """Blame what nobody closed on the test that left it; `PYTHONTRACEMALLOC=20` says where it was opened."""
    level, handlers = logging.root.level, logging.root.handlers[:]
    yield
    end = time.monotonic() + PATIENCE
    while not gc.isenabled() and time.monotonic() < end:  # a thread that opens a directory does without for a moment
        time.sleep(0.01)
    collected, left = gc.isenabled(), (logging.root.level, logging.root.handlers[:])
    gc.enable()
    gc.collect()
    logging.root.setLevel(level)
    logging.root.handlers[:] = handlers
    assert collected, "garbage collection was left switched off"
    assert left == (level, handlers), "the root logger was left configured"


def pytest_report_header() -> str:
    if not can_serve():
        return (
            "synap: this Python can't run the service (3.10 and newer can): memory:// and file:// only, "
            f"set {SERVER_PYTHON} to test against one"
        )
    if collect_ignore:
        return f"synap: left out on this Python: {', '.join(collect_ignore)}"
    return "synap: all tests"


@pytest.fixture
def serve() -> Iterator[Callable[..., ThrowawayServer]]:
    """Starts services with options of their own; they end with the test."""
    running: List[ThrowawayServer] = []

    def start(*arguments: str, **options: Any) -> ThrowawayServer:
        service = ThrowawayServer(arguments=arguments, **options)
        running.append(service)
        return service.start()

    yield start
    for service in running:
        if service.running:
            service.kill()


@pytest.fixture
def still_rates(tmp_path: Path) -> StillRates:
    """What makes rate limits of a service in a process of its own give nothing back while it is asked."""
    folder = tmp_path / "still_rates"
    folder.mkdir()
    return StillRates(folder)


@pytest.fixture
def nothing_known() -> Iterator[None]:
    """Begin and end with nothing known of any server, such as that it refuses upgrades."""
    upgrades.forget()
    yield
    upgrades.forget()


@pytest.fixture(scope="session")
def valkey_node() -> Iterator[ThrowawayCluster]:
    from synap.testing.cluster import ThrowawayCluster

    with ThrowawayCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def gateways(valkey_node: ThrowawayCluster) -> Iterator[List[str]]:
    """URLs of two services over the same cluster."""
    arguments = ["--engine", valkey_node.url, "--durability", "none"]
    with ThrowawayServer(arguments=arguments) as one, ThrowawayServer(arguments=arguments) as another:
        yield [one.url, another.url]
