"""Engines in this process: one for each private `memory://`, one for each name, one for each directory.

An engine with a name or a directory is shared by all clients of this process, async and sync, in any thread and event
loop. It lives while any of them is open: when the last one closes, a named memory is gone, and a directory is flushed
and unlocked for other processes.
"""

from __future__ import annotations

import _thread
import asyncio
import concurrent.futures.thread  # noqa: F401
import logging
import os
import threading
import warnings
import weakref
from collections import deque
from contextlib import ExitStack, nullcontext, suppress
from typing import Any, Callable, ContextManager, Deque, Dict, List, Mapping, Optional, Sequence, Tuple

from synap.errors import SynapError
from synap.host.base import Host, Session
from synap.host.registry import Home, open_engine

log = logging.getLogger("synap.host")


class LocalHost:
    """A host that threads share: hold `lock` to use `host`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.host: Host
        self.durable = False
        self.loop: Optional[asyncio.AbstractEventLoop] = None
        """The event loop that the host runs in; None where any thread may use it."""
        self.users = 1
        self.registry = _registry
        """Held to change `users`, and by whoever opens or closes the host."""
        self.options: Mapping[str, Any] = {}
        """What it was opened with."""
        self._changed = threading.Condition(self.lock)
        self._due: Optional[float] = None
        self._waits_until: Optional[float] = None
        self._timekeeper: Optional[threading.Thread] = None
        self._closed = False
        self._begun = False
        self._close: Callable[[], None] = lambda: None
        self.still: Callable[[], ContextManager[Any]] = nullcontext
        """Keeps the engine's own threads at rest while the process forks."""

    def begin(self, host: Host, close: Callable[[], None], *, durable: bool) -> None:
        """Set the host, and the function that closes it."""
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
            timekeeper = threading.Thread(target=self._keep_time, name="synap-timekeeper", daemon=True)
            try:
                timekeeper.start()
            except RuntimeError:  # there are as many as there may be: the next turn tries again
                self.host.rearm()
            else:
                self._timekeeper = timekeeper
        elif self._waits_until is None or due < self._waits_until:
            self._changed.notify()

    def clock_moved(self) -> None:
        """Process what became due when a test moved its clock."""
        with self.lock:
            while self._begun and not self._closed and self._due is not None and self._due <= self.host.clock():
                self._due = None
                self.host.wake()

    def call(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Run a function under the lock, from any thread."""
        with self.lock:
            function(*arguments)

    def _keep_time(self) -> None:
        with self.lock:
            while not self._closed:
                due = self._due
                now = self.host.clock()
                if due is not None and due <= now:
                    self._due = None
                    try:
                        self.host.wake()
                    except Exception:
                        # Whatever it was, later alarms must fire.
                        log.exception("a wake-up of the engine failed")
                        self._due = now + 1.0
                    continue
                self._waits_until = due
                self._changed.wait(None if due is None else min(due - now, threading.TIMEOUT_MAX))
            self._timekeeper = None

    def close(self) -> None:
        """Close the engine: it has no users any more."""
        with self.lock:
            self._closed = True
            self._changed.notify_all()
        self._close()

    def forked(self) -> None:
        """Continue in a forked child, which has a copy of the memory and none of the threads."""
        self._timekeeper = None
        self._waits_until = None
        self._changed = threading.Condition(self.lock)
        self.host.inherited()


Clock = Callable[[], float]

_shared: Dict[str, LocalHost] = {}
_living: weakref.WeakSet[LocalHost] = weakref.WeakSet()
_dropped: Deque[Tuple[LocalHost, Sequence[Session]]] = deque()
_registry = threading.Lock()
_slow = threading.Lock()
"""Instead of `_registry` for what takes its time to open and to close: event loops wait for that one."""
_opening: Dict[str, asyncio.Future[LocalHost]] = {}
"""Connection attempts to clusters in progress, shared by all who want the same one."""


def enter(scheme: str, path: str, options: Mapping[str, Any], clock: Optional[Clock] = None) -> LocalHost:
    """Open the engine behind a URL, or share it; `leave` when done. Raises `SynapError`."""
    _leave_dropped(slow=scheme != "memory")
    if scheme == "memory" and not path:
        with _registry:  # not while the process forks, which locks all engines that there are
            return _open(scheme, path, options, clock)
    name = f"file://{os.path.realpath(path)}" if scheme == "file" else _name(scheme, path, options)
    registry = _registry if scheme == "memory" else _slow
    with registry:
        local = _shared.get(name)
        if local is None:
            local = _shared[name] = _open(scheme, path, options, clock)
            local.registry = registry
        elif clock is not None and local.host.clock is not clock:
            text = f"this {scheme}:// is open already with another clock"
            raise SynapError("INVALID_REQUEST", text, {"option": "clock"})
        elif scheme == "file" and local.options.get("fsync") != options.get("fsync"):
            text = f"{name} is open already with fsync={local.options.get('fsync')!r}, not {options.get('fsync')!r}"
            raise SynapError("INVALID_REQUEST", text, {"option": "fsync"})
        else:
            local.users += 1
    return local


def _name(scheme: str, path: str, options: Mapping[str, Any]) -> str:
    """Return what an engine is shared by; a cluster's with other options is another one."""
    return f"{scheme}://{path}" if scheme == "memory" else f"{scheme}://{path} {sorted(options.items(), key=str)}"


async def enter_here(scheme: str, path: str, options: Mapping[str, Any]) -> LocalHost:
    """Open or share a cluster's host that runs in the current event loop, without a thread. Otherwise as `enter`."""
    _leave_dropped(slow=False)
    loop = asyncio.get_running_loop()
    name = f"{_name(scheme, path, options)} {id(loop)}"
    with _registry:
        local = _shared.get(name)
        if local is not None and local.loop is loop:
            local.users += 1
            return local
    opening = _opening.get(name)
    if opening is None:
        opening = _opening[name] = asyncio.ensure_future(_open_here(scheme, path, options, name))
        opening.add_done_callback(lambda _: _opening.pop(name, None))
    opening.add_done_callback(_count_user)  # before any of those who wait can leave
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_leave_again)
        raise


