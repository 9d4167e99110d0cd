"""Engines in this process: one for each private `memory://`, one for each name, one for each directory.

An engine with a name, or a directory, is shared by all clients of this process, async or sync, in whatever
thread and event loop. It lives while any of them is open: when the last one closes, what was in a named memory is gone,
and a directory is written and free for another process.
"""

from __future__ import annotations

import _thread
import asyncio
import logging
import os
import threading
import warnings
import weakref
from collections import deque
from contextlib import suppress
from typing import Any, Callable, Deque, Dict, List, Mapping, Optional, Sequence, Tuple

from synap.errors import SynapError
from synap.host.base import Host, Session
from synap.host.registry import Home, open_engine

log = logging.getLogger("synap.host")

__all__ = ["LocalHost", "drop", "enter", "leave"]


class LocalHost:
    """A host that threads share: whoever uses `host` holds `lock`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.host: Host
        self.durable = False
        self.loop: Optional[asyncio.AbstractEventLoop] = None
        """The event loop that the host lives in, where it has no thread of its own."""
        self.users = 1
        self._bell = threading.Condition(self.lock)
        self._due: Optional[float] = None
        self._waits_until: Optional[float] = None
        self._timekeeper: Optional[threading.Thread] = None
        self._over = False
        self._begun = False
        self._close: Callable[[], None] = lambda: None

    def begin(self, host: Host, close: Callable[[], None], *, durable: bool) -> None:
        """Take the host, and what to call at the end."""
        with self.lock:
            self.host = host
            self.durable = durable
            self._close = close
            self._begun = True
            self.alarm(self._due)
        _living.add(self)

    def alarm(self, due: Optional[float]) -> None:
        """Have `host.wake` called at `due`. The host calls this, so the lock is held."""
        self._due = due
        if due is None or not self._begun:
            return
        if self._timekeeper is None:
            self._timekeeper = threading.Thread(target=self._keep_time, name="synap-timekeeper", daemon=True)
            self._timekeeper.start()
        elif self._waits_until is None or due < self._waits_until:
            self._bell.notify()

    def clock_moved(self) -> None:
        """Let everything happen that a clock which is moved by hand has made due."""
        with self.lock:
            while self._begun and not self._over and self._due is not None and self._due <= self.host.clock():
                self._due = None
                self.host.wake()

    def call(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Run something that needs the host, from another thread."""
        with self.lock:
            function(*arguments)

    def _keep_time(self) -> None:
        with self.lock:
            while not self._over:
                due = self._due
                now = self.host.clock()
                if due is not None and due <= now:
                    self._due = None
                    try:
                        self.host.wake()
                    except Exception:
                        # Whatever it was, later alarms must ring.
                        log.exception("what was due failed")
                        self._due = now + 1.0
                    continue
                self._waits_until = due
                self._bell.wait(None if due is None else min(due - now, threading.TIMEOUT_MAX))
            self._timekeeper = None

    def close(self) -> None:
        """Stop, once nobody uses it any more."""
        with self.lock:
            self._over = True
            self._bell.notify_all()
        self._close()

    def forked(self) -> None:
        """Go on in the child with a copy of the memory and without the threads of the parent."""
        self._timekeeper = None
        self._waits_until = None
        self._bell = threading.Condition(self.lock)
        self.host.inherited()


Clock = Callable[[], float]

_shared: Dict[str, LocalHost] = {}
_living: weakref.WeakSet[LocalHost] = weakref.WeakSet()
_dropped: Deque[Tuple[LocalHost, Sequence[Session]]] = deque()
_registry = threading.Lock()
_opening: Dict[str, asyncio.Future[LocalHost]] = {}
"""Clusters that are being reached, for those who ask for the same one meanwhile."""


