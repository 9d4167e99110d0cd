"""`GET /api/v1/admin/backup`: who asks doesn't keep others from theirs."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from synap import SynapClient
from synap.server.backup import MOST, send
from synap.server.grants import Access
from synap.server.service import Principal
from synap.storage import backup
from tests.helpers.raw import Http, dial, read_all, read_head, wait_for
from tests.server.conftest import Serve

ASK = b"GET /api/v1/admin/backup HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
LARGE = "x" * 1_000_000


def copies(directory: Path) -> int:
    return len(list(directory.glob("*.copy")))


def test_backups_that_nobody_reads_block_nobody_and_are_cut(serve: Serve, tmp_path: Path) -> None:
    service = serve("--idle-timeout", "10", data=tmp_path / "data")
    with SynapClient(url=service.url) as client:
        for number in range(16):
            client.kv.set(f"key:{number}", LARGE)
    deaf: list[socket.socket] = []
    for _ in range(MOST - 1):
        deaf.append(dial(service))
        deaf[-1].sendall(ASK)
        assert b" 200 " in read_head(deaf[-1])
    assert copies(tmp_path / "data") == MOST - 1
    http = Http(service)
    whole = http.request("GET", "/api/v1/admin/backup")
    assert whole.status == 200
    backup.receive([whole.body], str(tmp_path / "received"))
    http.close()
    wait_for(lambda: copies(tmp_path / "data") == 0)
    for one in deaf:
        assert len(read_all(one)) < len(whole.body), "what was cut can't be taken for whole"
        one.close()
    assert service.stop() == 0
    assert "Traceback" not in "".join(service.output)


def test_no_more_backups_at_once_than_there_is_room_for(serve: Serve, tmp_path: Path) -> None:
    service = serve(data=tmp_path / "data")
    with SynapClient(url=service.url) as client:
        for number in range(16):
            client.kv.set(f"key:{number}", LARGE)
    deaf = [dial(service) for _ in range(MOST)]
    for one in deaf:
        one.sendall(ASK)
        assert b" 200 " in read_head(one)
    http = Http(service)
    refused = http.request("GET", "/api/v1/admin/backup")
    assert (refused.status, refused.error["code"]) == (503, "SERVICE_UNAVAILABLE")
    deaf.pop().close()
    wait_for(lambda: http.request("GET", "/api/v1/admin/backup").status == 200)
    http.close()
    for one in deaf:
        one.close()
    assert service.stop() == 0


def test_the_audit_log_tells_how_a_backup_ended(serve: Serve, tmp_path: Path) -> None:
    audit, data = tmp_path / "audit.jsonl", tmp_path / "data"
    service = serve("--audit-log", str(audit), data=data)

    def told() -> list[str]:
        lines = [json.loads(line) for line in audit.read_text().splitlines()]
        return [line["outcome"] for line in lines if line["what"] == "backup"]

    with SynapClient(url=service.url) as client:
        for number in range(16):
            client.kv.set(f"key:{number}", LARGE)
    with dial(service) as cut:
        cut.sendall(ASK)
        assert b" 200 " in read_head(cut)
        assert told() == ["under_way"]
    wait_for(lambda: told() == ["under_way", "withdrawn"])
    http = Http(service)
    assert http.request("GET", "/api/v1/admin/backup").status == 200
    wait_for(lambda: told()[2:] == ["under_way", "ok"])
    service.kill()
    http.close()


def test_a_backup_is_of_the_directory_that_the_engine_s_url_names(serve: Serve, tmp_path: Path) -> None:
    service = serve("--engine", f"file://{tmp_path / 'data'}")
    with SynapClient(url=service.url) as client:
        client.kv.set("mine", 1)
        assert client.stats()["memory_limit"], "what `memory_limit` is by default doesn't depend on how it is said"
    http = Http(service)
    whole = http.request("GET", "/api/v1/admin/backup")
    http.close()
    assert whole.status == 200
    backup.receive([whole.body], str(tmp_path / "received"))
    with SynapClient(url=f"file://{tmp_path / 'received'}") as copy:
        assert copy.kv.get("mine").value == 1


async def test_a_backup_for_which_there_is_no_thread_takes_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After four of them there were no backups any more."""

    def refuse(*arguments: object) -> Any:
        raise RuntimeError("can't start new thread")

    config = SimpleNamespace(data=str(tmp_path), idle_timeout=1.0)
    service = SimpleNamespace(draining=False, durable=object(), copies=0, audit=None, over=False, config=config)
    principal = Principal(Access("ops", True), "127.0.0.1", "http")
    exchange: Any = SimpleNamespace(service=service, admit=lambda: principal, gone=asyncio.Event().wait)
    monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", refuse)
    with pytest.raises(RuntimeError):
        await send(exchange)
    assert service.copies == 0
