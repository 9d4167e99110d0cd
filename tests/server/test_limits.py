"""Who may come in, and how often."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synap import SynapClient
from synap.errors import AuthenticationError, RateLimitError
from synap.server.auth import Keys
from synap.server.grants import Quota
from synap.server.rates import Bucket, Rates, Weighing, origin
from synap.server.settings import ServerConfig
from synap.testing.server import ThrowawayServer
from synap.wire.frames import Kind, frame
from tests.helpers.inside import line, service
from tests.helpers.keys import File, speak
from tests.helpers.raw import Http, Native, request, wait_for
from tests.helpers.still_rates import StillRates

Serve = Callable[..., ThrowawayServer]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_gives_a_second_s_worth_at_once_and_then_at_its_rate() -> None:
    clock = Clock()
    bucket = Bucket(10.0, clock)
    for _ in range(10):
        bucket.take()
    with pytest.raises(RateLimitError) as refused:
        bucket.take()
    assert refused.value.details["retry_after"] == pytest.approx(0.1, abs=0.001)
    clock.now += refused.value.details["retry_after"]
    bucket.take()
    with pytest.raises(RateLimitError):
        bucket.take()


def test_a_bucket_holds_no_more_than_a_second_s_worth_however_long_it_rests() -> None:
    clock = Clock()
    bucket = Bucket(10.0, clock)
    clock.now += 3600
    assert bucket.left() == (10, 0)
    bucket.take()
    assert bucket.left() == (9, 1)


def test_a_high_rate_is_kept_to_the_token() -> None:
    bucket = Bucket(10_000_000.0, Clock())
    assert bucket.grab(10_000_000)
    assert not bucket.grab(1)
    assert bucket.left() == (0, 1)


def test_a_rate_below_one_a_second_lets_one_through() -> None:
    clock = Clock()
    bucket = Bucket(0.5, clock)
    bucket.take()
    with pytest.raises(RateLimitError) as refused:
        bucket.take()
    assert refused.value.details["retry_after"] == pytest.approx(2.0, abs=0.001)


@pytest.mark.parametrize("with_requests", [True, False])
def test_a_limit_of_bytes_takes_from_both_buckets_what_each_would_give_or_from_none(with_requests: bool) -> None:
    dice, clock = random.Random(with_requests), Clock()
    requests, sizes, lone_requests, lone_sizes = (Bucket(rate, clock) for rate in (20.0, 1000.0) * 2)
    both = Weighing(requests if with_requests else None, sizes)
    seen = set()
    for _ in range(2000):
        clock.now += dice.choice([0, 0.001, 0.1, 2])
        count, size = dice.randint(1, 12), dice.choice([0, 30, 300, 700])
        fits = lone_sizes.grab(size)
        if fits and with_requests and not lone_requests.grab(count):
            lone_sizes.give(size)
            fits = False

        assert both.grab(count, size) is fits
        assert sizes.left() == lone_sizes.left()
        assert requests.left() == lone_requests.left()
        seen.add(fits)
    assert seen == {True, False}


def test_buckets_are_bounded_and_the_one_not_used_for_longest_goes() -> None:
    rates = Rates(5.0, Clock(), most=100)
    first = rates.bucket("first")
    for index in range(1000):
        rates.bucket(f"10.0.0.{index}")
        assert rates.bucket("first") is first
    assert len(rates) == 100


def test_keys_are_told_apart_and_nothing_tells_them() -> None:
    keys = Keys(ServerConfig(api_keys=["user"], admin_keys=["admin"]), Clock())
    assert keys.on
    assert not keys.admit("user", "a").admin
    assert keys.admit("admin", "a").admin
    assert keys.admit("user", "a").name != keys.admit("admin", "a").name
    for wrong in (None, "", "use", "user2", "USER", "Bearer user"):
        with pytest.raises(AuthenticationError) as refused:
            keys.admit(wrong, "a")
        assert "user" not in refused.value.message.replace("user2", "")
    assert "'user'" not in repr(vars(keys))


def test_without_keys_everybody_is_admin() -> None:
    access = Keys(ServerConfig(), Clock()).admit(None, "10.0.0.1")
    assert (access.name, access.admin, access.grants) == ("10.0.0.1", True, None)


@pytest.mark.parametrize(
    ("address", "limited"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:a:b:c:d", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("unix:x", "unix:x"),
    ],
)
def test_limits_are_for_what_a_caller_has_of_an_address(address: str, limited: str) -> None:
    assert origin(address) == limited
    assert Keys(ServerConfig(), Clock()).admit(None, address).name == limited


def test_a_key_is_found_among_many_without_a_look_at_each() -> None:
    """Each connection's key is looked for when keys are read again."""
    compared = 0

    class Digest(bytes):
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return bytes.__eq__(self, other)

        __hash__ = bytes.__hash__

    keys = Keys(ServerConfig(api_keys=[f"key number {number}" for number in range(1000)]), Clock())
    access = keys.admit("key number 999", "10.0.0.1")
    access.digest = Digest(access.digest)  # type: ignore[arg-type]
    found = keys.find(access)
    assert found is not None
    assert (found.name, compared <= 3) == (access.name, True)
    keys.reload()
    assert keys.admit("key number 999", "10.0.0.1").name == access.name


