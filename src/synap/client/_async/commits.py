"""Commits the position of a durable subscription."""

from __future__ import annotations

from synap import commands as c
from synap.client._async.calls import AsyncCalls
from synap.errors import SynapError
from synap.lanes.io import AsyncEvent, AsyncLock, async_spawn

INTERVAL = 1.0
"""Seconds between two commits at least."""


class AsyncCommits:
    """Commits the offset of the last processed event, at most once in `INTERVAL` seconds."""

    def __init__(self, calls: AsyncCalls, room: str, name: str) -> None:
        self._calls = calls
        self._room = room
        self._name = name
        self._done = self._committed = -1
        self._scheduled = False
        self._closed = AsyncEvent()
        self._committing = AsyncLock()

    def done(self, offset: int) -> None:
        """Mark an event, and all before it, as processed."""
        if offset > self._done:
            self._done = offset
            self._calls.unfinished.add(self.finish)
            if not self._scheduled and not self._closed.is_set():
                self._scheduled = True
                async_spawn(self._commit_later, name=f"synap commits of {self._name!r}", or_here=True)

    async def close(self) -> None:
        """Commit the last processed event, and stop."""
        self._closed.set()
        if not self._calls.closed:  # else `finish` has done it
            await self._commit()
        self._calls.unfinished.discard(self.finish)

    def finish(self) -> AsyncEvent:
        """Do what `close` does in the background, while the client closes; returns an event that is set then."""
        self._closed.set()
        finished = AsyncEvent()
        async_spawn(self._finish, finished, name=f"synap commits of {self._name!r}", or_here=True)
        return finished

    async def _finish(self, finished: AsyncEvent) -> None:
        try:
            await self._commit()
        finally:
            finished.set()

    async def _commit_later(self) -> None:
        try:
            await self._closed.wait(INTERVAL)
        finally:
            self._scheduled = False
        if not self._closed.is_set():
            await self._commit()

    async def _commit(self) -> None:
        async with self._committing:
            offset = self._done
            if offset <= self._committed:
                return
            try:
                await self._calls.call(c.STREAM_COMMIT, c.StreamCommit(self._room, self._name, offset))
            except SynapError as error:
                if not error.details.get("closed"):
                    self._calls.handlers.report(f"the commit of {self._name!r} in room {self._room!r} failed", error)
                return
            self._committed = offset
            self._calls.unfinished.discard(self.finish)
            if self._done > offset:  # looked at last: another thread may have processed one just now
                self._calls.unfinished.add(self.finish)
