"""Sharded pub/sub: one connection to each primary for the channels of its partitions.

A channel that was lost, since its node went or its slot moved, is subscribed to again where the partition is now; then
`gap` is called, since messages meanwhile were missed.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
from collections import Counter, deque
from typing import Any, Callable, Deque, Dict, List, Optional, Set, Tuple, cast

import hiredis

from synap.cluster.calls import pack, unavailable
from synap.cluster.link import Link
from synap.cluster.options import Address
from synap.cluster.running import Pending
from synap.cluster.topology import lacks_right, missing_right

log = logging.getLogger("synap.cluster")

PING_EVERY = 2.0


class _Connection(asyncio.Protocol):
    """A connection that is subscribed to channels."""

    def __init__(
        self, address: Address, received: Callable[[_Connection, List[Any]], None], lost: Callable[[_Connection], None]
    ):
        self.address = address
        self.channels: Set[bytes] = set()
        """Channels that were subscribed to, and neither left nor refused since."""
        self.asked: Deque[Tuple[str, bytes]] = deque()
        """Commands that are not answered yet; answers come in their order."""
        self.gone = False
        """Whether it has ended."""
        self.leaving: Counter[bytes] = Counter()
        """How many of them leave a channel."""
        self.last = asyncio.get_running_loop().time()
        self._received = received
        self._lost = lost
        self._reader = hiredis.Reader()
        self._transport: Optional[asyncio.Transport] = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass

    def send(self, *command: Any, channel: bytes = b"") -> None:
        """Send a command; its answer goes to `received`."""
        if self._transport is not None and not self._transport.is_closing():
            self.asked.append((command[0], channel))
            self._transport.write(pack(command))

    def enter(self, channel: bytes) -> None:
        if channel not in self.channels:
            self.channels.add(channel)
            self.send("SSUBSCRIBE", channel, channel=channel)

    def leave(self, channel: bytes) -> None:
        """Unsubscribe from a channel, unless it was subscribed to again since it was discarded."""
        if channel not in self.channels:
            self.leaving[channel] += 1
            self.send("SUNSUBSCRIBE", channel, channel=channel)

    def answered(self) -> Tuple[str, bytes]:
        """Return which command an answer is for."""
        command, name = self.asked.popleft() if self.asked else ("", b"")
        if command == "SUNSUBSCRIBE":
            self.leaving[name] -= 1
            if self.leaving[name] <= 0:
                del self.leaving[name]
        return command, name

    def data_received(self, data: bytes) -> None:
        self.last = asyncio.get_running_loop().time()
        try:
            self._reader.feed(data)
            answers = []
            while True:
                answer = self._reader.gets()
                if answer is False:
                    break
                answers.append(answer)
        except hiredis.ProtocolError:
            self.abort()
            return
        self._received(self, answers)

    def connection_lost(self, error: Optional[Exception]) -> None:
        self.gone = True
        self._lost(self)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Channels:
    """Channels by name. `received(channel, message)` is called with their messages, under the link's guard."""

    def __init__(
        self, link: Link, received: Callable[[bytes, bytes], None], gap: Callable[[List[bytes]], None]
    ) -> None:
        self.link = link
        self._received = received
        self._gap = gap
        self._partitions: Dict[bytes, int] = {}
        """Channels that are wanted, and where they belong."""
        self._ready: Set[bytes] = set()
        self._waiting: Dict[bytes, List[Pending]] = {}
        self._connections: Dict[Address, _Connection] = {}
        self._opening: Set[Address] = set()
        self._repairing = False
        self._failed = 0
        """Repairs in a row that failed."""
        self._missed: Set[bytes] = set()
        """Channels that were lost and are not subscribed to again yet."""
        self._closed = False

    def ready(self, channel: bytes) -> bool:
        """Whether a channel is subscribed to now."""
        return channel in self._ready

    def listen(self, partition: int, channel: bytes) -> Pending:
        """Subscribe to a channel; done once the node has confirmed it. Fails after the link's patience."""
        pending = Pending()
        if channel in self._ready:
            pending.finish()
            return pending
        self._partitions[channel] = partition
        self._waiting.setdefault(channel, []).append(pending)
        late = unavailable("the cluster's node did not take the subscription in time")
        self.link.later(self.link.options.patience, lambda: pending.finish(error=late))
        self.link.soon(lambda: self._subscribe([channel]))
        return pending

    def quit(self, channel: bytes) -> None:
        """Unsubscribe from a channel."""
        self._partitions.pop(channel, None)
        self._ready.discard(channel)
        self._missed.discard(channel)
        self._waiting.pop(channel, None)  # they were given up, or are in time
        for connection in self._connections.values():
            if channel in connection.channels:
                connection.channels.discard(channel)
                self.link.soon(functools.partial(connection.leave, channel))

    def check(self) -> None:
        """Ping the connections, end those that are silent, and repair what was lost. Called every two seconds."""
        now = self.link.loop.time()
        for connection in list(self._connections.values()):
            if now - connection.last > 3 * PING_EVERY:
                connection.abort()
            else:
                connection.send("PING")
        self.repair()

    def repair(self) -> None:
        """Subscribe to whatever is wanted and is not subscribed to where it belongs."""
        owners = self.link.topology.owners
        for connection in self._connections.values():
            for channel in list(connection.channels):
                if owners[self._partitions.get(channel, 0)] != connection.address and channel in self._partitions:
                    connection.channels.discard(channel)
                    connection.leave(channel)
                    self._unready(channel)
        self._subscribe(list(self._partitions))

    def _unready(self, channel: bytes) -> None:
        if channel in self._ready:
            self._ready.discard(channel)
            self._missed.add(channel)

    def _subscribe(self, channels: List[bytes]) -> None:
        """Ask for channels where their partitions are now. On the loop's thread."""
        if self._closed:
            return
        owners = self.link.topology.owners
        for channel in channels:
            if channel in self._ready or channel not in self._partitions:
                continue
            address = owners[self._partitions[channel]]
            if address is None:
                self._repair_soon()
            elif address in self._connections:
                self._connections[address].enter(channel)
            elif address not in self._opening:
                self._opening.add(address)
                self.link.spawn(self._open(address))

    def _repair_soon(self) -> None:
        if not self._repairing and not self._closed:
            self._repairing = True

            def again() -> None:
                self._repairing = False
                self.repair()

            delay = min(0.1 * 1.6**self._failed, 2.0) * random.uniform(0.5, 1.0)
            self._failed += 1
            self.link.later(delay, again)

    async def _open(self, address: Address) -> None:
        options = self.link.options
        connection = _Connection(address, self._take_answers, self._lost)
        try:
            await asyncio.wait_for(
                self.link.loop.create_connection(lambda: connection, address.host, address.port, ssl=options.ssl),
                options.connect_timeout,
            )
            if connection.gone:  # before Python 3.12, `wait_for` goes on a while after what it waited for
                raise ConnectionError(f"{address} ended the connection")
        except asyncio.CancelledError:
            connection.abort()
            raise
        except (OSError, asyncio.TimeoutError):
            with self.link.guard:
                self._opening.discard(address)
                self.link.refresh()
                self._repair_soon()
            return
        with self.link.guard:
            self._opening.discard(address)
            if self._closed:
                connection.abort()
                return
            if options.login is not None:
                connection.send(*options.login)
            self._connections[address] = connection
            self.repair()

    def _take_answers(self, connection: _Connection, answers: List[Any]) -> None:
        with self.link.guard:
            repaired = []
            for answer in answers:
                kind = answer[0] if isinstance(answer, list) else b""
                if kind == b"smessage":
                    try:
                        self._received(answer[1], answer[2])
                    except Exception:  # of one message, or one subscriber; the other messages are for others
                        log.exception("a message of %s was not taken well", connection.address)
                elif kind == b"sunsubscribe" and not connection.leaving[answer[1]]:
                    self._moved_away(connection, answer[1])
                else:
                    command, channel = connection.answered()
                    if isinstance(answer, Exception):
                        self._refused(connection, command, channel, answer)
                    elif kind in (b"ssubscribe", b"sunsubscribe") and (command.lower().encode(), channel) != (
                        kind,
                        answer[1],
                    ):
                        connection.abort()  # a slot moved while a channel was being left: begin again
                        break
                    elif kind == b"ssubscribe" and channel in connection.channels and not connection.leaving[channel]:
                        repaired += self._subscribed(channel)
            if repaired:
                self._gap(repaired)
            self.link.turned()

    def _subscribed(self, channel: bytes) -> List[bytes]:
        self._failed = 0
        self._ready.add(channel)
        for pending in self._waiting.pop(channel, []):
            pending.finish()
        if channel in self._missed:
            self._missed.discard(channel)
            return [channel]
        return []

    def _moved_away(self, connection: _Connection, channel: bytes) -> None:
        """Look where a channel is that its node has ended, since its slot went elsewhere."""
        if channel in connection.channels:
            connection.channels.discard(channel)
            self._unready(channel)
            self.link.refresh()
            self._repair_soon()

    def _refused(self, connection: _Connection, command: str, channel: bytes, error: Exception) -> None:
        """Subscribe elsewhere where the node redirects (MOVED and the like), or report the missing right."""
        log.debug("%s refused %s: %s", connection.address, command, error)
        if command == "SSUBSCRIBE":
            connection.channels.discard(channel)
            if lacks_right(error):
                for pending in self._waiting.pop(channel, []):
                    pending.finish(error=missing_right(connection.address, error, self.link.options))
            self.link.refresh()
            self._repair_soon()
        elif command != "SUNSUBSCRIBE":  # it may not even sign in
            connection.abort()

    def _lost(self, connection: _Connection) -> None:
        with self.link.guard:
            if self._connections.get(connection.address) is connection:
                del self._connections[connection.address]
            for channel in connection.channels:
                self._unready(channel)
            if not self._closed:
                self.link.refresh()
                self._repair_soon()

    def close(self) -> None:
        """End all connections."""
        self._closed = True
        for connection in list(self._connections.values()):
            connection.abort()
