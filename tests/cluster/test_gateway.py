"""A gateway has what every service has: keys, limits, metrics."""

from __future__ import annotations

import asyncio
import json
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from synap import AsyncSynapClient, RateLimitError, ScanResult, SynapClient, SynapError
from synap.cli.app import run
from synap.cluster.host import ClusterHost
from synap.cluster.keys import Keys
from synap.commands import (
    KV_EXISTS,
    KV_GET,
    KV_MSET,
    KV_SCAN,
    KV_SET,
    QUEUE_CONSUME,
    QUEUE_PUBLISH,
    QUEUE_STATS,
    STREAM_PUBLISH,
    Command,
    KvScan,
)
from synap.host import ANSWER
from synap.server import keyfile
from synap.server.grants import Access, Grant, Quota
from synap.testing import ThrowawayServer
from synap.testing.cluster import ThrowawayCluster
from synap.wire.frames import Kind, frame
from synap.wire.handshake import Hello, greet
from tests.cluster.callers import Noted
from tests.helpers.keys import File, speak
from tests.helpers.patience import PATIENCE, STEADY
from tests.helpers.raw import Native, dial, read_head, request, wait_for
from tests.helpers.still_rates import StillRates

Serve = Callable[..., ThrowawayServer]


@pytest.fixture(scope="module")
def primaries() -> Iterator[ThrowawayCluster]:
    with ThrowawayCluster(3, node_timeout=STEADY) as cluster:
        yield cluster


def scrape(gateway: ThrowawayServer) -> str:
    with urllib.request.urlopen(f"{gateway.url}/metrics", timeout=PATIENCE) as answer:
        text: str = answer.read().decode()
    return text


def test_keys_open_a_gateway(primaries: ThrowawayCluster, serve: Serve) -> None:
    gateway = serve("--engine", primaries.url, "--durability", "none", "--api-key", "open-sesame-1234567890")
    with SynapClient(url=gateway.url, retries=0) as nobody, pytest.raises(SynapError) as caught:
        nobody.kv.get("k")
    assert caught.value.code == "UNAUTHORIZED"
    with SynapClient(url=gateway.url, api_key="open-sesame-1234567890") as client:
        assert client.kv.set("k", 1).success


