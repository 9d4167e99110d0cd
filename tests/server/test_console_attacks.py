"""What other pages, and who has got hold of half of it, can do with the console's cookie: nothing."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from synap import SynapClient
from synap.server import keyfile
from synap.server.grants import Quota
from synap.testing.server import ThrowawayServer
from synap.wire.handshake import Hello, greet
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import Http, dial, read_all, read_head, wait_for
from tests.helpers.still_rates import StillRates
from tests.server.conftest import Serve
from tests.server.test_console import ADMIN, HTML, JSON, KEY, SignedIn, ask, sign_in
from tests.server.test_door import make_certificate

GET = {"command": "kv.exists", "payload": {"key": "a"}}
WS = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.fixture(scope="module")
def guarded() -> Iterator[ThrowawayServer]:
    """A service that asks for keys."""
    with ThrowawayServer(arguments=["--api-key", KEY, "--admin-key", ADMIN]) as running:
        yield running


def signed_in_still(server: ThrowawayServer, signed_in: SignedIn) -> bool:
    return bool(ask(server, "GET", "/console/session", {"Cookie": signed_in.cookie}).json()["signed_in"])


def raw(server: ThrowawayServer, path: str, *headers: str) -> bytes:
    """Send a GET, and return the status."""
    lines = "".join(f"{header}\r\n" for header in headers)
    with dial(server) as peer:
        peer.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost:{server.port}\r\n{lines}\r\n".encode("latin-1"))
        return read_head(peer).split(b" ")[1]


# ------------------------------------------------------------------------------------------ signing in


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", "", "text/json"]
)
def test_no_form_signs_anybody_in(guarded: ThrowawayServer, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = ask(guarded, "POST", "/console/session", headers, {"key": KEY})
    assert answer.status == 400
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("squeezed", [False, True])
def test_who_has_no_key_sends_little_to_sign_in(guarded: ThrowawayServer, squeezed: bool) -> None:
    """The rest of a long body is not waited for, and one that inflates to more is not inflated."""
    body = json.dumps({"key": "x" * 1_000_000}).encode()
    sent = gzip.compress(body) if squeezed else body[:1000]
    encoding = "Content-Encoding: gzip\r\n" if squeezed else ""
    length = len(sent) if squeezed else len(body)
    with dial(guarded) as peer:
        head = f"POST /console/session HTTP/1.1\r\nHost: localhost:{guarded.port}\r\n{encoding}"
        kind = "Content-Type: application/json\r\n"
        peer.sendall(f"{head}{kind}Content-Length: {length}\r\n\r\n".encode() + sent)
        assert read_head(peer).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "origin", ["null", "https://evil.example", "http://127.0.0.1:1", "http://localhost.evil.example", "http://[", ""]
)
def test_a_page_elsewhere_signs_nobody_in_or_out_though_it_had_cookie_and_token(
    guarded: ThrowawayServer, method: str, origin: str
) -> None:
    signed_in = sign_in(guarded)
    headers = {**JSON, **signed_in.headers(), "Origin": origin}
    refused = ask(guarded, method, "/console/session", headers, {"key": KEY})
    assert refused.status == 403
    assert "set-cookie" not in refused.headers
    assert signed_in_still(guarded, signed_in)


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_a_cookie_alone_changes_no_session(guarded: ThrowawayServer, method: str) -> None:
    signed_in = sign_in(guarded)
    for token in ({}, {"X-CSRF-Token": ""}, {"X-CSRF-Token": "\xff"}, {"X-CSRF-Token": sign_in(guarded).csrf}):
        answer = ask(guarded, method, "/console/session", {"Cookie": signed_in.cookie, **token})
        assert answer.status == 403
    assert signed_in_still(guarded, signed_in)


def test_who_sends_no_origin_needs_the_token_all_the_same(guarded: ThrowawayServer) -> None:
    signed_in = sign_in(guarded)
    assert ask(guarded, "DELETE", "/console/session", signed_in.headers()).status == 200
    assert not signed_in_still(guarded, signed_in)


def test_a_cookie_that_somebody_planted_is_not_the_one_that_is_signed_in(guarded: ThrowawayServer) -> None:
    name = sign_in(guarded).cookie.partition("=")[0]
    planted = f"{name}=planted-by-somebody-planted-by-somebody-1"
    answer = ask(guarded, "POST", "/console/session", {**JSON, "Cookie": planted}, {"key": ADMIN})
    made = answer.headers["set-cookie"].partition(";")[0]
    assert made != planted
    assert not signed_in_still(guarded, SignedIn(planted, ""))
    assert signed_in_still(guarded, SignedIn(made, ""))


def test_other_cookies_beside_the_console_s_change_nothing_and_quotes_have_no_meaning(guarded: ThrowawayServer) -> None:
    made = sign_in(guarded).cookie
    name, _, token = made.partition("=")
    for odd in ('theme={"dark": true}', "a[0]=1", '="', 'long="' + "\\" * 8000 + '"'):
        assert signed_in_still(guarded, SignedIn(f"{odd}; {made}", "")), odd
    assert not signed_in_still(guarded, SignedIn(f'{name}="{token}"', ""))


def test_each_sign_in_has_a_cookie_and_a_token_of_its_own(guarded: ThrowawayServer) -> None:
    several = [sign_in(guarded) for _ in range(20)]
    assert len({one.cookie for one in several}) == len({one.csrf for one in several}) == 20
    assert all(len(one.cookie.partition("=")[2]) >= 43 and len(one.csrf) >= 43 for one in several)
    mixed = {"Cookie": several[0].cookie, "X-CSRF-Token": several[1].csrf}
    assert ask(guarded, "POST", "/api/v1/command", {**JSON, **mixed}, GET).status == 403


@pytest.mark.parametrize("cookies", ["=", ";;;=", "NAME", "NAME=", 'NAME="', "NAME=a; NAME=b", "NAME=\xff", "x" * 8000])
def test_odd_cookies_sign_nobody_in(guarded: ThrowawayServer, cookies: str) -> None:
    odd = cookies.replace("NAME", sign_in(guarded).cookie.partition("=")[0])
    answer = ask(guarded, "GET", "/console/session", {"Cookie": odd})
    assert answer.status == 200
    assert answer.json()["signed_in"] is False
    assert ask(guarded, "POST", "/api/v1/command", {**JSON, "Cookie": odd, "X-CSRF-Token": ""}, GET).status == 401


def test_keys_are_not_guessed_by_signing_in(serve: Serve, still_rates: StillRates) -> None:
    service = serve("--admin-key", ADMIN, environment=still_rates.environment)
    connection = Http(service)

    def guess(key: str) -> int:
        return connection.request("POST", "/console/session", json.dumps({"key": key}).encode(), JSON).status

    statuses = [guess(f"guess-{number}") for number in range(200)]
    assert set(statuses) == {401, 429}
    # While it lasts, who guesses right doesn't learn so.
    assert [guess(key) for key in ["wrong"] * 20 + [ADMIN]][-1] == 429
    still_rates.go_on()
    wait_for(lambda: guess(ADMIN) == 200)
    connection.close()


def test_sign_ins_are_bounded_in_number_and_a_key_ends_its_own_only(guarded: ThrowawayServer) -> None:
    another, first = sign_in(guarded), sign_in(guarded, KEY)
    connection = Http(guarded)
    for _ in range(1000):
        assert connection.request("POST", "/console/session", json.dumps({"key": KEY}).encode(), JSON).status == 200
    connection.close()
    assert not signed_in_still(guarded, first)
    assert signed_in_still(guarded, sign_in(guarded, KEY))
    assert signed_in_still(guarded, another)


def test_over_tls_the_cookie_goes_over_tls_only(tmp_path: Path, serve: Serve) -> None:
    import http.client
    import ssl

    certificate, key = make_certificate(tmp_path, "localhost")
    service = serve("--admin-key", ADMIN, "--tls-cert", certificate, "--tls-key", key)
    context = ssl.create_default_context(cafile=certificate)
    connection = http.client.HTTPSConnection("localhost", service.port, context=context, timeout=PATIENCE)
    connection.request("POST", "/console/session", json.dumps({"key": ADMIN}), JSON)
    parts = {part.strip() for part in connection.getresponse().headers["set-cookie"].split(";")}
    connection.close()
    assert {"Secure", "HttpOnly", "SameSite=Strict", "Path=/"} <= parts
    assert not any(part.lower().startswith("domain") for part in parts)


# ------------------------------------------------------------------------------------------ what the cookie opens

PLACES = [
    ("POST", "/api/v1/command"),
    ("DELETE", "/api/v1/command?request_id=a"),
    ("GET", "/api/v1/stream/subscribe?room=a"),
    ("GET", "/api/v1/admin/backup"),
    ("GET", "/metrics"),
]


@pytest.mark.parametrize(("method", "path"), PLACES)
def test_the_cookie_alone_opens_nothing(guarded: ThrowawayServer, method: str, path: str) -> None:
    signed_in = sign_in(guarded)
    body = GET if method == "POST" else None
    assert ask(guarded, method, path, {**JSON, "Cookie": signed_in.cookie}, body).status == 403
    foreign = {**JSON, **signed_in.headers(), "Origin": "http://evil.example"}
    assert ask(guarded, method, path, foreign, body).status == 403
    assert ask(guarded, method, path, {**JSON, "X-CSRF-Token": signed_in.csrf}, body).status == 401


def test_the_cookie_opens_no_native_lane(guarded: ThrowawayServer) -> None:
    signed_in = sign_in(guarded)
    with dial(guarded) as peer:
        asked = greet(f"localhost:{guarded.port}", Hello(os.urandom(16).hex(), "json", False, None))[:-2]
        peer.sendall(asked + f"Cookie: {signed_in.cookie}\r\nX-CSRF-Token: {signed_in.csrf}\r\n\r\n".encode())
        assert read_head(peer).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("origin", ["null", "https://evil.example", "http://127.0.0.1:1", "OTHER PORT"])
def test_a_page_elsewhere_opens_no_websocket_though_it_had_cookie_and_token(
    guarded: ThrowawayServer, origin: str
) -> None:
    signed_in = sign_in(guarded)
    headers = [f"Cookie: {signed_in.cookie}", f"Sec-WebSocket-Protocol: synap.console, csrf.{signed_in.csrf}", WS[:-2]]
    other = origin.replace("OTHER PORT", f"http://localhost:{guarded.port + 1}")
    assert raw(guarded, "/api/v1/ws", *headers, f"Origin: {other}") == b"403"
    assert raw(guarded, "/api/v1/ws", *headers, f"Origin: http://localhost:{guarded.port}") == b"101"
    assert raw(guarded, "/api/v1/ws", headers[0], headers[2]) == b"403", "the cookie alone"


def test_no_answer_may_be_framed_or_taken_for_a_page(guarded: ThrowawayServer) -> None:
    signed_in = sign_in(guarded)
    for method, path in (("GET", "/"), ("GET", "/nowhere"), ("GET", "/console/session"), ("GET", "/health"), *PLACES):
        headers = {"Host": "localhost", "Origin": "http://localhost", **HTML, **signed_in.headers()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        with dial(guarded) as peer:
            peer.sendall(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode())
            head = read_head(peer).lower()
        assert b"\r\nx-frame-options: deny\r\n" in head, path
        assert b"\r\nx-content-type-options: nosniff\r\n" in head, path
        assert b"\r\ncross-origin-resource-policy: same-origin\r\n" in head, path
        assert b"access-control-allow-origin" not in head, path
    state = ask(guarded, "GET", "/console/session", {"Cookie": signed_in.cookie}).headers
    assert "frame-ancestors 'none'" in state["content-security-policy"]
    assert state["cache-control"] == "no-store"


# ------------------------------------------------------------------------------------------ when it is over

End = Callable[[ThrowawayServer, SignedIn], None]


def signs_out(server: ThrowawayServer, signed_in: SignedIn) -> None:
    assert ask(server, "DELETE", "/console/session", signed_in.headers()).status == 200


def signs_in_anew(server: ThrowawayServer, signed_in: SignedIn) -> None:
    assert ask(server, "POST", "/console/session", {**JSON, "Cookie": signed_in.cookie}, {"key": KEY}).status == 200


@pytest.mark.parametrize("end", [signs_out, signs_in_anew])
def test_events_end_with_the_sign_in(guarded: ThrowawayServer, end: End) -> None:
    signed_in = sign_in(guarded)
    with dial(guarded) as peer:
        lines = f"Cookie: {signed_in.cookie}\r\nX-CSRF-Token: {signed_in.csrf}\r\nConnection: close\r\n"
        asked = f"GET /api/v1/stream/subscribe?room=a HTTP/1.1\r\nHost: localhost:{guarded.port}\r\n{lines}\r\n"
        peer.sendall(asked.encode())
        assert read_head(peer).startswith(b"HTTP/1.1 200 ")
        end(guarded, signed_in)
        with SynapClient(url=guarded.url, api_key=ADMIN) as client:
            client.stream.publish("a", "later", {"secret": 1})
        assert b"secret" not in read_all(peer)


def waiting(server: ThrowawayServer, headers: dict[str, str], queue: str) -> tuple[threading.Thread, list[Any]]:
    """Have a consume wait over HTTP."""
    told: list[Any] = []
    consume = {"command": "queue.consume", "payload": {"queue": queue, "timeout": 60}}
    thread = threading.Thread(
        target=lambda: told.append(ask(server, "POST", "/api/v1/command", {**JSON, **headers}, consume)), daemon=True
    )
    thread.start()
    with SynapClient(url=server.url, api_key=ADMIN) as client:

        def waits() -> bool:
            return queue in client.queue.list() and client.queue.stats(queue).consumers == 1

        wait_for(waits)
    return thread, told


@pytest.mark.parametrize("end", [signs_out, signs_in_anew])
def test_what_waits_ends_with_the_sign_in(guarded: ThrowawayServer, end: End) -> None:
    queue = f"after-{end.__name__}"
    signed_in = sign_in(guarded)
    thread, told = waiting(guarded, signed_in.headers(), queue)
    end(guarded, signed_in)
    thread.join(PATIENCE)
    assert [answer.status for answer in told] == [401]
    with SynapClient(url=guarded.url, api_key=ADMIN) as client:
        client.queue.publish(queue, 1)
        assert client.queue.stats(queue).depth == 1


@pytest.mark.parametrize(("left", "status"), [(None, 401), (["queue:*:other"], 403)])
def test_what_waits_over_http_ends_with_its_key(
    serve: Serve, tmp_path: Path, left: list[str] | None, status: int
) -> None:
    path = tmp_path / "keys.toml"
    key = keyfile.new_key()
    keyfile.add(path, "worker", key, ["queue:*:*"], Quota())
    service = serve("--admin-key", ADMIN, "--keys-file", str(path))
    thread, told = waiting(service, {"X-API-Key": key}, "jobs")
    keyfile.remove(path, "worker")
    if left is not None:
        keyfile.add(path, "worker", key, left, Quota())
    thread.join(PATIENCE)
    assert [answer.status for answer in told] == [status]
    with SynapClient(url=service.url, api_key=ADMIN) as client:
        client.queue.publish("jobs", 1)
        assert client.queue.stats("jobs").depth == 1


def test_cookies_are_worth_nothing_to_the_service_after_it(serve: Serve) -> None:
    service = serve("--admin-key", ADMIN)
    signed_in = sign_in(service)
    service.restart()
    assert not signed_in_still(service, signed_in)
    answer = ask(service, "POST", "/api/v1/command", {**JSON, **signed_in.headers()}, GET)
    assert answer.status == 401


def test_neither_cookie_nor_token_is_in_a_log(serve: Serve, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    service = serve("--admin-key", ADMIN, "--access-log", "--audit-log", str(audit))
    signed_in = sign_in(service)
    ask(service, "POST", "/api/v1/command", {**JSON, **signed_in.headers()}, {"command": "kv.clear", "payload": {}})
    ask(service, "POST", "/api/v1/command", {**JSON, "Cookie": signed_in.cookie}, GET)
    signs_out(service, signed_in)
    with contextlib.suppress(RuntimeError):
        service.stop()
    said = "".join(service.output) + audit.read_text()
    for secret in (ADMIN, signed_in.csrf, signed_in.cookie.partition("=")[2]):
        assert secret not in said
