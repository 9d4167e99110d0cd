"""What a call costs our client and our service, with no network between them.

`python -m bench.hotpath` runs a client and a native session in one event loop. What one side writes is handed to the
other in memory, so nothing is measured but the two programs themselves: no system call, no wake-up, no other process.
Each figure is the least of many short slices; what else the machine does only ever adds. It is for seeing what a change
to the hot path does, and what rate limits and metrics cost; what users get is measured by the other workloads.

What a rate limit adds is less than two runs differ by on a machine that does other things too. So a service with a
limit and one without stand side by side in one process and one event loop and take slices of a millisecond in turn, and
what is compared are slices that nothing disturbed: of each, the one that only a twentieth of its slices beat.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import random
import ssl
import tempfile
import time
import timeit
from typing import Any, AsyncIterator, Awaitable, Callable, Dict, List, NamedTuple, Optional, cast
from weakref import WeakKeyDictionary

import click

from bench.measure import percentile
from bench.plan import run
from synap import AsyncSynapClient
from synap.commands import KV_GET
from synap.engine.engine import Engine
from synap.host import EngineHost
from synap.lanes.io.network import AsyncNetwork
from synap.server import keyfile, native
from synap.server.grants import Quota
from synap.server.run import Alarm
from synap.server.service import Service
from synap.server.settings import ServerConfig
from synap.server.sniff import Sniffer

__all__ = ["OPERATIONS", "Added", "Cost", "added", "costs"]

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

    def pause_reading(self) -> None:
        """What is sent comes all the same: a session puts off what it doesn't take now."""

    def resume_reading(self) -> None:
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


class Pipe(AsyncNetwork):
    """Carries what a client and a service write, and counts the time the service takes over it."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.spent = 0.0
        """Seconds that were the service's."""
        self._loop = asyncio.get_running_loop()
        self._under_way = False
        self._client, self._service = End(self), End(self)
        front: Any = None  # a connection that speaks frames asks nothing of uvicorn
        self._service.protocol = Sniffer(service, front, front, {})

    async def connect(
        self, protocol: asyncio.BaseProtocol, host: str, port: int, context: Optional[ssl.SSLContext]
    ) -> None:
        """Connect a client's protocol to the service."""
        self._client.protocol = protocol
        cast(asyncio.Protocol, self._service.protocol).connection_made(self._service)
        protocol.connection_made(self._client)

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
    host = alarm.host = EngineHost(Engine(ids=lambda: random.getrandbits(64)), alarm=alarm)
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


_held: WeakKeyDictionary[AsyncSynapClient, List[str]] = WeakKeyDictionary()
"""Messages that `combined` has not acknowledged yet."""


async def combined(client: AsyncSynapClient, number: int) -> None:
    """Publish, and with one call acknowledge the message before and take the next: two calls."""
    held = _held.setdefault(client, [])
    await client.queue.publish("combined", TEXT)
    message = await client.queue.consume("combined", 1, 3600, ack=held.pop() if held else None)
    assert message is not None
    held.append(message.message_id)


async def publish(client: AsyncSynapClient, number: int) -> None:
    await client.stream.publish("room", "event", TEXT)


OPERATIONS: Dict[str, Operation] = {"get": get, "set": set, "queue": cycle, "combined": combined, "stream": publish}
TITLES = {
    "get": "get",
    "set": "set",
    "queue": "publish, consume, ack",
    "combined": "publish, consume(ack=)",
    "stream": "stream publish",
}
KEY = "a-key-for-the-bench-alone"
PLAIN = ServerConfig(api_keys=[KEY])
LIMITED = ServerConfig(api_keys=[KEY], rate_limit=1e9)


class Side:
    """A client with its service, connected."""

    def __init__(self, pipe: Pipe, client: AsyncSynapClient) -> None:
        self.pipe = pipe
        self.client = client

    async def slice(self, operation: Operation, width: int, each: int) -> Cost:
        """Let `width` callers do `each` operations; return what one of them cost."""

        async def caller() -> None:
            for number in range(each):
                await operation(self.client, number)

        self.pipe.spent = 0.0
        began = clock()
        await asyncio.gather(*(caller() for _ in range(width)))
        whole = clock() - began
        scale = 1e6 / (each * width)
        return Cost((whole - self.pipe.spent) * scale, self.pipe.spent * scale)


@contextlib.asynccontextmanager
async def _connected(config: ServerConfig) -> AsyncIterator[Side]:
    pipe = Pipe(_service(config))
    async with AsyncSynapClient(url="http://127.0.0.1:1", transport="native", api_key=KEY, spin=False) as client:
        client._calls.network = pipe
        await client.kv.set("key", TEXT)
        yield Side(pipe, client)


