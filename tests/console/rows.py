"""Measure how soon a publish is a row of the console: `python -m tests.console.rows`.

By the page's own clock, from when a publish is answered to when its row is there, at any moment between two pushes.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from synap.testing.server import ThrowawayServer
from tests.console.browser import Console, chromium

# Publish to a queue of that name, and return the milliseconds from the answer until the row is in the page.
PUBLISH_AND_SEE = """async (name) => {
    const shown = new Promise((seen) => {
        const observer = new MutationObserver(() => {
            if (![...document.querySelectorAll(".name")].some((cell) => cell.textContent === name)) return;
            observer.disconnect();
            seen(performance.now());
        });
        observer.observe(document.body, {subtree: true, childList: true, characterData: true});
    });
    await new Promise((later) => setTimeout(later, 1000 * Math.random()));
    const body = JSON.stringify({command: "queue.publish", payload: {queue: name, message: 1}});
    const answer = await fetch("api/v1/command", {method: "POST", headers: {"Content-Type": "application/json"}, body});
    await answer.json();
    const answered = performance.now();
    return Math.max(0, await shown - answered);
}"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.console.rows", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--count", type=int, default=20, help="publishes (default: %(default)s)")
    count = parser.parse_args().count
    with chromium() as browser, ThrowawayServer() as server:
        console = Console(browser, server.url)
        page = console.open("queues")
        took = sorted(page.evaluate(PUBLISH_AND_SEE, f"fresh-{number}") for number in range(count))
        console.close()
        console.check()
    sys.stdout.write(f"publish to row, {count} times: p50 {statistics.median(took):.0f} ms, max {took[-1]:.0f} ms\n")


if __name__ == "__main__":
    main()
