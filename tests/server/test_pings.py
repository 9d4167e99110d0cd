"""A WebSocket is pinged, and closed when nothing comes back: under a clock that the test moves."""

from __future__ import annotations

import asyncio
import json
import os
import struct
from collections.abc import Callable, Coroutine
from typing import Any

from uvicorn.server import ServerState

from synap.engine.engine import Engine
from synap.host import EngineHost
from synap.server.run import uvicorn_config
from synap.server.service import Service
from synap.server.settings import ServerConfig
from synap.server.sniff import Sniffer
from synap.server.uvicorn_glue import PING_EVERY
from synap.testing import TestClock
from tests.helpers.streams import stop_listening

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10

Frame = tuple[int, bytes]


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose timers go by a clock that stands still until it is moved."""

    def __init__(self, clock: TestClock) -> None:
        self._clock = clock
        super().__init__()

    def time(self) -> float:
        return self._clock()


class Peer:
    """One WebSocket, frame by frame. It answers no ping by itself."""

    def __init__(self, clock: TestClock, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.clock = clock
        self.reader = reader
        self.writer = writer

    async def shake_hands(self) -> None:
        self.writer.write(
            b"GET /api/v1/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert (await self.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")

    def send(self, opcode: int, payload: bytes) -> None:
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
        self.writer.write(bytes((0x80 | opcode, 0x80 | len(payload))) + mask + masked)

    async def frame(self) -> Frame:
        first, length = await self.reader.readexactly(2)
        if length == 126:
            (length,) = struct.unpack(">H", await self.reader.readexactly(2))
        return first & 0x0F, await self.reader.readexactly(length)

    async def after(self, seconds: float) -> Frame:
        """Let time pass and return the frame that comes then."""
        self.clock.advance(seconds)
        return await self.frame()

    async def pinged(self) -> bytes:
        """Let the time between two pings pass; returns what is in the ping that comes then."""
        opcode, payload = await self.after(PING_EVERY)
        assert opcode == PING
        return payload

    async def answered(self) -> None:
        """See that a request is answered, and nothing else came before; so all that was sent before has been read."""
        self.send(TEXT, json.dumps({"command": "queue.list", "payload": {}, "request_id": "r"}).encode())
        opcode, payload = await self.frame()
        assert opcode == TEXT
        assert json.loads(payload)["success"] is True

    async def closed(self) -> None:
        """See that the time until the next ping passes and the service closes the connection instead."""
        opcode, payload = await self.after(PING_EVERY)
        assert (opcode, payload[:2]) == (CLOSE, (1011).to_bytes(2, "big"))
        assert await self.reader.read() == b""


def with_peer(scenario: Callable[[Peer], Coroutine[Any, Any, None]]) -> None:
    """Run a service in this process, as it is run in its own, and a peer of it."""
    clock = TestClock(0.0)

    async def run() -> None:
        service = Service(EngineHost(Engine(ids=iter(range(10**9)).__next__)), ServerConfig())
        config = uvicorn_config(service.config, service)
        config.load()
        state = ServerState()
        service.connections = state.connections
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Sniffer(service, config, state, {}), "127.0.0.1", 0)
        peer = Peer(clock, *await asyncio.open_connection(*server.sockets[0].getsockname()))
        try:
            await peer.shake_hands()
            await scenario(peer)
        finally:
            peer.writer.close()
            await stop_listening(server)
            while service.connections or state.tasks:  # uvicorn's sets tell nobody
                await asyncio.sleep(0)
        assert not service.listeners

    loop = Loop(clock)
    try:
        loop.run_until_complete(run())
    finally:
        loop.close()


def test_a_peer_that_answers_no_ping_is_closed_after_three() -> None:
    async def scenario(peer: Peer) -> None:
        for _ in range(3):
            await peer.pinged()
        await peer.closed()

    with_peer(scenario)


def test_a_peer_that_answers_pings_stays() -> None:
    async def scenario(peer: Peer) -> None:
        for _ in range(10):
            peer.send(PONG, await peer.pinged())
            await peer.answered()

    with_peer(scenario)


def test_an_answer_makes_up_for_the_pings_missed_before() -> None:
    async def scenario(peer: Peer) -> None:
        for _ in range(2):
            await peer.pinged()
        peer.send(PONG, await peer.pinged())
        await peer.answered()
        for _ in range(3):
            await peer.pinged()
        await peer.closed()

    with_peer(scenario)


def test_requests_are_no_answer_to_a_ping() -> None:
    async def scenario(peer: Peer) -> None:
        for _ in range(3):
            await peer.pinged()
            await peer.answered()
        await peer.closed()

    with_peer(scenario)


def test_pings_come_every_thirty_seconds_and_not_before() -> None:
    async def scenario(peer: Peer) -> None:
        assert PING_EVERY == 30
        for _ in range(3):
            peer.clock.advance(29)
            await peer.answered()
            opcode, payload = await peer.after(1)
            assert opcode == PING
            peer.send(PONG, payload)
            await peer.answered()

    with_peer(scenario)