def enter(scheme: str, path: str, options: Mapping[str, Any], clock: Optional[Clock] = None) -> LocalHost:
    """Return the engine behind a URL, as one more user of it; `leave` when done. Raises `SynapError`."""
    _see_to_dropped()
    if scheme == "memory" and not path:
        return _open(scheme, path, options, clock)
    name = f"file://{os.path.realpath(path)}" if scheme == "file" else f"{scheme}://{path}"
    with _registry:
        local = _shared.get(name)
        if local is None:
            local = _shared[name] = _open(scheme, path, options, clock)
        elif clock is not None and local.host.clock is not clock:
            raise SynapError("INVALID_REQUEST", f"{name} is open already with another clock", {"option": "clock"})
        else:
            local.users += 1
    return local


async def enter_here(scheme: str, path: str, options: Mapping[str, Any]) -> LocalHost:
    """Return the cluster's host behind a URL that lives in the running event loop: no thread is between. Otherwise as
    `enter`."""
    _see_to_dropped()
    loop = asyncio.get_running_loop()
    name = f"{scheme}://{path} {id(loop)}"
    with _registry:
        local = _shared.get(name)
        if local is not None and local.loop is loop:
            local.users += 1
            return local
    opening = _opening.get(name)
    if opening is None:
        opening = _opening[name] = asyncio.ensure_future(_open_here(scheme, path, options, name))
        opening.add_done_callback(lambda _: _opening.pop(name, None))
    local = await asyncio.shield(opening)
    with _registry:
        local.users += 1
    return local


async def _open_here(scheme: str, path: str, options: Mapping[str, Any], name: str) -> LocalHost:
    local = LocalHost()
    local.loop = loop = asyncio.get_running_loop()
    local.users = 0
    home = Home(loop.call_soon_threadsafe, local.alarm, local.lock, loop, direct=True, options=options)
    opened = open_engine(scheme, path, home)
    if opened.start is not None:
        await opened.start()
    local.begin(opened.host, opened.close, durable=True)
    with _registry:
        _shared[name] = local
    return local


def leave(local: LocalHost, sessions: Sequence[Session] = ()) -> None:
    """Be done with an engine; the last user ends it."""
    with local.lock:
        for session in sessions:
            local.host.leave(session)
    with _registry:
        local.users -= 1
        if local.users > 0:
            return
        for name in [name for name, shared in _shared.items() if shared is local]:
            del _shared[name]
        local.close()


def drop(local: LocalHost, sessions: Sequence[Session]) -> None:
    """Leave for a user that was collected as garbage, on a thread of its own: a lock that is needed may be held by this
    very thread. Warns where more than memory was left open.
    """
    _dropped.append((local, sessions))
    with suppress(RuntimeError):  # the interpreter ends
        _thread.start_new_thread(_see_to_dropped, ())
    if local.durable:
        text = "a client of an engine in this process was left open: close it, so that what it holds is let go of"
        warnings.warn(text, ResourceWarning, stacklevel=2)


def _see_to_dropped() -> None:
    while _dropped:
        try:
            local, sessions = _dropped.popleft()
        except IndexError:  # another thread was faster
            return
        leave(local, sessions)


def _open(scheme: str, path: str, options: Mapping[str, Any], clock: Optional[Clock]) -> LocalHost:
    local = LocalHost()
    opened = open_engine(scheme, path, Home(local.call, local.alarm, local.lock, clock=clock, options=options))
    watch = getattr(clock, "watch", None)
    if watch is not None:
        watch(local.clock_moved)
    local.begin(opened.host, opened.close, durable=scheme != "memory")
    return local


# ------------------------------------------------------------------------------------------ forks

# A child gets a copy of every engine in memory. So that no thread of the parent is in the middle of a change then, all
# engines are held still while the process forks.

_stilled: List[LocalHost] = []


def _before() -> None:
    _registry.acquire()
    for local in list(_living):
        local.lock.acquire()
        _stilled.append(local)


def _after() -> None:
    while _stilled:
        _stilled.pop().lock.release()
    _registry.release()


def _in_child() -> None:
    for local in _stilled:
        local.forked()
    for name in [name for name, local in _shared.items() if local.durable]:
        del _shared[name]  # the directory is the parent's
    _after()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_in_child)
