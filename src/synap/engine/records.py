"""The kinds of records: the number each begins with, and the fields that follow.

The numbers are on disk: never reuse one, or change its meaning. A new one needs a new `FORMAT` of the directory
(`synap.storage.layout`), without which an older version would take the directory for damaged instead of newer.
"""

from __future__ import annotations

KEY = 1
"""key, value, expires or None."""
KEYS_GONE = 2
"""[keys]"""
KEY_EXPIRES = 3
"""key, expires or None."""
SECRET = 4
"""The bytes that scan cursors are signed with."""

QUEUE = 10
"""queue, incarnation, max_retries, ack_deadline, max_depth, dead_letter, retry_delay, retry_backoff,
retry_max_delay (the last three since version 0.2). Another incarnation is another, empty
queue."""
QUEUE_GONE = 11
"""queue"""
QUEUE_PURGED = 12
"""queue, number: messages numbered below it are gone."""
TOTALS = 13
"""queue, next number, next sequence, next lease, then the totals in the order of `priorities.TOTALS`."""
MESSAGE = 14
"""queue, number, sequence, priority, value, headers or None, published, retry_count, due (0: ready); since version
0.2, where a first delay ended: when that was."""
LEASE = 15
"""queue, number, lease, deadline, session of the holder, number of its request or None, time; since version
0.2, where that request takes several: True."""
READY = 16
"""queue, number, sequence, retry_count: back from a lease, or no longer delayed."""
GONE = 17
"""queue, number"""
DELAYED = 18
"""queue, number, sequence, retry_count, due: back from a lease, and delayed until then."""
IMPLICIT = 19
"""queue: it was made by its first use."""

ROOM = 20
"""room, incarnation. Another incarnation is another, empty room."""
ROOM_GONE = 21
"""room"""
EVENT = 22
"""room, offset, event_type, data, metadata or None, timestamp."""
TRIMMED = 23
"""room, oldest offset kept."""
NAME = 24
"""room, name of a durable subscription, offset of the first event it has not processed (None: it was forgotten)."""

REPLY = 30
"""session, number of the request, time, kind of answer, answer."""
REPLY_SAME = 31
"""number of the request, kind of answer, answer: a `REPLY` with the session and time of the last record before it, in
the same commit, that holds them (`REPLY`, `KEY_SET`). Since format 3 of directories (version 0.2)."""

CLOCK = 40
"""time, seconds: from this time of the engine on, the wall clock is that far ahead of it. All times in records are the
engine's, except timestamps of events."""
TIME = 41
"""A time that the engine has reached."""

KEY_SET = 50
"""key, value, expires or None, session, number of the request, time: a `KEY`, and the `REPLY` to the `kv.set` that made
it, which was answered with success. Since format 2 of directories (version 0.2)."""
KEY_SET_SAME = 52
"""key, value, expires or None, number of the request: a `KEY_SET` with the session and time of the last record before
it, in the same commit, that holds them. Since format 3 of directories (version 0.2)."""
KEYS = 51
"""{key: value}, {key: expires}: keys of a snapshot; the second has those of them that expire. Since format 2 of
directories (version 0.2)."""
