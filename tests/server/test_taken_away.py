"""Rights that are taken away: what goes on under them ends, however slowly its caller reads, and whatever it does."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from synap import SynapClient, SynapError
from synap.host import EngineHost
from synap.server import keyfile
from synap.server.auth import Keys
from synap.server.service import Service
from synap.server.settings import ServerConfig
from synap.storage import backup
from synap.testing.server import ThrowawayServer
from synap.wire.frames import HEADER
from synap.wire.handshake import Hello, greet
from tests.helpers.inside import line, running, service
from tests.helpers.keys import File, speak
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import Http, dial, read_all, read_head, request, wait_for
from tests.server.test_console import ask, sign_in
from tests.server.test_keys import told, watching

Serve = Callable[..., ThrowawayServer]
ALL = {"ops": ["*:*:*", "admin"], "leaked": ["*:*:*", "admin"]}
LARGE = "x" * 1_000_000
MANY = 10_000
"""Commands of a batch that takes many slices."""


def text(message: object) -> bytes:
    """A WebSocket's frame."""
    body = json.dumps(message).encode()
    return struct.pack(">BBH4x", 0x81, 0x80 | 126, len(body)) + body


def binary(body: bytes) -> bytes:
    """The same, of native frames."""
    return struct.pack(">BB4x", 0x82, 0x80 | len(body)) + body


def deaf_websocket(server: ThrowawayServer, key: str) -> socket.socket:
    """Open a WebSocket that reads nothing but the head of the answer."""
    opened = dial(server)
    nonce = base64.b64encode(os.urandom(16)).decode()
    opened.sendall(
        "GET /api/v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {nonce}\r\nX-API-Key: {key}\r\n\r\n".encode()
    )
    assert b" 101 " in read_head(opened)
    return opened


def lanes(http: Http) -> list[str]:
    return [one["lane"] for one in http.do("admin.clients").payload["clients"]]


def test_who_is_no_admin_any_more_is_shown_no_more_figures(serve: Serve, tmp_path: Path) -> None:
    file = File(tmp_path / "keys.toml", ALL)
    server = serve("--keys-file", str(file.path))
    ops = speak(server, file.keys["ops"])
    with watching(server, file.keys["leaked"]) as one:
        number = told(one, "admin.watch")["payload"]["subscription_id"]
        file.change("leaked", ["*:*:*"])
        server.signal(signal.SIGHUP)
        while (said := json.loads(one.recv(PATIENCE)))["type"] != "ended":
            assert said["subscription_id"] == number
        assert (said["subscription_id"], said["error"]["code"]) == (number, "FORBIDDEN")
        ops.do("queue.create", queue="secret")
        with pytest.raises(TimeoutError):
            one.recv(1.5)


@pytest.mark.parametrize("how", ["the key is gone", "the grant is gone", "an admin asked"])
def test_who_does_not_read_is_leased_nothing_any_more(serve: Serve, tmp_path: Path, how: str) -> None:
    file = File(tmp_path / "keys.toml", ALL)
    server = serve("--keys-file", str(file.path), "--unread-timeout", "3600")
    ops = speak(server, file.keys["ops"])
    ops.do("kv.set", key="large", value=LARGE)
    ops.do("queue.create", queue="work")
    with deaf_websocket(server, file.keys["leaked"]) as deaf:
        deaf.sendall(text({"command": "queue.consume", "payload": {"queue": "work", "timeout": 300}}))
        wait_for(lambda: ops.do("queue.stats", queue="work").payload["consumers"] == 1)
        for _ in range(12):
            deaf.sendall(text({"command": "kv.get", "payload": {"key": "large"}}))
        wait_for(lambda: ops.do("admin.stats").payload["transit"]["bytes"] > len(LARGE))
        if how == "the key is gone":
            keyfile.remove(file.path, "leaked")
        elif how == "the grant is gone":
            file.change("leaked", ["kv:read:large"])
        else:
            [number] = [one["id"] for one in ops.do("admin.clients").payload["clients"] if one["waits"]]
            ops.do("admin.clients", disconnect=number)
        server.signal(signal.SIGHUP)
        wait_for(lambda: "read again: keys" in "".join(server.output))
        ops.do("queue.publish", queue="work", message="secret")
        figures = ops.do("queue.stats", queue="work").payload
        assert (figures["depth"], figures["pending"], figures["consumers"]) == (1, 0, 0)
        wait_for(lambda: "websocket" not in lanes(ops))
        assert b"secret" not in read_all(deaf)


