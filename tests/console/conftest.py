"""The console in a real browser: `pytest tests/console` (docs/testing.md says what it needs)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from synap import SynapClient
from synap.testing.server import ThrowawayServer
from tests.console.browser import Console, chromium
from tests.helpers.patience import PATIENCE

Serve = Callable[..., ThrowawayServer]
Look = Callable[..., Console]
Background = Callable[[Callable[[threading.Event], None]], threading.Event]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--minutes",
        type=float,
        default=0.25,
        help="how long tests/console watches 1,000 queues",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(300))  # a browser's steps, each of which may take PATIENCE


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have measured."""
    told = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    figures = {(one.nodeid, name, str(value)) for one in told for name, value in one.user_properties}
    if figures:
        terminalreporter.section("figures")
    for test, name, value in sorted(figures):
        terminalreporter.line(f"{test.rpartition('::')[2]}: {name}: {value}")


@pytest.fixture(scope="module")  # while it runs there is an event loop in this thread, and no async test can run
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def look(browser: Browser, serve: Serve) -> Iterator[Look]:
    """Opens windows; at the end of the test, while the services still run, each must have behaved."""
    opened: list[Console] = []

    def start(server: ThrowawayServer, **options: Any) -> Console:
        opened.append(Console(browser, server.url, **options))
        return opened[-1]

    yield start
    for console in opened:
        console.close()
    for console in opened:
        console.check()


@pytest.fixture
def server(serve: Serve) -> ThrowawayServer:
    return serve()


@pytest.fixture
def client(server: ThrowawayServer) -> Iterator[SynapClient]:
    with SynapClient(url=server.url) as connected:
        yield connected


@pytest.fixture
def background() -> Iterator[Background]:
    """Runs functions in threads until the test ends; each gets the event that says so. What they raise fails it."""
    over = threading.Event()
    threads: list[threading.Thread] = []
    errors: list[BaseException] = []

    def start(work: Callable[[threading.Event], None]) -> threading.Event:
        def run() -> None:
            try:
                work(over)
            except BaseException as error:
                if not over.is_set():
                    errors.append(error)

        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()
        return over

    yield start
    over.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert not errors, errors
