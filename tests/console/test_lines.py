"""The Python line and the command line that a button shows do what the button does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from synap import SynapClient
from synap.cli.app import run as run_command
from synap.testing.server import ThrowawayServer
from tests.helpers.patience import PATIENCE

SOURCES = Path(__file__).parents[2] / "console"
DRIVER = """
import { Raw } from "./src/wire/json.ts";
import { backupLine, lines } from "./src/lines.ts";
globalThis.location = { origin: "http://localhost:15500" };
const raw = (payload) => { for (const name of ["value", "message", "data"])
    if (name in payload) payload[name] = new Raw(payload[name]); return payload; };
const asked = JSON.parse(process.env.ASKED);
const written = (command, payload) =>
    command === "backup" ? { python: "", shell: backupLine() } : lines(command, raw(payload));
console.log(JSON.stringify(asked.map(([command, payload]) => written(command, payload))));
"""

VALUES = [
    '"hello"',
    '"123"',
    '"true"',
    '"-5"',
    "-5",
    "1.0",
    "1e5",
    "1152921504606846977",
    "null",
    "true",
    '""',
    '"it\'s \\"quoted\\" \\\\ $HOME `id` \\n\\t\\u0001 \\ud83d\\ude00 \\u2028"',
    '{"a": [1, 2.5, null, {"b c": "d\'e"}], "ключ": "значение"}',
    "[]",
]
NAMES = ["plain", "user:1", "it's; rm -rf $HOME", "--flag", "пример 例", 'a"b\\c']


class Lines(NamedTuple):
    python: str
    shell: str


def lines(*asked: tuple[str, dict[str, Any]]) -> list[Lines]:
    """Have the console's own code write the lines."""
    node = shutil.which("node")
    esbuild = SOURCES / "node_modules" / ".bin" / "esbuild"
    assert node is not None, "node isn't there"
    assert esbuild.exists(), "esbuild isn't there: npm ci in console/"
    bundled = subprocess.run(
        [str(esbuild), "--bundle", "--format=esm", "--platform=node", "--loader=ts"],
        input=DRIVER,
        capture_output=True,
        text=True,
        check=True,
        cwd=SOURCES,
    ).stdout
    command = [node, "--input-type=module"]
    ran = subprocess.run(
        command,
        input=bundled,
        capture_output=True,
        text=True,
        env={**os.environ, "ASKED": json.dumps(asked)},
        check=True,
    )
    return [Lines(**line) for line in json.loads(ran.stdout)]


