"""`synap bench`: measure your own server. `python -m bench` in the project compares with other systems."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any, Awaitable, Callable, Dict, List

import click

from synap import AsyncSynapClient
from synap.cli.command import Command
from synap.cli.connection import Connection, connects
from synap.cli.documents import emit
from synap.cli.exits import usage

Operation = Callable[[int], Awaitable[Any]]


@click.command(
    "bench",
    short_help="Measure your own server.",
    cls=Command,
    examples=["synap bench", "synap bench --seconds 5 --size 1000", "synap bench --json"],
)
@connects
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.05),
    metavar="SECONDS",
    default=2.0,
    show_default=True,
    help="Duration of each measurement.",
)
@click.option(
    "--size", type=click.IntRange(1, 1 << 20), metavar="N", default=100, show_default=True, help="Bytes of a value."
)
@click.option("--under-way", default="1,100", show_default=True, metavar="N,N", help="Calls in flight at once.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document for each figure.")
def bench(connection: Connection, seconds: float, size: int, under_way: str, as_json: bool) -> None:
    """Measure set, get, and the cycle of a message (publish, consume, ack) against your own server.

    Its keys and its queue have random names, expire, and are deleted at the end. p50 and p99 are milliseconds.
    """
    try:
        levels = [int(level) for level in under_way.split(",")]
    except ValueError:
        levels = []
    if not levels or min(levels) < 1 or max(levels) > 10_000:
        raise usage(f"--under-way must be whole numbers 1..10000 with commas between, got {under_way!r}")

    def show(figure: Dict[str, Any]) -> None:
        if as_json or connection.pretty:
            emit(figure, connection.pretty)
        else:
            click.echo(
                "{workload:<12} {under_way:>9} {ops_per_second:>10,.0f} {p50_ms:>9.3f} {p99_ms:>9.3f}".format(**figure)
            )

    if not as_json and not connection.pretty:
        click.echo(f"{'workload':<12} {'under way':>9} {'ops/s':>10} {'p50 ms':>9} {'p99 ms':>9}")
    asyncio.run(measure(connection, seconds, size, levels, show))


async def measure(
    connection: Connection, seconds: float, size: int, levels: List[int], show: Callable[[Dict[str, Any]], None]
) -> None:
    """Measure all workloads at all levels, calling `show` with each figure."""
    run = secrets.token_hex(4)
    keys, queue = [f"synap-bench:{run}:{number}" for number in range(1000)], f"synap-bench-{run}"
    value = "x" * size
    async with AsyncSynapClient(**connection.options()) as client:

        async def set_(number: int) -> None:
            await client.kv.set(keys[number % len(keys)], value, ttl=600)

        async def get(number: int) -> None:
            await client.kv.get(keys[number % len(keys)])

        async def cycle(number: int) -> None:
            await client.queue.publish(queue, value)
            message = await client.queue.consume(queue)
            if message is not None:
                await client.queue.ack(queue, message.message_id)

        workloads: Dict[str, Operation] = {"set": set_, "get": get, "queue cycle": cycle}
        await client.connect()
        await client.queue.create(queue)
        try:
            for name, operation in workloads.items():
                for level in levels:
                    figures = await timed(operation, level, seconds)
                    show({"workload": name, "under_way": level, "bytes": size, **figures})
        finally:
            await client.queue.delete(queue)
            await client.kv.delete(*keys)


async def timed(operation: Operation, level: int, seconds: float) -> Dict[str, float]:
    """Run an operation repeatedly, `level` of them at once; returns its rate and latencies."""
    latencies: List[float] = []
    clock = time.perf_counter
    for number in range(min(50, 5 * level)):
        await operation(number)
    begin = clock()
    end = begin + seconds

    async def caller(number: int) -> None:
        then = clock()
        while then < end:
            await operation(number)
            now = clock()
            latencies.append(now - then)
            then = now
            number += level

    await asyncio.gather(*(caller(number) for number in range(level)))
    took = clock() - begin
    latencies.sort()
    return {
        "ops_per_second": round(len(latencies) / took, 1),
        "p50_ms": round(latencies[len(latencies) // 2] * 1000, 4),
        "p99_ms": round(latencies[min(len(latencies) - 1, len(latencies) * 99 // 100)] * 1000, 4),
    }
