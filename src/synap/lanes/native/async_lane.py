"""The native lane in an event loop: one connection, many calls under way at once.

Connections belong to the event loop that made them. A client that is used in another one gets a connection, and a
session, of its own there.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
import warnings
import weakref
from threading import get_ident
from time import monotonic
from typing import Any, Awaitable, Callable, Dict, List, Optional, Set, Tuple

from msgspec import Struct

from synap.commands import BATCH, Command
from synap.config import ClientConfig, Target
from synap.errors import SynapError
from synap.lanes import errors
from synap.lanes._async.base import AsyncLane, Listener
from synap.lanes.native.connection import CONFIRM_EVERY, UNREAD, Connection
from synap.lanes.native.upgrade import Upgrade, tls_context
from synap.wire.codec import Codec

__all__ = ["AsyncNativeLane"]

GOODBYE = 1.0
"""Seconds an orderly close may take."""
LAST_NUMBER = UNREAD - 1

_current_loop = asyncio.get_running_loop

if sys.version_info >= (3, 12):

    def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
        """Say whether `loop` is what runs in this thread now."""
        return loop is _current_loop()

else:

    def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
        """Say whether `loop` is what runs in this thread now.

        What asyncio has for it makes a system call on these versions, and this is asked for each call, so asyncio's own
        loops are asked which thread runs them. Others (uvloop) don't say.
        """
        return getattr(loop, "_thread_id", None) == get_ident() or loop is _current_loop()


class _Channel:
    """What a lane has in one event loop: a session, its numbers, and the connection of the moment."""

    def __init__(self, lane: AsyncNativeLane, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.session = uuid.uuid4().hex
        self.number = 0
        self.parked: Dict[int, bool] = {}
        """Requests that are not on a connection now and will be sent (again), and whether they have been sent before,
        whatever came of it: a service that was restarted may have found on its disk what it had refused. Also consumes,
        until the caller has the message. The answers to all of these are not confirmed."""
        self.connection: Optional[Connection] = None
        self.connections: Set[Connection] = set()
        self.over = False
        self._lane = lane
        self._connecting: Optional[asyncio.Task[Connection]] = None

    async def ready(self, command: Command, number: int, timeout: Optional[float]) -> Connection:
        """Return a connection that takes a request now."""
        deadline = None if timeout is None else monotonic() + timeout
        self.parked.setdefault(number, False)
        while True:
            left = None if deadline is None else max(deadline - monotonic(), 0.0)
            connection = self.connection
            if connection is None or not connection.open:
                connection = await self._connect(left)
                if not connection.open:  # it agreed and was off again: whether to try once more is not for here
                    raise errors.failed(self._lane.target.authority, connection.reason or "it takes no requests now")
            if connection.full:
                if not await connection.drained(left):
                    raise errors.out_of_room(command, timeout)
            else:
                return connection

    async def connect(self) -> Connection:
        """Return an open connection; raises `ConnectionError` and what the service refuses it with."""
        connection = self.connection
        if connection is None or not connection.open:
            connection = await self._connect(None)
        return connection

    async def _connect(self, timeout: Optional[float]) -> Connection:
        """Wait for the attempt to connect that is under way, or begin one. It is shared, so cancelling the wait leaves
        it be."""
        if self.over:
            raise errors.closed()
        attempt = self._connecting
        if attempt is None:
            attempt = self._connecting = self.loop.create_task(self._open())
            attempt.add_done_callback(self._attempted)
        await asyncio.wait({attempt}, timeout=timeout)
        if not attempt.done():
            raise errors.unanswered(self._lane.target.authority, timeout or 0)
        if attempt.cancelled():
            raise errors.failed(self._lane.target.authority, "the client was closed")
        error = attempt.exception()
        if isinstance(error, SynapError):
            raise type(error)(error.code, error.message, error.details)  # each waiter gets its own
        return attempt.result()

    def _attempted(self, attempt: asyncio.Task[Connection]) -> None:
        self._connecting = None
        if not attempt.cancelled():
            attempt.exception()

    async def _open(self) -> Connection:
        lane = self._lane
        config, target = lane.config, lane.target
        upgrade = Upgrade(config, target, self.session)
        connection = Connection(lane.codec, upgrade, config.compression, _weakly(self.confirm), _weakly(self._ended))
        try:
            await asyncio.wait_for(self._reach(connection), config.timeout)
        except BaseException as error:
            connection.abort("there was no handshake")
            if isinstance(error, asyncio.TimeoutError):
                raise errors.unanswered(target.authority, config.timeout) from None
            if isinstance(error, (OSError, ValueError)) and not isinstance(error, SynapError):
                raise errors.failed(target.authority, error) from None
            raise
        self.connection = connection
        self.connections.add(connection)
        lane.connected()
        return connection

    async def _reach(self, connection: Connection) -> None:
        target = self._lane.target
        context = tls_context(self._lane.config, target)
        await self.loop.create_connection(
            lambda: connection,
            target.host,
            target.port,
            ssl=context,
            server_hostname=target.host if context is not None else None,
        )
        await connection.upgraded

    def _ended(self, connection: Connection, reason: str) -> None:
        """Hear that a connection is over."""
        if connection not in self.connections:
            return
        self.connections.discard(connection)
        if self.connection is connection:
            self.connection = None
            self._lane.disconnected(reason)

    def confirm(self, connection: Connection) -> None:
        """Tell the service up to where answers have come."""
        below = self.number + 1
        if connection.pending:
            below = min(below, next(iter(connection.pending)))
        if self.parked:
            below = min(below, min(self.parked))
        connection.confirm(below)

    async def close(self) -> None:
        """Close in order."""
        self.over = True
        if self._connecting is not None:
            self._connecting.cancel()
        connections = list(self.connections)
        self.connections.clear()
        lost, self.connection = self.connection is not None, None
        for connection in connections:
            if connection.open:
                self.confirm(connection)
            await connection.close("the client was closed", GOODBYE)
        if lost:
            self._lane.disconnected("the client was closed")


_Ticket = Tuple[_Channel, int]
"""A request's channel, to whose session its number belongs."""


