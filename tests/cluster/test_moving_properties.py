"""Whatever a directory holds comes to a cluster and back as it was, but for what the docs say."""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
import uuid
from typing import Any, Dict, Iterable, List
from unittest import mock

from hypothesis import HealthCheck, given, settings

from synap import SynapClient
from synap.cli.data import batches, send
from synap.cluster.export import export_cluster
from synap.storage.portable import as_commands, export_directory, import_directory, lines, parse
from synap.testing.cluster import ThrowawayCluster
from tests.storage.test_portable_properties import filled, steps

SOON = 60.0
"""Seconds within which what is due may happen while a test runs."""


def told(content: Iterable[bytes], now: float) -> Dict[str, Any]:
    """Take from an export what has to arrive, times to the millisecond: not ids, offsets, times of publishing, tries,
    totals, or how far a name has got."""
    found: Dict[str, Any] = {"keys": {}, "queues": {}, "messages": {}, "events": {}}
    for line in content:
        document = json.loads(line)
        kind = document.pop("type")
        for name in ("published", "ready", "retry_count", "totals", "offset", "timestamp"):
            document.pop(name, None)
        for name in ("expires", "due"):  # to ten minutes; what is past by then doesn't count
            left = document.pop(name, 0.0) - now
            if left > SOON:
                document[name] = round(left / 600)
        for name in ("ack_deadline", "retry_delay", "retry_max_delay"):
            if name in document:
                document[name] = max(1, round(document[name] * 1000)) if document[name] else 0
        if kind == "key":
            found["keys"][document["key"]] = document
        elif kind == "queue":
            found["queues"][document["queue"]] = document
        elif kind == "message":
            found["messages"].setdefault(document["queue"], []).append(document)
        elif kind == "event":
            found["events"].setdefault(document["room"], []).append(document)
    return found


@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(steps)
def test_what_a_directory_holds_goes_to_a_cluster_and_back(one_node: ThrowawayCluster, steps: List[Any]) -> None:
    world = filled(steps)
    content = [line for line in lines(world.engine, world.now) if not expires_soon(line, world.now)]
    before = told(content, world.now)
    space = {"SYNAP_SPACE": "m" + uuid.uuid4().hex[:12], "SYNAP_DURABILITY": "none", "SYNAP_PARTITIONS": "4"}
    out = io.BytesIO()
    with mock.patch.dict(os.environ, space):
        with SynapClient(url=one_node.url, format="msgpack") as client:
            for batch in batches(as_commands(parse(with_end(content)), world.now)):
                send(client, batch)
        export_cluster(one_node.url, out)
    now = time.time()
    back = out.getvalue().splitlines(True)
    assert told(back, now) == before
    with tempfile.TemporaryDirectory() as directory:
        import_directory(back, f"{directory}/imported", now=now)
        again = io.BytesIO()
        export_directory(f"{directory}/imported", again, now=now)
    assert told(again.getvalue().splitlines(True), now) == before


def expires_soon(line: bytes, now: float) -> bool:
    """Say whether a line is a key that may be gone before it is looked at."""
    return bool(json.loads(line).get("expires", now + 2 * SOON) <= now + SOON)


def with_end(content: List[bytes]) -> List[bytes]:
    """Say anew how many lines there are."""
    return [*content[:-1], json.dumps({"type": "end", "lines": len(content) - 2}).encode() + b"\n"]
