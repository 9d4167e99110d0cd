"""One connection to one node: calls of a turn leave in one write, answers come in the order of the calls.

Where writes must reach replicas, a WAIT closes each write that holds a command which stores something, its answers are
held until the WAIT is answered, and what comes meanwhile leaves with the next (group commit).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Callable, Deque, List, Optional, Tuple, cast

import hiredis

from synap.cluster.calls import Call, pack
from synap.cluster.options import Address
from synap.cluster.order import Order
from synap.cluster.running import in_task

ASKING = b"*1\r\n$6\r\nASKING\r\n"


class Lost(ConnectionError):
    """The connection ended before the answer came."""


class Short(Exception):
    """Fewer replicas than asked for had a write in time, or that is unknown: `refused` is why WAIT was refused."""

    def __init__(self, text: str, refused: Optional[Exception] = None) -> None:
        super().__init__(text)
        self.refused = refused


_Commit = List[Tuple[Call, Any]]
"""The calls of one write whose answers wait for replicas."""


def _is_kept(call: Call) -> bool:
    """Whether replicas must have what a call did."""
    return call.changes and not call.once


class Node(asyncio.Protocol):
    """A command connection. `turn(node, answered)` takes what one read of the socket answered, and flushes what that
    made be sent; `lost(node)` is called when the connection ended."""

    def __init__(
        self,
        address: Address,
        order: Order,
        *,
        replicas: int,
        turn: Callable[[Node, List[Tuple[Call, Any]]], None],
        lost: Callable[[Node], None],
    ) -> None:
        self.address = address
        self.loop = asyncio.get_running_loop()
        self.open = False
        self.gone = False
        """Whether the connection has ended."""
        self.identity: Tuple[bytes, int] = (b"", 0)
        """The run of the server, and the connection's number there."""
        self.bytes = 0
        """Bytes of the calls under way, roughly."""
        self.last_active = self.loop.time()
        """When the node last sent something, or was sent something while it owed no answer."""
        self.waiting: Deque[Tuple[Optional[Call], Optional[_Commit]]] = deque()
        """What the next answers are for: a call, a commit's WAIT (no call), or nothing (neither)."""
        self._order = order
        self._replicas = replicas
        self._wait = pack(("WAIT", str(replicas), "1000")) if replicas else b""
        self._committing = False
        self._out: List[Call] = []
        self._flushing = False
        self._turn = turn
        self._lost = lost
        self._reader = hiredis.Reader()
        self._transport: Optional[asyncio.Transport] = None
        self._unwritten = 0

    # ------------------------------------------------------------------------------------------ sending

    def send(self, call: Call, soon: Callable[[Callable[[], None]], Any]) -> None:
        """Send a call with the others of this turn; `soon` schedules the end of the turn."""
        self._out.append(call)
        if not self._flushing:
            self._flushing = True
            soon(self.flush)

    def flush(self) -> None:
        """Write what was sent in this turn."""
        self._flushing = False
        if not self._out or not self.open or self._transport is None or self._committing:
            return
        calls, self._out = self._out, []
        if self._order.backlogs:
            calls = self._order.admit(calls)
            if not calls:
                return
        commit: Optional[_Commit] = [] if self._wait and any(map(_is_kept, calls)) else None
        pieces: List[bytes] = []
        waiting = self.waiting
        if not waiting:
            self.last_active = self.loop.time()
        for call in calls:
            if call.asking:
                call.asking = False
                pieces.append(ASKING)
                waiting.append((None, None))
            pieces.append(call.packed())
            waiting.append((call, commit))
        if commit is not None:
            self._committing = True
            pieces.append(self._wait)
            waiting.append((None, commit))
        self._transport.write(b"".join(pieces))

    def moves(self) -> bool:
        """Whether some of the waiting output was written since the last call."""
        size = 0 if self._transport is None else self._transport.get_write_buffer_size()
        before, self._unwritten = self._unwritten, size
        return size < before

    # ------------------------------------------------------------------------------------------ receiving

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass

    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self.waiting
        self.last_active = self.loop.time()
        answered: List[Tuple[Call, Any]] = []
        try:
            reader.feed(data)
            while True:
                answer = reader.gets()
                if answer is False:
                    break
                call, commit = waiting.popleft()
                if commit is None:
                    if call is not None:
                        answered.append((call, answer))
                elif call is not None:
                    commit.append((call, answer))
                else:
                    answered.extend(self._committed(commit, answer))
        except (hiredis.ProtocolError, IndexError):
            self.abort()
        self._turn(self, answered)

    def _committed(self, commit: _Commit, answer: Any) -> List[Tuple[Call, Any]]:
        self._committing = False
        if isinstance(answer, int) and answer >= self._replicas:
            return commit
        refused = answer if isinstance(answer, Exception) else None
        short = Short(f"{answer} of {self._replicas} replicas had it in time", refused)
        return [
            (call, short if _is_kept(call) and not isinstance(given, Exception) else given) for call, given in commit
        ]

    def connection_lost(self, error: Optional[Exception]) -> None:
        self.open = False
        self.gone = True
        self._lost(self)

    def _sent(self) -> List[Call]:
        held = {id(commit): commit for _, commit in self.waiting if commit is not None}
        sent = [call for call, _ in self.waiting if call is not None]
        return sent + [call for commit in held.values() for call, _ in commit]

    def unanswered(self) -> Tuple[List[Call], List[Call]]:
        """Take all calls that got no answer: those that were sent, and those that never left."""
        sent, unsent = self._sent(), self._out
        self.waiting.clear()
        self._out = []
        return sent, unsent

    def overdue(self, now: float) -> Tuple[List[Call], List[Call]]:
        """Return the calls whose time is up: those that were sent, and those that never left, which it takes."""
        unsent = [call for call in self._out if call.deadline < now]
        self._out = [call for call in self._out if call.deadline >= now]
        return [call for call in self._sent() if call.deadline < now and call.partition >= 0], unsent

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    async def identify(self) -> None:
        """Learn under which number the server knows this connection."""
        info = await self.ask("INFO", "server")
        run = next((line for line in info.split(b"\r\n") if line.startswith(b"run_id:")), b"")
        self.identity = (run, await self.ask("CLIENT", "ID"))

    async def ask(self, *command: Any) -> Any:
        """Send one command on a connection that has no calls yet (HELLO, AUTH, FUNCTION LOAD); raises its error."""
        if self.gone:
            raise Lost(f"{self.address} ended the connection")
        call = Call.plain(command)
        assert self._transport is not None
        self.waiting.append((call, None))
        self._transport.write(call.packed())
        return await in_task(call)
