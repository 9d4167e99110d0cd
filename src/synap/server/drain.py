"""Graceful shutdown: no new work, requests in flight are answered, connections end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, cast

import uvicorn

from synap.errors import SynapError
from synap.server.clients import SUBSCRIBERS
from synap.server.garbage import Collections
from synap.server.service import Service
from synap.server.systemd import notify
from synap.server.tls import Acceptor
from synap.server.transit import transport_of

log = logging.getLogger("synap.server")

FORCED = 130
"""Exit code after a second signal to stop."""

SWEEP = 2.0
"""Seconds between checks for connections that are overdue with a request."""

LOOK = 0.5
"""Seconds between checks whether the data directory still exists."""

TAKING = 1.0
"""Seconds without progress after which a subscriber that doesn't read is cut while the service drains."""

MOMENT = 0.5
"""Seconds that requests may take to notice that their connections were cut, and then that they were cancelled."""

CLOSING = 10.0
"""Seconds that a peer may take to read the rest of a closed connection."""


UNHEEDED = [getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
"""Signals that end no service, also before it reads anything again at SIGHUP, and when it does no more."""


@contextlib.contextmanager
def handling(handlers: dict[signal.Signals, Any]) -> Iterator[None]:
    """Handle signals so within the block, where this is the main thread, which alone can."""
    before: dict[signal.Signals, Any] = {}
    try:
        with contextlib.suppress(ValueError):
            for number, handler in handlers.items():
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Server(uvicorn.Server):
    """uvicorn's server with this service's signals, periodic checks and shutdown."""

    def __init__(self, config: uvicorn.Config, service: Service, collections: Collections) -> None:
        super().__init__(config)
        self.service = service
        self._collections = collections
        self.connections: set[Any] = self.server_state.connections
        """The protocols of all open connections: uvicorn's own set."""
        self.tasks: set[asyncio.Task[None]] = self.server_state.tasks
        """The calls of the application in flight."""
        service.connections = self.connections
        service.shutdown = self.stop
        self.on_started: Callable[[], None] = lambda: None
        """Called once it listens, and whoever supervises it was told so."""
        self._reload = False
        """Whether SIGHUP was received."""
        self._unreadable: tuple[int, str] | None = None
        """The version of the keys, and why the next can't be read: logged once, though tried at each sweep."""

    def stop(self) -> None:
        """Request shutdown; it begins at the next tick."""
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        def asked(number: int, frame: FrameType | None) -> None:
            if self.should_exit:
                # The second signal: exit now. What was answered is durable.
                os._exit(FORCED)
            self.stop()

        def again(number: int, frame: FrameType | None) -> None:
            self._reload = True

        handlers: dict[signal.Signals, Any] = {signal.SIGINT: asked, signal.SIGTERM: asked}
        if hasattr(signal, "SIGHUP"):
            handlers[signal.SIGHUP] = again
        with handling(handlers):
            yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        service, config = self.service, cast(Any, self.config)
        own = service.tls is not None or isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop)
        if sockets is None or not own:  # without TLS, uvloop's servers do
            await super().startup(sockets)
        else:
            protocol = functools.partial(config.http_protocol_class, config, self.server_state, self.lifespan.state)
            service.acceptors = [Acceptor(opened, service, service.tls, protocol) for opened in sockets]
            self.servers = []
            self.started = True
        self.begun()

    def begun(self) -> None:
        """Called once connections are accepted."""
        self._sweeping = asyncio.ensure_future(self._sweep())
        self._watching = asyncio.ensure_future(self._watch_directory())
        notify("READY=1")
        self.on_started()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: reload after SIGHUP; once a second notify the watchdog."""
        if self._reload:
            self._reload = False
            log.info("SIGHUP: reading certificates and keys again")
            notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            self.service.reload()
            notify("READY=1")
        if not counter % 10:
            notify("WATCHDOG=1")
            self._collections.look(self.service.lanes["websocket"])
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no new work, and end what is under way."""
        service = self.service
        log.info("stopping: no new work, requests in flight are answered")
        notify("STOPPING=1")
        durable = service.durable
        wrong = None if durable is None or service.failed else durable.misplaced
        if durable is not None and wrong is not None:
            service.failed = True
            durable.log.give_up(wrong)
        service.draining = True
        self._sweeping.cancel()
        self._watching.cancel()
        for acceptor in service.acceptors:
            acceptor.close()
        for server in self.servers:
            server.close()
        for opened in sockets or ():
            opened.close()
        await self.end()

    async def end(self) -> None:
        """Answer requests in flight, then end connections."""
        service = self.service
        loop = asyncio.get_running_loop()
        end = loop.time() + service.config.drain_timeout
        self._subscribers = set(filter(_is_subscriber, service.connections))
        for conversation in list(service.listeners):
            _guarded(conversation.drain)
        for connection in list(service.connections):
            if connection not in service.listeners and not getattr(connection, "outlives_requests", False):
                _guarded(connection.shutdown)
        service.host.drain()
        await self._until(self._settled, end)
        for conversation in list(service.listeners):
            _guarded(conversation.shutdown)
        await asyncio.sleep(0)
        for connection in list(service.connections):
            _guarded(connection.shutdown)
        await self._until(self._gone, end)
        service.over = True
        for connection in list(service.connections):
            _guarded(_cut, connection)
        for cancels in (False, True):  # most end by themselves once their connections are gone
            left = list(self.tasks)
            for task in left:
                if cancels:
                    task.cancel()
            if left:
                await asyncio.wait(left, timeout=MOMENT)
        if service.audit is not None:
            service.record_unfinished()
            service.audit.finish()

    async def _watch_directory(self) -> None:
        """Notice a data directory that was removed or replaced: writing to open files would not fail."""
        durable = self.service.durable
        loop = asyncio.get_running_loop()
        while durable is not None:
            await asyncio.sleep(LOOK)
            wrong = await loop.run_in_executor(None, lambda: durable.misplaced)
            if wrong is not None:
                self.service.failed = True
                durable.log.give_up(wrong)
                return

    def _reload_keys(self) -> None:
        try:
            self.service.reload_keys()
            log.info("a file of keys has changed and was read again")
        except SynapError as error:
            told, self._unreadable = self._unreadable, (self.service.keys.version, error.message)
            if told != self._unreadable:
                log.error("keys stay as they were: %s", error.message)

    async def _until(self, done: Callable[[], bool], end: float) -> None:
        """Poll `done` until `end`, answer who waits; cut subscribers that don't read, and who has all it is sent."""
        loop = asyncio.get_running_loop()
        while loop.time() < end:
            self.service.host.drain()  # also those who wait only since, after a job or at another machine
            if done():
                return
            _guarded(self.service.transit.end_closed)
            _guarded(self.service.transit.end_unread, loop.time(), TAKING, self._subscribers.__contains__)
            await asyncio.sleep(0.01)  # polling is fine here: it runs once, at the end

    def _settled(self) -> bool:
        return self.service.host.settled() and all(one.settled() for one in self.service.listeners)

    def _gone(self) -> bool:
        return not self.connections and not self.tasks

    async def _sweep(self) -> None:
        """End connections that are overdue with a request, and those whose peers don't let them close."""
        loop = asyncio.get_running_loop()
        closing: dict[Any, float] = {}
        while True:
            await asyncio.sleep(min(SWEEP, self.service.config.handshake_timeout / 4))
            if self.service.keys.changed:
                _guarded(self._reload_keys)
            now = loop.time()
            _guarded(self.service.transit.look)
            _guarded(self.service.transit.end_unread, now)
            still: dict[Any, float] = {}
            for connection in {*self.service.connections, *self.service.listeners}:  # sessions in WebSockets too
                deadline = getattr(connection, "deadline", None)
                if deadline is not None and deadline < now:
                    _guarded(connection.overdue)
                transport = transport_of(connection)
                if transport is not None and transport.is_closing():
                    since = still[connection] = closing.get(connection, now)
                    if now - since > CLOSING:
                        transport.abort()
            closing = still


def _guarded(what: Callable[..., object], *arguments: Any) -> None:
    """Call a function of one connection; an exception is logged, and doesn't affect the others."""
    try:
        what(*arguments)
    except Exception:  # the other connections have to end too
        log.exception("ending a connection failed")


def _is_subscriber(connection: Any) -> bool:
    state = getattr(connection, "app_state", None)
    sessions = (connection,) if state is None else state.get(SUBSCRIBERS, ())
    return any(getattr(session, "subscriptions", None) for session in sessions)


def _cut(connection: Any) -> None:
    transport = transport_of(connection)
    if transport is not None:
        transport.abort()
