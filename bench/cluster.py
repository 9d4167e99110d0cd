"""The cluster engine beside redis-py's cluster client, on the same cluster of three primaries.

python -m bench.cluster                  what a second brings, and what it costs the client and the nodes
python -m bench.cluster --growth         CPU of the busiest node, for 1, 2, 3 and 6 primaries

CPU is what noise hardly moves: µs of the client's process and of all nodes together for each operation. Each figure is
the median of rounds in which redis-py, the client on the cluster and the client at a gateway take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import sys
import time
from typing import Any, Awaitable, Callable, Dict, List, NamedTuple

from synap import AsyncSynapClient
from synap.testing import ThrowawayServer
from synap.testing.cluster import ThrowawayCluster

VALUE = "v" * 98
Operation = Callable[[int], Awaitable[Any]]


def process_cpu() -> float:
    """Return the CPU seconds of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def node_cpu(cluster: ThrowawayCluster) -> List[float]:
    """Return the CPU seconds of each node."""
    found = []
    for node in cluster.members:
        lines = node.ask("INFO", "cpu").decode().split("\r\n")
        figures = dict(line.split(":") for line in lines if ":" in line)
        found.append(float(figures["used_cpu_user"]) + float(figures["used_cpu_sys"]))
    return found


class Figures(NamedTuple):
    """Operations a second, and µs of CPU for each."""

    rate: float
    client: float
    nodes: float

    def __str__(self) -> str:
        return f"{self.rate:9.0f}/s  client {self.client:6.1f} µs  nodes {self.nodes:6.1f} µs"


async def measure(cluster: ThrowawayCluster, operation: Operation, width: int, seconds: float) -> Figures:
    """Do an operation over and over with `width` under way, and return what that gave."""
    number = 0
    end = time.perf_counter() + 0.3

    async def work() -> None:
        nonlocal number
        while time.perf_counter() < end:
            number += 1
            await operation(number)

    await asyncio.gather(*(work() for _ in range(width)))
    done, nodes, own, began = number, node_cpu(cluster), process_cpu(), time.perf_counter()
    end = began + seconds
    await asyncio.gather(*(work() for _ in range(width)))
    took = time.perf_counter() - began
    count = number - done
    client = 1e6 * (process_cpu() - own) / count
    servers = 1e6 * (sum(node_cpu(cluster)) - sum(nodes)) / count
    return Figures(count / took, client, servers)


def synap_operations(client: AsyncSynapClient) -> Dict[str, Operation]:
    async def cycle(number: int) -> None:
        queue = f"q{number % 16}"
        await client.queue.publish(queue, VALUE)
        message = await client.queue.consume(queue)
        if message is not None:
            await client.queue.ack(queue, message.message_id)

    held: Dict[str, List[str]] = {f"c{number}": [] for number in range(16)}

    async def combined(number: int) -> None:
        """Publish, and take the next message in the step that acknowledges the one before."""
        queue = f"c{number % 16}"
        await client.queue.publish(queue, VALUE)
        before = held[queue].pop() if held[queue] else None
        message = await client.queue.consume(queue, ack=before)
        if message is not None:
            held[queue].append(message.message_id)

    return {
        "kv.set": lambda number: client.kv.set(f"u{number % 2000}", VALUE),
        "kv.get": lambda number: client.kv.get(f"u{number % 2000}"),
        "queue cycle": cycle,
        "queue cycle, consume(ack=…)": combined,
        "stream.publish": lambda number: client.stream.publish(f"r{number % 16}", "e", VALUE),
    }


def redis_operations(client: Any) -> Dict[str, Operation]:
    async def cycle(number: int) -> None:
        queue = f"{{q{number % 16}}}"
        await client.lpush(queue, VALUE)
        await client.lmove(queue, queue + "taken", "RIGHT", "LEFT")
        await client.lrem(queue + "taken", 1, VALUE)

    return {
        "SET": lambda number: client.set(f"u{number % 2000}", VALUE),
        "GET": lambda number: client.get(f"u{number % 2000}"),
        "LPUSH, LMOVE, LREM": cycle,
        "XADD": lambda number: client.xadd(f"r{number % 16}", {"e": VALUE}, maxlen=100_000),
    }


async def compare(cluster: ThrowawayCluster, seconds: float, widths: List[int], rounds: int, only: str) -> None:
    """Measure redis-py, the client on the cluster, and the client at a gateway, in turns; print the medians."""
    from redis.asyncio.cluster import RedisCluster

    redis = RedisCluster(host="127.0.0.1", port=cluster.members[0].port)
    await redis.initialize()
    with ThrowawayServer(arguments=["--engine", cluster.url, "--durability", "none"]) as server:
        direct = AsyncSynapClient(url=cluster.url, engine={"durability": "none"})
        async with direct, AsyncSynapClient(url=server.url) as gateway:
            sides = {
                "redis-py": redis_operations(redis),
                "direct": synap_operations(direct),
                "gateway": synap_operations(gateway),
            }
            for title in MATCHES:
                if only not in title[1]:
                    continue
                for width in widths:
                    found: Dict[str, List[Figures]] = {}
                    for _ in range(rounds):
                        for side, operations in sides.items():
                            name = title[side != "redis-py"]
                            got = await measure(cluster, operations[name], width, seconds)
                            found.setdefault(f"{side} {name}", []).append(got)
                    for name, each in found.items():
                        figures = Figures(*(statistics.median(column) for column in zip(*each)))
                        sys.stdout.write(f"{name:44} {width:4} under way {figures}\n")
                        sys.stdout.flush()
    await redis.aclose()


MATCHES = (
    ("SET", "kv.set"),
    ("GET", "kv.get"),
    ("LPUSH, LMOVE, LREM", "queue cycle"),
    ("LPUSH, LMOVE, LREM", "queue cycle, consume(ack=…)"),
    ("XADD", "stream.publish"),
)
"""What of redis-py's is nearest to what."""


async def grow(rounds: int) -> None:
    """Print what the same work costs the busiest of 1, 2, 3 and 6 primaries."""
    for primaries in (1, 2, 3, 6):
        with ThrowawayCluster(primaries) as cluster:
            async with AsyncSynapClient(url=cluster.url, engine={"durability": "none"}) as client:
                operations = synap_operations(client)

                async def work(number: int, operations: Dict[str, Operation] = operations) -> None:
                    for name in ("kv.set", "queue cycle", "stream.publish"):
                        await operations[name](number)

                await asyncio.gather(*(work(number) for number in range(200)))
                before = node_cpu(cluster)
                for first in range(0, rounds, 100):
                    await asyncio.gather(*(work(number) for number in range(first, first + 100)))
                spent = [1e6 * (now - then) / rounds for now, then in zip(node_cpu(cluster), before)]
            sys.stdout.write(
                f"{primaries} primaries: {sum(spent):6.1f} µs a round in all, busiest node {max(spent):6.1f} µs\n"
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cluster", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--repeat", type=int, default=3, help="rounds, of which the median counts")
    parser.add_argument("--only", default="", help="what is measured, such as 'queue cycle'; all")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--rounds", type=int, default=8000)
    given = parser.parse_args()
    if given.growth:
        asyncio.run(grow(given.rounds))
        return
    with ThrowawayCluster(3) as cluster:
        asyncio.run(compare(cluster, given.seconds, [1, 100], given.repeat, given.only))


if __name__ == "__main__":
    main()
