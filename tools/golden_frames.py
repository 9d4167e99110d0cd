"""Write `tests/wire/golden_frames.json`: one frame of each kind, one request of each command, in both formats; and
`golden_handshake.json` beside it: how the native lane begins.

Run it when a command is added. A diff that changes a frame that was there before changes the protocol, which needs a
new version of it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Dict, List, Tuple

from synap.commands import BATCH, COMMANDS
from synap.wire.codec import CODECS
from synap.wire.compression import compress
from synap.wire.frames import GZIP, MAX_BODY, RETRY, Kind, frame
from synap.wire.handshake import Hello, accept, greet

TARGET = Path(__file__).resolve().parents[1] / "tests" / "wire" / "golden_frames.json"
HANDSHAKE = TARGET.with_name("golden_handshake.json")

LEASED = {"queue": "tasks", "message_id": "5f3a9c01-1", "lease": 7}
PAYLOADS: Dict[str, Dict[str, Any]] = {
    "kv.set": {"key": "user:1", "value": {"name": "Alice", "score": 1.5, "tags": ["a", None, True]}, "ttl": 3600},
    "kv.get": {"key": "user:1"},
    "kv.del": {"keys": ["user:1", "user:2"]},
    "kv.exists": {"key": "user:1"},
    "kv.incr": {"key": "views", "amount": 5},
    "kv.decr": {"key": "stock"},
    "kv.expire": {"key": "user:1", "ttl": 60},
    "kv.persist": {"key": "user:1"},
    "kv.ttl": {"key": "user:1"},
    "kv.scan": {"prefix": "user:", "count": 100},
    "kv.mset": {"pairs": [{"key": "a", "value": 1}, {"key": "b", "value": "two", "ttl": 9}]},
    "kv.mget": {"keys": ["a", "b"]},
    "kv.clear": {"prefix": "user:"},
    "queue.peek": {"queue": "tasks", "state": "leased", "limit": 10},
    "queue.consume_many": {"queues": ["urgent", "tasks"], "max": 10, "timeout": 5},
    "stream.commit": {"room": "chat", "name": "reader", "offset": 7},
    "stream.forget": {"room": "chat", "name": "reader"},
    "stream.cursors": {"room": "chat"},
    "queue.create": {"queue": "tasks", "config": {"max_retries": 5}},
    "queue.delete": {"queue": "tasks"},
    "queue.purge": {"queue": "tasks"},
    "queue.publish": {"queue": "tasks", "message": {"n": 1}, "priority": 8, "headers": {"source": "signup"}},
    "queue.consume": {"queue": "tasks", "timeout": 30, "ack_deadline": 60},
    "queue.ack": LEASED,
    "queue.nack": {**LEASED, "requeue": False},
    "queue.extend": {**LEASED, "ack_deadline": 120},
    "queue.redrive": {"queue": "tasks", "limit": 10},
    "queue.stats": {"queue": "tasks"},
    "queue.list": {},
    "stream.publish": {"room": "chat", "event_type": "message", "data": {"text": "hé"}, "metadata": {"ip": "::1"}},
    "stream.subscribe": {"room": "chat", "from_offset": -50, "replay": True},
    "stream.unsubscribe": {"subscription_id": 3},
    "stream.history": {"room": "chat", "from_offset": 0, "to_offset": 9, "limit": 10},
    "stream.rooms": {},
    "stream.stats": {"room": "chat"},
    "stream.delete": {"room": "chat"},
    "pubsub.publish": {"topic": "news.sport", "message": [1, 2, 3]},
    "pubsub.subscribe": {"topics": ["news.*", "alerts.#"]},
    "pubsub.unsubscribe": {"subscription_id": 4},
    "pubsub.topics": {"pattern": "news.#"},
    "pubsub.stats": {},
    "admin.stats": {},
    "admin.config": {},
    "admin.health": {},
    "admin.shutdown": {},
    "batch": {"commands": [{"command": "kv.get", "payload": {"key": "a"}}], "atomic": True},
}
EVENT = {
    "event_id": "9b1c-0",
    "offset": 0,
    "event_type": "message",
    "data": {"text": "hé"},
    "timestamp": 1_700_000_000,
    "metadata": {},
    "room": "chat",
}
MESSAGE = {
    "topic": "news.sport",
    "message": [1],
    "metadata": {},
    "timestamp": 1_700_000_000,
    "message_id": "77",
}
LONG = {"key": "page", "value": "all work and no play " * 60}
SESSION = "0123456789abcdef0123456789abcdef"
HELLOS = [
    Hello(SESSION, "json", False, None),
    Hello(SESSION, "msgpack", True, "secret"),
]
OTHERS: List[Tuple[str, int, int, Any]] = [
    ("answer", Kind.ANSWER, 1, {"success": True, "key": "user:1"}),
    ("error", Kind.ERROR, 3, {"code": "KEY_NOT_FOUND", "message": "there is no key 'x'", "details": {"key": "x"}}),
    ("event", Kind.EVENT, 3, EVENT),
    ("message", Kind.MESSAGE, 4, MESSAGE),
    ("ended", Kind.ENDED, 4, {"code": "SLOW_CONSUMER", "message": "too slow", "details": {}}),
    ("cancel", Kind.CANCEL, 2, None),
    ("done", Kind.DONE, 64, None),
    ("ping", Kind.PING, 1, None),
    ("pong", Kind.PONG, 1, {"status": "ok"}),
    ("goaway", Kind.GOAWAY, 0, None),
]


def golden(name: str, format: str, kind: int, id: int, body: Any, code: int = 0, flags: int = 0) -> Dict[str, Any]:
    """Describe one frame and give its bytes; `body` None is an empty one."""
    encoded = b"" if body is None else CODECS[format].encode(body)
    if flags & GZIP:
        encoded = compress(encoded)
    return {
        "name": f"{name} ({format})",
        "format": format,
        "kind": kind,
        "flags": flags,
        "code": code,
        "id": id,
        "command": name.partition(" ")[0] if code else None,
        "body": body,
        "frame": frame(kind, id, encoded, code, flags).hex(),
    }


def handshake(hello: Hello) -> Dict[str, Any]:
    """Describe what a client says of itself and give the bytes in which it does."""
    return {**hello._asdict(), "bytes": greet("localhost:15500", hello).decode("ascii")}


def consent(version: str, max_body: int) -> Dict[str, Any]:
    """Describe the service's consent."""
    return {"version": version, "max_body": max_body, "bytes": accept(version, max_body).decode("ascii")}


def write(target: Path, document: Any) -> None:
    target.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0]).parse_args()
    entries: List[Dict[str, Any]] = []
    for format in CODECS:
        for id, command in enumerate((*COMMANDS.values(), BATCH), 1):
            entries.append(golden(command.name, format, Kind.REQUEST, id, PAYLOADS.get(command.name, {}), command.code))
        entries.append(golden("kv.incr again", format, Kind.REQUEST, 5, PAYLOADS["kv.incr"], 5, RETRY))
        entries.append(golden("kv.set compressed", format, Kind.REQUEST, 6, LONG, COMMANDS["kv.set"].code, GZIP))
        found = {"found": True, "value": LONG["value"], "ttl": None}
        entries.append(golden("answer compressed", format, Kind.ANSWER, 7, found, 0, GZIP))
        entries.extend(golden(name, format, kind, id, body) for name, kind, id, body in OTHERS)
    write(TARGET, entries)
    write(HANDSHAKE, {"requests": [handshake(hello) for hello in HELLOS], "consent": consent("1.2.3", MAX_BODY)})


if __name__ == "__main__":
    main()
