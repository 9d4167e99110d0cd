"""Whatever answers, only documented errors come out, and they say whether a write may have happened."""

from __future__ import annotations

import gzip
import re
import socket
from typing import Callable, Iterator, Union

import pytest

from synap.commands import KV_GET, KV_SET, KvGet, KvSet
from synap.errors import AuthenticationError, ConnectionError, PermissionDeniedError, RateLimitError, SynapError
from synap.lanes._sync import connections
from tests.lanes.canned import CannedPeer, http_answer
from tests.lanes.lanes import http_lane, made

HTML = b"<html><title>502 Bad Gateway</title></html>"


def envelope(request: bytes, rest: str) -> bytes:
    """Write an answer under the id that the request came with."""
    found = re.search(rb'"request_id":"([^"]+)"', request)
    assert found is not None
    return f'{{"type":"response","request_id":"{found[1].decode()}",{rest}}}'.encode()


def good(request: bytes) -> bytes:
    return http_answer(envelope(request, '"status":"success","payload":{"found":false}'))


NO_ANSWERS = {
    "a web page": http_answer(HTML, "502 Bad Gateway", "text/html"),
    "a web page that is fine": http_answer(HTML, "200 OK", "text/html"),
    "nothing": b"",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
    "noise": bytes(range(256)) * 8,
    "JSON of something else": http_answer(b'{"hello":"world"}'),
    "JSON that is no object": http_answer(b"[1,2,3]"),
    "JSON that breaks off": http_answer(b'{"type":"response","sta'),
    "an empty body": http_answer(b""),
    "another request's answer": http_answer(
        b'{"type":"response","request_id":"other","status":"success","payload":{"found":true}}'
    ),
    "a body that breaks off": http_answer(b'{"type": "response"}').replace(b": 20", b": 200"),
    "a head that breaks off": b"HTTP/1.1 200 OK\r\nContent-Ty",
    "an endless head": b"HTTP/1.1 200 OK\r\n" + b"X-Filler: 0123456789\r\n" * 8000,
    "two lengths": http_answer(b"{}", extra="Content-Length: 3\r\n"),
    "gzip that is none": http_answer(b"{}", extra="Content-Encoding: gzip\r\n"),
    "an encoding nobody asked for": http_answer(b"{}", extra="Content-Encoding: br\r\n"),
    "a result of another kind": lambda request: http_answer(
        envelope(request, '"status":"success","payload":{"success":"maybe"}')
    ),
    "a result nested deep": lambda request: http_answer(
        envelope(request, '"status":"success","payload":' + "[" * 5000 + "]" * 5000)
    ),
    "MessagePack that is none": http_answer(b"\xc1\xc1", content_type="application/msgpack"),
}


@pytest.mark.parametrize("reply", NO_ANSWERS.values(), ids=list(NO_ANSWERS))
def test_what_is_no_answer_is_a_lost_connection(reply: Union[bytes, Callable[[bytes], bytes]], colour: str) -> None:
    with CannedPeer(reply, ends=True) as peer, http_lane(peer.url, colour) as lane:
        with pytest.raises(ConnectionError) as read:
            lane.call(KV_GET, KvGet("a"))
        assert read.value.code == "CONNECTION_LOST"
        assert not read.value.may_have_happened
        with pytest.raises(ConnectionError) as write:
            lane.call(KV_SET, made(KvSet, "a", 1))
        assert write.value.may_have_happened
        assert "may have taken effect" in str(write.value)
        peer.reply = good
        assert not lane.call(KV_GET, KvGet("a")).found


def test_a_path_that_is_not_there_changed_nothing(colour: str) -> None:
    reply = http_answer(b"<h1>It works!</h1>", "404 Not Found", "text/html")
    with CannedPeer(reply) as peer, http_lane(peer.url, colour) as lane:
        with pytest.raises(ConnectionError, match="is not a Synap service: 404, text/html, '<h1>It works!") as caught:
            lane.call(KV_SET, made(KvSet, "a", 1))
        assert not caught.value.may_have_happened


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        ("401 Unauthorized", AuthenticationError, "UNAUTHORIZED"),
        ("403 Forbidden", PermissionDeniedError, "FORBIDDEN"),
        ("413 Too Large", SynapError, "PAYLOAD_TOO_LARGE"),
        ("429 Too Many Requests", RateLimitError, "RATE_LIMIT_EXCEEDED"),
        ("503 Unavailable", SynapError, "SERVICE_UNAVAILABLE"),
    ],
)
def test_a_proxys_refusal_means_what_its_status_means(status: str, kind: type, code: str, colour: str) -> None:
    reply = http_answer(HTML, status, "text/html; charset=utf-8", extra="Retry-After: 7\r\n")
    with CannedPeer(reply) as peer, http_lane(peer.url, colour) as lane:
        with pytest.raises(kind) as caught:
            lane.call(KV_GET, KvGet("a"))
        assert isinstance(caught.value, SynapError)
        assert caught.value.code == code
        assert caught.value.details == {"retry_after": 7}


