"""Call functions of the library, and read what they left in the cluster."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, Dict, Sequence

from synap.cluster.calls import Call
from synap.cluster.host import ClusterHost
from synap.cluster.memory import Request
from synap.cluster.running import Pending
from tests.helpers.patience import PATIENCE


async def result(pending: Pending) -> Any:
    """Wait for something that is under way, in a task."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def done() -> None:
        if not future.done():
            if pending.error is None:
                future.set_result(pending.value)
            else:
                future.set_exception(pending.error)

    pending.when_done(done)
    return await asyncio.wait_for(future, PATIENCE)


class Asking:
    """Calls functions as a session does, each request twice: the second time as one that may have been executed."""

    def __init__(self, host: ClusterHost, session: bytes = b"s" * 32) -> None:
        self.host = host
        self.link = host.link
        self.places = host.link.places
        self.session = session
        self._number = itertools.count(1).__next__

    def request(self, retried: bytes = b"", number: int = 0) -> Request:
        """Make the next request."""
        return Request(self.session, b"%d" % (number or self._number()), retried, self.session[:24])

    async def write(self, name: str, function: str, keys: Sequence[bytes], *arguments: Any) -> Any:
        """Call a function twice with the same request; both times the answer must be the same. Returns it."""
        partition = self.places.partition(name)
        number = self._number()
        answers = []
        for retried in (b"", b"1"):
            memory = self.places.memory(partition, self.session)
            call = self.link.call(partition, function, (memory, *keys), (b"%d" % number, retried, *arguments))
            answers.append(await result(call))
        assert answers[0] == answers[1], function
        return answers[0]

    async def change(self, name: str, function: str, keys: Sequence[bytes], *arguments: Any) -> Any:
        """Call a function once that may be executed any number of times."""
        memory = self.places.memory(self.places.partition(name), b"")
        return await self.call(name, function, (memory, *keys), b"", b"", *arguments)

    async def call(self, name: str, function: str, keys: Sequence[bytes], *arguments: Any, changes: bool = True) -> Any:
        """Call a function once."""
        partition = self.places.partition(name)
        return await result(self.link.call(partition, function, keys, arguments, changes=changes))

    async def command(self, name: str, *command: Any) -> Any:
        """Send a plain command to the node that has a name."""
        return await result(self.link.send(Call.plain(command, self.places.partition(name), True)))

    async def dump(self) -> Dict[bytes, Any]:
        """Read every key of the space, but for the memory of answers."""
        found: Dict[bytes, Any] = {}
        space = self.places.space.encode()
        for key in sorted(await self.command("", "KEYS", b"%s:*" % space)):
            if b"}:m:" in key:
                continue
            kind = await self.command("", "TYPE", key)
            if kind == b"string":
                found[key] = (await self.command("", "GET", key), await self.command("", "PEXPIRETIME", key))
            elif kind == b"hash":
                pairs = await self.command("", "HGETALL", key)
                found[key] = dict(zip(pairs[::2], pairs[1::2]))
            elif kind == b"zset":
                found[key] = await self.command("", "ZRANGE", key, 0, -1, "WITHSCORES")
            elif kind == b"set":
                found[key] = sorted(await self.command("", "SMEMBERS", key))
            else:
                found[key] = await self.command("", "XRANGE", key, "-", "+")
        return found
