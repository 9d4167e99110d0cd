"""Data goes from a directory to a cluster and back: that is how people get there, and away."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, AsyncIterator, Dict

import pytest

from synap import SynapClient
from synap.cluster import export
from synap.cluster.queues import Queues
from synap.testing.cluster import ThrowawayCluster
from tests.helpers.patience import PATIENCE


def synap(*arguments: str, **environment: str) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SYNAP_")}
    subprocess.run(
        [sys.executable, "-m", "synap", *arguments], check=True, timeout=PATIENCE, env={**kept, **environment}
    )


def fill(client: SynapClient) -> None:
    client.kv.mset({f"k{number}": {"n": number} for number in range(50)})
    client.kv.set("short", b"\x00\xff", ttl=600)
    client.queue.create("jobs", max_retries=7, retry_delay=5)
    for number in range(5):
        client.queue.publish("jobs", number, priority=number, headers={"x": "y"})
    client.queue.publish("jobs", "later", delay=500)
    for number in range(5):
        client.stream.publish("room", "e", number, metadata={"m": "1"})


def contents(client: SynapClient) -> Dict[str, Any]:
    keys = client.kv.scan(count=1000).keys
    return {
        "keys": {key: client.kv.get(key).value for key in keys},
        "ttl": client.kv.ttl("short") is not None,
        "queues": client.queue.list(),
        "ready": [(m.message, m.priority, m.headers) for m in client.queue.peek("jobs").messages],
        "delayed": [m.message for m in client.queue.peek("jobs", state="delayed").messages],
        "events": [(e.event_type, e.data, e.metadata) for e in client.stream.history("room").events],
    }


def test_everything_goes_from_a_directory_to_a_cluster_and_back(one_node: ThrowawayCluster, tmp_path: Path) -> None:
    engine = {"durability": "none", "space": "moving"}
    environment = {"SYNAP_DURABILITY": "none", "SYNAP_SPACE": "moving"}
    with SynapClient(url=f"file://{tmp_path}/one", format="msgpack") as client:
        fill(client)
        before = contents(client)
    synap("export", str(tmp_path / "one"), str(tmp_path / "out.jsonl"))
    synap("import", str(tmp_path / "out.jsonl"), one_node.url, **environment)
    with SynapClient(url=one_node.url, engine=engine, format="msgpack") as client:
        assert contents(client) == before
        message = client.queue.consume("jobs")
        assert message is not None  # leased: it is exported as one that is ready
    synap("export", one_node.url, str(tmp_path / "back.jsonl"), **environment)
    synap("import", str(tmp_path / "back.jsonl"), str(tmp_path / "two"))
    with SynapClient(url=f"file://{tmp_path}/two", format="msgpack") as client:
        assert contents(client) == before
        client.queue.create("jobs")
        assert client.queue.stats("jobs").depth == 5


@pytest.mark.parametrize("each_time", [1, 4])
def test_messages_that_are_taken_while_they_are_exported_are_in_it_once(
    one_node: ThrowawayCluster, monkeypatch: pytest.MonkeyPatch, each_time: int
) -> None:
    space = {"durability": "none", "space": f"taken{each_time}", "partitions": 4}
    for name, value in space.items():
        monkeypatch.setenv(f"SYNAP_{name.upper()}", str(value))
    monkeypatch.setattr(export, "PAGE", 3)
    peek = Queues.peek
    with SynapClient(url=one_node.url, engine=space) as client:

        async def peek_and_take(self: Queues, payload: Any, request: Any) -> Any:
            answer = await peek(self, payload, request)
            for _ in range(each_time):
                client.queue.consume("q", ack_deadline=3600)
            return answer

        for number in range(20):
            client.queue.publish("q", number)
        monkeypatch.setattr(Queues, "peek", peek_and_take)
        out = io.BytesIO()
        export.export_cluster(one_node.url, out)
    documents = [json.loads(line) for line in out.getvalue().splitlines()]
    messages = [document["message"] for document in documents if document["type"] == "message"]
    assert sorted(messages) == list(range(20))


def test_what_is_deleted_while_it_is_exported_is_left_out(
    one_node: ThrowawayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {"durability": "none", "space": "deleted", "partitions": 4}
    for name, value in space.items():
        monkeypatch.setenv(f"SYNAP_{name.upper()}", str(value))
    with SynapClient(url=one_node.url, engine=space) as client:
        client.queue.publish("q", 1)
        client.stream.publish("r", "e", 1)
        client.kv.set("k", 1)
        documents = export._queue, export._room

        async def queue(host: Any, name: str) -> AsyncIterator[Any]:
            client.queue.delete(name)
            async for document in documents[0](host, name):
                yield document

        async def room(host: Any, name: str) -> AsyncIterator[Any]:
            client.stream.delete(name)
            async for document in documents[1](host, name):
                yield document

        monkeypatch.setattr(export, "_queue", queue)
        monkeypatch.setattr(export, "_room", room)
        out = io.BytesIO()
        export.export_cluster(one_node.url, out)
    kinds = [json.loads(line)["type"] for line in out.getvalue().splitlines()]
    assert kinds == ["header", "key", "end"]
