"""What the first request of its kind needs is imported and made beside the event loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import Any

import pytest

from synap.server import openapi
from tests.helpers.inside import running, service
from tests.helpers.patience import PATIENCE

STOPPING = "stopping: no new work, requests in flight are answered"

SERVE = """
import importlib, os, signal, socket, sys, threading, time
from synap.server import run
from synap.server.settings import ServerConfig

patience = float(sys.argv[1])
if sys.argv[2] == "asyncio":
    sys.modules["uvloop"] = None

def wait_for(what):
    end = time.monotonic() + patience
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)

def serve(client):
    "Serve in this thread until `client`, which is run in another once the service listens, is done."
    thread = threading.Thread(target=client)
    ports = []

    def out(line):
        if line.startswith("listening on "):
            ports.append(int(line.rpartition(":")[2]))
            serve.imported = [module for module in run.LATER if module in sys.modules]
            thread.start()

    serve.connect = lambda: socket.create_connection(("127.0.0.1", ports[0]), timeout=patience)
    print("ended", run.serve(ServerConfig(memory=True, port=0), out=out))
    thread.join()
    print("imported before it listened:", *serve.imported)

def stop():
    os.kill(os.getpid(), signal.SIGTERM)
"""

ASK = """
on_the_loop = []

class Seen:
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread() is threading.main_thread():
            if name.partition(".")[0] not in sys.stdlib_module_names:
                on_the_loop.append(name)

def ask(place, *more):
    with serve.connect() as peer:
        lines = place + " HTTP/1.1", "Host: localhost", *more
        peer.sendall("\\r\\n".join(lines).encode() + b"\\r\\n\\r\\n")
        print(place, *peer.recv(12).decode().split()[1:])
        if "Connection: close" in more:
            while peer.recv(65536):
                pass

def client():
    wait_for(lambda: all(module in sys.modules for module in run.LATER))
    for module in run.LATER:
        importlib.import_module(module)  # waits until it is imported whole
    sys.meta_path.insert(0, Seen())
    for place in ("/", "/health", "/openapi.json", "/metrics"):
        ask("GET " + place, "Accept: text/html", "Connection: close")
    ask("GET /api/v1/stream/subscribe?room=r")
    upgrade = ("Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: " + "A" * 22 + "==")
    ask("GET /api/v1/ws", *upgrade, "Upgrade: websocket")
    stop()

serve(client)
print("imported on the event loop:", *on_the_loop)
"""

STOP = """
importing, go_on = threading.Event(), threading.Event()

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name in run.LATER and not importing.is_set():
            importing.set()
            assert go_on.wait(patience)

sys.meta_path.insert(0, Slow())

def refused():
    try:
        serve.connect().close()
    except ConnectionError:
        return True
    return False

def client():
    assert importing.wait(patience)
    stop()
    wait_for(refused)
    go_on.set()

serve(client)
print("imported in the end:", *(module for module in run.LATER if module in sys.modules))
"""


def said(script: str, loop: str) -> list[str]:
    """Run a script with a service in an interpreter of its own, which shows warnings; return what it printed."""
    command = [sys.executable, "-W", "always", "-c", SERVE + script, str(PATIENCE), loop]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.partition(" INFO ")[2] for line in done.stderr.splitlines()] == [STOPPING], done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_no_request_imports_anything_on_the_event_loop(loop: str) -> None:
    *answers, ended, before, on_the_loop = said(ASK, loop)
    assert answers == [
        "GET / 200",
        "GET /health 200",
        "GET /openapi.json 200",
        "GET /metrics 200",
        "GET /api/v1/stream/subscribe?room=r 200",
        "GET /api/v1/ws 101",
    ]
    assert ended == "ended 0"
    assert before == "imported before it listened:"
    assert on_the_loop == "imported on the event loop:"


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_stop_during_these_imports_is_clean(loop: str) -> None:
    ended, before, imported = said(STOP, loop)
    assert ended == "ended 0"
    assert before == "imported before it listened:"
    assert imported == "imported in the end: synap.server.pinging_websocket synap.server.metrics"


async def test_the_api_is_described_beside_the_event_loop_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    describe = openapi.describe
    threads: list[threading.Thread] = []

    def counted(**options: Any) -> dict[str, Any]:
        threads.append(threading.current_thread())
        return describe(**options)

    monkeypatch.setattr(openapi, "describe", counted)
    async with running(service()) as port:
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert b'"openapi": "3.1' in await reader.read()
            writer.close()
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()