def test_another_address_of_the_same_network_has_no_more_guesses() -> None:
    keys = Keys(ServerConfig(api_keys=["right"]), Clock())
    for number in range(20):
        with pytest.raises((AuthenticationError, RateLimitError)):
            keys.admit("wrong", f"2001:db8::{number:x}")
    with pytest.raises(RateLimitError):
        keys.admit("right", "2001:db8::ffff")
    assert keys.admit("right", "2001:db8:0:1::1").name == "key 0"


@pytest.mark.parametrize(
    "headers", [{}, {"X_API_Key": "wrong"}, {"Authorization": "Bearer wrong"}, {"Authorization": "right"}]
)
def test_a_wrong_or_missing_key_is_401_in_json(serve: Serve, headers: dict[str, str]) -> None:
    http = Http(serve("--api-key", "right"), **headers)
    for path in ("/metrics", "/api/v1/stream/subscribe?room=r", "/api/v1/admin/backup"):
        assert http.request("GET", path).status == 401
    answer = http.do("kv.get", key="k")
    assert (answer.status, answer.error["code"]) == (401, "UNAUTHORIZED")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "wrong" not in answer.body.decode()
    http.close()


def test_either_header_carries_the_key(serve: Serve) -> None:
    server = serve("--api-key", "one", "--api-key", "two")
    for headers in ({"X_API_Key": "one"}, {"Authorization": "Bearer two"}, {"Authorization": "bearer one"}):
        http = Http(server, **headers)
        assert http.do("queue.list").status == 200
        http.close()


def test_health_and_openapi_need_no_key(serve: Serve) -> None:
    http = Http(serve("--api-key", "right"))
    assert http.request("GET", "/health").status == 200
    assert http.request("GET", "/openapi.json").status == 200
    http.close()


def test_admin_commands_need_an_admin_key(serve: Serve) -> None:
    server = serve("--api-key", "user", "--admin-key", "boss")
    user, boss = Http(server, X_API_Key="user"), Http(server, X_API_Key="boss")
    for command in ("admin.stats", "admin.config", "admin.health", "admin.shutdown"):
        answer = user.do(command)
        assert (answer.status, answer.error["code"]) == (403, "FORBIDDEN")
    assert user.request("GET", "/api/v1/admin/backup").status == 403
    assert boss.do("admin.stats").payload["requests_total"] >= 0
    config = boss.do("admin.config").payload
    assert (config["api_keys"], config["admin_keys"]) == (1, 1)
    assert boss.do("kv.get", key="k").status == 200
    user.close()
    boss.close()


def test_keys_are_never_logged(serve: Serve) -> None:
    server = serve("--api-key", "s3cret-key", "--log-level", "debug")
    for key in ("s3cret-key", "s3cret-kex"):
        http = Http(server, X_API_Key=key)
        http.do("kv.get", key="k")
        http.request("GET", "/nowhere")
        http.close()
    server.stop()
    assert "s3cret" not in "".join(server.output)


def test_too_many_requests_are_429_with_when_to_come_back(serve: Serve, still_rates: StillRates) -> None:
    http = Http(serve("--rate-limit", "5/s", environment=still_rates.environment))
    answers = [http.do("kv.get", key="k") for _ in range(8)]
    assert [answer.status for answer in answers] == [200] * 5 + [429] * 3
    assert answers[0].headers["x-ratelimit-limit"] == "5"
    assert answers[0].headers["x-ratelimit-remaining"] == "4"
    assert int(answers[0].headers["x-ratelimit-reset"]) == 1
    refused = answers[5]
    assert refused.error["code"] == "RATE_LIMIT_EXCEEDED"
    assert 0 < refused.error["details"]["retry_after"] <= 0.2
    assert int(refused.headers["retry-after"]) == 1
    assert refused.headers["x-ratelimit-remaining"] == "0"
    still_rates.go_on()
    wait_for(lambda: http.do("kv.get", key="k").status == 200)
    http.close()


def test_without_a_limit_there_are_no_such_headers(http: Http) -> None:
    assert not any(name.startswith("x-ratelimit") for name in http.do("queue.list").headers)


def test_each_key_has_a_rate_of_its_own(serve: Serve, still_rates: StillRates) -> None:
    environment = still_rates.environment
    server = serve("--rate-limit", "3", "--api-key", "one", "--api-key", "two", environment=environment)
    one, two = Http(server, X_API_Key="one"), Http(server, X_API_Key="two")
    while one.do("queue.list").status != 429:
        pass
    assert two.do("queue.list").status == 200
    one.close()
    two.close()


