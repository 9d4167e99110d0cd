"""The Grafana dashboard and the alert rules name only metrics that a real scrape has."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from synap import SynapClient, SynapError
from synap.server import app
from synap.testing.server import ThrowawayServer
from tests.helpers.inside import running, service

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
        with urllib.request.urlopen(f"{service.url}/metrics", timeout=20) as answer:
            text = answer.read().decode()
    return {re.split(r"[ {]", line, maxsplit=1)[0] for line in text.splitlines() if line and not line.startswith("#")}


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
