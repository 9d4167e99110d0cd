"""Connecting the clients that are compared, each the way its own documentation recommends.

Peers carry raw bytes; ours carries Python values, encoded and decoded on the way. What that costs is in our figures.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, AsyncIterator, Awaitable, Callable, Iterator, Union

import nats
import nats.aio.client
import redis
import redis.asyncio

from bench.echo import Line, Pipe
from bench.measure import AsyncRun, Contender, Run, Tally, threaded, under_way
from bench.peers import HOST, Server
from synap import AsyncSynapClient, SynapClient

__all__ = [
    "Operation",
    "contender",
    "echo_line",
    "echo_pipe",
    "nats_client",
    "redis_client",
    "redis_for",
    "redis_sync",
    "synap_client",
    "synap_long_polling",
    "synap_msgpack",
    "synap_sync",
    "sync_contender",
]

Operation = Callable[[int], Awaitable[Any]]
PATIENCE = 60.0
"""Seconds that redis-py waits, for five are too few on a machine that is busy otherwise."""
LONG_POLL = 0.0004
"""Seconds that a client polls at most where that is said."""
REDIS_POOL = 100
"""Connections that redis-py's own pool opens at the most."""


@contextlib.asynccontextmanager
async def synap_client(
    server: Server, *, format: str = "json", timeout: float = 120.0, spin: Union[bool, float] = True
) -> AsyncIterator[AsyncSynapClient]:
    """Connect our client."""
    async with AsyncSynapClient(url=server.url, format=format, timeout=timeout, spin=spin) as client:
        await client.connect()
        yield client


def synap_msgpack(server: Server) -> contextlib.AbstractAsyncContextManager[AsyncSynapClient]:
    """Connect our client with MessagePack inside."""
    return synap_client(server, format="msgpack")


def synap_long_polling(server: Server) -> contextlib.AbstractAsyncContextManager[AsyncSynapClient]:
    """Connect our client so that it polls for about as long as a synced write takes."""
    return synap_client(server, spin=LONG_POLL)


@contextlib.asynccontextmanager
async def redis_client(server: Server) -> AsyncIterator[redis.asyncio.Redis]:
    """Connect redis-py with its own pool, a connection for each call under way: faster here than any smaller pool."""
    client = redis.asyncio.Redis(host=HOST, port=server.port, socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE)
    try:
        yield client
    finally:
        await client.aclose()


@contextlib.asynccontextmanager
async def crowded_redis_client(server: Server) -> AsyncIterator[redis.asyncio.Redis]:
    """Connect redis-py for more calls at once than its own pool takes: they wait for one of its connections."""
    pool = redis.asyncio.BlockingConnectionPool(
        host=HOST,
        port=server.port,
        max_connections=REDIS_POOL,
        timeout=None,
        socket_timeout=PATIENCE,
        socket_connect_timeout=PATIENCE,
    )
    client = redis.asyncio.Redis.from_pool(pool)
    try:
        yield client
    finally:
        await client.aclose()


def redis_for(width: int) -> Callable[[Server], contextlib.AbstractAsyncContextManager[redis.asyncio.Redis]]:
    """Return how to connect redis-py for `width` calls under way."""
    return redis_client if width <= REDIS_POOL else crowded_redis_client


@contextlib.asynccontextmanager
async def nats_client(server: Server) -> AsyncIterator[nats.aio.client.Client]:
    """Connect nats-py."""
    client = await nats.connect(f"nats://{HOST}:{server.port}")
    try:
        yield client
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def echo_pipe(server: Server, size: int = 100) -> AsyncIterator[Pipe]:
    """Connect to the bare echo."""
    transport, pipe = await asyncio.get_running_loop().create_connection(lambda: Pipe(size), HOST, server.port)
    try:
        yield pipe
    finally:
        transport.close()


@contextlib.contextmanager
def echo_line(server: Server, size: int = 100) -> Iterator[Line]:
    """Make the blocking client of the bare echo."""
    line = Line(HOST, server.port, size)
    try:
        yield line
    finally:
        line.close()


@contextlib.contextmanager
def synap_sync(server: Server, *, spin: bool = True) -> Iterator[SynapClient]:
    """Connect our blocking client."""
    with SynapClient(url=server.url, spin=spin) as client:
        client.connect()
        yield client


@contextlib.contextmanager
def redis_sync(server: Server) -> Iterator[redis.Redis]:
    """Connect redis-py's blocking client."""
    client = redis.Redis(host=HOST, port=server.port, socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE)
    try:
        client.ping()
        yield client
    finally:
        client.close()


def contender(
    name: str,
    server: Server,
    connect: Callable[[Server], contextlib.AbstractAsyncContextManager[Any]],
    prepare: Callable[[Any], Operation],
    width: int,
    *,
    weight: int = 1,
) -> Contender:
    """Make a contender that keeps `width` calls under way of the operation `prepare` gives for a connected client."""

    @contextlib.asynccontextmanager
    async def open() -> AsyncIterator[AsyncRun]:
        async with connect(server) as client:
            operation = prepare(client)

            async def run(seconds: float) -> Tally:
                return await under_way(operation, width, seconds, weight=weight)

            yield run

    return Contender(name, server.pid, open)


def sync_contender(
    name: str,
    server: Server,
    connect: Callable[[Server], contextlib.AbstractContextManager[Any]],
    prepare: Callable[[Any], Callable[[int], Any]],
    threads: int,
    *,
    weight: int = 1,
) -> Contender:
    """Make a contender whose operation `threads` threads call."""

    @contextlib.contextmanager
    def open() -> Iterator[Run]:
        with connect(server) as client:
            operation = prepare(client)

            def run(seconds: float) -> Tally:
                return threaded(operation, threads, seconds, weight=weight)

            yield run

    return Contender(name, server.pid, open)