def test_nothing_is_executed_after_a_sign_out_for_who_does_not_read(serve: Serve, tmp_path: Path) -> None:
    file = File(tmp_path / "keys.toml", ALL)
    server = serve("--keys-file", str(file.path), "--unread-timeout", "3600")
    ops = speak(server, file.keys["ops"])
    ops.do("kv.set", key="large", value=LARGE)
    signed_in = sign_in(server, file.keys["leaked"])
    with dial(server) as deaf:
        deaf.sendall(
            "GET /api/v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            f"Sec-WebSocket-Protocol: synap.native, csrf.{signed_in.csrf}\r\nCookie: {signed_in.cookie}\r\n"
            f"Synap-Session: {'ab' * 16}\r\nSynap-Format: json\r\n\r\n".encode()
        )
        assert b" 101 " in read_head(deaf)
        for number in range(1, 13):
            deaf.sendall(binary(request(number, "kv.get", key="large")))
        wait_for(lambda: ops.do("admin.stats").payload["transit"]["bytes"] > len(LARGE))
        assert ask(server, "DELETE", "/console/session", signed_in.headers()).status == 200
        with contextlib.suppress(OSError):
            deaf.sendall(binary(request(20, "kv.set", key="late", value=1)))
        wait_for(lambda: "websocket" not in lanes(ops))
    assert not ops.do("kv.exists", key="late").payload["exists"]


def test_an_event_stream_that_nobody_reads_ends_with_its_key(serve: Serve, tmp_path: Path) -> None:
    file = File(tmp_path / "keys.toml", ALL)
    server = serve("--keys-file", str(file.path), "--unread-timeout", "3600")
    ops = speak(server, file.keys["ops"])
    with dial(server) as deaf:
        key = file.keys["leaked"]
        deaf.sendall(f"GET /api/v1/stream/subscribe?room=a HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\n\r\n".encode())
        assert b" 200 " in read_head(deaf)
        for _ in range(16):
            ops.do("stream.publish", room="a", event_type="t", data=LARGE)
        assert "events" in lanes(ops)
        keyfile.remove(file.path, "leaked")
        server.signal(signal.SIGHUP)
        wait_for(lambda: "events" not in lanes(ops))


@pytest.mark.parametrize("how", ["the key is gone", "the grant is gone"])
def test_a_backup_ends_with_the_right_to_it(serve: Serve, tmp_path: Path, how: str) -> None:
    file = File(tmp_path / "keys.toml", ALL)
    server = serve("--keys-file", str(file.path), data=tmp_path / "data")
    with SynapClient(url=server.url, api_key=file.keys["ops"]) as client:
        for number in range(16):
            client.kv.set(f"key:{number}", LARGE)
    with dial(server) as slow:
        key = file.keys["leaked"]
        slow.sendall(f"GET /api/v1/admin/backup HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\n\r\n".encode())
        assert b" 200 " in read_head(slow)
        if how == "the key is gone":
            keyfile.remove(file.path, "leaked")
        else:
            file.change("leaked", ["*:*:*"])
        server.signal(signal.SIGHUP)
        wait_for(lambda: "read again: keys" in "".join(server.output))
        got = read_all(slow)
    assert not got.endswith(b"0\r\n\r\n")
    whole = speak(server, file.keys["ops"]).request("GET", "/api/v1/admin/backup").body
    assert len(got) < len(whole)
    backup.receive([whole], str(tmp_path / "received"))
    assert server.stop() == 0
    assert "Traceback" not in "".join(server.output)


BATCH = [{"command": "kv.incr", "payload": {"key": "n"}}] * MANY


async def by_http(port: int, key: str) -> Any:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    body = json.dumps({"type": "batch", "commands": BATCH}).encode()
    head = f"POST /api/v1/command HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-API-Key: {key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = await reader.read(-1)
    writer.close()
    return json.loads(answer.partition(b"\r\n\r\n")[2])


async def by_websocket(port: int, key: str) -> Any:
    headers = {"X-API-Key": key}
    async with connect(f"ws://127.0.0.1:{port}/api/v1/ws", additional_headers=headers, max_size=None) as one:
        await one.send(json.dumps({"type": "batch", "commands": BATCH}))
        return json.loads(await one.recv())


async def by_native(port: int, key: str) -> Any:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    writer.write(greet("localhost", Hello(os.urandom(16).hex(), "json", False, key)))
    await reader.readuntil(b"\r\n\r\n")
    writer.write(request(1, "batch", commands=BATCH))
    try:
        head = await reader.readexactly(HEADER.size)
        return json.loads(await reader.readexactly(int.from_bytes(head[:4], "big")))
    finally:
        writer.close()