def _each(width: int, calls: int) -> int:
    return max(calls // width, 1)


def costs(width: int, seconds: float) -> Dict[str, Cost]:
    """Return the least microseconds that one operation costs either side, `width` of them under way.

    All operations take turns, for `seconds` together.
    """
    return run(_costs(width, seconds), uvloop=False)


async def _costs(width: int, seconds: float) -> Dict[str, Cost]:
    least = {name: Cost(float("inf"), float("inf")) for name in OPERATIONS}
    async with _connected(PLAIN) as side:
        end = clock() + seconds
        while True:
            for name, operation in OPERATIONS.items():
                cost = await side.slice(operation, width, _each(width, 250))
                least[name] = Cost(*map(min, zip(least[name], cost)))
            if clock() > end:
                return least


# ------------------------------------------------------------------------------------------------- what bounds cost


class Added(NamedTuple):
    """What rate limits and metrics add to the microseconds the service takes for a get."""

    service: float
    """With neither a limit nor metrics."""
    limit: float
    counting: float

    @property
    def percent(self) -> float:
        """Both together, of what the service takes without them."""
        return (self.limit + self.counting) / self.service * 100


PAIRS = 8
"""Pairs of services, made one after the other: where objects lie in memory makes a difference too."""
TURNS = 15
"""Turns that a pair takes at the least, however long they last."""
CALLS = {1: 20}
"""Calls in a slice by how many are under way; elsewhere each caller makes one."""


def added(width: int, seconds: float) -> Added:
    """Measure for `seconds` what a rate limit and metrics add to a get, `width` of them under way."""
    return run(_added(width, seconds), uvloop=False)


async def _added(width: int, seconds: float, bound_by: ServerConfig = LIMITED) -> Added:
    free: List[float] = []
    bound: List[float] = []
    counting = float("inf")
    for pair in range(PAIRS):
        configs = (PLAIN, bound_by) if pair % 2 == 0 else (bound_by, PLAIN)
        async with _connected(configs[0]) as first, _connected(configs[1]) as second:
            plain, limited = (first, second) if pair % 2 == 0 else (second, first)
            host = plain.pipe.service.host
            count = timeit.Timer("host.requests[command.code] += 1", globals={"host": host, "command": KV_GET})
            each = CALLS.get(width, 1)
            for side in (plain, limited):
                await side.slice(get, width, each)
            end = clock() + seconds / PAIRS
            gc.collect()
            gc.disable()
            try:
                turns = 0
                while turns < TURNS or clock() < end:
                    turns += 1
                    for side in (plain, limited, limited, plain):
                        cost = await side.slice(get, width, each)
                        (free if side is plain else bound).append(cost.service)
                    counting = min(counting, count.timeit(200) / 200 * 1e6)
            finally:
                gc.enable()
    undisturbed, limited_too = (percentile(sorted(values), 0.05) for values in (free, bound))
    return Added(undisturbed - counting, limited_too - undisturbed, counting)


def kinds(folder: str) -> Dict[str, ServerConfig]:
    """Return a configuration for each kind of limit; files that they need are put into `folder`."""
    everything, some = ["*:*:*"], ["kv:read:k*", "queue:*:tasks"]

    def named(name: str, grants: List[str], quota: Quota) -> ServerConfig:
        path = os.path.join(folder, name)
        keyfile.add(path, "bench", KEY, [*grants, "kv:write:key"], quota)
        return ServerConfig(keys_file=path)

    return {
        "no key": ServerConfig(),
        "an admin key": ServerConfig(admin_keys=[KEY]),
        "an audit log": ServerConfig(api_keys=[KEY], audit_log=os.path.join(folder, "audit")),
        "a rate limit": LIMITED,
        "a key of a file, for everything": named("all", everything, Quota()),
        "a key with grants": named("some", some, Quota()),
        "a key with a quota of requests": named("requests", everything, Quota(requests=1e9)),
        "a key with grants and every quota": named(
            "every", some, Quota(requests=1e9, bytes=1e12, connections=100, subscriptions=100, waiting=100)
        ),
    }


def limits(width: int, seconds: float) -> Dict[str, Added]:
    """Return what each kind of limit adds to a get, `width` of them under way; `seconds` for each."""
    with tempfile.TemporaryDirectory(prefix="synap-bench-") as folder:
        return {name: run(_added(width, seconds, config), uvloop=False) for name, config in kinds(folder).items()}


@click.command()
@click.option("--seconds", type=click.FloatRange(0.05), default=4.0, show_default=True, help="For each line or two.")
@click.option("--width", type=click.IntRange(2, 10_000), default=100, show_default=True, help="Calls under way.")
@click.option("--cpu", is_flag=True, help="Count processor time, which is steadier on a busy machine and a bit more.")
@click.option("--limits", "only_limits", is_flag=True, help="Measure what each kind of limit adds, and nothing else.")
def main(seconds: float, width: int, cpu: bool, only_limits: bool) -> None:
    """Measure what calls cost client and service, and what limits and metrics add."""
    if cpu:
        global clock
        clock = time.thread_time
        vars(native)["SECONDS"] = (
            math.inf
        )  # or a turn that was interrupted would be put off, and counted as the client's
    if only_limits:
        click.echo(f"what limits add to the µs that a get takes the service, {width} under way")
        for name, more in limits(width, seconds).items():
            share = more.limit / more.service * 100
            click.echo(f"  {name:<34} {more.limit:5.2f} beside {more.service:5.2f}: {share:5.1f} %")
        return
    for many in (1, width):
        click.echo(f"µs of one operation, {many} under way, the least of many slices")
        for name, cost in costs(many, seconds).items():
            click.echo(f"  {TITLES[name]:<24} client {cost.client:6.2f}   service {cost.service:6.2f}")
        more = added(many, seconds)
        click.echo(
            f"  a get takes the service {more.service:.2f}; a rate limit adds {more.limit:.2f} and counting it "
            f"{more.counting:.3f}: {more.percent:.1f} % together"
        )


if __name__ == "__main__":
    main()
