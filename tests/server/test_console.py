"""The console's side of the service: who gets the page, its headers, signing in, and what a cookie opens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any, NamedTuple

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from synap import SynapClient
from synap.testing.server import ThrowawayServer
from tests.helpers.patience import PATIENCE
from tests.server.conftest import Serve

HTML = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
KEY, ADMIN = "user-key", "admin-key"
JSON = {"Content-Type": "application/json"}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    server: ThrowawayServer, method: str, path: str, headers: dict[str, str] | None = None, body: Any = None
) -> Answer:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    try:
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, headers or {})
        answer = connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


class SignedIn(NamedTuple):
    cookie: str
    csrf: str

    def headers(self) -> dict[str, str]:
        return {"Cookie": self.cookie, "X-CSRF-Token": self.csrf}


def sign_in(server: ThrowawayServer, key: str = ADMIN) -> SignedIn:
    answer = ask(server, "POST", "/console/session", JSON, {"key": key})
    assert answer.status == 200, answer.body
    return SignedIn(answer.headers["set-cookie"].partition(";")[0], answer.json()["csrf"])


def websocket(server: ThrowawayServer, signed_in: SignedIn, csrf: str | None = None) -> ClientConnection:
    return connect(
        f"ws://127.0.0.1:{server.port}/api/v1/ws",
        subprotocols=["synap.console", f"csrf.{signed_in.csrf if csrf is None else csrf}"],  # type: ignore[list-item]
        additional_headers={"Cookie": signed_in.cookie},
        proxy=None,
    )


@pytest.fixture(scope="module")
def guarded() -> Iterator[ThrowawayServer]:
    """A service that asks for keys."""
    with ThrowawayServer(arguments=["--api-key", KEY, "--admin-key", ADMIN]) as running:
        yield running


# ------------------------------------------------------------------------------------------ the page


def test_a_browser_gets_the_page_and_everybody_else_what_they_got(server: ThrowawayServer) -> None:
    page = ask(server, "GET", "/", HTML)
    assert page.status == 200
    assert page.headers["content-type"].startswith("text/html")
    for accept in ({}, {"Accept": "*/*"}, {"Accept": "application/json"}):
        plain = ask(server, "GET", "/", accept)
        assert plain.status == 404
        message = plain.json()["error"]["message"]
        assert message.startswith("there is nothing at '/'")
        assert message.endswith("the console at / for browsers (Accept: text/html)")
    assert ask(server, "POST", "/", HTML).status == 404


def test_without_the_console_a_browser_gets_what_everybody_gets(serve: Serve) -> None:
    service = serve("--no-console")
    for path in ("/", "/console/console.js", "/console/session"):
        assert ask(service, "GET", path, HTML).status == 404


def test_the_page_names_only_files_of_this_origin_that_are_there(server: ThrowawayServer) -> None:
    page = ask(server, "GET", "/", HTML).body.decode()
    named = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert named
    for name in named:
        assert "//" not in name
        assert ask(server, "GET", f"/{name}").status == 200


@pytest.mark.parametrize("path", ["/", "/console/console.js", "/console/console.css", "/console/icon.svg"])
def test_every_file_forbids_what_it_does_not_need(server: ThrowawayServer, path: str) -> None:
    headers = ask(server, "GET", path, HTML).headers
    policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"


def test_files_are_packed_where_asked_for_and_not_sent_twice(server: ThrowawayServer) -> None:
    packed = ask(server, "GET", "/console/console.js", {"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    again = ask(server, "GET", "/console/console.js", {"If-None-Match": packed.headers["etag"]})
    assert again.status == 304
    assert again.body == b""
    head = ask(server, "HEAD", "/console/console.js")
    assert head.status == 200
    assert head.body == b""


@pytest.mark.parametrize("path", ["/console/", "/console/../settings.py", "/console/pages.py", "/console/index.html"])
def test_there_is_nothing_else_below_it(server: ThrowawayServer, path: str) -> None:
    assert ask(server, "GET", path, HTML).status == 404


# ------------------------------------------------------------------------------------------ signing in


def test_without_keys_nobody_signs_in(server: ThrowawayServer) -> None:
    state = ask(server, "GET", "/console/session").json()
    assert state["keys"] is False
    assert "admin" in state["grants"]


def test_a_key_becomes_a_cookie_that_scripts_cannot_read(guarded: ThrowawayServer) -> None:
    before = ask(guarded, "GET", "/console/session").json()
    assert before["keys"] is True
    assert before["signed_in"] is False
    assert before["grants"] == []
    answer = ask(guarded, "POST", "/console/session", JSON, {"key": ADMIN})
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "Path=/" in cookie
    assert ADMIN not in answer.body.decode() + cookie
    assert answer.headers["cache-control"] == "no-store"
    assert "admin" in answer.json()["grants"]


def test_a_key_that_is_not_known_is_refused_and_not_repeated(guarded: ThrowawayServer) -> None:
    answer = ask(guarded, "POST", "/console/session", JSON, {"key": "not-the-key"})
    assert answer.status == 401
    assert b"not-the-key" not in answer.body
    assert "set-cookie" not in answer.headers


def test_grants_say_what_a_key_may(guarded: ThrowawayServer) -> None:
    signed_in = sign_in(guarded, KEY)
    state = ask(guarded, "GET", "/console/session", {"Cookie": signed_in.cookie}).json()
    assert state["signed_in"] is True
    assert "admin" not in state["grants"]
    command = {"command": "admin.stats"}
    refused = ask(
        guarded, "POST", "/api/v1/command", {**signed_in.headers(), "Content-Type": "application/json"}, command
    )
    assert refused.status == 403


@pytest.mark.parametrize("body", [{}, {"key": 5}, {"key": "a", "more": 1}, []])
def test_a_sign_in_of_another_shape_is_refused(guarded: ThrowawayServer, body: Any) -> None:
    assert ask(guarded, "POST", "/console/session", JSON, body).status == 400


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
def test_other_sites_sign_nobody_in_or_out(guarded: ThrowawayServer, method: str, headers: dict[str, str]) -> None:
    assert ask(guarded, method, "/console/session", headers, {"key": ADMIN}).status == 403


# ------------------------------------------------------------------------------------------ what the cookie opens


def test_the_cookie_opens_the_service_with_its_token_only(guarded: ThrowawayServer) -> None:
    signed_in = sign_in(guarded)
    command = {"command": "kv.exists", "payload": {"key": "a"}}
    json_type = {"Content-Type": "application/json"}
    assert ask(guarded, "POST", "/api/v1/command", {**json_type, **signed_in.headers()}, command).status == 200
    for csrf in ({}, {"X-CSRF-Token": "wrong"}):
        refused = ask(guarded, "POST", "/api/v1/command", {**json_type, "Cookie": signed_in.cookie, **csrf}, command)
        assert refused.status == 403
    stranger = {**json_type, "Cookie": signed_in.cookie[:-3] + "xyz", "X-CSRF-Token": signed_in.csrf}
    assert ask(guarded, "POST", "/api/v1/command", stranger, command).status == 401


def test_a_websocket_says_its_token_as_a_subprotocol(guarded: ThrowawayServer) -> None:
    signed_in = sign_in(guarded)
    with websocket(guarded, signed_in) as connection:
        assert connection.subprotocol == "synap.console"
        connection.send(json.dumps({"command": "admin.health", "request_id": "1"}))
        assert json.loads(connection.recv(timeout=PATIENCE))["success"] is True
    with pytest.raises(InvalidStatus) as refused:
        websocket(guarded, signed_in, csrf="wrong")
    assert refused.value.response.status_code == 403


def test_signing_out_ends_cookie_and_connections(guarded: ThrowawayServer) -> None:
    signed_in = sign_in(guarded)
    with websocket(guarded, signed_in) as connection:
        out = ask(guarded, "DELETE", "/console/session", signed_in.headers())
        assert out.status == 200
        assert "Max-Age=0" in out.headers["set-cookie"]
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=PATIENCE)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4401
    assert ask(guarded, "GET", "/console/session", {"Cookie": signed_in.cookie}).json()["signed_in"] is False
    with pytest.raises(InvalidStatus):
        websocket(guarded, signed_in)


def test_a_session_that_nobody_renews_ends(serve: Serve) -> None:
    for seconds in (1, 10, 60):  # a busy machine may take longer than that to renew it and open a WebSocket
        service = serve("--admin-key", ADMIN, "--console-session", str(seconds))
        signed_in = sign_in(service)
        renewed = ask(service, "PUT", "/console/session", signed_in.headers())
        try:
            connection = websocket(service, signed_in)
        except InvalidStatus:  # it is over
            continue
        assert renewed.status == 200
        assert 0 < renewed.json()["expires_in"] <= seconds
        with connection, pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=PATIENCE)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4401
        assert ask(service, "GET", "/console/session", {"Cookie": signed_in.cookie}).json()["signed_in"] is False
        return
    pytest.fail("no session was long enough to open a WebSocket")


def test_signing_in_anew_ends_the_session_before(guarded: ThrowawayServer) -> None:
    first = sign_in(guarded)
    again = ask(guarded, "POST", "/console/session", {**JSON, "Cookie": first.cookie}, {"key": KEY})
    assert again.status == 200
    assert ask(guarded, "GET", "/console/session", {"Cookie": first.cookie}).json()["signed_in"] is False


def test_a_sign_in_is_bounded(guarded: ThrowawayServer) -> None:
    assert ask(guarded, "POST", "/console/session", JSON, {"key": "k" * 20_000}).status == 413


def test_the_service_goes_on_for_clients_meanwhile(guarded: ThrowawayServer) -> None:
    with SynapClient(url=guarded.url, api_key=KEY) as client:
        client.kv.set("beside", 1)
        assert client.kv.get("beside").value == 1
