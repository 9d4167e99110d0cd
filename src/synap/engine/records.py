"""The vocabulary of records: what the first number of each says, and what follows it.

Numbers are on disks: never reused, never given another meaning.
"""

from __future__ import annotations

__all__ = [
    "EVENT",
    "GONE",
    "KEY",
    "KEYS_GONE",
    "KEY_EXPIRES",
    "LEASE",
    "MESSAGE",
    "QUEUE",
    "QUEUE_GONE",
    "QUEUE_PURGED",
    "READY",
    "REPLY",
    "ROOM",
    "ROOM_GONE",
    "SECRET",
    "TOTALS",
    "TRIMMED",
]

KEY = 1
"""key, value, expires or None."""
KEYS_GONE = 2
"""[keys]"""
KEY_EXPIRES = 3
"""key, expires or None."""
SECRET = 4
"""The bytes that scan cursors are signed with."""

QUEUE = 10
"""queue, incarnation, max_retries, ack_deadline, max_depth, dead_letter. Another incarnation is another, empty
queue."""
QUEUE_GONE = 11
"""queue"""
QUEUE_PURGED = 12
"""queue, number: messages numbered below it are gone."""
TOTALS = 13
"""queue, next number, next sequence, next lease, then the totals in the order of `lanes.TOTALS`."""
MESSAGE = 14
"""queue, number, sequence, priority, value, headers or None, published, retry_count, due (0: ready), and when a first
delay ended, where one did."""
LEASE = 15
"""queue, number, lease, deadline, session of the holder, number of its request or None, time."""
READY = 16
"""queue, number, sequence, retry_count: back from a lease, or no longer delayed."""
GONE = 17
"""queue, number"""

ROOM = 20
"""room, incarnation. Another incarnation is another, empty room."""
ROOM_GONE = 21
"""room"""
EVENT = 22
"""room, offset, event_type, data, metadata or None, timestamp."""
TRIMMED = 23
"""room, oldest offset kept."""

REPLY = 30
"""session, number of the request, time, kind of answer, answer."""