def test_an_error_envelope_is_raised_as_it_is(colour: str) -> None:
    def reply(request: bytes) -> bytes:
        error = '"status":"error","error":{"code":"WRONG_TYPE","message":"no","details":{"key":"a"}}'
        return http_answer(envelope(request, error), "422 Unprocessable")

    with CannedPeer(reply) as peer, http_lane(peer.url, colour) as lane:
        with pytest.raises(SynapError) as caught:
            lane.call(KV_GET, KvGet("a"))
        assert (caught.value.code, caught.value.message, caught.value.details) == ("WRONG_TYPE", "no", {"key": "a"})


def test_an_answer_beyond_all_measure_is_given_up(colour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from synap.lanes._async import connections as async_connections

    for module in (connections, async_connections):
        monkeypatch.setattr(module, "MAX_ANSWER", 1024)
    with CannedPeer(http_answer(b" " * 5000)) as peer, http_lane(peer.url, colour) as lane:
        with pytest.raises(SynapError, match="ask for less") as caught:
            lane.call(KV_GET, KvGet("a"))
        assert caught.value.code == "PAYLOAD_TOO_LARGE"


def test_a_small_answer_that_inflates_beyond_all_measure_is_given_up(
    colour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synap.lanes._async import http as async_http
    from synap.lanes._sync import http

    for module in (http, async_http):
        monkeypatch.setattr(module, "MAX_ANSWER", 10_000)
    bomb = http_answer(gzip.compress(b" " * 1_000_000), extra="Content-Encoding: gzip\r\n")
    with CannedPeer(bomb) as peer, http_lane(peer.url, colour) as lane:
        with pytest.raises(SynapError, match="ask for less"):
            lane.call(KV_GET, KvGet("a"))


def test_an_answer_in_pieces_after_a_word_in_between_is_whole(colour: str) -> None:
    def reply(request: bytes) -> bytes:
        body = envelope(request, '"status":"success","payload":{"found":true,"value":7}')
        pieces = b"".join(b"%x\r\n%s\r\n" % (1, body[i : i + 1]) for i in range(len(body)))
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        return b"HTTP/1.1 103 Early Hints\r\n\r\n" + head + pieces + b"0\r\n\r\n"

    with CannedPeer(reply) as peer, http_lane(peer.url, colour) as lane:
        assert lane.call(KV_GET, KvGet("a")).value == 7


def test_an_idle_connection_that_was_closed_is_replaced_without_a_word(colour: str) -> None:
    with CannedPeer(good, ends=True) as peer, http_lane(peer.url, colour) as lane:
        for _ in range(5):
            assert not lane.call(KV_GET, KvGet("a")).found


def test_words_on_an_idle_connection_reach_no_later_request(colour: str) -> None:
    stray = http_answer(b'{"type":"response","request_id":"stray","status":"success","payload":{"found":true}}')
    with CannedPeer(lambda request: good(request) + stray) as peer, http_lane(peer.url, colour) as lane:
        for _ in range(5):
            assert not lane.call(KV_GET, KvGet("a")).found


@pytest.fixture
def nobody() -> Iterator[str]:
    """A URL where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


def test_nobody_there_means_nothing_was_sent(nobody: str, colour: str) -> None:
    with http_lane(nobody, colour) as lane:
        for attempt in (lambda: lane.call(KV_SET, made(KvSet, "a", 1)), lane.connect, lane.health):
            with pytest.raises(ConnectionError, match="nothing was sent") as caught:
                attempt()
            assert caught.value.code == "CONNECTION_FAILED"
            assert not caught.value.may_have_happened


def test_a_host_name_that_is_none_is_a_failed_connection(colour: str) -> None:
    with http_lane("http://a..b:1", colour) as lane, pytest.raises(ConnectionError) as caught:
        lane.call(KV_GET, KvGet("a"))
    assert caught.value.code == "CONNECTION_FAILED"


def test_a_service_that_says_nothing_runs_into_the_timeout(colour: str) -> None:
    def nothing(request: bytes) -> bytes:
        return b""

    with CannedPeer(nothing) as peer, http_lane(peer.url, colour) as lane:
        with pytest.raises(TimeoutError) as caught:
            lane.call(KV_SET, made(KvSet, "a", 1), timeout=0.1)
        assert isinstance(caught.value, SynapError)
        assert caught.value.may_have_happened


def test_a_request_too_large_for_any_service_is_not_sent(colour: str) -> None:
    with CannedPeer(good) as peer, http_lane(peer.url, colour) as lane:
        with pytest.raises(SynapError, match="nothing was sent") as caught:
            lane.call(KV_SET, made(KvSet, "a", "x" * 11_000_000))
        assert caught.value.code == "PAYLOAD_TOO_LARGE"
        assert peer.requests == []


def test_the_key_and_the_format_travel_as_headers(colour: str) -> None:
    with CannedPeer(good) as peer, http_lane(peer.url, colour, api_key="k", compression=True) as lane:
        lane.call(KV_GET, KvGet("a"))
        head = peer.requests[0].partition(b"\r\n\r\n")[0].lower()
        assert b"x-api-key: k" in head
        assert b"content-type: application/json" in head
        assert b"accept-encoding: gzip" in head
