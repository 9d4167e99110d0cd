"""The cluster engine beside redis-py's cluster client, on the same cluster of three primaries.

python -m bench.cluster                  what a second brings, and what it costs the client and the nodes
python -m bench.cluster --growth         CPU of the busiest node, for 1, 2, 3 and 6 primaries

CPU is what noise hardly moves: µs of the client's process and of all nodes together for each operation.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import time
from typing import Any, Awaitable, Callable, Dict, List

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


async def measure(cluster: ThrowawayCluster, name: str, operation: Operation, width: int, seconds: float) -> None:
    """Do an operation over and over with `width` under way, and print what that gave."""
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
    sys.stdout.write(
        f"{name:42} {width:4} under way {count / took:9.0f}/s  client {client:6.1f} µs  nodes {servers:6.1f} µs\n"
    )
    sys.stdout.flush()


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


async def compare(cluster: ThrowawayCluster, seconds: float, widths: List[int]) -> None:
    """Measure redis-py, the client on the cluster, and the client at a gateway."""
    from redis.asyncio.cluster import RedisCluster

    redis = RedisCluster(host="127.0.0.1", port=cluster.members[0].port)
    await redis.initialize()
    for name, operation in redis_operations(redis).items():
        for width in widths:
            await measure(cluster, f"redis-py {name}", operation, width, seconds)
    await redis.aclose()
    engine = {"durability": "none"}
    async with AsyncSynapClient(url=cluster.url, engine=engine) as client:
        for name, operation in synap_operations(client).items():
            for width in widths:
                await measure(cluster, f"direct {name}", operation, width, seconds)
    with ThrowawayServer(arguments=["--engine", cluster.url, "--durability", "none"]) as server:
        async with AsyncSynapClient(url=server.url) as client:
            for name, operation in synap_operations(client).items():
                for width in widths:
                    await measure(cluster, f"gateway {name}", operation, width, seconds)


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
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--rounds", type=int, default=8000)
    given = parser.parse_args()
    if given.growth:
        asyncio.run(grow(given.rounds))
        return
    with ThrowawayCluster(3) as cluster:
        asyncio.run(compare(cluster, given.seconds, [1, 100]))


if __name__ == "__main__":
    main()
