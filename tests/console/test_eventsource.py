"""A room as server-sent events of a FastAPI application, read by a real browser's EventSource."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Iterator

from playwright.sync_api import Browser

from synap import SynapClient
from synap.testing.ports import ReservedPort
from tests.console.browser import until

APPLICATION = """
import os

from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse, StreamingResponse

from synap.contrib.fastapi import Synap, event_stream, synap_lifespan

app = FastAPI(lifespan=synap_lifespan())


@app.get("/")
async def page() -> HTMLResponse:
    return HTMLResponse('''<!doctype html><script>
        const seen = []
        const source = new EventSource("/events/" + location.hash.slice(1))
        source.addEventListener("number", event => seen.push([Number(event.lastEventId), JSON.parse(event.data)]))
    </script>''')


@app.get("/events/{room}")
async def events(room: str, request: Request, synap: Synap) -> StreamingResponse:
    return event_stream(request, synap, room, replay=True)
"""


@contextlib.contextmanager
def application(folder: Path, port: int, url: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "uvicorn", "application:app", "--port", str(port), "--log-level", "critical"]
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, "SYNAP_URL": url})
    try:
        while True:
            assert process.poll() is None
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_browser_has_every_event_once_though_the_application_dies(
    browser: Browser, tmp_path: Path, synap_url: str, sync_synap_client: SynapClient
) -> None:
    (tmp_path / "application.py").write_text(APPLICATION, "utf-8")
    room, reserved = str(uuid.uuid4()), ReservedPort()
    port = reserved.number
    publish = sync_synap_client.stream.publish
    page = browser.new_page()
    with application(tmp_path, port, synap_url):
        for number in range(3):  # before anybody looks
            publish(room, "number", number * 10)
        page.goto(f"http://127.0.0.1:{port}/#{room}")
        until(page, "() => seen.length == 3")
        publish(room, "number", 30)
        until(page, "() => seen.length == 4")
    publish(room, "number", 40)  # while there is no application
    with application(tmp_path, port, synap_url):
        publish(room, "number", 50)
        until(page, "() => seen.length == 6")
        assert page.evaluate("seen") == [[number, number * 10] for number in range(6)]
    page.close()