def _count_user(opening: asyncio.Future[LocalHost]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        with _registry:
            opening.result().users += 1


def _leave_again(opening: asyncio.Future[LocalHost]) -> None:
    """Leave an engine whose opening was abandoned, once all who still wait for it are counted."""
    if not opening.cancelled() and opening.exception() is None:
        local, loop = opening.result(), opening.get_loop()
        loop.call_soon(lambda: loop.run_in_executor(None, leave, local))


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
    """Stop using an engine; the last user closes it."""
    try:
        with local.lock:
            for session in sessions:
                local.host.leave(session)
    finally:
        with local.registry:
            local.users -= 1
            over = local.users == 0
            if over:
                for name in [name for name, shared in list(_shared.items()) if shared is local]:
                    del _shared[name]
                if local.registry is _slow:  # whoever opens a directory next needs it unlocked
                    local.close()
        if over and local.registry is not _slow:  # a cluster's waits for its event loop, which may wait for the lock
            local.close()


def drop(local: LocalHost, sessions: Sequence[Session]) -> None:
    """Leave for a client that was garbage-collected, on a new thread: this one may hold a lock that is needed.

    Warns where more than memory was left open.
    """
    _dropped.append((local, sessions))
    with suppress(RuntimeError):  # the interpreter is shutting down
        _thread.start_new_thread(_leave_dropped, ())
    if local.durable:
        text = "a client of an engine in this process was left open: close it, so that the engine can be closed"
        warnings.warn(text, ResourceWarning, stacklevel=2)


def _leave_dropped(*, slow: bool = True) -> None:
    """Leave for clients that were garbage-collected: all, or only what closes at once, without its event loop."""
    for entry in list(_dropped):
        if slow or (entry[0].registry is _registry and entry[0].loop is None):
            with suppress(ValueError):  # another thread was faster
                _dropped.remove(entry)
                leave(*entry)


def _open(scheme: str, path: str, options: Mapping[str, Any], clock: Optional[Clock]) -> LocalHost:
    local = LocalHost()
    local.options = options
    opened = open_engine(scheme, path, Home(local.call, local.alarm, local.lock, clock=clock, options=options))
    watch = getattr(clock, "watch", None)
    if watch is not None:
        watch(local.clock_moved)
    local.still = opened.still
    local.begin(opened.host, opened.close, durable=scheme != "memory")
    return local


# ------------------------------------------------------------------------------------------ forks

# A child gets a copy of every engine in memory. All engines are locked during the fork, so that none is copied in the
# middle of a change. Their own threads come first: what they report takes the lock. The lock of concurrent.futures is
# taken last, since that was imported before this: whoever opens a directory starts a thread with it.

_locked: List[LocalHost] = []
_still = ExitStack()


def _lock_all() -> None:
    _slow.acquire()
    _registry.acquire()
    living = list(_living)
    for local in living:
        _still.enter_context(local.still())
    for local in living:
        local.lock.acquire()
        _locked.append(local)


def _unlock_all() -> None:
    while _locked:
        _locked.pop().lock.release()
    _still.close()
    _registry.release()
    _slow.release()


def _in_child() -> None:
    for local in _locked:
        local.forked()
    for name in [name for name, local in _shared.items() if local.durable]:
        del _shared[name]  # the directory is the parent's
    _unlock_all()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_lock_all, after_in_parent=_unlock_all, after_in_child=_in_child)
