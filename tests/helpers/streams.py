"""Servers of asyncio's in a test's own event loop, which leave nothing to the garbage collector when they end."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any, AsyncIterator, Awaitable, Callable, Set

__all__ = ["Take", "served", "stop_listening"]

Take = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]]
"""What is done with a connection. It is ended when that returns."""


async def stop_listening(server: asyncio.Server) -> None:
    """Close a server.

    asyncio never closes a connection that it accepts in the turn in which its server is closed: none is accepted any
    more, and those that were are made first.
    """
    loop = asyncio.get_running_loop()
    for listening in server.sockets:
        loop.remove_reader(listening.fileno())
    for _ in range(3):
        await asyncio.sleep(0)
    server.close()


@asynccontextmanager
async def served(take: Take, **options: Any) -> AsyncIterator[int]:
    """Serve on a port, which is given; at the end all connections are cut, and gone. `options` are `start_server`'s."""
    taking: Set[asyncio.Task[Any]] = set()
    open_still: Set[asyncio.StreamWriter] = set()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        assert me is not None
        taking.add(me)
        open_still.add(writer)
        try:
            await take(reader, writer)
        finally:
            taking.discard(me)
            writer.close()

    server = await asyncio.start_server(accepted, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        await stop_listening(server)
        for task in list(taking):
            task.cancel()
        await asyncio.gather(*taking, return_exceptions=True)
        for writer in open_still:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in open_still), return_exceptions=True)