def test_a_backup_of_a_gateway_says_where_the_data_is(
    primaries: ThrowawayCluster, serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = primaries.url.partition("://")[2]
    gateway = serve("--engine", f"valkey://default:secret@{place}", "--durability", "none")
    for command in ("backup", "export"):
        assert run([command, gateway.url, str(tmp_path / "copy")]) == 2
        said = capsys.readouterr().err
        assert f"its cluster holds the data: write that with `synap export valkey://***@{place} FILE`" in said


def test_a_scan_at_a_gateway_tells_nothing_of_keys_that_its_caller_may_not_see(
    primaries: ThrowawayCluster, serve: Serve, tmp_path: Path
) -> None:
    file = File(tmp_path / "keys.toml", {"reader": ["kv:read:seen:*", "kv:read:a*b"], "ops": ["*:*:*", "admin"]})
    gateway = serve("--engine", primaries.url, "--durability", "none", "--keys-file", str(file.path))
    seen = {f"seen:{number}" for number in range(30)} | {f"a{number}b" for number in range(5)}
    hidden = [f"{begin}{number}" for begin in ("a", "m", "seen", "z") for number in range(700)]
    with SynapClient(url=gateway.url, api_key=file.keys["ops"]) as ops:
        ops.kv.mset(dict.fromkeys([*seen, *hidden], 1))
    with SynapClient(url=gateway.url, api_key=file.keys["reader"]) as reader:
        for count in (1, 7, 35, 1000):
            found: List[str] = []
            cursor = None
            while len(found) < len(seen):
                page = reader.kv.scan(cursor=cursor, count=count)
                found += page.keys
                cursor = page.cursor
                assert page.has_more is (len(found) < len(seen))
            assert sorted(found) == sorted(seen)
        for prefix in ("m", "seen1", "z"):
            assert reader.kv.scan(prefix, count=1) == ScanResult([], None, False)


async def test_a_scan_for_few_of_the_keys_that_its_caller_may_see_asks_for_few(
    host: ClusterHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asked for 500 at once of each place and each beginning."""
    told: List[Any] = []
    caller = Noted(host, told)
    pairs = {f"a{number}": 1 for number in range(300)}
    host.execute(caller, 1, KV_MSET, json.dumps({"pairs": [{"key": k, "value": v} for k, v in pairs.items()]}).encode())
    while not told:
        await asyncio.sleep(0.001)
    page = Keys._page
    asked: List[int] = []

    def noted(keys: Keys, partition: int, prefix: str, after: Any, count: int) -> Any:
        asked.append(count)
        return page(keys, partition, prefix, after, count)

    monkeypatch.setattr(Keys, "_page", noted)
    scan = KvScan(count=1)
    scan.only = Access("reader", False, [Grant("kv:read:a*")])._rule(KV_SCAN)  # type: ignore[misc]
    host.execute(caller, 2, KV_SCAN, scan, decoded=True)
    host.end_turn()
    while len(told) < 2:
        await asyncio.sleep(0.001)
    assert len(told[1][3].keys) == 1
    assert max(asked) == 2


def test_a_wait_that_was_sent_again_at_a_gateway_outlives_the_first_connection(
    primaries: ThrowawayCluster, serve: Serve
) -> None:
    gateway = serve("--engine", primaries.url, "--durability", "none")
    payload = {"queue": "again", "timeout": PATIENCE}
    asked = json.dumps({"command": "queue.consume", "payload": payload, "request_id": f"{'a' * 32}:1"})
    url = gateway.url.replace("http", "ws") + "/api/v1/ws"
    with SynapClient(url=gateway.url) as client, connect(url, proxy=None) as newer:
        client.queue.create("again")
        with connect(url, proxy=None) as first:
            first.send(asked)
            wait_for(lambda: client.queue.stats("again").consumers == 1)
            newer.send(asked)
            assert (
                json.loads(first.recv(PATIENCE))["error"]["message"]
                == "the request was sent again on another connection"
            )
        wait_for(lambda: client.queue.stats("again").consumers == 1)
        client.queue.publish("again", "for one")
        assert json.loads(newer.recv(PATIENCE))["payload"]["message"] == "for one"


async def test_who_waits_at_a_gateway_goes_with_the_grant_and_not_before(
    primaries: ThrowawayCluster, serve: Serve, tmp_path: Path
) -> None:
    file = File(tmp_path / "keys.toml", {"worker": ["queue:consume:orders"], "ops": ["*:*:*", "admin"], "other": []})
    gateway = serve("--engine", primaries.url, "--durability", "none", "--keys-file", str(file.path))
    url = gateway.url.replace("http", "ws") + "/api/v1/ws"
    asked = json.dumps({"command": "queue.consume", "payload": {"queue": "orders", "timeout": PATIENCE}})
    ops = speak(gateway, file.keys["ops"])

    def waiting(count: int) -> Callable[[], bool]:
        return lambda: ops.do("admin.stats").payload["waiting"] == count

    async with AsyncSynapClient(url=gateway.url, api_key=file.keys["worker"]) as client:
        with connect(url, additional_headers={"X-API-Key": file.keys["worker"]}, open_timeout=PATIENCE) as socket:
            socket.send(asked)
            consumer = asyncio.ensure_future(client.queue.consume("orders", timeout=PATIENCE))
            await asyncio.to_thread(wait_for, waiting(2))
            file.change("other", ["kv:read:*"])
            gateway.signal(signal.SIGHUP)
            await asyncio.to_thread(wait_for, lambda: "read again: keys" in "".join(gateway.output))
            for number in range(2):
                ops.do("queue.publish", queue="orders", message=number)
            answer = json.loads(await asyncio.to_thread(socket.recv, PATIENCE))
            message = await consumer
            assert message is not None
            assert {answer["payload"]["message"], message.message} == {0, 1}
            socket.send(asked)
            consumer = asyncio.ensure_future(client.queue.consume("orders", timeout=PATIENCE))
            await asyncio.to_thread(wait_for, waiting(2))
            file.change("worker", ["kv:read:*"])
            gateway.signal(signal.SIGHUP)
            with pytest.raises(Exception, match="1008"):
                await asyncio.to_thread(socket.recv, PATIENCE)
            with pytest.raises(SynapError, match="no grant"):
                await consumer


def test_who_follows_at_a_gateway_is_listed_and_goes_with_the_grant(
    primaries: ThrowawayCluster, serve: Serve, tmp_path: Path
) -> None:
    file = File(tmp_path / "keys.toml", {"reader": ["stream:*:chat", "pubsub:*:news"], "gone": [], "ops": ["admin"]})
    gateway = serve("--engine", primaries.url, "--durability", "none", "--keys-file", str(file.path))
    ops = speak(gateway, file.keys["ops"])

    def clients() -> Dict[str, Dict[str, Any]]:
        return {one["key"]: one for one in ops.do("admin.clients").payload["clients"]}

    url = gateway.url.replace("http", "ws") + "/api/v1/ws"

    def sign_in(key: str) -> ClientConnection:
        return connect(url, additional_headers={"X-API-Key": file.keys[key]}, open_timeout=PATIENCE)

    with sign_in("reader") as reader, sign_in("gone") as gone:
        for command, payload in (("stream.subscribe", {"room": "chat"}), ("pubsub.subscribe", {"topics": ["news"]})):
            reader.send(json.dumps({"command": command, "payload": payload}))
            assert json.loads(reader.recv(PATIENCE))["success"]
        assert clients()["reader"]["subscriptions"] == ["chat", "news"]
        file.change("reader", ["pubsub:*:news"])
        keyfile.remove(file.path, "gone")
        gateway.signal(signal.SIGHUP)
        ended = json.loads(reader.recv(PATIENCE))
        assert (ended["type"], ended["error"]["code"]) == ("ended", "FORBIDDEN")
        with pytest.raises(ConnectionClosed, match="1008"):
            gone.recv(PATIENCE)
        assert clients()["reader"]["subscriptions"] == ["news"]


@pytest.mark.parametrize(
    ("command", "payload"), [("stream.subscribe", {"room": "chat"}), ("pubsub.subscribe", {"topics": ["news"]})]
)
def test_a_subscription_that_took_longer_than_its_grant_lasted_is_none(
    serve: Serve, tmp_path: Path, command: str, payload: Any
) -> None:
    file = File(tmp_path / "keys.toml", {"reader": ["stream:*:chat", "pubsub:*:news"], "ops": ["*:*:*", "admin"]})
    with ThrowawayCluster(3, node_timeout=STEADY) as cluster:
        options = ("--durability", "none", "--keys-file", str(file.path), "--patience", str(PATIENCE))
        gateway = serve("--engine", cluster.url, *options)
        url = gateway.url.replace("http", "ws") + "/api/v1/ws"
        ops = speak(gateway, file.keys["ops"])
        with connect(url, additional_headers={"X-API-Key": file.keys["reader"]}, open_timeout=PATIENCE) as reader:
            for node in cluster.members:
                node.pause()
            reader.send(json.dumps({"command": command, "payload": payload}))
            reader.send(json.dumps({"command": "admin.stats"}))  # is refused at once: the other was read before it
            assert json.loads(reader.recv(PATIENCE))["error"]["code"] == "FORBIDDEN"
            file.change("reader", ["kv:read:*"])
            gateway.signal(signal.SIGHUP)
            wait_for(lambda: "read again: keys" in "".join(gateway.output))
            for node in cluster.members:
                node.go_on()
            assert json.loads(reader.recv(PATIENCE))["error"]["code"] == "FORBIDDEN"
            clients = ops.do("admin.clients").payload["clients"]
            assert [one["subscriptions"] for one in clients if one["key"] == "reader"] == [[]]


def test_subscriptions_at_once_at_a_gateway_are_as_many_as_their_key_may_have(
    primaries: ThrowawayCluster, serve: Serve, tmp_path: Path
) -> None:
    file = File(tmp_path / "keys.toml", {"few": ["*:*:*"]}, few=Quota(subscriptions=3))
    gateway = serve("--engine", primaries.url, "--durability", "none", "--keys-file", str(file.path))
    url = gateway.url.replace("http", "ws") + "/api/v1/ws"
    several = [("stream.subscribe", {"room": "chat"}), ("pubsub.subscribe", {"topics": ["news"]})] * 4
    with connect(url, additional_headers={"X-API-Key": file.keys["few"]}, open_timeout=PATIENCE) as socket:
        for command, payload in several:
            socket.send(json.dumps({"command": command, "payload": payload}))
        answers = [json.loads(socket.recv(PATIENCE)) for _ in several]
        made = [one["payload"]["subscription_id"] for one in answers if one["success"]]
        assert len(made) == 3
        assert {one["error"]["code"] for one in answers if not one["success"]} == {"RATE_LIMIT_EXCEEDED"}


def test_who_is_no_admin_is_not_told_of_the_cluster_s_machines(primaries: ThrowawayCluster, serve: Serve) -> None:
    keys = ("--admin-key", "of-an-admin-1234567890", "--api-key", "of-somebody-1234567890")
    gateway = serve("--engine", primaries.url, "--durability", "none", *keys)
    machine = f"127.0.0.1:{primaries.members[0].port}"
    assert machine in str(speak(gateway, "of-an-admin-1234567890").do("admin.health").payload["warnings"])
    assert speak(gateway).request("GET", "/health").document["status"] == "ok"
    assert machine not in speak(gateway).request("GET", "/health").body.decode()
    with dial(gateway) as native:
        native.sendall(greet("x", Hello("0" * 32, "json", False, "of-somebody-1234567890")) + frame(Kind.PING, 1))
        read_head(native)
        assert machine not in str(native.recv(65536))


def test_what_a_gateway_refuses_in_a_batch_is_in_its_audit_log(
    primaries: ThrowawayCluster, serve: Serve, tmp_path: Path
) -> None:
    file, audit = File(tmp_path / "keys.toml", {"reader": ["kv:read:user:*"]}), tmp_path / "audit.jsonl"
    gateway = serve(
        *("--engine", primaries.url, "--durability", "none"),
        *("--keys-file", str(file.path), "--audit-log", str(audit)),
    )
    items = [{"command": "kv.get", "payload": {"key": key}} for key in ("user:1", "price:1")]
    reply = speak(gateway, file.keys["reader"]).post({"type": "batch", "commands": items})
    assert [one["status"] for one in json.loads(reply.body)["results"]] == ["success", "error"]
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [(one["what"], one["outcome"]) for one in lines] == [("kv.get", "FORBIDDEN")]


def test_a_deletion_at_a_gateway_is_told_with_its_own_outcome_whatever_else_has_its_id(
    primaries: ThrowawayCluster, serve: Serve, tmp_path: Path
) -> None:
    """What was under way with its id when it came was answered first, and told as its outcome."""
    audit = tmp_path / "audit.jsonl"
    gateway = serve("--engine", primaries.url, "--durability", "none", "--audit-log", str(audit))
    native = Native(gateway)
    native.do(1, "queue.create", queue="{t}there")
    native.send(request(2, "queue.stats", queue="{t}missing") + request(2, "queue.delete", queue="{t}there"))
    assert [native.read()[0] for _ in range(2)] == [Kind.ERROR, Kind.ANSWER]
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [(one["what"], one["outcome"]) for one in lines] == [("queue.create", "ok"), ("queue.delete", "ok")]
    native.close()


async def test_a_gateway_decodes_large_values_in_turns_with_other_callers_between(host: ClusterHost) -> None:
    told: List[Any] = []
    writer, other = Noted(host, told), Noted(host, told)
    lists: List[Any] = [[]] * 300_000
    host.execute(writer, 1, KV_SET, json.dumps({"key": "k", "value": lists}).encode())
    assert (host.busy, host.working_for(writer), host.working_for(other)) == (True, True, False)
    host.execute(other, 1, KV_EXISTS, b'{"key":"other"}')
    while len(told) < 2:
        await asyncio.sleep(0.001)
    assert [(who, what) for who, what, _, _ in told] == [(other, ANSWER), (writer, ANSWER)]
    assert (host.busy, writer.went_on) == (False, 1)
    host.execute(other, 2, KV_GET, b'{"key":"k"}')
    while len(told) < 3:
        await asyncio.sleep(0.001)
    assert json.loads(told[2][3].value) == lists
    host.execute(writer, 2, KV_SET, json.dumps({"key": "k", "value": lists, "nonsense": 1}).encode())
    while len(told) < 4:
        await asyncio.sleep(0.001)
    assert told[3][3].code == "INVALID_PAYLOAD"
    assert not host.busy


async def test_what_a_consume_acknowledged_is_known_though_its_message_went_back(host: ClusterHost) -> None:
    told: List[Any] = []
    caller, again = Noted(host, told, "1" * 32), Noted(host, told, "1" * 32)

    async def ask(who: Noted, number: int, command: Command, retried: bool = False, **payload: Any) -> Any:
        told.clear()
        host.execute(who, number, command, json.dumps(payload).encode(), retried)
        while not told:
            await asyncio.sleep(0.001)
        return told[0][3]

    for number in (1, 2):
        await ask(caller, number, QUEUE_PUBLISH, queue="q", message=number)
    first = await ask(caller, 3, QUEUE_CONSUME, queue="q")
    asked = {"queue": "q", "ack": first.message_id, "ack_lease": first.lease, "timeout": PATIENCE}
    second = await ask(caller, 4, QUEUE_CONSUME, **asked)
    host.cancel(caller, 4)
    while (await ask(caller, 5, QUEUE_STATS, queue="q")).depth < 1:
        await asyncio.sleep(0.001)
    found = await ask(again, 4, QUEUE_CONSUME, True, **asked)
    assert not isinstance(found, SynapError)
    assert (found.message_id, found.lease != second.lease) == (second.message_id, True)


async def test_a_number_that_was_another_commands_harms_nobody_who_asks_at_the_same_time(host: ClusterHost) -> None:
    told: List[Any] = []
    wrong, other = Noted(host, told, "1" * 32), Noted(host, told, "2" * 32)
    host.execute(wrong, 1, KV_SET, b'{"key":"q","value":1}')
    while not told:
        await asyncio.sleep(0.001)
    for number, asked in enumerate(
        ((QUEUE_PUBLISH, b'{"queue":"q","message":1}'), (STREAM_PUBLISH, b'{"room":"q","event_type":"e","data":1}')), 1
    ):
        del told[:]
        host.execute(wrong, 1, *asked, retried=True)
        host.execute(other, number, *asked)
        host.end_turn()
        while len(told) < 2:
            await asyncio.sleep(0.001)
        assert {who: getattr(content, "code", "") for who, _, _, content in told} == {
            wrong: "INVALID_REQUEST",
            other: "",
        }


async def test_a_caller_that_leaves_while_its_large_request_is_decoded_keeps_nobody_busy(host: ClusterHost) -> None:
    told: List[Any] = []
    writer, other = Noted(host, told), Noted(host, told)
    host.execute(writer, 1, KV_SET, json.dumps({"key": "left", "value": [[]] * 300_000}).encode())
    assert host.busy
    host.leave(writer)
    assert (host.busy, host.working_for(writer), writer.lost) == (False, False, [1])
    host.execute(other, 1, KV_SET, json.dumps({"key": "k", "value": [[]] * 600_000}).encode())
    while not told:  # which takes longer than the other would have
        await asyncio.sleep(0.001)
    host.execute(other, 2, KV_EXISTS, b'{"key":"left"}')
    while len(told) < 2:
        await asyncio.sleep(0.001)
    assert [who for who, _, _, _ in told] == [other, other]
    assert not told[1][3].exists
    assert writer.went_on == 0


def test_a_gateway_limits_requests(primaries: ThrowawayCluster, serve: Serve, still_rates: StillRates) -> None:
    given = ("--engine", primaries.url, "--durability", "none", "--rate-limit", "5")
    gateway = serve(*given, environment=still_rates.environment)

    def flood(client: SynapClient) -> None:
        for number in range(6):
            client.kv.set("k", number)

    with SynapClient(url=gateway.url, retries=0) as client, pytest.raises(RateLimitError):
        flood(client)


async def test_the_metrics_that_the_docs_name_are_in_a_scrape(primaries: ThrowawayCluster, serve: Serve) -> None:
    gateway = serve("--engine", primaries.url, "--durability", "none")
    async with AsyncSynapClient(url=gateway.url) as client:
        await client.queue.publish("metered", 1)
        await client.stream.publish("metered", "e", 1)
        await client.stream.commit("metered", "reader", -1)
        for node in primaries.nodes:
            node.ask("FUNCTION", "FLUSH")
        await client.kv.mset({f"k{number}": number for number in range(100)})
        addresses = [f"127.0.0.1:{node.port}" for node in primaries.nodes]
        wanted = [
            f'synap_node_{figure}{{node="{address}"}}'
            for figure in ("memory", "memory_limit", "replicas", "lag_bytes")
            for address in addresses
        ]
        wanted += [
            'synap_cluster_retries_total{reason="function not found"}',
            'synap_queue_depth{queue="metered"} 1.0',
            'synap_room_events{room="metered"} 1.0',
            'synap_subscription_lag_events{name="reader",room="metered"} 1.0',
        ]
        end = time.monotonic() + PATIENCE
        while missing := [sample for sample in wanted if sample not in await asyncio.to_thread(scrape, gateway)]:
            assert time.monotonic() < end, missing
            await asyncio.sleep(0.1)
