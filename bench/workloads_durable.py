"""On disk: what durability costs, how long a start takes, what a snapshot adds to a request."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any, Iterator, List, Union

from bench.clients import contender, redis_client, synap_client
from bench.measure import Case, percentile
from bench.peers import Server, start_synap, start_valkey
from bench.plan import Finding, Plan
from bench.workloads_kv import TEXT, load_redis, load_synap, redis_set, synap_set

__all__ = ["durable", "recovery", "snapshot"]


def durable(plan: Plan) -> Iterator[Union[Case, Finding]]:
    """Every write on disk before its answer, against appendfsync always; everysec against in memory."""
    ours = plan.servers.get("synap always", lambda directory: start_synap(directory, fsync="always"))
    theirs = plan.servers.get("valkey always", lambda directory: start_valkey(directory, appendfsync="always"))
    for width in (1, 100):
        shown = "one by one" if width == 1 else f"{width} under way"
        yield Case(
            f"durable/always/{width}",
            f"set, every write synced, {shown}",
            [
                contender("synap", ours, synap_client, synap_set, width),
                contender("redis-py", theirs, redis_client, redis_set, width),
            ],
        )
    plan.servers.stop_all()

    memory = plan.servers.synap()
    ours = plan.servers.get("synap everysec", lambda directory: start_synap(directory, fsync="everysec"))
    theirs = plan.servers.get("valkey everysec", lambda directory: start_valkey(directory, appendfsync="everysec"))
    case = Case(
        "durable/everysec/100",
        "set, synced every second, 100 under way",
        [
            contender("synap", ours, synap_client, synap_set, 100),
            contender("in memory", memory, synap_client, synap_set, 100),
            contender("redis-py", theirs, redis_client, redis_set, 100),
        ],
    )
    yield case
    if case.outcomes:
        share = case.outcomes["synap"].ratio(case.outcomes["in memory"])
        yield Finding("durable/everysec", "everysec, throughput of in memory", share, "of it")


# ------------------------------------------------------------------------------------------------------------ recovery


def recovery(plan: Plan) -> Iterator[Finding]:
    """From the start of the process to the first answer, with a million keys on disk, beside valkey's AOF."""
    keys = plan.many(1_000_000, least=1000)
    ours = plan.servers.get("synap", lambda directory: start_synap(directory, fsync="everysec"))
    theirs = plan.servers.get("valkey", lambda directory: start_valkey(directory, appendfsync="everysec"))
    plan.run(load_synap(ours, keys, "kept"))
    plan.run(load_redis(theirs, keys, "kept"))
    time.sleep(min(2.0, 2.0 * plan.share))
    for server in (ours, theirs):
        server.kill()
        server.start(120)
    plan.run(_same(ours, keys))
    yield Finding(
        "recovery/keys",
        f"start with {keys:,} keys of 100 bytes after kill -9",
        ours.ready_after,
        "s",
        "valkey-server, AOF",
        theirs.ready_after,
    )
    # Once more: by now the first start may have rewritten what it found.
    for server in (ours, theirs):
        server.stop()
        server.start(120)
    yield Finding(
        "recovery/clean",
        f"start with {keys:,} keys of 100 bytes after a clean stop",
        ours.ready_after,
        "s",
        "valkey-server, AOF",
        theirs.ready_after,
    )


async def _same(server: Server, keys: int) -> None:
    async with synap_client(server) as client:
        for number in (0, keys // 2, keys - 1):
            found = await client.kv.get(f"kept:{number}")
            if found.value != TEXT:
                raise RuntimeError(f"kept:{number} came back as {found}")


# ------------------------------------------------------------------------------------------------------------ snapshot


def snapshot(plan: Plan) -> Iterator[Finding]:
    """What 99.9 % of reads wait at the most while overwrites make the server take snapshots, and while nothing does."""
    seconds = max(0.5, 20 * plan.share)
    keys = plan.many(200_000, least=1000)
    with_writes = plan.run(_stall(plan, "everysec", keys, seconds))
    without = plan.run(_stall(plan, "", keys, seconds))
    yield Finding("snapshot/with", "p99.9 of get, overwriting, snapshots taken", with_writes * 1e3, "ms")
    yield Finding("snapshot/without", "p99.9 of get, overwriting, in memory", without * 1e3, "ms")
    yield Finding("snapshot/stall", "what snapshots add at p99.9", max(0.0, with_writes - without) * 1e3, "ms")


async def _stall(plan: Plan, fsync: str, keys: int, seconds: float) -> float:
    """Read at a steady pace beside overwrites; return the p99.9 of a read in seconds, counted from when it was due."""
    server = plan.servers.get(f"stall {fsync}", lambda directory: start_synap(directory, fsync=fsync or None))
    await load_synap(server, keys, "stall")
    latencies: List[float] = []
    deadline = time.perf_counter() + seconds
    numbers = itertools.count()

    async def overwrite(client: Any) -> None:
        while time.perf_counter() < deadline:
            await client.kv.set(f"stall:{next(numbers) % keys}", TEXT)
            await asyncio.sleep(0)

    async def read(client: Any, due: float) -> None:
        await client.kv.get("stall:0")
        latencies.append(time.perf_counter() - due)

    async with synap_client(server) as writer, synap_client(server) as reader:
        writers = [asyncio.ensure_future(overwrite(writer)) for _ in range(8)]
        reads = set()
        due = time.perf_counter()
        while due < deadline:
            due += 0.002
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            task = asyncio.ensure_future(read(reader, due))
            reads.add(task)
            task.add_done_callback(reads.discard)
        await asyncio.gather(*writers, *reads)
    server.stop()
    return percentile(sorted(latencies), 0.999)