class AsyncNativeLane(AsyncLane):
    """Speaks frames with a service."""

    def __init__(self, config: ClientConfig, target: Target, codec: Codec) -> None:
        super().__init__(config, target, codec)
        self._channel: Optional[_Channel] = None
        self._channels: Dict[asyncio.AbstractEventLoop, _Channel] = {}

    def _here(self) -> _Channel:
        """Return the channel of the running event loop."""
        loop = _current_loop()
        channel = self._channels.get(loop)
        if channel is None:
            for former in [former for former in self._channels if former.is_closed()]:
                _leave_behind(self._channels.pop(former))
            channel = self._channels[loop] = _Channel(self, loop)
        self._channel = channel
        return channel

    async def connect(self) -> None:
        await self._here().connect()

    # ------------------------------------------------------------------------------------------ requests

    def ticket(self) -> _Ticket:
        channel = self._channel
        if channel is None or not _runs_here(channel.loop):
            channel = self._here()
        if channel.number >= LAST_NUMBER:
            channel = self._renew(channel)
        channel.number = number = channel.number + 1
        return channel, number

    def _renew(self, channel: _Channel) -> _Channel:
        """Begin a session with new numbers. What is under way goes on in the old one."""
        fresh = self._channels[channel.loop] = self._channel = _Channel(self, channel.loop)
        fresh.connections = channel.connections
        return fresh

    def drop(self, ticket: Any) -> None:
        channel, number = ticket
        if channel.parked:
            channel.parked.pop(number, None)

    def call(self, command: Command, payload: Struct, *, ticket: Any, timeout: Optional[float]) -> Awaitable[Any]:
        channel: _Channel
        number: int
        channel, number = ticket
        body = self.codec.encode_payload(command, payload)
        connection = channel.connection
        if connection is None or not connection.open or connection.full or command is BATCH:
            return self._call_with_care(channel, command, number, body, timeout)
        return connection.send(command, number, body, timeout, channel.parked)

    async def _call_with_care(
        self, channel: _Channel, command: Command, number: int, body: bytes, timeout: Optional[float]
    ) -> Any:
        """Make a call that has to wait before it is sent, or that the service has to keep much for."""
        connection = channel.connection
        if connection is None or not connection.open or connection.full:
            connection = await channel.ready(command, number, timeout)
        result = await connection.send(command, number, body, timeout, channel.parked)
        if command is BATCH:  # the service keeps a lot until it knows that this came
            connection.answered = CONFIRM_EVERY
        return result

    async def health(self) -> Dict[str, Any]:
        connection = await self._here().connect()
        body = await connection.ping(self.config.timeout)
        figures = self.codec.decode(body) if body else {}
        return figures if isinstance(figures, dict) else {}

    # ------------------------------------------------------------------------------------------ subscriptions

    async def subscribe(self, command: Command, payload: Struct, listener: Listener) -> Tuple[Any, Any]:
        body = self.codec.encode_payload(command, payload)
        channel, number = self.ticket()
        try:
            connection = await channel.ready(command, number, self.config.timeout)
        finally:
            channel.parked.pop(number, None)
        try:
            answer = await connection.subscribe(command, number, body, listener, self.config.timeout)
        except BaseException:
            connection.ignore(number)
            connection.withdraw(number)
            raise
        return (connection, command, answer.subscription_id), answer

    async def unsubscribe(self, handle: Any) -> None:
        connection, command, subscription_id = handle
        if connection.loop is not _current_loop():
            return
        _, number = self.ticket()
        try:
            ended = connection.unsubscribe(command, number, subscription_id, self.config.timeout)
            if ended is not None:
                await ended
        except SynapError:
            pass  # the connection is gone, and the subscription with it
        finally:
            connection.withdraw(number)

    # ------------------------------------------------------------------------------------------ the end

    async def close(self) -> None:
        channels, self._channels, self._channel = list(self._channels.values()), {}, None
        here = _current_loop()
        for channel in channels:
            if channel.loop is here:
                await channel.close()
            else:
                _leave_behind(channel)

    def __del__(self) -> None:
        for channel in self._channels.values():
            if channel.connections:
                text = f"a connection to {self.target.authority} was left open: close the client"
                warnings.warn(text, ResourceWarning, stacklevel=2, source=self)
                _leave_behind(channel)

    def abandon(self) -> None:
        _inherited.extend(self._channels.values())
        self._channels = {}
        self._channel = None


def _weakly(hear: Callable[..., None]) -> Callable[..., None]:
    """Call a method as long as its object lives: an event loop holds connections, and shall not hold their client."""
    reference = weakref.WeakMethod(hear)

    def call(*arguments: Any) -> None:
        method = reference()
        if method is not None:
            method(*arguments)

    return call


_inherited: List[_Channel] = []
"""What belongs to the parent process. It stays referenced, so that no destructor says anything on its sockets."""


def _leave_behind(channel: _Channel) -> None:
    """Be done with connections of another event loop."""
    for connection in list(channel.connections):
        if channel.loop.is_closed():
            connection.bury()
        else:
            channel.loop.call_soon_threadsafe(connection.abort, "the client left it")
