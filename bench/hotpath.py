"""What a call costs our client and our service, with no network between them.

`python -m bench.hotpath` runs a client and a native session in one event loop. What one side writes is handed to the
other in memory, so nothing is measured but the two programs themselves: no system call, no wake-up, no other process.
Each figure is the least of several rounds; what else the machine does only ever adds. It is for seeing what a change
to the hot path does, and what rate limits and metrics cost; what users get is measured by `python -m bench`.
"""

from __future__ import annotations

import asyncio
import random
import time
import timeit
from typing import Any, Awaitable, Callable, Dict, List, NamedTuple, Optional, Tuple, cast

import click

from bench.plan import run
from synap import AsyncSynapClient
from synap.engine.engine import Engine
from synap.host import Host
from synap.server.front import Front
from synap.server.run import Alarm
from synap.server.service import Service
from synap.server.settings import ServerConfig

__all__ = ["Cost", "Pipe", "cycle", "measure", "overhead"]

TEXT = "x" * 100
clock = time.perf_counter


class Cost(NamedTuple):
    """Microseconds of one call on either side."""

    client: float
    service: float


class End(asyncio.Transport):
    """One end of a pipe in memory."""

    def __init__(self, pipe: Pipe) -> None:
        super().__init__({"peername": ("127.0.0.1", 0)})
        self.written: List[bytes] = []
        self.protocol: asyncio.BaseProtocol
        self._pipe = pipe
        self._closing = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def write(self, data: Any) -> None:
        self.written.append(data)
        self._pipe.carry()

    def take(self) -> bytes:
        written, self.written = self.written, []
        return b"".join(written)

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: Optional[int] = None, low: Optional[int] = None) -> None:
        pass

    def is_closing(self) -> bool:
        return self._closing

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._pipe.ended(self)

    abort = close


class Pipe:
    """Carries what a client and a service write, and counts the time the service takes over it."""

    def __init__(self, service: Service) -> None:
        self.spent = 0.0
        """Seconds that were the service's."""
        self._loop = asyncio.get_running_loop()
        self._under_way = False
        self._client, self._service = End(self), End(self)
        front: Any = None  # a connection that speaks frames asks nothing of uvicorn
        self._service.protocol = Front(service, front, front, {})

    async def connect(self, factory: Callable[[], asyncio.Protocol], *where: Any, **how: Any) -> Tuple[End, Any]:
        """Stand in for `loop.create_connection`."""
        protocol = self._client.protocol = factory()
        cast(asyncio.Protocol, self._service.protocol).connection_made(self._service)
        protocol.connection_made(self._client)
        return self._client, protocol

    def carry(self) -> None:
        """Deliver what was written, once the loop comes round."""
        if not self._under_way:
            self._under_way = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._under_way = False
        data = self._client.take()
        if data:
            began = clock()
            cast(asyncio.Protocol, self._service.protocol).data_received(data)
            self.spent += clock() - began
        answers = self._service.take()
        if answers:
            _receive(self._client.protocol, answers)

    def ended(self, end: End) -> None:
        """Tell both sides that the connection is over."""
        other = self._service if end is self._client else self._client
        other._closing = True
        for closed in (end, other):
            self._loop.call_soon(closed.protocol.connection_lost, None)


def _receive(protocol: asyncio.BaseProtocol, data: bytes) -> None:
    """Let a protocol of either kind have what came."""
    if isinstance(protocol, asyncio.BufferedProtocol):
        while data:
            buffer = cast(Any, protocol.get_buffer(-1))
            count = min(len(data), len(buffer))
            memoryview(buffer)[:count] = data[:count]
            protocol.buffer_updated(count)
            data = data[count:]
    else:
        cast(asyncio.Protocol, protocol).data_received(data)


def _service(config: ServerConfig) -> Service:
    alarm = Alarm(time.time)
    host = alarm.host = Host(Engine(ids=lambda: random.getrandbits(64)), alarm=alarm)
    return Service(host, config)


# ------------------------------------------------------------------------------------------------------ the calls

Operation = Callable[[AsyncSynapClient, int], Awaitable[Any]]


