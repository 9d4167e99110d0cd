"""What a space of names looks like that an earlier release wrote: `shape2.json`, which every later one has to read.

python -m tests.cluster.shape      # writes that of a new shape; one that is there is never written again
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

import msgspec

from synap import commands as c
from synap.cluster import functions
from synap.cluster.host import ClusterHost
from synap.cluster.options import EngineOptions
from synap.errors import SynapError
from synap.testing.cluster import ClusterNode, ThrowawayCluster
from tests.cluster.test_refused import Caller

SPACE = "shape"
SESSION = "5" * 32
YEARS = 10 * 365 * 86400
DELAY = 86400
FILE = Path(__file__).with_name(f"shape{functions.SHAPE}.json")

Step = Tuple[c.Command, Dict[str, Any]]
KEYS: List[Step] = [
    (c.KV_SET, {"key": "{t}text", "value": "v", "ttl": YEARS}),
    (c.KV_SET, {"key": "{t}number", "value": 41}),
    (c.KV_SET, {"key": "{t}number", "value": 0, "nx": True}),
    (c.KV_INCR, {"key": "{t}number"}),
    (
        c.KV_MSET,
        {"pairs": [{"key": "a", "value": [1]}, {"key": "b", "value": {"x": None}}, {"key": "gone", "value": 1}]},
    ),
    (c.KV_EXPIRE, {"key": "a", "ttl": YEARS}),
    (c.KV_DEL, {"keys": ["gone"]}),
    (c.BATCH, {"atomic": True, "commands": [{"command": "kv.set", "payload": {"key": "{t}both", "value": 1}}]}),
]
QUEUES: List[Step] = [
    (c.QUEUE_CREATE, {"queue": "jobs", "config": {"max_retries": 7, "ack_deadline": 1}}),
    *((c.QUEUE_PUBLISH, {"queue": "jobs", "message": n, "priority": n, "headers": {"h": str(n)}}) for n in range(5)),
    (c.QUEUE_PUBLISH, {"queue": "jobs", "message": "later", "delay": DELAY}),
]
"""Before three messages are taken, of which one is acknowledged, one rejected, one kept."""
ROOMS: List[Step] = [
    *((c.STREAM_PUBLISH, {"room": "room", "event_type": "e", "data": n, "metadata": {"m": str(n)}}) for n in range(3)),
    (c.STREAM_COMMIT, {"room": "room", "name": "reader", "offset": 1}),
]


def caller_of(host: ClusterHost) -> Caller:
    """Return a caller with the session that the answers are remembered under."""
    caller = Caller(host)
    caller.session = SESSION
    return caller


def shown(answer: Any) -> Any:
    """Return an answer as JSON holds it; raises what is an error."""
    if isinstance(answer, SynapError):
        raise answer
    return json.loads(msgspec.json.encode(answer))


async def write(caller: Caller) -> List[Tuple[str, Dict[str, Any], Any]]:
    """Do all that is remembered; returns each command, its payload and its answer. Requests are numbered from 1."""
    done: List[Tuple[str, Dict[str, Any], Any]] = []

    async def do(command: c.Command, payload: Dict[str, Any]) -> Any:
        answer = await caller.ask(len(done) + 1, command, **payload)
        done.append((command.name, payload, shown(answer)))
        return answer

    for command, payload in KEYS + QUEUES:
        await do(command, payload)
    settled, rejected, _ = [(await do(c.QUEUE_CONSUME, {"queue": "jobs"})) for _ in range(3)]
    await do(c.QUEUE_ACK, {"queue": "jobs", "message_id": settled.message_id})
    await do(c.QUEUE_NACK, {"queue": "jobs", "message_id": rejected.message_id, "requeue": False})
    for command, payload in ROOMS:
        await do(command, payload)
    return done


def keys(node: ClusterNode) -> Dict[str, Any]:
    """Read all keys of the space. Bytes are shown as Latin-1."""

    def text(found: Any) -> Any:
        return [text(one) for one in found] if isinstance(found, list) else found.decode("latin-1")

    found: Dict[str, Any] = {}
    for key in sorted(node.ask("KEYS", f"{SPACE}:*")):
        if key.endswith(b"}:sweeper"):
            continue
        kind = node.ask("TYPE", key).decode()
        read = {
            "string": ("GET", key),
            "hash": ("HGETALL", key),
            "set": ("SMEMBERS", key),
            "zset": ("ZRANGE", key, 0, -1, "WITHSCORES"),
            "stream": ("XRANGE", key, "-", "+"),
        }[kind]
        expires = node.ask("PEXPIRETIME", key) if b"}:k:" in key else -1
        found[key.decode("latin-1")] = [kind, expires, text(node.ask(*read))]
    return found


def restore(node: ClusterNode, written: Dict[str, Any]) -> None:
    """Write keys that were read. Delays that have ended since are as long as they were."""
    for name, (kind, expires, content) in written.items():
        key = name.encode("latin-1")
        if kind == "stream":
            for id, fields in content:
                node.ask("XADD", key, id, *(field.encode("latin-1") for field in fields))
            continue
        parts = [content] if kind == "string" else content
        given = [part.encode("latin-1") for part in parts]
        if kind == "zset":
            due = b"%d" % ((time.time() + DELAY) * 1000)
            scores = [due if "}:qd:" in name else score for score in given[1::2]]
            given = [one for pair in zip(scores, given[::2]) for one in pair]
        node.ask({"string": "SET", "hash": "HSET", "set": "SADD", "zset": "ZADD"}[kind], key, *given)
        if expires > 0:
            node.ask("PEXPIREAT", key, expires)


def options(url: str) -> EngineOptions:
    """Return how the space is opened."""
    return EngineOptions.read(url, {"space": SPACE, "partitions": 16, "durability": "none"}, environ={})


async def main() -> None:
    """Write the file of this shape."""
    if FILE.exists():
        raise SystemExit(f"{FILE} is there: what a release has written stays")
    with ThrowawayCluster() as cluster:
        host = ClusterHost(options(cluster.url))
        await host.open()
        done = await write(caller_of(host))
        written = keys(cluster.nodes[0])
        await host.close()
    FILE.write_text(json.dumps({"done": done, "keys": written}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    argparse.ArgumentParser("python -m tests.cluster.shape", description=__doc__.splitlines()[0]).parse_args()
    asyncio.run(main())
