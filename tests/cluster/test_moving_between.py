"""Whatever clients have made of a service reads the same on a cluster that it is moved to, and on the next service."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest

from synap import SynapClient
from synap.testing import ThrowawayServer
from synap.testing.cluster import ThrowawayCluster
from tests.cluster.conftest import a_space
from tests.cluster.test_moving import synap
from tests.helpers.thorough import rounds

Serve = Callable[..., ThrowawayServer]
FAR = 3600
"""Seconds: longer than a test takes."""
PRECISION = 600.0
"""Seconds within which two times are the same: a move takes a while."""
QUEUES, ROOMS = ["q", "ü.jobs", "{t}q", "stuck"], ["room", "ß", "{t}r"]


def a_value(generator: random.Random) -> Any:
    return generator.choice(
        [
            generator.randrange(-(2**63), 2**63),
            generator.random() * 1e300,
            "text ü \x00" * generator.randrange(3),
            bytes(range(generator.randrange(256))),
            None,
            True,
            [1, [b"\xff", {"a": [None, 1.5]}]],
            {"k": {"n": generator.randrange(100), "b": b"\x00"}},
            "x" * 70_000,
        ]
    )


def some_headers(generator: random.Random, **more: str) -> Any:
    return generator.choice([{}, {"h": "v"}, {f"h{number}": "ü" * number for number in range(20)}]) | more or None


def fill(client: SynapClient, generator: random.Random) -> None:
    """Do what clients do, at random: something of every kind is left."""
    for number in range(40):
        client.kv.set(f"k{number}", a_value(generator), ttl=generator.choice([None, None, FAR, 100 * FAR]))
    client.kv.mset({f"{{t}}{number}": a_value(generator) for number in range(20)})
    for number in generator.sample(range(40), 5):
        client.kv.delete(f"k{number}")
    for _ in range(generator.randrange(1, 9)):
        client.kv.incr("counted", generator.randrange(-5, 100))
    for queue in QUEUES:
        if generator.random() < 0.7:
            client.queue.create(queue, max_retries=generator.randrange(5), ack_deadline=generator.choice([60, 900.5]))
        for number in range(generator.randrange(5, 30)):
            client.queue.publish(
                queue,
                a_value(generator),
                priority=generator.randrange(10),
                headers=some_headers(generator, number=str(number)),
                delay=generator.choice([0, 0, 0, FAR, 50.25 * FAR]),
            )
        for _ in range(generator.randrange(8)):
            message = client.queue.consume(queue, ack_deadline=FAR)
            if message is None:
                break
            settle = generator.choice(["ack", "lease", "again", "later", "dead"])
            if settle == "ack":
                client.queue.ack(queue, message.message_id)
            elif settle == "dead":
                client.queue.nack(queue, message.message_id, requeue=False)
            elif settle != "lease":
                client.queue.nack(queue, message.message_id, delay=FAR if settle == "later" else 0)
    client.queue.create("stuck", max_retries=0)
    client.queue.publish("stuck", "the last", priority=9)
    taken = client.queue.consume("stuck")
    assert taken is not None
    client.queue.nack("stuck", taken.message_id)
    for room in ROOMS:
        for _ in range(generator.randrange(1, 30)):
            client.stream.publish(room, "e", a_value(generator), metadata=some_headers(generator))
        client.stream.commit(room, "reader", generator.randrange(-1, 1))


def seen(client: SynapClient) -> Dict[str, Any]:
    """Read everything, as clients see it, but for what begins anew, as docs/cluster.md says: ids, tries, names."""
    keys: Dict[str, Tuple[Any, Any]] = {}
    cursor = None
    while True:
        page = client.kv.scan(cursor=cursor)
        for key in page.keys:
            found = client.kv.get(key)
            keys[key] = (found.value, found.ttl and round(found.ttl / PRECISION))
        cursor = page.cursor
        if not page.has_more:
            break
    queues = {
        queue: {
            "ready": [shown(message) for message in messages(client, queue, "ready")],
            "leased": sorted(shown(message) for message in messages(client, queue, "leased")),
            "delayed": sorted(
                (*shown(message), round((message.due - time.time()) / PRECISION))
                for message in messages(client, queue, "delayed")
            ),
        }
        for queue in client.queue.list()
    }
    rooms = {
        room: [
            (e.offset, e.event_type, repr(e.data), e.metadata) for e in client.stream.history(room, limit=1000).events
        ]
        for room in client.stream.rooms()
    }
    return {"keys": keys, "queues": queues, "rooms": rooms}


def messages(client: SynapClient, queue: str, state: Any) -> List[Any]:
    page = client.queue.peek(queue, state=state, limit=1000)
    assert not page.has_more
    return list(page.messages)


def shown(message: Any) -> Tuple[Any, ...]:
    headers = {name: value for name, value in (message.headers or {}).items() if name != "synap-dead-letter-message-id"}
    return message.priority, repr(message.message), sorted(headers.items())


def same(after: Dict[str, Any], before: Dict[str, Any]) -> None:
    """Compare; leased messages arrive as ready ones, and the others keep their order."""
    assert after["keys"] == before["keys"]
    assert after["rooms"] == before["rooms"]
    assert set(after["queues"]) == set(before["queues"])
    for queue, held in before["queues"].items():
        found = after["queues"][queue]
        assert found["delayed"] == held["delayed"], queue
        assert found["leased"] == []
        assert sorted(found["ready"]) == sorted([*held["ready"], *held["leased"]]), queue
        assert [message for message in found["ready"] if message not in held["leased"]] == held["ready"], queue


def begun_anew(client: SynapClient) -> None:
    """Look at what isn't moved: how often messages were tried, and how far names have got."""
    for queue in QUEUES:
        for state in ("ready", "delayed"):
            assert {message.retry_count for message in messages(client, queue, state)} <= {0}
    for room in ROOMS:
        assert not client.stream.cursors(room)


