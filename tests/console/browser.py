"""A real headless Chromium, watched: a request that leaves the service, an error or a violation fails the test."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Page,
    Request,
    WebSocket,
    expect,
    sync_playwright,
)

__all__ = ["PATIENCE", "Console", "chromium", "until"]

PATIENCE = 60_000.0
"""Milliseconds after which a test gives up on the page: a browser on a machine with much else to do."""
expect.set_options(timeout=PATIENCE)
EXECUTABLE = "SYNAP_TEST_CHROMIUM"
"""Environment variable: the browser to run, where it isn't `chromium` on the PATH."""
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    # Nothing but this machine has an address, whatever a page asks for.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run the browser, with a profile of its own."""
    path = os.environ.get(EXECUTABLE) or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        raise RuntimeError(f"no chromium on the PATH: install Debian's package, or set {EXECUTABLE}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


def until(page: Page, script: str, argument: Any = None, patience: float = PATIENCE) -> None:
    """Wait until a function of the page returns true. Playwright's own way needs `eval`, which the policy forbids."""
    deadline = time.monotonic() + patience / 1000
    while not page.evaluate(script, argument):
        assert time.monotonic() < deadline, f"never came true: {script}"
        page.wait_for_timeout(20)


class Console:
    """One browser window on one service, and everything it did that it shouldn't have."""

    def __init__(self, browser: Browser, url: str, *, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        self.url = url
        self.faults: list[str] = []
        self.expected: list[str] = []
        """Parts of errors that a test brings about itself."""
        self.context: BrowserContext = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            has_touch=width < 600,
            reduced_motion="reduce",
        )
        self.context.set_default_timeout(PATIENCE)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
        self.context.on("request", self._request)
        self.page: Page = self.context.new_page()
        self.page.on("websocket", self._websocket)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.faults.append(f"the page raised {error}"))
        self.page.on("dialog", self._dialog)

    def open(self, screen: str = "now") -> Page:
        """Open a screen (`queues`, `queues/emails?tab=dead`), and wait until it is live."""
        self.page.goto(f"{self.url}/#/{screen}")
        self.page.wait_for_selector(".state.live")
        return self.page

    def check(self) -> None:
        """Fail if anything happened that shouldn't have."""
        faults = [fault for fault in self.faults if not any(known in fault for known in self.expected)]
        assert not faults, "\n".join(faults)

    def close(self) -> None:
        self.context.close()

    def _request(self, request: Request) -> None:
        if request.url.startswith(("blob:", "data:")):
            return
        if f"{urlsplit(request.url).scheme}://{urlsplit(request.url).netloc}" != self.url:
            self.faults.append(f"a request left the origin: {request.url}")

    def _websocket(self, socket: WebSocket) -> None:
        if urlsplit(socket.url).netloc != urlsplit(self.url).netloc:
            self.faults.append(f"a WebSocket left the origin: {socket.url}")

    def _dialog(self, dialog: Dialog) -> None:
        self.faults.append("a script opened a dialog")
        dialog.dismiss()

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"the page logged: {message.text}")