async def get(client: AsyncSynapClient, number: int) -> None:
    await client.kv.get("key")


async def set(client: AsyncSynapClient, number: int) -> None:
    await client.kv.set("key", TEXT)


async def cycle(client: AsyncSynapClient, number: int) -> None:
    """Publish, take and acknowledge a message: three calls."""
    await client.queue.publish("tasks", TEXT)
    message = await client.queue.consume("tasks", timeout=1)
    assert message is not None
    await client.queue.ack("tasks", message.message_id)


async def publish(client: AsyncSynapClient, number: int) -> None:
    await client.stream.publish("room", "event", TEXT)


OPERATIONS: Dict[str, Operation] = {"get": get, "set": set, "queue cycle": cycle, "stream publish": publish}


async def _rounds(operation: Operation, width: int, calls: int, rounds: int, config: ServerConfig) -> Cost:
    loop = asyncio.get_running_loop()
    pipe = Pipe(_service(config))
    loop.create_connection = pipe.connect  # type: ignore[assignment, method-assign]
    best = Cost(float("inf"), float("inf"))
    async with AsyncSynapClient(url="http://127.0.0.1:1", transport="native", api_key="key") as client:
        await client.kv.set("key", TEXT)

        async def caller(many: int) -> None:
            for number in range(many):
                await operation(client, number)

        each = max(calls // width, 1)
        for _ in range(rounds):
            pipe.spent = 0.0
            began = clock()
            await asyncio.gather(*(caller(each) for _ in range(width)))
            whole = clock() - began
            scale = 1e6 / (each * width)
            best = Cost(min(best.client, (whole - pipe.spent) * scale), min(best.service, pipe.spent * scale))
    return best


def measure(
    operation: Operation, width: int, calls: int = 20_000, rounds: int = 7, config: Optional[ServerConfig] = None
) -> Cost:
    """Return the least microseconds of one operation, `width` of them under way."""
    config = ServerConfig(api_keys=["key"]) if config is None else config
    return run(_rounds(operation, width, calls, rounds, config), uvloop=False)


# ------------------------------------------------------------------------------------------------- what bounds cost


def overhead(width: int, calls: int, rounds: int) -> Tuple[Cost, Cost, float]:
    """Measure a get with and without a rate limit, in turn, and the seconds that counting a request takes."""
    plain = limited = Cost(float("inf"), float("inf"))
    for _ in range(rounds):
        free = measure(get, width, calls, 1, ServerConfig(api_keys=["key"]))
        bound = measure(get, width, calls, 1, ServerConfig(api_keys=["key"], rate_limit=1e9))
        plain = Cost(min(plain.client, free.client), min(plain.service, free.service))
        limited = Cost(min(limited.client, bound.client), min(limited.service, bound.service))
    names = {"requests": [0] * 128, "code": 2}
    counting = min(timeit.repeat("requests[code] += 1", globals=names, number=100_000, repeat=rounds)) / 100_000
    return plain, limited, counting * 1e6


@click.command()
@click.option("--rounds", type=click.IntRange(1, 1000), default=7, show_default=True, help="The least of these counts.")
@click.option("--calls", type=click.IntRange(100), default=20_000, show_default=True, help="Calls in a round.")
@click.option("--width", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Calls under way.")
def main(rounds: int, calls: int, width: int) -> None:
    """Measure what calls cost client and service, and what limits and metrics add."""
    click.echo(f"µs of one call, {width} under way, the least of {rounds} rounds")
    for name, operation in OPERATIONS.items():
        cost = measure(operation, width, calls, rounds)
        click.echo(f"  {name:<16} client {cost.client:6.2f}   service {cost.service:6.2f}")
    for many in (1, width):
        plain, limited, counting = overhead(many, calls, rounds)
        added = limited.service - plain.service
        share = (added + counting) / plain.service
        click.echo(
            f"  get, {many} under way: service {plain.service:.2f}, with a rate limit {limited.service:.2f}; "
            f"counting it {counting:.3f}: limits and metrics together {share:.1%}"
        )


if __name__ == "__main__":
    main()
