"""`synap doctor`, `synap backup`, `synap export`, `synap import`."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest

from synap import SynapClient
from synap.storage.layout import DATABASE, LOCK
from synap.testing import ThrowawayServer
from tests.cli.conftest import Spawn, Synap
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import wait_for


def fill(url: str) -> None:
    with SynapClient(url=url, format="msgpack") as client:
        client.kv.mset({f"key:{number}": {"n": number} for number in range(1200)})
        client.kv.set("short", "lived", ttl=1000)
        client.kv.set("bytes", b"\x00\xff")
        client.queue.create("tasks", max_retries=7)
        for number in range(5):
            client.queue.publish("tasks", number, priority=number, headers={"n": str(number)})
        for number in range(3):
            client.stream.publish("room", "said", number, {"by": "alice"})


def content(url: str) -> Dict[str, Any]:
    """What a user finds there, in a form that can be compared."""
    with SynapClient(url=url, format="msgpack") as client:
        found: Dict[str, Any] = {"bytes": client.kv.get("bytes").value, "last": client.kv.get("key:1199").value}
        ttl = client.kv.ttl("short")
        found["ttl"] = ttl is not None and 900 < ttl <= 1000
        taken = [client.queue.consume("tasks") for _ in range(6)]
        found["messages"] = [
            (message.message, message.priority, message.headers) for message in taken if message is not None
        ]
        found["events"] = [
            (event.offset, event.event_type, event.data, event.metadata)
            for event in client.stream.history("room").events
        ]
    return found


EXPECTED = {
    "bytes": b"\x00\xff",
    "last": {"n": 1199},
    "ttl": True,
    "messages": [(number, number, {"n": str(number)}) for number in (4, 3, 2, 1, 0)],
    "events": [(number, "said", number, {"by": "alice"}) for number in range(3)],
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory with data in it, that nobody uses."""
    directory = tmp_path / "data"
    url = f"file://{directory}"
    fill(url)
    return directory


def test_a_sound_directory_is_said_to_be_sound(synap: Synap, data: Path) -> None:
    ended = synap("doctor", str(data))
    assert ended.code == 0
    assert b"is sound" in ended.out
    report = synap("doctor", str(data), "--json").document
    assert report["sound"] is True
    assert report["problems"] == []


def damage(directory: Path) -> None:
    """Change a byte of what was committed, behind everybody's back."""
    connection = sqlite3.connect(directory / DATABASE)
    (number,) = connection.execute("SELECT max(seq) FROM log").fetchone()
    (body,) = connection.execute("SELECT body FROM log WHERE seq=?", (number,)).fetchone()
    changed = bytes(body[:-1]) + bytes([body[-1] ^ 1])
    connection.execute("UPDATE log SET body=? WHERE seq=?", (changed, number))
    connection.commit()
    connection.close()


def test_damage_is_named_and_what_is_sound_saved_elsewhere(synap: Synap, data: Path, tmp_path: Path) -> None:
    damage(data)
    before = (data / DATABASE).read_bytes()
    ended = synap("doctor", str(data))
    assert ended.code == 1
    assert b"log row" in ended.out
    assert b"--repair" in ended.out
    assert synap("doctor", str(data), "--json").document["sound"] is False
    saved = tmp_path / "saved"
    repaired = synap("doctor", str(data), "--repair", str(saved))
    assert repaired.code == 1, "something is lost"
    assert b"lost:" in repaired.out
    assert (data / DATABASE).read_bytes() == before
    assert synap("doctor", str(saved)).code == 0
    with SynapClient(url=f"file://{saved}") as client:
        assert client.kv.get("key:7").value == {"n": 7}


def test_no_repair_is_recommended_where_nothing_can_be_read(synap: Synap, data: Path, tmp_path: Path) -> None:
    (data / DATABASE).write_bytes(b"x" * 8192)
    ended = synap("doctor", str(data))
    assert ended.code == 1
    assert b"--repair" not in ended.out
    assert b"backup" in ended.out
    repaired = synap("doctor", str(data), "--repair", str(tmp_path / "saved"))
    assert repaired.code == 2
    assert "backup" in repaired.err


def test_a_directory_without_data_is_no_patient(synap: Synap, tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "nothing"):
        ended = synap("doctor", str(directory))
        assert ended.code == 2
        assert str(directory) in ended.err


