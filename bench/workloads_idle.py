"""Ten thousand subscribers who wait: what one of them costs the server in memory."""

from __future__ import annotations

import asyncio
import os
from typing import Callable, Iterator, List, Tuple

from bench.peers import HOST, Server
from bench.plan import Finding, Plan
from synap.commands import PUBSUB_SUBSCRIBE
from synap.wire.frames import Kind, frame
from synap.wire.handshake import Hello, greet

__all__ = ["idle"]

AT_ONCE = 100
"""Connections being opened at a time, so that no listener's backlog overflows."""


def idle(plan: Plan) -> Iterator[Finding]:
    """Memory of one of ten thousand idle subscribers, each with a connection and a topic of its own."""
    connections = plan.many(10_000, least=50)
    ours = plan.run(_each(plan.servers.synap(), connections, _synap))
    valkey = plan.run(_each(plan.servers.valkey(), connections, _valkey))
    nats = plan.run(_each(plan.servers.nats(), connections, _nats))
    title = f"memory of one of {connections:,} idle subscribers"
    yield Finding("idle/memory", title, ours / 1024, "KB", "valkey-server", valkey / 1024)
    yield Finding("idle/memory/nats", title, ours / 1024, "KB", "nats-server", nats / 1024)


Opening = Callable[[int], Tuple[bytes, bytes]]
"""What subscriber `number` sends, and what ends the answer to it."""


def _synap(number: int) -> Tuple[bytes, bytes]:
    subscribe = b'{"topics":["idle.%d"]}' % number
    hello = greet("bench", Hello(os.urandom(16).hex(), "json", False, None))
    return hello + frame(Kind.REQUEST, 1, subscribe, PUBSUB_SUBSCRIBE.code), b'"idle.%d"]}' % number


def _valkey(number: int) -> Tuple[bytes, bytes]:
    return b"SUBSCRIBE idle.%d\r\n" % number, b":1\r\n"


def _nats(number: int) -> Tuple[bytes, bytes]:
    return b'CONNECT {"verbose":false}\r\nSUB idle.%d 1\r\nPING\r\n' % number, b"PONG\r\n"


async def _each(server: Server, connections: int, opening: Opening) -> float:
    """Open that many subscribers and return the bytes the server grew by for each."""
    gate = asyncio.Semaphore(AT_ONCE)
    writers: List[asyncio.StreamWriter] = []

    async def subscribe(number: int) -> None:
        async with gate:
            reader, writer = await asyncio.open_connection(HOST, server.port, limit=4096)
            writers.append(writer)
            sent, answered = opening(number)
            writer.write(sent)
            await asyncio.wait_for(reader.readuntil(answered), 60)

    before = server.memory()
    await asyncio.gather(*(subscribe(number) for number in range(connections)))
    grown = server.memory() - before
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(0)
    return grown / connections
