"""Data goes from a directory to a cluster and back: that is how people get there, and away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

from synap import SynapClient
from synap.testing.cluster import ThrowawayCluster


def synap(*arguments: str, **environment: str) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SYNAP_")}
    subprocess.run([sys.executable, "-m", "synap", *arguments], check=True, timeout=50, env={**kept, **environment})


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
