"""Stop in order: no new work, answers under way go out, connections end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from synap.server.service import Service

__all__ = ["FORCED", "Server"]

log = logging.getLogger("synap.server")

FORCED = 130
"""Exit code of a service that was told twice to stop."""

SWEEP = 2.0
"""Seconds between looks for connections that take too long to say what they want."""


class Server(uvicorn.Server):
    """uvicorn's server, stopping the way this service stops."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        service.connections = self.server_state.connections
        service.shutdown = self.stop
        self.on_started: Callable[[], None] = lambda: None

    def stop(self) -> None:
        """Begin to drain."""
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        def asked(number: int, frame: FrameType | None) -> None:
            if self.should_exit:
                # Asked twice: now. What was answered is safe; what was not, was not answered.
                os._exit(FORCED)
            self.stop()

        signals = (signal.SIGINT, signal.SIGTERM)
        try:
            before = [signal.signal(number, asked) for number in signals]
        except ValueError:  # Not the main thread, whose business signals are.
            yield
            return
        try:
            yield
        finally:
            for number, handler in zip(signals, before):
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._sweeping = asyncio.ensure_future(self._sweep())
        self.on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        service = self.service
        log.info("stopping: no new work, answers under way go out")
        service.draining = True
        self._sweeping.cancel()
        for server in self.servers:
            server.close()
        for conversation in list(service.listeners):
            conversation.drain()
        service.host.drain()
        loop = asyncio.get_running_loop()
        end = loop.time() + service.config.drain_timeout
        while loop.time() < end and not self._settled():  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # what it waits for happens in many places, and this once in a service's life
        for conversation in list(service.listeners):
            conversation.shutdown()
        await asyncio.sleep(0)
        self.config.timeout_graceful_shutdown = max(1, math.ceil(end - loop.time()))
        await super().shutdown(sockets)

    def _settled(self) -> bool:
        return self.service.host.settled() and all(one.settled() for one in self.service.listeners)

    async def _sweep(self) -> None:
        """Close connections whose heads don't come."""
        loop = asyncio.get_running_loop()
        patience = self.service.config.handshake_timeout
        while True:
            await asyncio.sleep(min(SWEEP, patience / 4))
            before = loop.time() - patience
            for connection in list(self.service.connections):
                since = getattr(connection, "since", None)
                if since is not None and since < before:
                    connection.overdue()
