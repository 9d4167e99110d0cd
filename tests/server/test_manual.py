"""Sentences of the manual that no other test holds, each by doing what it says."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any, cast

import msgpack
import pytest

from synap import SynapClient
from synap.server.console import sessions
from synap.server.console.sessions import ConsoleSessions
from synap.wire.frames import Kind
from tests.helpers.raw import Http, dial, read_head, request, wait_for
from tests.server.conftest import Attach, Serve


def test_sighup_opens_the_audit_log_anew_for_log_rotation(serve: Serve, tmp_path: Path) -> None:
    log, rotated = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    service = serve("--admin-key", "an-admin-key-for-this-test", "--audit-log", str(log))
    http = Http(service, X_API_Key="an-admin-key-for-this-test")
    http.do("queue.create", queue="before")
    log.rename(rotated)
    service.signal(signal.SIGHUP)
    wait_for(log.exists)
    http.do("queue.create", queue="after")
    http.close()
    assert [json.loads(line)["names"] for line in rotated.read_text().splitlines()] == [["before"]]
    assert [json.loads(line)["names"] for line in log.read_text().splitlines()] == [["after"]]


def test_copies_that_a_crash_left_go_at_the_next_start(serve: Serve, tmp_path: Path) -> None:
    data = tmp_path / "data"
    service = serve(data=data)
    with SynapClient(url=service.url) as client:
        for number in range(16):
            client.kv.set(f"key:{number}", "x" * 1_000_000)
    with dial(service) as deaf:
        deaf.sendall(b"GET /api/v1/admin/backup HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in read_head(deaf)
        service.kill()
    assert list(data.glob("*.copy"))
    with SynapClient(url=serve(data=data).url) as client:
        assert client.kv.exists("key:15")
    assert not list(data.glob("*.copy*"))


async def test_a_console_session_ends_however_often_it_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "LONGEST", 0.2)
    console, over = ConsoleSessions(0.15), asyncio.Event()
    token, session = console.begin(cast(Any, None))
    session.on_end.add(over.set)
    cookie = f"{console.cookie}={token}".encode()
    while not over.is_set():
        assert console.find(cookie) is session
        console.renew(session)
        assert session.expires <= session.ends
        await asyncio.sleep(0.02)
    assert console.find(cookie) is None


@pytest.mark.parametrize("value", [msgpack.ExtType(5, b"abc"), [1, {"a": msgpack.ExtType(0, b"1234")}]])
def test_extension_types_of_messagepack_are_refused(http: Http, value: Any) -> None:
    body = msgpack.packb({"command": "kv.set", "payload": {"key": "extension", "value": value}})
    answer = http.post(body, content_type="application/msgpack")
    assert answer.status in (400, 422)
    assert http.do("kv.exists", key="extension").payload == {"exists": False}


def test_a_queue_that_was_made_outlives_being_idle_and_one_that_use_made_does_not(serve: Serve) -> None:
    http = Http(serve("--idle-queues", "1"))
    http.do("queue.create", queue="made")
    http.do("queue.publish", queue="used", message=1)
    taken = http.do("queue.consume", queue="used").payload
    http.do("queue.ack", queue="used", message_id=taken["message_id"])
    http.do("stream.publish", room="held", event_type="t", data=1)
    wait_for(lambda: http.do("queue.list").payload["queues"] == ["made"])
    assert http.do("stream.rooms").payload["rooms"] == ["held"]
    http.close()


@pytest.mark.parametrize(("digits", "settled"), [(24, True), (23, False)])
def test_sessions_that_begin_alike_are_of_one_client_and_may_settle_each_other_s_leases(
    attach: Attach, digits: int, settled: bool
) -> None:
    mine = os.urandom(16).hex()
    other = mine[:digits] + "".join("0" if digit != "0" else "1" for digit in mine[digits:])
    queue = f"q-{mine}"
    holder, sibling = attach(session=mine), attach(session=other)
    holder.do(1, "queue.publish", queue=queue, message=1)
    held = holder.do(2, "queue.consume", queue=queue)
    sibling.send(request(1, "queue.ack", queue=queue, message_id=held["message_id"]))
    answer = sibling.read()
    assert answer.kind == (Kind.ANSWER if settled else Kind.ERROR)
    if not settled:
        assert json.loads(answer.body)["code"] == "MESSAGE_NOT_FOUND"


def test_after_a_restart_a_repeated_set_is_answered_without_what_was_there_before(serve: Serve, tmp_path: Path) -> None:
    session = os.urandom(16).hex()
    body = {"command": "kv.set", "payload": {"key": "k", "value": 2}, "request_id": f"{session}:1"}
    service = serve(data=tmp_path / "data")
    http = Http(service)
    http.do("kv.set", key="k", value=1)
    first = http.post(body).payload
    assert first == http.post(body).payload == {"success": True, "key": "k", "previous": 1}
    http.close()
    service.restart()
    http = Http(service)
    assert http.post(body).payload.get("previous") is None
    assert http.do("kv.get", key="k").payload["value"] == 2
    http.close()
