"""The native lane in an event loop: one connection, many calls in flight.

Connections belong to the event loop that made them. A client that is used in another one gets a connection, and a
session, of its own there.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import uuid
import warnings
import weakref
from threading import get_ident
from time import monotonic
from typing import Any, Awaitable, Callable, Dict, List, Optional, Set, Tuple

from msgspec import Struct

from synap.commands import Command
from synap.config import ClientConfig, Target
from synap.errors import ConnectionError, SynapError
from synap.lanes import errors
from synap.lanes._async.base import AsyncLane
from synap.lanes.io.aio import async_home
from synap.lanes.io.network import AsyncNetwork, async_network
from synap.lanes.native.connection import Connection
from synap.lanes.native.pending import seen
from synap.lanes.opening import Open, Upgrade, tls_for
from synap.wire.codec import Codec
from synap.wire.conversation import CONFIRM_EVERY, LAST_NUMBER, Listener, Numbers
from synap.wire.outcomes import UNREADABLE

log = logging.getLogger("synap.client")

CLOSE_TIMEOUT = 1.0
"""Seconds that closing may take."""
ELSEWHERE = 0.25
"""Seconds that closing waits for event loops elsewhere that are busy."""
RESTS = 20
"""Looks at event loops elsewhere that don't run, after which nothing is expected of them."""
LOOK = 0.001
"""Seconds between two looks."""

_current_loop = asyncio.get_running_loop

if sys.version_info >= (3, 12):

    def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
        """Return whether `loop` is running in this thread."""
        return loop is _current_loop()

else:

    def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
        """Return whether `loop` is running in this thread.

        asyncio's function makes a system call on these versions, and this runs for each call, so asyncio's own loops
        are asked for their thread. Others (uvloop) don't have it.
        """
        return getattr(loop, "_thread_id", None) == get_ident() or loop is _current_loop()


