"""The Grafana dashboard and the alert rules name only metrics that a real scrape has."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import subprocess
import sys
import urllib.request
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from synap import SynapClient, SynapError
from synap.server import app
from synap.testing.server import ThrowawayServer
from tests.helpers.inside import running, service
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import dial, read_all

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "synap.rules.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "synap.json"
NAME = re.compile(r"\b((?:synap|process)_[a-z_]+)\b")


async def test_the_library_for_metrics_is_imported_with_the_first_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []

    def import_module(name: str) -> ModuleType:
        imported.append(name)
        return sys.modules.get(name) or __import__(name, fromlist=["expose"])

    monkeypatch.setattr(app, "importlib", SimpleNamespace(import_module=import_module))
    async with running(service()) as port:
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert b"synap_connections " in await reader.read()
            writer.close()
    assert imported == ["synap.server.metrics"]


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names that a service exposes that has some of everything."""
    data = tmp_path_factory.mktemp("monitoring") / "data"
    server = ThrowawayServer(data=str(data), arguments=["--memory-limit", "1GiB"])
    with server as service, SynapClient(url=service.url) as client:
        client.queue.publish("orders", 1)
        client.stream.publish("chat", "message", 1)
        client.kv.set("key", 1, ttl=100)
        with pytest.raises(SynapError):
            client.queue.stats("nowhere")
        with urllib.request.urlopen(f"{service.url}/metrics", timeout=PATIENCE) as answer:
            text = answer.read().decode()
    return {re.split(r"[ {]", line, maxsplit=1)[0] for line in text.splitlines() if line and not line.startswith("#")}


def http(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A whole request of its own connection."""
    named = {"Host": "localhost", "Connection": "close", "Content_Length": str(len(body)), **headers}
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in named.items()]
    return f"{method} {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode() + body


def post(body: bytes | object, **headers: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return http("POST", "/api/v1/command", data, **{"Content-Type": "application/json", **headers})


def command(name: str, **payload: object) -> bytes:
    return post({"command": name, "payload": payload})


ROOM = "/api/v1/stream/subscribe"
REFUSED = [
    (post(b"nonsense"), "INVALID_REQUEST"),
    (post({}, Content_Type="text/plain"), "INVALID_REQUEST"),
    (post({}, Accept="text/plain"), "INVALID_REQUEST"),
    (post(b"x", Content_Encoding="gzip"), "INVALID_REQUEST"),
    (post(b"x", Content_Encoding="br"), "INVALID_REQUEST"),
    (post(gzip.compress(bytes(11_000_000)), Content_Encoding="gzip"), "PAYLOAD_TOO_LARGE"),
    (command("no.such"), "INVALID_COMMAND"),
    (command("kv.set"), "INVALID_PAYLOAD"),
    (command("kv.incr", key="text"), "WRONG_TYPE"),
    (command("kv.mget", keys=["large"] * 80), "PAYLOAD_TOO_LARGE"),
    (command("stream.subscribe", room="r"), "INVALID_COMMAND"),
    (http("DELETE", "/api/v1/command?request_id=x"), "INVALID_REQUEST"),
    (http("PUT", "/api/v1/command"), "INVALID_REQUEST"),
    (http("GET", "/nowhere"), "INVALID_REQUEST"),
    (http("GET", "/api/v1/ws"), "INVALID_REQUEST"),
    (http("GET", "/api/v1/native"), "INVALID_REQUEST"),
    (http("GET", "/api/v1/admin/backup"), "INVALID_REQUEST"),
    (http("GET", f"{ROOM}?room=r&from_offset=x"), "INVALID_PAYLOAD"),
    (http("GET", f"{ROOM}?room=there&from_offset=-9999999999999999999999"), "INVALID_PAYLOAD"),
    (http("GET", "/nowhere", Upgrade="websocket", Connection="Upgrade", Sec_WebSocket_Version="13",
          Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ=="), "INVALID_REQUEST"),
    (b"nonsense\r\n\r\n", "INVALID_REQUEST"),
    (b"GET /api/v1/native HTTP/1.1\r\n\r\n", "INVALID_REQUEST"),
]  # fmt: skip


def test_every_error_that_is_answered_counts_once() -> None:
    with ThrowawayServer() as server, SynapClient(url=server.url) as client:
        client.kv.set("text", "x")
        client.kv.set("large", "x" * 900_000)

        def counted() -> Counter[str]:
            errors: dict[str, int] = client.stats()["errors"]
            return Counter(errors)

        for sent, code in REFUSED:
            before = counted()
            with dial(server) as peer:
                peer.sendall(sent)
                assert f'"code":"{code}"'.encode() in read_all(peer), sent[:200]
            assert counted() - before == Counter({code: 1}), sent[:200]


def test_every_metric_of_the_alerts_is_there(scraped: set[str]) -> None:
    named = set(NAME.findall(RULES.read_text("utf-8")))
    assert len(named) > 10
    assert named <= scraped, named - scraped


def test_there_is_an_alert_for_what_the_manual_says_to_watch() -> None:
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    rows = page.partition("What to watch:")[2].partition("\n\n`deploy")[0]
    watched = set(NAME.findall(rows)) - {"synap_request_duration_seconds"}  # how long is too long, users know
    assert len(watched) > 7
    assert watched <= set(NAME.findall(RULES.read_text("utf-8")))


def test_every_metric_of_the_dashboard_is_there(scraped: set[str]) -> None:
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    named = {name for query in queries for name in NAME.findall(query)}
    assert len(named) > 20
    assert named <= scraped, named - scraped


def test_the_dashboard_is_what_its_tool_writes() -> None:
    subprocess.run([sys.executable, "tools/dashboard.py", "--check"], cwd=ROOT, check=True)


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
