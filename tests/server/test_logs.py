"""What the service logs: text or JSON, and the access log."""

from __future__ import annotations

import json
import logging
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synap import SynapClient
from synap.terminal import LineFormatter, escaped
from synap.testing.server import ThrowawayServer
from tests.helpers.keys import File
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import Http, dial, read_all
from tests.server.conftest import Serve


def line(service: ThrowawayServer, wanted: Callable[[str], bool]) -> str:
    """Return the first line of the log that fits, once it is there."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for text in service.output:
            if wanted(text):
                return text
        time.sleep(0.01)
    raise AssertionError("".join(service.output))


def logged(service: ThrowawayServer, **fields: Any) -> Any:
    """Return the first JSON line that has these fields."""

    def fits(text: str) -> bool:
        return text.startswith("{") and fields.items() <= json.loads(text).items()

    return json.loads(line(service, fits))


def test_json_lines_say_who_asked_for_what(serve: Serve) -> None:
    service = serve("--access-log", "--log-format", "json", "--api-key", "sesame", "--admin-key", "admin")
    http = Http(service, x_api_key="sesame")
    assert http.do("kv.set", key="secret-key", value="secret-value").status == 200
    found = logged(service, path="/api/v1/command", status=200)
    assert found["logger"] == "synap.access"
    assert found["level"] == "info"
    assert found["method"] == "POST"
    assert found["address"] == "127.0.0.1"
    assert found["key"].startswith("key")
    assert found["bytes"] > 0
    assert found["ms"] >= 0
    assert found["time"].endswith("Z")
    assert http.request("GET", "/nowhere?password=hunter2").status == 404
    logged(service, path="/nowhere", status=404)
    http.close()
    stranger = Http(service, x_api_key="wrong-key")
    assert stranger.do("kv.get", key="a").status == 401
    assert logged(service, status=401)["key"] == ""
    stranger.close()
    with SynapClient(url=service.url, api_key="sesame") as client:
        client.kv.get("a")
    ended = logged(service, lane="native")
    assert ended["seconds"] >= 0
    service.stop()
    text = "".join(service.output)
    for secret in ("sesame", "wrong-key", "hunter2", "secret-key", "secret-value"):
        assert secret not in text


def test_text_lines_name_the_key_too(serve: Serve, tmp_path: Path) -> None:
    file = File(tmp_path / "keys.toml", {"billing": ["*:*:*"]})
    service = serve("--access-log", "--keys-file", str(file.path))
    http = Http(service, x_api_key=file.keys["billing"])
    assert http.do("kv.set", key="a", value=1).status == 200
    http.close()
    assert "INFO 127.0.0.1 billing POST /api/v1/command 200 " in line(service, lambda text: "POST /api" in text)
    with SynapClient(url=service.url, api_key=file.keys["billing"]) as client:
        client.kv.get("a")
    assert " billing native connection, " in line(service, lambda text: "connection, " in text)


def test_text_lines_stay_lines(serve: Serve) -> None:
    service = serve("--access-log")
    with urllib.request.urlopen(f"{service.url}/health", timeout=PATIENCE) as answer:
        assert answer.status == 200
    assert "INFO 127.0.0.1 - GET /health 200 " in line(service, lambda text: "/health" in text)
    http = Http(service)
    http.request("GET", "/a%0d%0aINFO%20forged%1b[31m")
    http.close()
    assert "\\r\\nINFO forged\\x1b" in line(service, lambda text: "forged" in text)


def test_without_it_requests_leave_no_line(serve: Serve) -> None:
    service = serve("--log-format", "json")
    with urllib.request.urlopen(f"{service.url}/health", timeout=PATIENCE) as answer:
        assert answer.status == 200
    service.stop()
    assert not [text for text in service.output if "/health" in text]
    assert json.loads(next(text for text in service.output if "stopping" in text))["level"] == "info"


@pytest.mark.parametrize("format", ["text", "json"])
def test_what_strangers_send_stays_on_its_line_and_is_not_obeyed(serve: Serve, format: str) -> None:
    service = serve("--log-format", format, "--access-log")
    with dial(service) as peer:
        peer.sendall(b"GET /%1b%5b31m%0aforged%c2%9b%e2%80%ae HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        read_all(peer)
    assert "forged" in line(service, lambda text: "forged" in text).partition(" ")[2]
    service.stop()
    said = "".join(service.output)
    assert said == escaped(said)
    assert not any(text.startswith("forged") for text in said.splitlines())


def test_a_record_is_one_line_whatever_is_in_it() -> None:
    formatter = LineFormatter("%(message)s")
    try:
        raise ValueError("a\x1b[31m\nb")
    except ValueError:
        record = logging.LogRecord("synap", logging.ERROR, "", 0, "a\nb\r\x9b\u202e", (), sys.exc_info())
    first, *rest = formatter.format(record).split("\n")
    assert first == "a\\nb\\u000d\\u009b\\u202e"
    assert rest[0].startswith("Traceback")
    assert "\x1b" not in "".join(rest)
