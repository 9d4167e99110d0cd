"""1,000 queues and 100,000 keys: only what is in sight is built and in the page, and memory stays flat.

How long the page's longest task took is a figure, not a promise: it tells as much of the machine as of the page.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from synap import SynapClient
from synap.testing.server import ThrowawayServer
from tests.console.browser import until
from tests.console.conftest import Background, Look

WATCH_WORK = """() => {
    window.longest = 0;
    window.built = 0;
    const count = (node) => 1 + (node.getElementsByTagName ? node.getElementsByTagName("*").length : 0);
    new MutationObserver((changes) => {
        let built = 0;
        for (const change of changes) for (const node of change.addedNodes) built += count(node);
        window.built = Math.max(window.built, built);
    }).observe(document.body, {childList: true, subtree: true});
    new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) window.longest = Math.max(window.longest, entry.duration);
    }).observe({type: "longtask", buffered: false});
}"""


def in_chunks(client: SynapClient, commands: list[dict[str, Any]], size: int = 5000) -> None:
    for at in range(0, len(commands), size):
        assert all(result.status == "success" for result in client.batch(commands[at : at + size]))


def check_work(page: Page, record_property: Any) -> None:
    """Assert that the page never built more at once than what is in sight, since `WATCH_WORK`."""
    record_property("longest task in ms", page.evaluate("window.longest"))
    built = page.evaluate("window.built")
    record_property("most nodes built at once", built)
    assert 0 < built < 1200, "rows that nobody sees were built"


def weigh(page: Page) -> tuple[float, int]:
    """Return the megabytes that the page's scripts hold, rubbish collected, and the nodes in it."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    used = session.send("Runtime.getHeapUsage")["usedSize"]
    session.detach()
    return used / 1e6, int(page.evaluate("document.getElementsByTagName('*').length"))


@pytest.mark.timeout(1000)
def test_a_thousand_queues_stay_flat(
    look: Look,
    server: ThrowawayServer,
    client: SynapClient,
    background: Background,
    pytestconfig: pytest.Config,
    record_property: Any,
) -> None:
    seconds = 60 * float(pytestconfig.getoption("minutes"))
    names = [f"queue-{number:04d}" for number in range(1000)]
    in_chunks(client, [{"command": "queue.publish", "payload": {"queue": name, "message": 1}} for name in names])

    def publish(over: threading.Event) -> None:
        with SynapClient(url=server.url) as busy:
            while not over.is_set():
                some = random.sample(names, 200)
                in_chunks(
                    busy, [{"command": "queue.publish", "payload": {"queue": name, "message": 1}} for name in some]
                )
                over.wait(0.25)

    background(publish)
    page = look(server).open("queues")
    expect(page.get_by_text("1,000 queues")).to_be_visible()
    page.wait_for_timeout(3000)
    memory, nodes = weigh(page)
    assert nodes < 1200, "rows that nobody sees are in the page"
    page.evaluate(WATCH_WORK)
    began = time.monotonic()
    grid = page.get_by_role("grid")
    megabytes = [round(memory, 1)]
    while (left := began + seconds - time.monotonic()) > 0:
        pause = time.monotonic() + min(60.0, left)
        while time.monotonic() < pause:
            grid.evaluate("(grid, to) => grid.scrollTo(0, to)", random.randrange(0, 35_000))
            page.wait_for_timeout(200)
        after, nodes = weigh(page)
        megabytes.append(round(after, 1))
    record_property("megabytes held, once a minute", megabytes)
    assert after < memory + 4, f"{megabytes} MB in {seconds:.0f} s"
    assert nodes < 1200
    check_work(page, record_property)


def test_a_hundred_thousand_keys(
    look: Look, server: ThrowawayServer, client: SynapClient, record_property: Any
) -> None:
    for at in range(0, 100_000, 10_000):
        client.kv.mset({f"user:{number // 1000:02d}:{number:05d}": number for number in range(at, at + 10_000)})
    page = look(server).open("keys")
    expect(page.get_by_text("100,000 keys")).to_be_visible()
    page.get_by_role("row", name="user:").click()
    grid = page.get_by_role("grid")
    rows = page.locator(".space .row")
    for prefix in ("02:", "01:", "00:"):
        page.get_by_text(prefix, exact=True).click()
    page.evaluate(WATCH_WORK)
    for to in [*range(0, 100_000, 4000), 0]:
        grid.evaluate("(grid, to) => grid.scrollTo(0, to)", to)
        page.wait_for_timeout(16)
        assert rows.count() < 80
    check_work(page, record_property)
    assert grid.get_by_text("00001", exact=True).count() == 1, "what is counted is in order: 00000, 00001, …"
    page.get_by_role("searchbox").fill("user:42:4242")
    until(page, "() => document.querySelector('.count').textContent.startsWith('10 keys')")
    page.get_by_text("42:", exact=True).click()
    expect(page.get_by_text("42420", exact=True)).to_be_visible()
