"""Where async and sync I/O differ: pairs of the same shape.

The clients are written once, async; `tools/async_to_sync.py` generates the sync client by dropping `async`, `await` and
the prefixes `Async` and `async_`. That works because everything that waits is here in both colours:

    AsyncLock       Lock       mutual exclusion, `async with` and `with`
    AsyncEvent      Event      a flag that can be waited for
    AsyncMailbox    Mailbox    a bounded queue between a reader and a callback
    AsyncWorker     Worker     a task, or a daemon thread
    AsyncRaised     Raised     what a callback may raise
    async_spawn     spawn      start one
    async_sleep     sleep      wait for some seconds
    async_home      home       the owner of connections: the running event loop, or this process

Waiting takes a `timeout` in seconds (None: for ever); on a timeout it returns False or raises a builtin `TimeoutError`.
"""

from __future__ import annotations

from time import monotonic

from synap.lanes.io.aio import (
    AsyncEvent,
    AsyncLock,
    AsyncMailbox,
    AsyncRaised,
    AsyncWorker,
    Closed,
    async_home,
    async_sleep,
    async_spawn,
)
from synap.lanes.io.threads import Event, Lock, Mailbox, Raised, Worker, home, sleep, spawn

__all__ = [
    "AsyncEvent",
    "AsyncLock",
    "AsyncMailbox",
    "AsyncRaised",
    "AsyncWorker",
    "Closed",
    "Event",
    "Lock",
    "Mailbox",
    "Raised",
    "Worker",
    "async_home",
    "async_sleep",
    "async_spawn",
    "home",
    "monotonic",
    "sleep",
    "spawn",
]