async def interrupted(place: Service, ask: Any, key: str, what: Callable[[], None]) -> Any:
    """Begin a batch, do something once it is worked off in slices, and return its answer, or why there is none."""
    async with running(place) as port:
        asked = asyncio.ensure_future(ask(port, key))
        while not (place.host.busy or asked.done()):
            await asyncio.sleep(0)
        assert place.host.busy
        what()
        place.reload_keys()
        [answer] = await asyncio.wait_for(asyncio.gather(asked, return_exceptions=True), PATIENCE)
        while place.host.busy:
            await asyncio.sleep(0)
    return answer


@pytest.mark.parametrize("ask", [by_http, by_websocket, by_native])
@pytest.mark.parametrize("how", ["the key is gone", "the grant is gone"])
async def test_the_rest_of_a_batch_is_refused(tmp_path: Path, ask: Any, how: str) -> None:
    file = File(tmp_path / "keys.toml", ALL)
    place = service(ServerConfig(keys_file=str(file.path)), soon=asyncio.get_running_loop().call_soon)

    def change() -> None:
        if how == "the key is gone":
            keyfile.remove(file.path, "leaked")
        else:
            file.change("leaked", ["kv:read:*"])

    answer = await interrupted(place, ask, file.keys["leaked"], change)
    assert isinstance(place.host, EngineHost)
    done = int(bytes(place.host.engine.keys.values["n"]))
    assert 0 < done < MANY
    if how == "the grant is gone":
        outcomes = answer["results"]
        assert len(outcomes) == MANY
        assert [one["status"] for one in outcomes] == ["success"] * done + ["error"] * (MANY - done)
        assert outcomes[-1]["error"]["code"] == "FORBIDDEN"


async def test_what_had_to_wait_for_others_is_looked_at_again(tmp_path: Path) -> None:
    file = File(tmp_path / "keys.toml", {"ops": ["*:*:*"], "leaked": ["stream:read:a"]})
    place = service(ServerConfig(keys_file=str(file.path)), soon=asyncio.get_running_loop().call_soon)
    other, one = line(place, key=file.keys["ops"]), line(place, key=file.keys["leaked"])
    pairs = [{"key": f"k{number}", "value": number} for number in range(10_000)]
    other.receive(request(1, "kv.mset", pairs=pairs))
    assert isinstance(place.host, EngineHost)
    while not place.host.jobs.exclusive:
        assert place.host.busy
        await asyncio.sleep(0)
    one.receive(request(1, "stream.subscribe", room="a"))
    file.change("leaked", ["kv:read:*"])
    place.reload_keys()
    while place.host.busy:
        await asyncio.sleep(0)
    [told] = one.frames()
    assert json.loads(told.body)["code"] == "FORBIDDEN"
    other.abort()
    one.abort()


async def test_what_fails_while_it_is_read_again_keeps_nothing_else_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "audit.jsonl"
    place = service(ServerConfig(audit_log=str(path)))
    path.rename(tmp_path / "rotated.jsonl")
    with monkeypatch.context() as patched:
        patched.setattr(place, "reload_keys", lambda: 1 / 0)
        place.reload()
    assert "reading keys failed" in caplog.text
    assert path.exists()


def test_a_file_with_a_mistake_is_parsed_once(tmp_path: Path) -> None:
    file = File(tmp_path / "keys.toml", ALL)
    keys = Keys(ServerConfig(keys_file=str(file.path)), lambda: 0.0)
    text = file.path.read_text()
    file.path.write_text(text + "nonsense = [")
    assert keys.changed
    with pytest.raises(SynapError, match="not TOML"):
        keys.reload()
    assert not keys.changed
    assert keys.admit(file.keys["leaked"], "127.0.0.1").name == "leaked"
    file.path.write_text(text + "# right")
    assert keys.changed


def test_a_file_that_is_written_while_it_is_read_is_read_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = File(tmp_path / "keys.toml", ALL)
    keys = Keys(ServerConfig(keys_file=str(file.path)), lambda: 0.0)
    read = keyfile.read_text

    def slow(path: str | os.PathLike[str]) -> str:
        text = read(path)
        with monkeypatch.context() as patched:
            patched.setattr(keyfile, "read_text", read)
            keyfile.remove(file.path, "leaked")
        return text

    with monkeypatch.context() as patched:
        patched.setattr(keyfile, "read_text", slow)
        keys.reload()
    assert keys.admit(file.keys["leaked"], "127.0.0.1").name == "leaked"
    assert keys.changed
