"""What the demo's processes call things in the service."""

from __future__ import annotations

QUEUE = "files"
ROOM = "progress"
JOINED, STARTED, HASHED = "joined", "started", "hashed"
"""Types of the room's events."""

ACK_DEADLINE = 3
"""Seconds a worker has for a file: many times what it needs, and what a killed worker's leases take to come back."""

MAX_RETRIES = 20


def key(path: str) -> str:
    """The key a file's digest is stored under."""
    return f"sha256:{path}"


def topic(size_class: str) -> str:
    """The topic a file's completion is told to."""
    return f"hashed.{size_class}"


EVERY_TOPIC = "hashed.#"
