"""A TCP proxy that misbehaves on demand: what stands between a client and its service in a bad network.

    with FaultProxy("127.0.0.1", server.port) as proxy:
        proxy.fail(down=Fault(cut=30))      # the answer's connection ends after 30 bytes
        …
        proxy.heal()

It runs on a thread of its own; whatever is set holds for all connections, those that stand and those to come, from the
moment the call returns.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
from types import TracebackType
from typing import Coroutine, List, NamedTuple, Optional, Set, Tuple, Type, TypeVar

from tests.helpers.patience import PATIENCE
from tests.helpers.streams import stop_listening

__all__ = ["Fault", "FaultProxy"]

REFUSAL = b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
MOST_CONNECTIONS = 500
CHUNK = 64 * 1024

T = TypeVar("T")


class Fault(NamedTuple):
    """What happens to the bytes of one direction.

    `delay`: seconds each piece is held up. `drip`: every byte travels by itself. `swallow`: nothing arrives and nobody
    is told, as behind a router that is down; what was sent arrives when it is up again. `cut`: after so many more bytes
    the connection ends, in order or (`reset`) with a reset.
    """

    delay: float = 0.0
    drip: bool = False
    swallow: bool = False
    cut: Optional[int] = None
    reset: bool = False


SOUND = Fault()


class _Connection:
    """One client's connection and the one behind it; `passed` counts bytes since the faults were set."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.passed = [0, 0]
        self.frozen = False

    def end(self, *, reset: bool) -> None:
        for writer in (self.client, self.server):
            sock = writer.get_extra_info("socket") if reset and not writer.transport.is_closing() else None
            if sock is not None and sock.fileno() >= 0:
                # Leaving without lingering is how a socket sends a reset.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            else:
                writer.close()


class FaultProxy:
    """Listens on a free loopback port, `port`, and passes on what comes to `host:target`, or doesn't.

    `refuses`: a path that connections may not begin with: a reverse proxy that knows nothing of it says 404.
    `context`: to speak TLS with clients. `listens`: the address to listen at instead.
    """

    def __init__(
        self,
        host: str,
        target: int,
        *,
        refuses: str = "",
        context: Optional[ssl.SSLContext] = None,
        listens: Tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        self.host = host
        self.target = target
        self.listens, self.port = listens
        self.connections = 0
        """Connections taken so far."""
        self.openings: List[str] = []
        """The first line of what the client of each connection said, as far as it said something."""
        self._refuses = refuses
        self._context = context
        self._faults = [SOUND, SOUND]
        self._open: Set[_Connection] = set()
        self._once_frozen: Set[_Connection] = set()
        self._taking: Set[asyncio.Task[None]] = set()
        self._tasks: Set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="fault proxy", daemon=True)
        self._server: Optional[asyncio.Server] = None
        self._changed: asyncio.Event

    @property
    def url(self) -> str:
        """The service's URL through the proxy."""
        return f"{'http' if self._context is None else 'https'}://127.0.0.1:{self.port}"

    @property
    def once_frozen(self) -> int:
        """How many connections still stand that were frozen last, healed or not."""
        return len(self._once_frozen & self._open)

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    # ------------------------------------------------------------------------------------------ what a test says

    def fail(self, *, up: Fault = SOUND, down: Fault = SOUND) -> None:
        """Treat what goes to the service, and what comes from it, as said from now on."""
        self._do(self._set([up, down]))

    def heal(self) -> None:
        """Pass everything on from now on, what was swallowed and frozen first."""
        self._do(self._set([SOUND, SOUND]))

    def freeze(self) -> None:
        """Let the connections that stand now carry nothing any more, and tell nobody; those to come are sound."""
        self._do(self._freeze())

    def drop_all(self, *, reset: bool = False) -> None:
        """End all connections that stand."""
        self._do(self._drop(reset))

    # ------------------------------------------------------------------------------------------ inside

    def _do(self, work: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _listen(self) -> None:
        self._changed = asyncio.Event()
        self._server = await asyncio.start_server(self._take, self.listens, self.port, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        assert self._server is not None
        await stop_listening(self._server)
        while others := asyncio.all_tasks() - {asyncio.current_task()}:  # those that are about to take one, too
            await asyncio.sleep(0)
            await self._drop(True)
            for task in self._tasks | self._taking:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # what was aborted is closed in the next turn

    async def _set(self, faults: List[Fault]) -> None:
        self._faults = faults
        self._changed.set()
        self._changed = asyncio.Event()
        for connection in self._open:
            connection.passed = [0, 0]
            connection.frozen = False

    async def _freeze(self) -> None:
        self._once_frozen = set(self._open)
        for connection in self._open:
            connection.frozen = True

    async def _drop(self, reset: bool) -> None:
        for connection in list(self._open):
            connection.end(reset=reset)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        taking = asyncio.current_task()
        assert taking is not None
        self._taking.add(taking)
        try:
            await self._pass_on(reader, writer)
        finally:
            self._taking.discard(taking)
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= MOST_CONNECTIONS:
            return
        try:
            behind, server = await asyncio.open_connection(self.host, self.target)
        except OSError:
            return
        connection = _Connection(writer, server)
        self._open.add(connection)
        both = [
            self._loop.create_task(self._pump(connection, reader, server, 0)),
            self._loop.create_task(self._pump(connection, behind, writer, 1)),
        ]
        self._tasks.update(both)
        try:
            await asyncio.wait(both)
        finally:
            self._tasks.difference_update(both)
            self._open.discard(connection)
            connection.end(reset=False)

    async def _pump(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: int
    ) -> None:
        begins = way == 0
        try:
            while True:
                data = await reader.read(CHUNK)
                if begins and data:
                    begins = False
                    opening = data.partition(b"\r\n")[0].decode("latin-1")
                    self.openings.append(opening)
                    if self._refuses and self._refuses in opening:
                        connection.client.write(REFUSAL)
                        connection.end(reset=False)
                        return
                while self._faults[way].swallow or connection.frozen:
                    await self._changed.wait()
                fault = self._faults[way]
                if not data:
                    break
                if fault.delay:
                    await asyncio.sleep(fault.delay)
                if fault.cut is not None:
                    data = data[: max(fault.cut - connection.passed[way], 0)]
                connection.passed[way] += len(data)
                if fault.drip:
                    for byte in data:
                        writer.write(bytes((byte,)))
                        await writer.drain()
                        await asyncio.sleep(0)
                elif data:
                    writer.write(data)
                    await writer.drain()
                if fault.cut is not None and connection.passed[way] >= fault.cut:
                    if not fault.reset:
                        await writer.drain()
                    connection.end(reset=fault.reset)
                    return
            writer.close()
        except (OSError, RuntimeError):
            connection.end(reset=False)