def test_a_backup_of_a_directory_is_one_to_start_on(synap: Synap, data: Path, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    ended = synap("backup", str(data), str(target))
    assert ended.code == 0, ended.err
    assert ended.document["target"] == str(target)
    assert content(f"file://{target}") == EXPECTED


def test_a_backup_does_not_go_over_what_is_there(synap: Synap, data: Path) -> None:
    ended = synap("backup", str(data), str(data))
    assert ended.code == 2
    assert "not empty" in ended.err
    assert content(f"file://{data}") == EXPECTED


def test_a_backup_of_a_running_server_is_what_it_held(synap: Synap, tmp_path: Path) -> None:
    by_url, by_directory = tmp_path / "by-url", tmp_path / "by-directory"
    with ThrowawayServer(data=tmp_path / "served", arguments=["--admin-key", "admin", "--api-key", "user"]) as server:
        with SynapClient(url=server.url, api_key="user") as client:
            client.kv.set("a", [1, 2])
        refused = synap("backup", server.url, str(tmp_path / "refused"), "--api-key", "user")
        assert refused.code == 4
        assert refused.err.startswith("synap: [FORBIDDEN]")
        assert synap("backup", server.url, str(by_url), "--api-key", "admin").code == 0
        assert synap("backup", str(tmp_path / "served"), str(by_directory)).code == 0
    for copy in (by_url, by_directory):
        with SynapClient(url=f"file://{copy}") as client:
            assert client.kv.get("a").value == [1, 2]


def test_a_server_without_data_on_disk_says_that_it_has_none(synap: Synap, synap_url: str, tmp_path: Path) -> None:
    ended = synap("backup", synap_url, str(tmp_path / "copy"))
    assert ended.code == 2
    assert ended.err.startswith("synap: [INVALID_")


def test_no_server_is_exit_code_3(synap: Synap, tmp_path: Path) -> None:
    ended = synap("backup", "http://127.0.0.1:1", str(tmp_path / "copy"))
    assert ended.code == 3
    assert ended.err.startswith("synap: [CONNECTION_FAILED]")


def documents(file: Path) -> List[Dict[str, Any]]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def test_an_export_holds_everything_one_document_a_line(synap: Synap, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    ended = synap("export", str(data), str(file))
    assert ended.code == 0, ended.err
    lines = documents(file)
    assert ended.document["lines"] == len(lines)
    kinds = [line["type"] for line in lines]
    assert (kinds[0], kinds[-1]) == ("header", "end")
    assert [kinds.count(kind) for kind in ("key", "queue", "message", "room", "event")] == [1202, 1, 5, 1, 3]
    assert synap("export", str(data)).out.count(b"\n") == len(lines)
    assert sorted(os.listdir(tmp_path)) == ["data", "data.jsonl"]


def test_an_export_into_a_new_directory_is_the_same_data(synap: Synap, data: Path, tmp_path: Path) -> None:
    exported = synap("export", str(data)).out
    target = tmp_path / "again"
    ended = synap("import", "-", str(target), stdin=exported)
    assert ended.code == 0, ended.err
    assert content(f"file://{target}") == EXPECTED


def test_an_export_is_added_to_what_a_server_holds(synap: Synap, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    synap("export", str(data), str(file))
    with ThrowawayServer() as server:
        ended = synap("import", str(file), server.url)
        assert ended.code == 0, ended.err
        assert content(server.url) == EXPECTED
        with SynapClient(url=server.url) as client:
            assert len(client.kv.scan(count=10_000).keys) == 1202


def test_a_running_server_is_exported(synap: Synap, tmp_path: Path) -> None:
    with ThrowawayServer(data=tmp_path / "served") as server:
        with SynapClient(url=server.url) as client:
            client.kv.set("a", 1)
        ended = synap("export", server.url)
    assert ended.code == 0, ended.err
    assert {"type": "key", "key": "a", "value": 1} in ended.documents


def test_an_export_that_was_cut_is_refused_and_leaves_nothing(synap: Synap, data: Path, tmp_path: Path) -> None:
    exported = synap("export", str(data)).out
    cut = b"".join(exported.splitlines(keepends=True)[:-10])
    target = tmp_path / "again"
    ended = synap("import", "-", str(target), stdin=cut)
    assert ended.code == 2
    assert "cut" in ended.err
    assert synap("doctor", str(target)).code == 2, "nothing there counts as data"


def test_an_export_that_fails_leaves_no_file(synap: Synap, data: Path, tmp_path: Path) -> None:
    damage(data)
    file = tmp_path / "data.jsonl"
    ended = synap("export", str(data), str(file))
    assert ended.code == 5
    assert "synap doctor" in ended.err
    assert not file.exists()
    assert sorted(os.listdir(tmp_path)) == ["data"]


def test_files_that_are_not_there_are_said_in_one_line(synap: Synap, tmp_path: Path) -> None:
    ended = synap("import", str(tmp_path / "no-such-file"), str(tmp_path / "new"))
    assert ended.code == 5
    assert ended.err.count("\n") == 1
    assert "no-such-file" in ended.err


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], str]]:
    """Gives the URL of a server that answers a request with the bytes it is told, and hangs up."""
    with ExitStack() as stack:

        def start(said: bytes) -> str:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def answer() -> None:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(said)

            thread = threading.Thread(target=answer)
            thread.start()
            stack.callback(thread.join)
            return f"http://127.0.0.1:{listening.getsockname()[1]}"

        yield start


@pytest.mark.parametrize(
    ("said", "code", "message"),
    [
        (b"", 3, "CONNECTION_LOST"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", 3, "CONNECTION_LOST"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nwhat", 2, "is it a synap server?"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nSQLit\r\n", 3, "cut after"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 5, "damaged"),
    ],
)
def test_what_is_no_copy_is_not_kept_as_one(
    synap: Synap, answering: Callable[[bytes], str], tmp_path: Path, said: bytes, code: int, message: str
) -> None:
    target = tmp_path / "copy"
    ended = synap("backup", answering(said), str(target))
    assert (ended.code, ended.err.count("\n")) == (code, 1), ended.err
    assert message in ended.err
    assert not (target / DATABASE).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_half_made_is_removed_when_it_is_ended(number: signal.Signals, spawn: Spawn, tmp_path: Path) -> None:
    target = tmp_path / "new"
    process = spawn("import", "-", str(target), stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b'{"type": "header", "format": 1, "exported": 1.0}\n{"type": "key", "key": "a", "value": 1}\n')
    process.stdin.flush()
    wait_for(lambda: (target / LOCK).exists())
    process.send_signal(number)
    # Its input stays open: it doesn't end by that.
    assert process.wait(PATIENCE) == 128 + number
    process.communicate()
    assert not target.exists()
