"""The service's side of the native lane in this process, without a network: what is written is seen write by write."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from uvicorn.server import ServerState

from synap.engine.engine import Engine
from synap.host import EngineHost
from synap.server.native import NativeSession
from synap.server.run import uvicorn_config
from synap.server.service import Service
from synap.server.settings import ServerConfig
from synap.server.sniff import Sniffer
from synap.wire.frames import MAX_ANSWER
from synap.wire.handshake import Hello
from tests.helpers.frames import Frame, FrameReader
from tests.helpers.streams import stop_listening


class Line(asyncio.Transport):
    """A transport whose peer reads everything at once, or (`deaf`) never anything."""

    def __init__(self, *, deaf: bool = False) -> None:
        super().__init__()
        self.deaf = deaf
        self.session: NativeSession
        self.writes: list[bytes] = []
        self.unread = 0
        """Bytes that the peer has not read."""
        self.most = 0
        """Bytes that it had not read at any time."""
        self.over = False
        self.read = True
        """Whether the service takes what comes."""
        self._high = 64 * 1024
        self._paused = False
        self._cut = FrameReader(MAX_ANSWER)
        self._protocol: Any = None

    # ---- for tests
    def receive(self, *frames: bytes) -> None:
        """Let the service read what its peer has sent, all at once, as what a poll of its own brought."""
        self.session._service.turns._polled()
        data = b"".join(frames)
        while isinstance(self._protocol, asyncio.BufferedProtocol) and data:
            buffer = memoryview(self._protocol.get_buffer(-1))
            count = min(len(buffer), len(data))
            buffer[:count] = data[:count]
            self._protocol.buffer_updated(count)
            data = data[count:]
        if data:
            self.session.data_received(data)

    def frames(self) -> list[Frame]:
        """What was written since this was asked last."""
        written, self.writes = self.writes, []
        return self._cut.feed(b"".join(written))

    # ---- for the session
    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.over:
            return
        if not self.deaf:
            self.writes.append(bytes(data))
            return
        self.unread += len(data)
        self.most = max(self.most, self.unread)
        if self.unread > self._high and not self._paused:
            self._paused = True
            self.session.pause_writing()

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(list_of_data))

    def get_write_buffer_size(self) -> int:
        return self.unread

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high is not None
        self._high = high

    def pause_reading(self) -> None:
        self.read = False

    def resume_reading(self) -> None:
        self.read = True

    def is_closing(self) -> bool:
        return self.over

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def abort(self) -> None:
        if not self.over:
            self.over = True
            asyncio.get_running_loop().call_soon(self.session.connection_lost, None)

    close = abort


def service(
    config: ServerConfig | None = None,
    clock: Callable[[], float] = lambda: 0.0,
    *,
    soon: Callable[[Callable[[], None]], object] | None = None,
) -> Service:
    """Make a service that keeps nothing and has no alarm. It works in slices only with `soon`, as `EngineHost` does."""
    numbers = iter(range(10**9))
    host = EngineHost(Engine(ids=lambda: next(numbers)), soon=soon)
    return Service(host, config or ServerConfig(), clock=clock)


@asynccontextmanager
async def running(place: Service) -> AsyncIterator[int]:
    """Serve on a port of this process."""
    config = uvicorn_config(place.config, place)
    config.load()
    state = ServerState()
    place.connections = state.connections
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Sniffer(place, config, state, {}), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    await stop_listening(server)
    while place.connections:  # uvicorn's set tells nobody
        await asyncio.sleep(0)


def line(
    to: Service, format: str = "json", *, deaf: bool = False, key: str | None = None, session: str | None = None
) -> Line:
    """Open a connection whose greeting is over. `session`: by default one that nobody has."""
    principal, _ = to.admit(key, "127.0.0.1", "native")
    made = Line(deaf=deaf)
    made.session = NativeSession(to, Hello(session or os.urandom(16).hex(), format, False, None), principal)
    made.session.connection_made(made)
    return made
