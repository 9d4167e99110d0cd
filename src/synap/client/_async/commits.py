"""How far a durable subscription has got, told to the service."""

from __future__ import annotations

from synap import commands as c
from synap.client._async.calls import AsyncCalls
from synap.errors import SynapError
from synap.lanes.io import AsyncEvent, AsyncLock, async_spawn

__all__ = ["AsyncCommits"]

GATHERED = 1.0
"""Seconds for which commits are gathered at most."""


class AsyncCommits:
    """Commits the offset of the last event that is done, at most once in `GATHERED` seconds."""

    def __init__(self, calls: AsyncCalls, room: str, name: str) -> None:
        self._calls = calls
        self._room = room
        self._name = name
        self._done = self._told = -1
        self._waits = False
        self._over = AsyncEvent()
        self._telling = AsyncLock()

    def done(self, offset: int) -> None:
        """Note that an event is done, and with it all before it."""
        if offset > self._done:
            self._done = offset
            if not self._waits and not self._over.is_set():
                self._waits = True
                async_spawn(self._tell_later, name=f"synap commits of {self._name!r}")

    async def close(self) -> None:
        """Commit what is done, and nothing after that."""
        self._over.set()
        await self._tell()

    async def _tell_later(self) -> None:
        await self._over.wait(GATHERED)
        self._waits = False
        if not self._over.is_set():
            await self._tell()

    async def _tell(self) -> None:
        async with self._telling:
            offset = self._done
            if offset <= self._told:
                return
            try:
                await self._calls.call(c.STREAM_COMMIT, c.StreamCommit(self._room, self._name, offset))
                self._told = offset
            except SynapError as error:
                self._calls.handlers.report(f"the commit of {self._name!r} in room {self._room!r} failed", error)
