"""Requests that web pages of others make browsers send, on every path and lane."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from synap.testing.server import ThrowawayServer
from synap.wire.handshake import Hello, greet
from tests.helpers.raw import Http, dial, read_all, read_head

Serve = Callable[..., ThrowawayServer]

WS = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
PLACES = [
    "GET /api/v1/admin/backup",
    "GET /api/v1/stream/subscribe?room=a",
    "GET /metrics",
    "GET /health",
    "HEAD /health",
    "GET /openapi.json",
    "GET /console/session",
    "GET /console/console.js",
    "GET /nowhere",
    "POST /api/v1/command",
    "DELETE /api/v1/command?request_id=a",
    "WS /api/v1/ws",
    "NATIVE /api/v1/native",
]


def ask(server: ThrowawayServer, place: str, host: str, *headers: str) -> bytes:
    """Send a request whose answer ends the connection where it is refused; return its status."""
    method, path = place.split(" ")
    lines = "".join(f"{header}\r\n" for header in headers)
    if method == "NATIVE":
        data = greet(host, Hello(os.urandom(16).hex(), "json", False, None))[:-2] + lines.encode() + b"\r\n"
    else:
        if method == "WS":
            method, lines = "GET", lines + WS
        if method == "POST":
            lines += "Content-Type: application/json\r\nContent-Length: 2\r\n"
        body = "{}" if method == "POST" else ""
        data = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n{body}".encode("latin-1")
    with dial(server) as peer:
        peer.sendall(data)
        return read_head(peer).split(b" ")[1]


@pytest.mark.parametrize("place", PLACES)
def test_a_name_that_leads_here_by_somebody_s_trick_gets_nothing(server: ThrowawayServer, place: str) -> None:
    assert ask(server, place, "evil.example") == b"403"
    assert ask(server, place, f"evil.example:{server.port}") == b"403"
    assert ask(server, place, "127.0.0.1.evil.example") == b"403"
    assert ask(server, place, "localhost") != b"403"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("site", ["cross-site", "same-site", "nonsense"])
def test_other_sites_pages_get_nothing(server: ThrowawayServer, place: str, site: str) -> None:
    mode = "Sec-Fetch-Mode: no-cors"
    assert ask(server, place, "localhost", f"Sec-Fetch-Site: {site}", mode) == b"403"
    assert ask(server, place, "localhost", f"Sec-Fetch-Site: {site}", "Sec-Fetch-Mode: navigate") == b"403"
    assert ask(server, place, "localhost", "Sec-Fetch-Site: same-origin", mode) != b"403"
    assert ask(server, place, "localhost", "Sec-Fetch-Site: none", mode) != b"403"


def test_a_link_on_another_site_may_lead_to_the_console(server: ThrowawayServer) -> None:
    headers = ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Accept: text/html"]
    assert ask(server, "GET /", "localhost", *headers) == b"200"


@pytest.mark.parametrize("place", PLACES)
def test_an_origin_is_a_scheme_a_name_and_a_port(server: ThrowawayServer, place: str) -> None:
    host = f"localhost:{server.port}"
    for foreign in (
        "http://localhost:1",
        "http://127.0.0.1",
        "ftp://localhost",
        "null",
        "http://[",
        "http://evil.example",
    ):
        assert ask(server, place, host, f"Origin: {foreign}") == b"403", foreign
    assert ask(server, place, host, f"Origin: http://{host}") != b"403"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]:15500", "10.1.2.3", "localhost", "LOCALHOST.", "synap", "a.localhost"]
)
def test_addresses_and_names_nobody_can_own_are_answered(server: ThrowawayServer, host: str) -> None:
    assert ask(server, "GET /health", host) == b"200"


def test_allowed_hosts_are_answered_and_others_not(serve: Serve) -> None:
    service = serve("--allowed-host", "synap.example", "--allowed-host", "other.example:8000")
    for host in ("synap.example", "synap.example:80", "other.example:8000", "127.0.0.1", "localhost"):
        assert ask(service, "GET /health", host) == b"200", host
    for host in ("other.example", "evil.example", "10.1.2.3", "synap"):
        assert ask(service, "GET /health", host) == b"403", host


def test_with_keys_any_name_will_do_as_the_page_has_none(serve: Serve) -> None:
    service = serve("--api-key", "k")
    assert ask(service, "GET /health", "synap.example") == b"200"
    assert ask(service, "GET /metrics", "synap.example") == b"401"


def test_a_post_says_what_it_is(http: Http) -> None:
    body = b'{"command": "kv.exists", "payload": {"key": "a"}}'
    answer = http.request("POST", "/api/v1/command", body)
    assert answer.status == 400
    assert "Content-Type must be application/json" in answer.error["message"]


@pytest.mark.parametrize("path", ["/health", "/metrics", "/openapi.json", "/nowhere", "/console/session"])
def test_answers_are_for_no_other_page(http: Http, path: str) -> None:
    headers = http.request("GET", path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-frame-options"] == "DENY"


def test_nothing_is_said_to_foreign_pages_about_what_is_there(server: ThrowawayServer) -> None:
    with dial(server) as peer:
        peer.sendall(b"GET /api/v1/admin/backup HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
        answer = read_all(peer)
    assert b"--allowed-host" in answer
    assert b"memory" not in answer


@pytest.mark.parametrize(
    "host",
    [
        "evil.example@localhost",
        "localhost/evil.example",
        "evil\u3002example",
        "localhost#.evil.example",
        "localhost?.evil.example",
        "localhost evil.example",
        "localhost:80:evil.example",
        "[::1].evil.example",
        "[evil.example]",
        "localhost\\.evil.example",
        "",
    ],
)
def test_what_is_no_name_is_none_of_ours(server: ThrowawayServer, host: str) -> None:
    for place in ("GET /metrics", "NATIVE /api/v1/native", "WS /api/v1/ws"):
        assert ask(server, place, host.encode().decode("latin-1")) in (b"403", b"400")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:15500", "synap", "my_host", "a.localhost"]
)
def test_addresses_and_names_that_nobody_owns_are(server: ThrowawayServer, host: str) -> None:
    assert ask(server, "GET /metrics", host) == b"200"


@pytest.mark.parametrize("place", ["GET /metrics", "POST /api/v1/command", "WS /api/v1/ws", "NATIVE /api/v1/native"])
@pytest.mark.parametrize("second", ["evil.example", "localhost"])
def test_a_request_has_one_host(server: ThrowawayServer, place: str, second: str) -> None:
    assert ask(server, place, "localhost", f"Host: {second}") == b"400"
    assert ask(server, place, second, "hOST: localhost") in (b"400", b"403")


def test_what_proxies_say_of_callers_is_not_believed(serve: Serve, tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    service = serve("--api-key", "right-key-0123456789", "--audit-log", str(log))
    headers = ["X-Forwarded-For: 10.9.8.7", "Forwarded: for=10.9.8.7", "X-Real-IP: 10.9.8.7", "X-API-Key: wrong"]
    assert ask(service, "GET /metrics", "localhost", *headers) == b"401"
    assert "10.9.8.7" not in log.read_text()
    assert '"address": "127.0.0.1"' in log.read_text()
    for name in ("X-Forwarded-Host", "X-Original-URL", "X-Rewrite-URL", "X-HTTP-Method-Override"):
        assert ask(service, "GET /metrics", "localhost", f"{name}: /health") == b"401"


@pytest.mark.parametrize(
    "path",
    ["/%6detrics/", "//metrics", "/./metrics", "/a/../metrics", "/metrics/", "/METRICS", "/metrics%00", "/metrics;a"],
)
def test_paths_are_taken_as_they_are(server: ThrowawayServer, path: str) -> None:
    assert ask(server, f"GET {path}", "localhost") == b"404"
    assert ask(server, f"GET {path}", "evil.example") == b"403"
