"""Write `tests/wire/golden_frames.json`: one frame of each kind, one request of each command, in both formats.

Run it when a command is added. A diff that changes a frame that was there before changes the protocol, which needs a
new version of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Tuple

from synap.commands import BATCH, COMMANDS
from synap.wire.codec import CODECS
from synap.wire.frames import RETRY, Kind, frame

TARGET = Path(__file__).resolve().parents[1] / "tests" / "wire" / "golden_frames.json"

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


def main() -> None:
    entries: List[Dict[str, Any]] = []
    for format in CODECS:
        for id, command in enumerate((*COMMANDS.values(), BATCH), 1):
            entries.append(golden(command.name, format, Kind.REQUEST, id, PAYLOADS[command.name], command.code))
        entries.append(golden("kv.incr again", format, Kind.REQUEST, 5, PAYLOADS["kv.incr"], 5, RETRY))
        entries.extend(golden(name, format, kind, id, body) for name, kind, id, body in OTHERS)
    TARGET.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
