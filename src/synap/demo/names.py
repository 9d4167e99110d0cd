"""Names of keys, queues, rooms and topics of the demo."""

from __future__ import annotations

QUEUE = "files"
ROOM = "progress"
JOINED, STARTED, HASHED = "joined", "started", "hashed"
"""Types of the room's events."""

ACK_DEADLINE = 3
"""Seconds a worker has for a file: many times what it needs, and how long a killed worker's leases last."""

MAX_RETRIES = 20


def key(path: str) -> str:
    """Return the key of a file's digest."""
    return f"sha256:{path}"


def topic(size_class: str) -> str:
    """Return the topic on which a file's completion is published."""
    return f"hashed.{size_class}"


EVERY_TOPIC = "hashed.#"
