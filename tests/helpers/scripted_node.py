"""A node of a cluster whose answers to calls are written in the test. It runs in the test's event loop."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Callable, List, Optional, Tuple, Type, cast

import hiredis

from synap.cluster.options import Address

__all__ = ["Command", "ScriptedNode"]

Command = List[bytes]
OK = b"+OK\r\n"


class _Peer(asyncio.Protocol):
    def __init__(self, node: ScriptedNode) -> None:
        self.node = node
        self.reader = hiredis.Reader()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.node.connected(self)

    def data_received(self, data: bytes) -> None:
        self.reader.feed(data)
        while True:
            command = self.reader.gets()
            if command is False:
                break
            answer = self.node.respond(self, command)
            if answer:
                self.transport.write(answer)


class ScriptedNode:
    """Answers what a link asks to sign in and to learn who has the slots: `owner`, which is this one at first.

    `script(command)` gives the answer to everything else, `b""` for none yet, and `taken` is what was answered `+OK`.
    Where `welcome` is False, it ends connections as soon as they are made.
    """

    def __init__(self) -> None:
        self.script: Callable[[Command], bytes] = lambda command: OK
        self.received: List[Command] = []
        self.taken: List[Command] = []
        self.owed: List[Tuple[_Peer, Command]] = []
        """What was not answered yet."""
        self.welcome = True
        self.last_words = b""
        """Sent to those that are not welcome."""
        self.refused = 0
        self.identified: Callable[[], None] = lambda: None
        """Called when a connection was told its number."""
        self._peers: List[_Peer] = []
        self._server: asyncio.AbstractServer

    async def __aenter__(self) -> ScriptedNode:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Peer(self), "127.0.0.1", 0)
        self.address = Address("127.0.0.1", self._server.sockets[0].getsockname()[1])
        self.owner = self.address
        return self

    async def __aexit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._server.close()
        self.hang_up()
        await asyncio.sleep(0)

    def connected(self, peer: _Peer) -> None:
        """Take a connection, or don't."""
        if self.welcome:
            self._peers.append(peer)
        else:
            self.refused += 1
            peer.transport.write(self.last_words)
            peer.transport.close()

    def respond(self, peer: _Peer, command: Command) -> bytes:
        """Return the answer to a command."""
        name = b" ".join(command[:2]).upper()
        if name.startswith(b"INFO"):
            return b"$12\r\nrun_id:abc\r\n\r\n"
        if name == b"CLIENT ID":
            self.identified()
            return b":5\r\n"
        if name == b"CLUSTER SLOTS":
            host, port = self.owner
            return b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$%d\r\n%s\r\n:%d\r\n" % (len(host), host.encode(), port)
        if name.startswith((b"PING", b"CLIENT")):
            return OK
        self.received.append(command)
        answer = self.script(command)
        if not answer:
            self.owed.append((peer, command))
        elif answer == OK:
            self.taken.append(command)
        return answer

    def answer(self, number: int) -> None:
        """Have the script answer the first of what was not answered."""
        owed, self.owed = self.owed[:number], self.owed[number:]
        for peer, command in owed:
            answer = self.script(command)
            assert answer
            if answer == OK:
                self.taken.append(command)
            peer.transport.write(answer)

    def hang_up(self) -> None:
        """End all connections."""
        self.owed.clear()
        peers, self._peers = self._peers, []
        for peer in peers:
            peer.transport.abort()


def moved(to: Any) -> bytes:
    """Return the answer that the slot is at another node."""
    return b"-MOVED 0 %s:%d\r\n" % (to.address.host.encode(), to.address.port)
