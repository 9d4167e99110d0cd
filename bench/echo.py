"""The floor to compare clients and servers with: bytes come in, the same bytes go out.

Run as a program it is the server. `Pipe` is the client of a program on asyncio, one write and one future a call; `Line`
that of a program that blocks, one send and one receive a call. None of them looks at what it carries.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import deque
from typing import Deque, List, cast

__all__ = ["Echo", "Line", "Pipe"]


class Echo(asyncio.Protocol):
    """Sends back what it gets, one write a read."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = cast(asyncio.Transport, transport).write

    def data_received(self, data: bytes) -> None:
        self._write(data)


class Pipe(asyncio.Protocol):
    """Sends messages of one length and hands each its echo."""

    def __init__(self, size: int) -> None:
        self._message = b"x" * size
        self._waiting: Deque[asyncio.Future[None]] = deque()
        self._got = 0
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = cast(asyncio.Transport, transport).write

    def data_received(self, data: bytes) -> None:
        whole, self._got = divmod(self._got + len(data), len(self._message))
        for _ in range(whole):
            self._waiting.popleft().set_result(None)

    async def call(self, number: int = 0) -> None:
        """Send one message and wait for its echo."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(future)
        self._write(self._message)
        await future


class Line:
    """Sends messages of one length over blocking sockets, one for each thread that calls at the same time."""

    def __init__(self, host: str, port: int, size: int) -> None:
        self._where = (host, port)
        self._message = b"x" * size
        self._idle: Deque[socket.socket] = deque()
        self._all: List[socket.socket] = []

    def call(self, number: int = 0) -> None:
        """Send one message and wait for its echo."""
        try:
            line = self._idle.pop()
        except IndexError:
            line = self._open()
        message = self._message
        line.sendall(message)
        missing = len(message)
        while missing:
            got = len(line.recv(missing))
            if not got:
                raise ConnectionError("the echo has hung up")
            missing -= got
        self._idle.append(line)

    def _open(self) -> socket.socket:
        line = socket.create_connection(self._where, 60)
        self._all.append(line)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A timeout would cost a poll before each receive.
        line.settimeout(None)
        return line

    def close(self) -> None:
        for line in self._all:
            line.close()


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


def main() -> None:
    try:
        import uvloop
    except ImportError:
        pass
    else:
        uvloop.install()
    try:
        asyncio.run(serve(int(sys.argv[1])))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