@pytest.mark.parametrize("seed", range(rounds(2, 200)))
def test_what_clients_made_reads_the_same_wherever_it_is_moved(
    one_node: ThrowawayCluster, serve: Serve, tmp_path: Path, seed: int
) -> None:
    engine = a_space()
    space = {f"SYNAP_{name.upper()}": str(value) for name, value in engine.items()}
    file = str(tmp_path / "data.jsonl")
    first, second = serve(data=tmp_path / "first"), serve(data=tmp_path / "second")
    with SynapClient(url=first.url, format="msgpack") as client:
        fill(client, random.Random(seed))
        before = seen(client)
    synap("export", first.url, file)
    synap("import", file, one_node.url, **space)
    with SynapClient(url=one_node.url, engine=engine, format="msgpack") as client:
        same(seen(client), before)
        begun_anew(client)
    synap("export", one_node.url, file, **space)
    synap("import", file, second.url)
    with SynapClient(url=second.url, format="msgpack") as client:
        same(seen(client), before)
        begun_anew(client)


def test_the_password_of_a_cluster_s_url_is_not_printed(one_node: ThrowawayCluster, tmp_path: Path) -> None:
    """Neither where it works nor where it can't."""
    url = one_node.url.replace("://", "://default:hush@")  # the default user takes any
    space = {f"SYNAP_{name.upper()}": str(value) for name, value in a_space().items()}
    file = str(tmp_path / "data.jsonl")
    with SynapClient(url=f"file://{tmp_path / 'data'}") as client:
        client.kv.set("a", 1)
    synap("export", str(tmp_path / "data"), file)
    for arguments, said in (
        (["import", file, url], "***@"),
        (["backup", url, str(tmp_path / "copy")], "synap export"),
        (["doctor", url], "***@"),
    ):
        command = [sys.executable, "-m", "synap", *arguments]
        done = subprocess.run(command, env={**os.environ, **space}, capture_output=True, text=True, check=False)
        assert said in done.stdout + done.stderr
        assert "hush" not in done.stdout + done.stderr


def test_a_user_whom_a_cluster_refuses_is_not_told_of_api_keys(one_node: ThrowawayCluster) -> None:
    command = [sys.executable, "-m", "synap", "cluster", "status", one_node.url.replace("://", "://nobody:wrong@")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "ACL SETUSER" in done.stderr
    assert "--api-key" not in done.stderr