class _Channel(Numbers):
    """A lane's state in one event loop: a session with its numbers, and the current connection."""

    __slots__ = ("_connecting", "_lane", "aborted", "closing", "connection", "connections", "loop", "over")

    def __init__(self, lane: AsyncNativeLane, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(uuid.uuid4().hex)
        self.loop = loop
        self.connection: Optional[Connection] = None
        self.connections: Set[Connection] = set()
        self.closing: Set[Connection] = set()
        """Those that were idle, until they have ended."""
        self.over = False
        self.aborted = False
        """Whether `abort_all` was called."""
        self._lane = lane
        self._connecting: Optional[asyncio.Task[Connection]] = None

    async def ready(self, command: Command, number: int, began: float, timeout: float) -> Connection:
        """Return a connection that can send a request, within `timeout` seconds from `began`.

        Raises as `connect` does, and `TIMEOUT`.
        """
        deadline = began + timeout
        self.parked.setdefault(number, False)
        while True:
            connection = self.connection
            if connection is None or not connection.open:
                connection = await self.connect(deadline)
                if not connection.open:  # it is about to end: the caller decides on retries
                    raise self._failed(connection)
            if not connection.full:
                return connection
            if not await connection.drained(max(deadline - monotonic(), 0.0)):
                raise errors.all_busy(command, timeout)

    async def connect(self, deadline: float) -> Connection:
        """Return a connection; raises `ConnectionError` and the service's refusals.

        Waits for the attempt to connect that is in progress, or starts one. It is shared, so cancelling the wait does
        not cancel it.
        """
        connection = self.connection
        if connection is not None and connection.open:
            return connection
        if self.over:
            raise errors.client_closed()
        attempt = self._connecting
        if attempt is None:
            attempt = self._connecting = self.loop.create_task(self._open())
            attempt.add_done_callback(self._attempted)
        await asyncio.wait({attempt}, timeout=max(deadline - monotonic(), 0.0))
        if not attempt.done():
            raise errors.connect_timed_out(self._lane.target.authority, self._lane.config.timeout)
        if attempt.cancelled():
            if self.over:
                raise errors.client_closed()
            raise errors.connect_failed(self._lane.target.authority, "it was cancelled")
        error = attempt.exception()
        if isinstance(error, SynapError):
            raise error.copy()  # each waiter gets its own
        connection = attempt.result()
        if connection.lost.done():  # since then
            raise self._failed(connection)
        return connection

    def _failed(self, connection: Connection) -> ConnectionError:
        """Build the error for a connection that ended, or began to drain, right after its handshake."""
        return errors.connect_failed(self._lane.target.authority, connection.reason or "it takes no requests now")

    def _attempted(self, attempt: asyncio.Task[Connection]) -> None:
        self._connecting = None
        seen(attempt)

    async def _open(self) -> Connection:
        """Connect and shake hands within the client's timeout."""
        lane = self._lane
        config, target = lane.config, lane.target
        place = target.authority
        opening = lane.begin(config, target, self.session)
        connection = Connection(
            lane.codec, opening, config.compression, _weakly(self.confirm), _weakly(self._ended), spin=config.spin
        )
        reaching = self.loop.create_task(self._reach(connection))
        reaching.add_done_callback(seen)
        try:
            # Not `wait_for`: before Python 3.12 it may swallow a cancellation, and leak the socket.
            await asyncio.wait({reaching}, timeout=config.timeout)
            if not reaching.done():
                raise errors.connect_timed_out(place, config.timeout)
            reaching.result()
            if self.over:
                raise errors.client_closed()
            if connection.lost.done():
                raise self._failed(connection)
        except BaseException as error:
            reaching.cancel()
            connection.abort("there was no handshake")
            if isinstance(error, (OSError, ValueError)) and not isinstance(error, SynapError):
                raise errors.connect_failed(place, error, target=target) from None
            raise
        log.debug("connected to %s (%s)", place, lane.name)
        self.connection = connection
        self.connections.add(connection)
        lane.connected()
        return connection

    async def _reach(self, connection: Connection) -> None:
        lane = self._lane
        target = lane.target
        await lane.network.connect(connection, target.host, target.port, lane.context)
        await connection.opened

    def _ended(self, connection: Connection, reason: str) -> None:
        if connection not in self.connections:
            return
        self.connections.discard(connection)
        log.debug("the connection to %s ended: %s", self._lane.target.authority, reason)
        if self.connection is connection:
            self.connection = None
            self._lane.disconnected(reason)

    def confirm(self, connection: Connection) -> None:
        """Tell the service up to which request answers have been received."""
        connection.conversation.confirm(self.confirmed(connection.pending))

    async def close(self) -> None:
        """Close the connections, and abort an attempt to connect."""
        self.over = True
        if self._connecting is not None:
            self._connecting.cancel()
        connections = list(self.connections)
        self.connections.clear()
        lost, self.connection = self.connection is not None, None
        for connection in [*connections, *self.closing]:
            if connection.open:
                self.confirm(connection)
            await connection.close("the client was closed", CLOSE_TIMEOUT)
        if lost:
            self._lane.disconnected("the client was closed")

    def abort_all(self) -> None:
        """Abort all connections, and an attempt to connect."""
        self.aborted = True
        if self._connecting is not None:
            self._connecting.cancel()
        for connection in list(self.connections):
            connection.abort("the client left it")

    def close_orphaned(self) -> None:
        """Close the sockets of all connections: their event loop is closed."""
        self.aborted = True
        for connection in list(self.connections):
            connection.close_orphaned()

    def close_idle(self, connection: Connection) -> None:
        """Close an idle connection (`keep_alive=False`). Nobody waits for its end: who does so may be cancelled, and
        then the answer that has come would be lost."""
        if connection.idle and connection is self.connection:
            self.connection = None
            self.connections.discard(connection)
            self.confirm(connection)
            self.closing.add(connection)
            connection.lost.add_done_callback(lambda _: self.closing.discard(connection))
            connection.shut("nothing is in flight, and keep_alive is off", CLOSE_TIMEOUT)


_Ticket = Tuple[_Channel, int]
"""(the channel whose session the request belongs to, its number)."""


class AsyncNativeLane(AsyncLane):
    """Sends native frames over connections that `begin` opens."""

    def __init__(
        self,
        config: ClientConfig,
        target: Target,
        codec: Codec,
        *,
        begin: Open = Upgrade,
        name: str = "native",
        network: AsyncNetwork = async_network,
    ) -> None:
        super().__init__(config, target, codec)
        self._channel: Optional[_Channel] = None
        self._channels: Dict[asyncio.AbstractEventLoop, _Channel] = {}
        self.begin = begin
        self.name = name
        self.network = network
        self.context = tls_for(config, target)
        self._close_idle = not config.keep_alive

    def _here(self) -> _Channel:
        """Return the channel of the running event loop."""
        loop = async_home()
        channel = self._channels.get(loop)
        if channel is None:
            if self.closed:
                raise errors.client_closed()
            for former in [former for former in list(self._channels) if former.is_closed()]:
                gone = self._channels.pop(former, None)
                if gone is not None:
                    _abort_elsewhere(gone)
            channel = self._channels[loop] = _Channel(self, loop)
        self._channel = channel
        return channel

    async def connect(self, deadline: float) -> None:
        await self._here().connect(deadline)

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
        """Start a session with new numbers. Requests in flight stay in the old one."""
        fresh = self._channels[channel.loop] = self._channel = _Channel(self, channel.loop)
        fresh.connections, fresh.closing = channel.connections, channel.closing
        return fresh

    def drop(self, ticket: Any) -> None:
        channel, number = ticket
        if channel.parked:
            channel.parked.pop(number, None)

    def call(self, command: Command, payload: Struct, ticket: Any, began: float, timeout: float) -> Awaitable[Any]:
        channel: _Channel
        number: int
        channel, number = ticket
        body = self.codec.encode_payload(command, payload)
        connection = channel.connection
        if (
            connection is None
            or not connection.conversation.open
            or connection.full
            or command.confirm_soon
            or self._close_idle
        ):
            return self._call_slowly(channel, command, number, body, began, timeout)
        return connection.send(command, number, body, began, timeout, channel.parked)

    async def _call_slowly(
        self, channel: _Channel, command: Command, number: int, body: bytes, began: float, timeout: float
    ) -> Any:
        """Make a call that has to wait before it is sent, or that needs something done after its answer."""
        connection = channel.connection
        if connection is None or not connection.open or connection.full:
            connection = await channel.ready(command, number, began, timeout)
        try:
            result = await connection.send(command, number, body, began, timeout, channel.parked)
        finally:
            if self._close_idle:
                channel.close_idle(connection)
        if command.confirm_soon:
            connection.conversation.answered = CONFIRM_EVERY
        return result

    async def health(self, deadline: float) -> Dict[str, Any]:
        channel = self._here()
        connection = await channel.connect(deadline)
        try:
            body = await connection.ping(max(deadline - monotonic(), 0.0))
        finally:
            if self._close_idle:
                channel.close_idle(connection)
        try:
            figures = self.codec.decode(body) if body else {}
        except UNREADABLE as error:
            raise errors.connect_failed(self.target.authority, error) from None
        return figures if isinstance(figures, dict) else {}

    # ------------------------------------------------------------------------------------------ subscriptions

    async def subscribe(
        self, command: Command, payload: Struct, listener: Listener, deadline: float
    ) -> Tuple[Any, Any]:
        body = self.codec.encode_payload(command, payload)
        channel, number = self.ticket()
        began = monotonic()
        try:
            connection = await channel.ready(command, number, began, max(deadline - began, 0.0))
        finally:
            channel.parked.pop(number, None)
        try:
            answer = await connection.subscribe(command, number, body, listener, began, max(deadline - began, 0.0))
        except BaseException:
            connection.withdraw(number)
            if self._close_idle:
                channel.close_idle(connection)
            raise
        return (connection, command, answer.subscription_id), answer

    async def unsubscribe(self, handle: Any) -> None:
        connection, command, subscription_id = handle
        if connection.loop is not _current_loop():
            return
        channel, number = self.ticket()
        try:
            ended = connection.unsubscribe(command, number, subscription_id, self.config.timeout)
            if ended is not None:
                await ended
        except SynapError:
            pass  # the connection is gone, and the subscription with it
        finally:
            connection.withdraw(number)
            if self._close_idle:
                channel.close_idle(connection)

    # ------------------------------------------------------------------------------------------ the end

    async def close(self) -> None:
        self.closed = True
        channels, self._channels, self._channel = list(self._channels.values()), {}, None
        here = _current_loop()
        elsewhere = [channel for channel in channels if channel.loop is not here]
        for channel in elsewhere:  # before anything that may be cancelled
            _abort_elsewhere(channel)
        for channel in channels:
            if channel.loop is here:
                await channel.close()
        await _aborted_elsewhere(elsewhere)

    def __del__(self) -> None:
        for channel in self._channels.values():
            if channel.connections:
                text = f"a connection to {self.target.authority} was left open: close the client"
                warnings.warn(text, ResourceWarning, stacklevel=2, source=self)
                _abort_elsewhere(channel)

    def abandon(self) -> None:
        _inherited.extend(self._channels.values())
        self._channels = {}
        self._channel = None


def _weakly(hear: Callable[..., None]) -> Callable[..., None]:
    """Wrap a method so that it holds its object weakly: event loops hold connections, and must not keep the client."""
    reference = weakref.WeakMethod(hear)

    def call(*arguments: Any) -> None:
        method = reference()
        if method is not None:
            method(*arguments)

    return call


_inherited: List[_Channel] = []
"""Channels of the parent process, referenced so that no destructor sends anything on their sockets."""


def _abort_elsewhere(channel: _Channel) -> None:
    """Abort the connections of another event loop."""
    channel.over = True
    try:
        channel.loop.call_soon_threadsafe(channel.abort_all)
    except RuntimeError:  # that loop is closed
        channel.close_orphaned()


async def _aborted_elsewhere(channels: List[_Channel]) -> None:
    """Wait until other event loops have aborted their connections; one that ends may never come to it.

    Those that are busy, or don't run, are left to do so once they go on.
    """
    rests = 0
    until = monotonic() + ELSEWHERE
    while channels and rests < RESTS and monotonic() < until:
        for channel in channels:
            if not channel.aborted and channel.loop.is_closed():
                channel.close_orphaned()
        channels = [channel for channel in channels if not channel.aborted]
        if channels:
            rests = 0 if any(channel.loop.is_running() for channel in channels) else rests + 1
            await asyncio.sleep(LOOK)
