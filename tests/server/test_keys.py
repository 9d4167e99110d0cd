"""Keys with grants: what each opens, on every lane, and what happens when they change."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from synap import ScanResult, SynapClient
from synap.commands import COMMANDS, Command
from synap.errors import SynapError
from synap.server import keyfile
from synap.server.grants import MAX_FOUND, VERBS, Access, Grant
from synap.testing.server import ThrowawayServer
from synap.wire.codec import JSON
from synap.wire.handshake import Hello, greet
from tests.helpers.keys import GRANTS, File, refused, speak
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import dial, read_head, wait_for
from tests.helpers.still_rates import StillRates
from tests.server.test_bad_input import valid

Serve = Callable[..., ThrowawayServer]
Client = Callable[[str], SynapClient]
ROOT = Path(__file__).parents[2]
LISTING = ("list", "scan", "rooms", "topics", "stats")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> File:
    return File(tmp_path_factory.mktemp("keys") / "keys.toml")


@pytest.fixture(scope="module")
def guarded(file: File) -> Iterator[ThrowawayServer]:
    with ThrowawayServer(arguments=["--keys-file", str(file.path)]) as running:
        yield running
    assert "Traceback" not in "".join(running.output)


@pytest.fixture(params=["native", "websocket"])
def client(request: pytest.FixtureRequest, guarded: ThrowawayServer, file: File) -> Iterator[Client]:
    """Makes clients with the key of a name."""
    made = []

    def make(name: str) -> SynapClient:
        made.append(SynapClient(url=guarded.url, api_key=file.keys[name], transport=request.param))
        return made[-1]

    yield make
    for one in made:
        one.close()


# -------------------------------------------------------------------------------------- commands


def test_each_key_opens_what_it_was_given_for(client: Client) -> None:
    orders, worker, reader, ops = (client(name) for name in GRANTS)
    ops.kv.set("price:1", 5)
    ops.kv.set("user:1", "Ann")
    ops.queue.create("orders")
    ops.queue.create("mails")
    ops.stream.publish("talk", "said", 1)
    assert orders.kv.get("price:1").value == 5
    refused(lambda: orders.kv.set("price:1", 6))
    refused(lambda: orders.kv.get("user:1"))
    orders.queue.publish("orders", 1)
    refused(lambda: orders.queue.publish("mails", 1))
    refused(lambda: worker.queue.publish("orders", 1))
    message = worker.queue.consume("orders", timeout=PATIENCE)
    assert message is not None
    worker.queue.ack("orders", message.message_id)
    refused(lambda: worker.queue.stats("orders"))
    refused(lambda: worker.queue.consume("mails"))
    refused(lambda: worker.queue.purge("orders"))
    refused(lambda: worker.queue.list())
    assert "mails" in reader.queue.list()
    assert all(name.startswith("orders") for name in orders.queue.list())
    assert reader.kv.get("user:1").value == "Ann"
    refused(lambda: reader.kv.mget("user:1", "price:1"))
    refused(lambda: reader.kv.set("user:1", "Bob"))
    assert set(reader.kv.scan(count=1000).keys) == {"user:1"}
    orders.stream.publish("chat-1", "said", 1)
    refused(lambda: orders.stream.publish("talk", "said", 1))
    orders.pubsub.publish("news.sport", 1)
    refused(lambda: orders.pubsub.publish("news.weather", 1))
    assert refused(orders.pubsub.stats).message.endswith("(pubsub:read:#)"), "its figures are of all topics"


def test_a_scan_tells_nothing_of_keys_that_its_caller_may_not_see(client: Client) -> None:
    """The cursor of an empty page named one, and `has_more` told whether two keys begin with any text."""
    ops, reader = client("ops"), client("reader")
    hidden = [f"{begin}hidden-{number}" for begin in ("a", "user", "user:", "z") for number in range(3)]
    ops.kv.mset(dict.fromkeys([*hidden, "user:1", "user:2", "user:22"], 1))
    ops.kv.delete(*(name for name in hidden if name.startswith("user:")))
    for prefix in ("", "u", "user:", "user:2"):
        expected = [name for name in ("user:1", "user:2", "user:22") if name.startswith(prefix)]
        found, cursor = [], None
        for _ in expected:
            page = reader.kv.scan(prefix, cursor, 1)
            found += page.keys
            cursor = page.cursor
            assert page.has_more is (len(found) < len(expected))
        assert found == expected
    for prefix in ("a", "userh", "zhidden-"):
        assert reader.kv.scan(prefix, count=1) == ScanResult([], None, False)
        batched = reader.batch([{"command": "kv.scan", "payload": {"prefix": prefix, "count": 1}}])
        assert batched[0].payload == {"keys": [], "cursor": None, "has_more": False}
    ops.kv.delete(*hidden, "user:1", "user:2", "user:22")


def test_a_lock_needs_the_grants_that_the_guide_names(client: Client, file: File) -> None:
    text = (ROOT / "docs" / "guide" / "locks.md").read_text()
    named = re.findall(r"`((?:kv|queue):[^`]*report[^`]*)`", text)
    assert len(named) == 3
    assert all(not Access("k", False, [Grant(one)]).may("kv", "write", "lock:other") for one in named)
    access = Access("k", False, map(Grant, named))
    assert all(access.may("kv", verb, key) for verb in VERBS for key in ("lock:report", "{lock:report}:fence"))
    assert all(access.may("queue", verb, "{lock:report}:waiting") for verb in VERBS)
    assert refused(client("worker").lock("report").acquire).message.startswith("this key has no grant for kv.incr")


def test_what_is_there_and_what_is_not_are_refused_in_the_same_words(client: Client) -> None:
    client("ops").kv.set("there", 1)
    client("ops").queue.create("there")
    worker = client("worker")
    for call in (worker.kv.get, worker.queue.stats, worker.stream.stats):
        names = ("there", "not-there")
        words = {refused(functools.partial(call, name)).message.replace(f":{name})", ":…)") for name in names}
        assert len(words) == 1


def test_every_queue_of_a_consume_needs_its_grant(guarded: ThrowawayServer, file: File) -> None:
    http = speak(guarded, file.keys["worker"])
    held = [{"queue": "mails", "message_id": "1"}]
    assert http.do("queue.consume_many", queues=["orders"]).status == 200
    assert http.do("queue.consume_many", queues=["orders", "mails"]).status == 403
    assert http.do("queue.consume_many", queues=["orders"], ack=held).status == 403


def test_a_batch_is_looked_at_command_by_command(guarded: ThrowawayServer, file: File) -> None:
    http = speak(guarded, file.keys["reader"])
    commands = [
        {"command": "kv.get", "payload": {"key": "user:9"}},
        {"command": "kv.get", "payload": {"key": "secret"}},
        {"command": "kv.set", "payload": {"key": "user:9", "value": 1}},
        {"command": "queue.list", "payload": {}},
    ]
    results = http.post({"type": "batch", "commands": commands}).document["results"]
    assert [result["status"] for result in results] == ["success", "error", "error", "success"]
    assert {result["error"]["code"] for result in results if "error" in result} == {"FORBIDDEN"}
    atomic = http.post({"type": "batch", "commands": commands, "atomic": True})
    assert b"FORBIDDEN" in atomic.body
    assert speak(guarded, file.keys["ops"]).do("kv.exists", key="user:9").payload == {"exists": False}
    http.close()


def test_admin_is_a_grant_of_its_own(client: Client, guarded: ThrowawayServer, file: File) -> None:
    for name, status in (("ops", 400), ("orders", 403)):
        http = speak(guarded, file.keys[name])
        assert http.request("GET", "/api/v1/admin/backup").status == status
        assert (http.do("admin.stats").status == 200) is (name == "ops")
        http.close()


def test_what_was_under_a_key_is_for_its_readers(guarded: ThrowawayServer, tmp_path: Path, serve: Serve) -> None:
    file = File(tmp_path / "keys.toml", {"blind": ["kv:write:*"]})
    http = speak(serve("--keys-file", str(file.path)), file.keys["blind"])
    http.do("kv.set", key="a", value="first")
    assert http.do("kv.set", key="a", value="second").payload.get("previous") is None
    http.close()


@pytest.mark.parametrize("transport", ["native", "websocket"])
def test_a_connection_shows_what_was_under_a_key_to_its_readers_alone(
    transport: Any, tmp_path: Path, serve: Serve
) -> None:
    file = File(tmp_path / "keys.toml", {"half": ["kv:write:*", "kv:read:a*", "kv:read:*z"]})
    url = serve("--keys-file", str(file.path)).url
    with SynapClient(url=url, api_key=file.keys["half"], transport=transport) as client:
        for key, shown in (("a", "first"), ("b", None), ("bz", "first")):
            client.kv.set(key, "first")
            assert client.kv.set(key, "second").previous == shown


def test_events_go_to_those_who_may_read_them(guarded: ThrowawayServer, file: File) -> None:
    http = speak(guarded, file.keys["worker"])
    assert http.request("GET", "/api/v1/stream/subscribe?room=chat-1").status == 403
    http.close()
    url = guarded.url.replace("http", "ws") + "/api/v1/ws"
    with connect(url, additional_headers={"X-API-Key": file.keys["orders"]}, open_timeout=PATIENCE) as socket:
        for command, payload, allowed in (
            ("pubsub.subscribe", {"topics": ["news.#", "#"]}, False),
            ("pubsub.subscribe", {"topics": ["news.*"]}, True),
            ("stream.subscribe", {"room": "talk"}, False),
            ("stream.subscribe", {"room": "chat-9"}, True),
        ):
            socket.send(json.dumps({"command": command, "payload": payload}))
            assert json.loads(socket.recv(PATIENCE))["success"] is allowed, payload


@pytest.mark.parametrize("transport", ["native", "websocket"])
def test_a_durable_name_needs_what_its_commits_need(transport: Any, tmp_path: Path, serve: Serve) -> None:
    """A reader ended whoever subscribed by a name, and was sent everything again, as its commits were refused."""
    file = File(tmp_path / "keys.toml", {"reader": ["stream:read:*"], "half": ["stream:*:chat-*", "stream:read:*"]})
    service = serve("--keys-file", str(file.path))
    reader, half = (SynapClient(url=service.url, api_key=file.keys[name], transport=transport) for name in file.keys)
    with reader, half:
        half.stream.publish("chat-1", "said", 1)
        with half.stream.subscribe("chat-1", name="billing", replay=True) as events:
            for name in ("billing", "another"):
                for client, room in ((reader, "chat-1"), (half, "talk")):
                    error = refused(functools.partial(client.stream.subscribe, room, name=name))
                    assert "stream:write" in error.message
            path = "/api/v1/stream/subscribe?room=chat-1&name=billing"
            assert speak(service, file.keys["reader"]).request("GET", path).status == 403
            assert next(iter(events)).data == 1
        assert [one.name for one in reader.stream.cursors("chat-1")] == ["billing"]
        with reader.stream.subscribe("chat-1", replay=True) as events:
            assert next(iter(events)).data == 1


GRANTED = ["kv:read:*", "kv:*:a*", "queue:consume:**", "queue:read:q", "stream:*:*", "pubsub:read:#", "pubsub:write:*"]


def about(command: Command, name: str) -> Any:
    """A payload that the command takes, about something of that name."""
    fields = valid(command)
    if command.name_field in fields:
        one: Any = {"key": name, "value": 1} if command.name_field == "pairs" else name
        fields[command.name_field] = [one] if isinstance(fields[command.name_field], list) else one
    return JSON.decode_payload(command, json.dumps(fields).encode())


def checked(access: Access, command: Command, name: str) -> bool:
    try:
        access.check(command, about(command, name))
    except SynapError:
        return False
    return True


@pytest.mark.parametrize("grants", [[], *([grant] for grant in GRANTED), GRANTED, ["*:*:*"], ["*:read:*", "*:write:b"]])
@pytest.mark.parametrize("admin", [False, True])
def test_what_needs_no_look_at_names_is_allowed_under_every_name(grants: list[str], admin: bool) -> None:
    access = Access("somebody", admin, [Grant(grant) for grant in grants])
    names = ["a", "b", "q", "x.y", "a" * 200]
    for command in COMMANDS.values():
        first = [checked(access, command, name) for name in names]
        assert [checked(access, command, name) for name in names] == first, "the second time it may be remembered"
        if command.code in access.open:
            assert all(first), command.name
    if grants == ["*:*:*"]:
        assert access.open >= {command.code for command in COMMANDS.values() if not command.admin}
    if not grants:
        assert access.open == {one.code for one in COMMANDS.values() if (admin if one.admin else not one.verb)}


def test_what_is_remembered_of_a_key_is_bounded() -> None:
    access = Access("somebody", False, [Grant("kv:read:a*")])
    for number in range(3 * MAX_FOUND):
        assert checked(access, COMMANDS["kv.get"], f"a{number}")
        assert not checked(access, COMMANDS["kv.get"], f"b{number}")
    assert sum(len(rule.known) for rule in access._rules.values()) <= MAX_FOUND


# -------------------------------------------------------------------------------------- changes


@pytest.mark.parametrize("ask", [False, True], ids=["by itself", "SIGHUP"])
def test_a_file_that_changes_is_read_again(serve: Serve, tmp_path: Path, ask: bool) -> None:
    file = File(tmp_path / "keys.toml")
    service = serve("--keys-file", str(file.path))
    url = service.url.replace("http", "ws") + "/api/v1/ws"
    ended: list[SynapError] = []
    with SynapClient(url=service.url, api_key=file.keys["reader"]) as reader:
        refused(lambda: reader.kv.get("price:1"))
        with connect(url, additional_headers={"X-API-Key": file.keys["orders"]}, open_timeout=PATIENCE) as socket:
            socket.send(json.dumps({"command": "pubsub.subscribe", "payload": {"topics": ["news.#"]}}))
            assert json.loads(socket.recv(PATIENCE))["success"] is True
            file.change("orders", ["kv:read:*"])
            file.change("reader", ["kv:read:price:*"])
            if ask:
                service.signal(signal.SIGHUP)
            said = json.loads(socket.recv(PATIENCE))
            assert said["error"]["code"] == "FORBIDDEN"
        wait_for(lambda: not reader.kv.get("price:1").found)
        refused(lambda: reader.kv.get("user:1"))
        with connect(url, additional_headers={"X-API-Key": file.keys["worker"]}, open_timeout=PATIENCE) as socket:
            keyfile.remove(file.path, "worker")
            if ask:
                service.signal(signal.SIGHUP)
            with pytest.raises(Exception, match="1008"):
                socket.recv(PATIENCE)
    assert not ended
    file.path.write_text("nonsense = [")
    service.signal(signal.SIGHUP)
    wait_for(lambda: "keys stay as they were" in "".join(service.output))
    assert speak(service, file.keys["ops"]).do("kv.exists", key="a").status == 200
    service.signal(signal.SIGUSR1)
    service.signal(signal.SIGUSR2)
    assert speak(service, file.keys["ops"]).do("kv.exists", key="a").status == 200
    assert service.stop() == 0


def test_a_file_that_could_not_be_read_is_read_once_it_can_be(serve: Serve, tmp_path: Path) -> None:
    file = File(tmp_path / "keys.toml")
    service = serve("--keys-file", str(file.path), "--handshake-timeout", "0.2")  # a look each 0.05 s

    def replace(text: str, mode: int) -> None:
        new = tmp_path / "new.toml"
        new.write_text(text)
        new.chmod(mode)
        new.replace(file.path)

    copy = tmp_path / "copy.toml"
    shutil.copy(file.path, copy)
    keyfile.remove(copy, "worker")
    without = copy.read_text()
    replace(without + "nonsense = [", 0o600)
    wait_for(lambda: "not TOML" in "".join(service.output))
    replace(without, 0o644)
    wait_for(lambda: "chmod 0600" in "".join(service.output))
    with SynapClient(url=service.url, api_key=file.keys["worker"]) as worker:  # tries again where it was too slow

        def code() -> str:
            with pytest.raises(SynapError) as caught:
                worker.queue.stats("a")
            return caught.value.code

        wait_for(lambda: code() == "FORBIDDEN")
        file.path.chmod(0o600)
        wait_for(lambda: code() == "UNAUTHORIZED")
    said = "".join(service.output)
    assert (said.count("not TOML"), said.count("chmod 0600")) == (1, 1)


@contextmanager
def watching(service: ThrowawayServer, key: str) -> Iterator[ClientConnection]:
    url = service.url.replace("http", "ws") + "/api/v1/ws"
    with connect(url, additional_headers={"X-API-Key": key}, open_timeout=PATIENCE) as socket:
        yield socket


def told(socket: ClientConnection, command: str, **payload: Any) -> Any:
    socket.send(json.dumps({"command": command, "payload": payload}))
    return json.loads(socket.recv(PATIENCE))


def test_a_durable_subscription_ends_with_the_grant_to_commit(serve: Serve, tmp_path: Path) -> None:
    file = File(tmp_path / "keys.toml")
    service = serve("--keys-file", str(file.path))
    with watching(service, file.keys["orders"]) as socket:
        numbers = [
            told(socket, "stream.subscribe", room="chat-1", **durable)["payload"]["subscription_id"]
            for durable in ({}, {"name": "billing"})
        ]
        file.change("orders", ["stream:read:chat-*"])
        service.signal(signal.SIGHUP)
        ended = json.loads(socket.recv(PATIENCE))
        assert (ended["subscription_id"], ended["error"]["code"]) == (numbers[1], "FORBIDDEN")
        assert told(socket, "stream.unsubscribe", subscription_id=numbers[0])["payload"] == {"unsubscribed": True}


def test_a_key_that_is_taken_out_of_its_file_leaves_the_others_as_they_are(serve: Serve, tmp_path: Path) -> None:
    for name, keys in (("plain", ["first-key", "second-key"]), ("admin", ["the-admin-s"])):
        (tmp_path / name).write_text("\n".join(keys))
        (tmp_path / name).chmod(0o600)
    service = serve("--api-key-file", str(tmp_path / "plain"), "--admin-key-file", str(tmp_path / "admin"))
    increase = {"command": "kv.incr", "payload": {"key": "n"}, "request_id": "once"}
    assert speak(service, "second-key").post(increase).document["payload"]["value"] == 1
    with watching(service, "first-key") as first, watching(service, "second-key") as second:
        assert told(second, "admin.stats")["error"]["code"] == "FORBIDDEN"
        (tmp_path / "plain").write_text("second-key\nthird-key")
        service.signal(signal.SIGHUP)
        with pytest.raises(ConnectionClosed, match="1008"):
            first.recv(PATIENCE)
        assert told(second, "admin.stats")["error"]["code"] == "FORBIDDEN"
        assert told(second, "kv.exists", key="a")["success"] is True
    assert speak(service, "second-key").post(increase).document["payload"]["value"] == 1
    assert speak(service, "third-key").post(increase).document["payload"]["value"] == 2


def test_a_key_in_the_place_of_another_of_the_same_name_ends_the_other_s_connections(
    serve: Serve, tmp_path: Path
) -> None:
    file = File(tmp_path / "keys.toml")
    service = serve("--keys-file", str(file.path))
    with watching(service, file.keys["ops"]) as socket:
        keyfile.remove(file.path, "ops")
        file.keys["ops"] = keyfile.new_key()
        file.add("ops", GRANTS["ops"])
        service.signal(signal.SIGHUP)
        with pytest.raises(ConnectionClosed, match="1008"):
            socket.recv(PATIENCE)


@pytest.mark.parametrize(
    ("change", "status"), [("revoke", 401), ("narrow", 403)], ids=["the key is gone", "the grant is gone"]
)
def test_a_request_whose_body_comes_after_its_key_changed_is_refused(
    serve: Serve, tmp_path: Path, change: str, status: int
) -> None:
    file = File(tmp_path / "keys.toml")
    service = serve("--keys-file", str(file.path))
    ask = b'{"command":"queue.publish","payload":{"queue":"orders","message":1}}'
    key = file.keys["orders"].encode()
    head = b"POST /api/v1/command HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-API-Key: %b\r\n"
    with dial(service) as slow:
        slow.sendall(head % key + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(ask))
        assert read_head(slow).startswith(b"HTTP/1.1 100")  # its head was admitted
        if change == "revoke":
            keyfile.remove(file.path, "orders")
        else:
            file.change("orders", ["queue:read:*"])
        service.signal(signal.SIGHUP)
        wait_for(lambda: "read again: keys" in "".join(service.output))
        slow.sendall(ask)
        assert read_head(slow).split()[1] == b"%d" % status
    assert speak(service, file.keys["ops"]).do("queue.list").document["payload"]["queues"] == []


# -------------------------------------------------------------------------------------- files and keys


def test_keys_are_made_of_chance_and_a_checksum() -> None:
    key = keyfile.new_key()
    assert key.startswith("synap_")
    assert keyfile.has_checksum(key)
    assert not keyfile.has_checksum(key[:-1] + ("a" if key[-1] != "a" else "b"))
    assert not keyfile.has_checksum(key[:10] + ("a" if key[10] != "a" else "b") + key[11:])
    assert key != keyfile.new_key()


def test_the_file_has_no_key_in_it_and_is_its_owner_s(tmp_path: Path) -> None:
    file = File(tmp_path / "keys.toml")
    text = file.path.read_text()
    assert not any(key in text for key in file.keys.values())
    if os.name == "posix":
        assert file.path.stat().st_mode & 0o777 == 0o600
        file.path.chmod(0o644)
        with pytest.raises(SynapError, match="chmod 0600"):
            keyfile.read(file.path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x", "not TOML"),
        ('["a b"]\ndigest = "sha256:' + "0" * 64 + '"', "a key's name"),
        ('[a]\ndigest = "md5:1"', "sha256: and 64"),
        ("[a]\ngrants = []", "digest"),
        ('[a]\ndigest = "sha256:' + "0" * 64 + '"\ngrants = ["kv"]', r"\[a\]: a grant is"),
        ('[a]\ndigest = "sha256:' + "0" * 64 + '"\nquota = { speed = 1 }', "speed"),
        ('[a]\ndigest = "sha256:' + "0" * 64 + '"\nquota = { requests = nan }', "requests must be"),
        ('[a]\ndigest = "sha256:' + "0" * 64 + '"\nquota = { requests = 0 }', "requests must be"),
        ('[a]\ndigest = "sha256:' + "0" * 64 + '"\nquota = { requests = inf }', "requests must be"),
        ('[a]\ndigest = "sha256:' + "0" * 64 + '"\nquota = { connections = -1 }', "connections must be"),
        ("x = " + "[" * 100_000 + "]" * 100_000, "not TOML"),
        ("x = " + "9" * 5000, "not TOML"),
        ('[a]\ndigest = "sha256:' + "0" * 64 + '"\n[b]\ndigest = "sha256:' + "0" * 64 + '"', "same key"),
    ],
)
def test_a_file_that_is_wrong_says_where(text: str, told: str) -> None:
    with pytest.raises(SynapError, match=told):
        keyfile.parse(text, "keys.toml")


def test_keys_come_from_files_and_systemd_s_credentials(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "synap-admin-key").write_text("# ours\nfrom-systemd\n")
    (tmp_path / "synap-admin-key").chmod(0o400)
    (tmp_path / "plain").write_text("from-a-file\n  # theirs\n")
    (tmp_path / "plain").chmod(0o600)
    service = serve("--api-key-file", str(tmp_path / "plain"), environment={"CREDENTIALS_DIRECTORY": str(tmp_path)})
    for key, status in (("from-systemd", 200), ("from-a-file", 403), ("# ours", 401), ("# theirs", 401)):
        assert speak(service, key).do("admin.stats").status == status, key


def test_a_key_on_the_command_line_warns(serve: Serve) -> None:
    service = serve("--api-key", "visible")
    assert service.stop() == 0
    assert "everybody on this machine" in "".join(service.output)
    assert "visible" not in "".join(service.output)


def test_a_password_on_the_command_line_warns() -> None:
    """That of a cluster. A user's name alone is no secret."""
    command = [sys.executable, "-m", "synap", "serve", "--port", "0", "--engine"]
    for login, warns in (("me:visible", True), ("me", False)):
        ended = subprocess.run(
            [*command, f"valkey://{login}@127.0.0.1:1"], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert ended.returncode
        assert ("everybody on this machine" in ended.stderr) is warns
        assert "visible" not in ended.stdout + ended.stderr


# -------------------------------------------------------------------------------------- guesses and ids


def test_guessing_is_slowed_without_a_rate_limit_too(serve: Serve, still_rates: StillRates) -> None:
    service = serve("--api-key", "right", "--api-key", "other", environment=still_rates.environment)
    known = speak(service, "right")
    assert known.do("kv.exists", key="a").status == 200
    guesses = speak(service)
    seen = [guesses.post({"command": "queue.list"}, X_API_Key=f"guess-{number}").status for number in range(60)]
    assert set(seen) == {401, 429}
    # While it lasts, a right guess looks like a wrong one, and who was known before is served.
    statuses = [guesses.post({"command": "queue.list"}, X_API_Key=key).status for key in ["wrong"] * 20 + ["other"]]
    assert statuses[-1] == 429
    assert known.do("kv.exists", key="a").status == 200
    still_rates.go_on()
    wait_for(lambda: guesses.post({"command": "queue.list", "payload": {}}, X_API_Key="other").status == 200)


@pytest.mark.parametrize("lane", ["native", "websocket"])
def test_guessing_is_slowed_on_every_lane(serve: Serve, still_rates: StillRates, lane: str) -> None:
    service = serve("--api-key", "right", environment=still_rates.environment)

    def native(key: str) -> int:
        connection = dial(service)
        connection.sendall(greet("x", Hello(os.urandom(16).hex(), "json", False, key)))
        head = read_head(connection)
        connection.close()
        return int(head.split()[1])

    def websocket(key: str) -> int:
        connection = dial(service)
        connection.sendall(
            b"GET /api/v1/ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            b"X-API-Key: %b\r\n\r\n" % key.encode()
        )
        head = read_head(connection)
        connection.close()
        return int(head.split()[1])

    knock = {"native": native, "websocket": websocket}[lane]
    assert {knock(f"guess-{number}") for number in range(20)} == {401, 429}
    still_rates.go_on()
    wait_for(lambda: knock("wrong") == 401)


def test_request_ids_belong_to_the_key(serve: Serve) -> None:
    service = serve("--api-key", "one", "--api-key", "two")
    one, two = speak(service, "one"), speak(service, "two")
    request = {"command": "kv.incr", "payload": {"key": "n"}, "request_id": "mine"}
    assert [http.post(request).payload["value"] for http in (one, one, two, two, one)] == [1, 1, 2, 2, 1]
    batch = {"type": "batch", "request_id": "mine too", "commands": [{"command": "kv.incr", "payload": {"key": "b"}}]}
    told = [http.post(batch).document["results"][0]["payload"]["value"] for http in (one, one, two, two, one)]
    assert told == [1, 1, 2, 2, 1]


def test_request_ids_belong_to_the_key_on_a_websocket_too(serve: Serve) -> None:
    service = serve("--api-key", "one", "--api-key", "two")
    url = service.url.replace("http", "ws") + "/api/v1/ws"
    request = json.dumps({"command": "kv.incr", "payload": {"key": "n"}, "request_id": "mine"})
    told = []
    for key in ("one", "one", "two", "two", "one"):
        with connect(url, additional_headers={"X-API-Key": key}, open_timeout=PATIENCE) as socket:
            socket.send(request)
            told.append(json.loads(socket.recv(PATIENCE))["payload"]["value"])
    assert told == [1, 1, 2, 2, 1]