def test_wrong_keys_cannot_be_tried_without_end(serve: Serve, still_rates: StillRates) -> None:
    server = serve("--rate-limit", "3", "--api-key", "right", environment=still_rates.environment)
    http = Http(server, X_API_Key="guess")
    assert 429 in [http.do("queue.list").status for _ in range(10)]
    http.close()


def test_the_native_lane_has_the_same_limit(serve: Serve, still_rates: StillRates) -> None:
    native = Native(serve("--rate-limit", "5", environment=still_rates.environment))
    native.send(*(request(number, "kv.exists", key="k") for number in range(1, 9)), frame(Kind.PING, 9))
    told: list[Any] = [native.read() for _ in range(9)]
    kinds = [answer.kind for answer in told]
    assert kinds == [Kind.ANSWER] * 5 + [Kind.ERROR] * 3 + [Kind.PONG]
    error = json.loads(told[5].body)
    assert error["code"] == "RATE_LIMIT_EXCEEDED"
    assert error["details"]["retry_after"] > 0
    native.close()


@pytest.mark.usefixtures("endless_turns")
@pytest.mark.parametrize("mixed", [False, True])
async def test_only_requests_count_towards_the_limit(mixed: bool) -> None:
    connection = line(service(ServerConfig(rate_limit=50.0), Clock()))
    control = [frame(Kind.DONE, 1), frame(Kind.PING, 1), frame(Kind.PONG), frame(Kind.CANCEL, 99)]
    asked = [request(number, "kv.exists", key="k") for number in range(1, 52)]
    connection.receive(*control * 10)
    if mixed:
        for one in asked:
            connection.receive(*control, one, *control)
    else:
        connection.receive(*asked[:50])
        connection.receive(asked[50])
    told = [told for told in connection.frames() if told.kind != Kind.PONG]
    assert [answer.kind for answer in told] == [Kind.ANSWER] * 50 + [Kind.ERROR]
    assert json.loads(told[50].body)["code"] == "RATE_LIMIT_EXCEEDED"


def test_connections_beyond_the_limit_are_told_to_come_back(serve: Serve) -> None:
    server = serve("--max-connections", "2")
    first, second, third = Http(server), Http(server), Http(server)
    assert first.do("queue.list").status == 200
    assert second.do("queue.list").status == 200
    answer = third.request("GET", "/health")
    assert (answer.status, answer.error["code"]) == (503, "SERVICE_UNAVAILABLE")
    assert answer.headers["retry-after"] == "1"
    third.close()
    first.close()
    status = 503
    while status != 200:
        later = Http(server)
        status = later.request("GET", "/health").status
        later.close()
    second.close()


def test_strangers_give_way_to_others_and_admitted_callers_do_not(serve: Serve) -> None:
    key = "k" * 20
    server = serve("--max-connections", "3", "--api-key", key)
    strangers = [Http(server) for _ in range(3)]
    for one in strangers:
        assert one.request("GET", "/health").status == 200
        assert one.do("queue.list").status == 401
    callers = []
    for number in range(3):
        callers.append(Http(server, X_API_Key=key))
        assert callers[-1].do("queue.list").status == 200
        assert strangers[number].connection.sock.recv(1) == b"", "the oldest has given way"
    refused = Http(server).request("GET", "/health")
    assert (refused.status, refused.error["code"]) == (503, "SERVICE_UNAVAILABLE")
    for caller in callers:
        assert caller.do("queue.list").status == 200
        caller.close()
    for stranger in strangers:
        stranger.close()


def test_a_key_with_a_quota_of_connections_keeps_nobody_out_over_http(serve: Serve, tmp_path: Path) -> None:
    file = File(tmp_path / "keys.toml", {"few": ["*:*:*"], "much": ["*:*:*"]}, few=Quota(connections=1))
    server = serve("--max-connections", "3", "--keys-file", str(file.path))
    idle = []
    for _ in range(2):
        idle.append(speak(server, file.keys["few"]))
        assert idle[-1].do("queue.list").status == 200
    with SynapClient(url=server.url, api_key=file.keys["few"], transport="native") as client:
        assert client.queue.list() == []
        for one in idle:
            assert speak(server, file.keys["much"]).do("queue.list").status == 200
            assert one.connection.sock.recv(1) == b""
        assert speak(server).request("GET", "/health").status == 503
        assert client.queue.list() == []


def test_a_batch_of_more_commands_than_the_bucket_holds_is_done_and_owed() -> None:
    now = [100.0]
    bucket = Bucket(5.0, lambda: now[0])
    bucket.take()
    bucket.charge(19)
    for later, welcome in ((3.1, False), (3.3, True)):
        now[0] = 100.0 + later
        assert bucket.grab(1) is welcome
