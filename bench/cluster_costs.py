"""What things cost the nodes of a cluster, and how fast a message crosses from gateway to gateway.

python -m bench.cluster_costs wake       publish at one gateway, delivered at another: p50 and p99
python -m bench.cluster_costs idle       commands a second that waiting consumers cost the nodes, and their CPU
python -m bench.cluster_costs sizes      bytes on the primary for each key, message, event, remembered answer
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from typing import Any, Awaitable, Callable, List, Tuple

from bench.cluster import node_cpu
from synap import AsyncSynapClient
from synap.testing import ThrowawayServer
from synap.testing.cluster import ThrowawayCluster

VALUE = "v" * 98
"""100 bytes as JSON."""
WAITING = 1000


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def commands(cluster: ThrowawayCluster) -> int:
    """Return how many commands the nodes have executed for clients; what functions call is not among them."""
    total = 0
    for node in cluster.members:
        for line in node.ask("INFO", "commandstats").decode().splitlines():
            name, _, figures = line.partition(":calls=")
            if name in ("cmdstat_fcall", "cmdstat_fcall_ro", "cmdstat_smembers", "cmdstat_zcard"):
                total += int(figures.partition(",")[0])
    return total


def gateways(cluster: ThrowawayCluster) -> Tuple[ThrowawayServer, ThrowawayServer]:
    """Make two gateways."""
    arguments = ["--engine", cluster.url, "--durability", "none"]
    return ThrowawayServer(arguments=arguments), ThrowawayServer(arguments=arguments)


async def wake(one: str, other: str, rounds: int) -> None:
    """Measure from a publish at one gateway to the delivery at another, which waits."""
    async with AsyncSynapClient(url=one) as here, AsyncSynapClient(url=other) as there:
        await here.queue.create("q")
        heard: asyncio.Queue[float] = asyncio.Queue()
        await there.stream.subscribe("r", lambda event: heard.put_nowait(time.perf_counter()))
        took: List[float] = []
        for number in range(rounds):
            waiting = asyncio.ensure_future(there.queue.consume("q", timeout=20))
            await asyncio.sleep(0.01)
            began = time.perf_counter()
            await here.queue.publish("q", number)
            message = await waiting
            took.append(time.perf_counter() - began)
            assert message is not None
            await there.queue.ack("q", message.message_id)
        report("queue: publish at one gateway, consumed at the other", took)
        took = []
        for number in range(rounds):
            began = time.perf_counter()
            await here.stream.publish("r", "e", number)
            took.append(await heard.get() - began)
            await asyncio.sleep(0.005)
        report("room: published at one gateway, followed at the other", took)


def report(name: str, took: List[float]) -> None:
    """Print median and 99th percentile in ms."""
    cuts = statistics.quantiles(took, n=100)
    say(f"{name:56} p50 {1000 * cuts[49]:6.2f} ms  p99 {1000 * cuts[98]:6.2f} ms")


async def idle(cluster: ThrowawayCluster, one: str, other: str, seconds: float) -> None:
    """Count what the nodes are asked while consumers wait at both gateways and nothing comes."""
    async with AsyncSynapClient(url=one) as here, AsyncSynapClient(url=other) as there:
        await count(cluster, "nobody waits", seconds)
        for name, queues in ((f"{WAITING:,} wait for one queue", 1), (f"{WAITING:,} wait for as many queues", WAITING)):
            waiting = [
                asyncio.ensure_future((here, there)[n % 2].queue.consume(f"{queues}-{n % queues}", timeout=3600))
                for n in range(WAITING)
            ]
            await asyncio.sleep(3)
            await count(cluster, name, seconds)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await asyncio.sleep(1)


async def count(cluster: ThrowawayCluster, name: str, seconds: float) -> None:
    """Print commands and CPU of all nodes over some seconds."""
    before, cpu, began = commands(cluster), sum(node_cpu(cluster)), time.perf_counter()
    await asyncio.sleep(seconds)
    took = time.perf_counter() - began
    asked = (commands(cluster) - before) / took
    share = 100 * (sum(node_cpu(cluster)) - cpu) / took
    say(f"{name:40} {asked:8,.0f} commands/s  {share:5.1f} % of a core, all nodes")


def used(cluster: ThrowawayCluster) -> int:
    """Return the bytes that the nodes' data takes."""
    total = 0
    for node in cluster.members:
        lines = node.ask("INFO", "memory").decode().splitlines()
        total += int(dict(line.split(":", 1) for line in lines if ":" in line)["used_memory_dataset"])
    return total


async def sizes(cluster: ThrowawayCluster, number: int) -> None:
    """Print what each thing takes, with values of 100 bytes and names of about 10."""
    async with AsyncSynapClient(url=cluster.url, engine={"durability": "none"}) as client:
        await client.kv.set("warm", 1)

        async def fill(name: str, make: Callable[[int], Awaitable[Any]]) -> None:
            await asyncio.sleep(2.5)  # what was answered before is forgotten by then
            before = used(cluster)
            for start in range(0, number, 200):
                await asyncio.gather(*(make(n) for n in range(start, min(number, start + 200))))
            await asyncio.sleep(2.5)
            say(f"{name:32} {(used(cluster) - before) / number:6.0f} bytes")

        await fill("a key", lambda n: client.kv.set(f"key:{n:06}", VALUE))
        await fill("a key with a ttl", lambda n: client.kv.set(f"ttl:{n:06}", VALUE, ttl=86_400))
        await fill("a message", lambda n: client.queue.publish(f"queue{n % 16}", VALUE))
        await fill(
            "more, once it is leased", lambda n: client.queue.consume(f"queue{n % 16}", timeout=0, ack_deadline=86_400)
        )
        await fill("an event", lambda n: client.stream.publish(f"room{n % 16}", "e", VALUE))


def main() -> int:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["wake", "idle", "sizes", []], default=[])
    parser.add_argument("--rounds", type=int, default=500, help="messages, for wake")
    parser.add_argument("--seconds", type=float, default=10.0, help="of watching, for idle")
    parser.add_argument("--number", type=int, default=50_000, help="of each thing, for sizes")
    given = parser.parse_args()
    what = given.what or ["wake", "idle", "sizes"]
    with ThrowawayCluster(3) as cluster:
        if "sizes" in what:
            asyncio.run(sizes(cluster, given.number))
    with ThrowawayCluster(3) as cluster:
        one, other = gateways(cluster)
        with one, other:
            if "wake" in what:
                asyncio.run(wake(one.url, other.url, given.rounds))
            if "idle" in what:
                asyncio.run(idle(cluster, one.url, other.url, given.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