def shell(server: ThrowawayServer, line: str) -> None:
    """Have bash take a line apart, and the command line's own code run it: starting a Python for each takes long."""
    script = f"synap() {{ printf '%s\\0' \"$@\"; }}\n{line}"
    words = subprocess.run(["bash", "-c", script], capture_output=True, check=True, timeout=PATIENCE).stdout
    arguments = [word.decode() for word in words.split(b"\0")[:-1]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYNAP_URL", server.url)
        assert run_command(arguments) in (0, 1), line  # 1: the answer is no, such as that the queue was there already


@pytest.fixture(scope="module")
def shared() -> Iterator[ThrowawayServer]:
    with ThrowawayServer() as running:
        yield running


def run(how: str, server: ThrowawayServer, client: SynapClient, line: Lines) -> None:
    if how == "python":
        eval(line.python, {"client": client})
    else:
        shell(server, line.shell)


@pytest.mark.parametrize("how", ["python", "shell"])
def test_values_arrive_as_they_are(shared: ThrowawayServer, how: str) -> None:
    written = lines(*(("kv.set", {"key": f"{how}:{place}", "value": text}) for place, text in enumerate(VALUES)))
    with SynapClient(url=shared.url) as client:
        for line in written:
            run(how, shared, client, line)
        for place, text in enumerate(VALUES):
            assert repr(client.kv.get(f"{how}:{place}").value) == repr(json.loads(text))


@pytest.mark.parametrize("how", ["python", "shell"])
def test_names_and_options_arrive_as_they_are(shared: ThrowawayServer, how: str) -> None:
    names = [f"{name} {how}" for name in NAMES]
    headers = {"a b": "it's", "x": "=y"}
    asked: list[tuple[str, dict[str, Any]]] = []
    for name in names:
        asked.append(("queue.publish", {"queue": name, "message": '"m"', "priority": 7, "headers": headers}))
        asked.append(("stream.publish", {"room": name, "event_type": name, "data": "1.0", "metadata": headers}))
        asked.append(("kv.set", {"key": name, "value": "1", "ttl": 500, "nx": True}))
        asked.append(("kv.incr", {"key": name, "amount": 4}))
    with SynapClient(url=shared.url) as client:
        for line in lines(*asked):
            run(how, shared, client, line)
        for name in names:
            message = client.queue.consume(name)
            assert message is not None
            assert (message.message, message.priority, message.headers) == ("m", 7, headers)
            (event,) = client.stream.history(name).events
            assert (event.event_type, repr(event.data), event.metadata) == (name, "1.0", headers)
            found = client.kv.get(name)
            assert found.value == 5
            assert found.ttl is not None


@pytest.mark.parametrize("how", ["python", "shell"])
def test_what_the_buttons_do(shared: ThrowawayServer, how: str) -> None:
    queue, room, key = f"q {how}", f"r {how}", f"k {how}"
    with SynapClient(url=shared.url) as client:

        def do(command: str, **payload: Any) -> None:
            run(how, shared, client, lines((command, payload))[0])

        do("queue.create", queue=queue, config={"max_retries": 0, "max_depth": 5, "dead_letter": True})
        do("queue.create", queue=queue, config={"retry_delay": 2.5, "retry_backoff": 3, "max_retries": 0})
        for number in range(3):
            client.queue.publish(queue, number)
        do("queue.peek", queue=queue, state="ready", limit=2)
        leased = client.queue.consume(queue)
        assert leased is not None
        do("queue.nack", queue=queue, message_id=str(leased.message_id), requeue=False, lease=0)
        assert client.queue.stats(f"{queue}.dlq").depth == 1
        (letter,) = client.queue.peek(f"{queue}.dlq").messages
        do("queue.redrive", queue=queue, message_ids=[letter.message_id])
        assert client.queue.stats(f"{queue}.dlq").depth == 0
        do("queue.redrive", queue=queue, limit=10)
        assert client.queue.stats(queue).depth == 3
        do("queue.purge", queue=queue)
        assert client.queue.stats(queue).depth == 0
        do("queue.delete", queue=queue)
        assert queue not in client.queue.list()
        client.stream.publish(room, "e", 1)
        do("stream.delete", room=room)
        assert room not in client.stream.rooms()
        client.kv.set(key, 1)
        do("kv.expire", key=key, ttl=100)
        assert client.kv.ttl(key) in range(1, 101)
        written = {"key": key, "value": "2.0", "if_value": 1, "keep_ttl": True}
        run(how, shared, client, lines(("kv.set", written))[0])
        assert repr(client.kv.get(key).value) == "2.0"
        assert client.kv.ttl(key) in range(1, 101)
        do("kv.persist", key=key)
        assert client.kv.ttl(key) is None
        do("kv.del", keys=[key])
        assert client.kv.exists(key) is False
        client.kv.mset({f"{key}:1": 1, f"{key}:2": 2})
        do("kv.clear", prefix=f"{key}:")
        assert client.kv.exists(f"{key}:1") is False
        do("pubsub.publish", topic="a.b", message="1", metadata={"a": "b"})
        do("admin.stats")
        do("admin.config")
        do("admin.clients", disconnect=10**9)


def test_reading_lines_run_too(shared: ThrowawayServer) -> None:
    with SynapClient(url=shared.url) as client:
        client.queue.publish("read", 1)
        client.stream.publish("read", "e", 1)
        client.kv.set("read", 1)
        asked: list[tuple[str, dict[str, Any]]] = [
            ("kv.get", {"key": "read"}),
            ("kv.mget", {"keys": ["read", "b"]}),
            ("kv.scan", {"prefix": "re"}),
            ("queue.stats", {"queue": "read"}),
            ("queue.list", {}),
            ("stream.history", {"room": "read", "from_offset": 0, "limit": 1}),
            ("stream.rooms", {}),
            ("stream.stats", {"room": "read"}),
            ("pubsub.topics", {}),
            ("pubsub.stats", {}),
            ("admin.health", {}),
        ]
        for line in lines(*asked):
            eval(line.python, {"client": client})
            shell(shared, line.shell)


def test_the_line_for_a_backup_makes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ThrowawayServer(data=str(tmp_path / "data")) as server, SynapClient(url=server.url) as client:
        client.kv.set("k", "kept")
        (line,) = lines(("backup", {}))
        shell(server, line.shell.replace("http://localhost:15500", server.url))
    with ThrowawayServer(data=str(tmp_path / "synap-backup")) as restored, SynapClient(url=restored.url) as client:
        assert client.kv.get("k").value == "kept"
