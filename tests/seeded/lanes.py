"""Bugs planted in the lanes: the sync connection, the in-process lane."""

from __future__ import annotations

from tests.seeded.seed import Seed

SEEDS = (
    Seed(
        "a sync request sent again isn't marked so",
        "lanes/native/lane.py",
        "flags = RETRY if slot.attempted else 0",
        "flags = 0",
        "tests/client/test_retries.py -k same_request",
    ),
    Seed(
        "a sync request confirms its own answer before it has it",
        "lanes/native/lane.py",
        "request = frame(Kind.DONE, number) + request",
        "request = frame(Kind.DONE, number + 1) + request",
        "tests/client/test_native_sync.py -k confirmed",
    ),
    Seed(
        "a sync connection that was idle is used unseen",
        "lanes/native/lane.py",
        "if connection is None or began - slot.used > IDLE:",
        "if connection is None:",
        "tests/client/test_native_sync.py -k idle",
    ),
    Seed(
        "each sync attempt has the whole timeout",
        "lanes/native/lane.py",
        "deadline = began + timeout\n        if connection",
        "deadline = monotonic() + timeout\n        if connection",
        "tests/client/test_native_sync.py -k every_attempt",
    ),
    Seed(
        "consumes that wait use the sync pool up",
        "lanes/native/lane.py",
        "            self._waiting.add(weakref.ref(slot, self._waiting.discard))\n",
        "",
        "tests/client/test_native_sync.py -k waited_at_once",
    ),
    Seed(
        "a late answer on a sync connection is taken for the next one's",
        "lanes/native/lane.py",
        "            slot.discard()\n            failure = self._failure(slot, command, error, sent, timeout)",
        "            failure = self._failure(slot, command, error, sent, timeout)",
        "tests/client/test_retries.py",
    ),
    Seed(
        "a consume that is given up in memory keeps its message",
        "lanes/inprocess/attachment.py",
        "if session.waiters.pop(number, None) is not None or session is self.consumer:",
        "if session.waiters.pop(number, None) is None and session is not self.consumer:",
        "tests/adversary/test_cancellation.py",
    ),
    Seed(
        "a request in memory that is made again is done again",
        "lanes/inprocess/attachment.py",
        "host.execute(session, number, command, body, number in self.open, decoded=decoded)",
        "host.execute(session, number, command, body, False, decoded=decoded)",
        "tests/lanes/test_repeats_in_process.py",
    ),
    Seed(
        "an async call that waits for room has no deadline",
        "lanes/native/connection.py",
        "if deadline <= now and not waiter.done():",
        "if deadline <= 0 and not waiter.done():",
        "tests/client/test_outgoing.py",
    ),
    Seed(
        "a second connection in a row is thought of as dead at once",
        "lanes/native/connection.py",
        "        conversation.missed = 0\n        if self._turn_ended",
        "        if self._turn_ended",
        "tests/lanes/test_pending.py -k pings",
    ),
    Seed(
        "few requests are written at once though answers are slow",
        "lanes/native/pipelining.py",
        "        if seconds > QUICK:",
        "        if seconds > 1e9:",
        "tests/lanes/test_pipelining.py",
    ),
    Seed(
        "a connection doesn't note how long answers take",
        "lanes/native/connection.py",
        "            self._pipelining.answered(now - self._turn_ended)\n",
        "",
        "tests/lanes/test_pipelining.py",
    ),
    Seed(
        "a consume of the async client is confirmed before its caller has it",
        "lanes/native/connection.py",
        "parked.setdefault(number, False)",
        "pass",
        "tests/client/test_retries.py tests/lanes/test_pending.py",
    ),
)
