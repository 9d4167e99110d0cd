"""Where async and sync I/O differ: pairs of the same shape.

The clients are written once, async; `tools/async_to_sync.py` generates the sync client by dropping `async`, `await` and
the prefixes `Async` and `async_`. That works because everything that waits is here in both colours:

    AsyncLock       Lock       mutual exclusion, `async with` and `with`
    AsyncEvent      Event      a flag that can be waited for
    AsyncMailbox    Mailbox    a bounded queue between a reader and a callback
    AsyncRaised     Raised     what a callback may raise
    async_spawn     spawn      run a function in the background: a task, or a daemon thread
    async_sleep     sleep      wait for some seconds
    async_home      home       the owner of connections: the running event loop, or this process

An event's `wait` takes a `timeout` in seconds (None: for ever), after which it returns False.
"""

from __future__ import annotations

from time import monotonic

from synap.lanes.io.aio import (
    AsyncEvent,
    AsyncLock,
    AsyncMailbox,
    AsyncRaised,
    Closed,
    async_home,
    async_sleep,
    async_spawn,
)
from synap.lanes.io.threads import Event, Lock, Mailbox, Raised, home, sleep, spawn

__all__ = [
    "AsyncEvent",
    "AsyncLock",
    "AsyncMailbox",
    "AsyncRaised",
    "Closed",
    "Event",
    "Lock",
    "Mailbox",
    "Raised",
    "async_home",
    "async_sleep",
    "async_spawn",
    "home",
    "monotonic",
    "sleep",
    "spawn",
]
