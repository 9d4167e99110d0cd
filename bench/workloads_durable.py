"""On disk: what durability costs, how long a start takes, what a snapshot adds to a request."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Iterator, List, Union

from nats.js.api import StorageType

from bench.clients import LONG_POLL, contender, redis_client, redis_for, synap_client, synap_long_polling
from bench.measure import Case, percentile
from bench.peers import Server, start_nats, start_synap, start_valkey
from bench.plan import SECONDARY, WIDTHS, Finding, Plan, width_title
from bench.workloads_kv import TEXT, load_redis, load_synap, redis_set, synap_set
from bench.workloads_queue import WORKERS, nats_cycle, redis_cycle, synap_cycle
from bench.workloads_stream import nats_publish, redis_xadd, synap_publish
from synap import SynapClient

__all__ = ["durable", "recovery", "snapshot"]


def durable(plan: Plan) -> Iterator[Union[Case, Finding]]:
    """Every write on disk before its answer, as with appendfsync always and JetStream's sync; everysec."""
    ours = plan.servers.get("synap always", lambda directory: start_synap(directory, fsync="always"))
    theirs = plan.servers.get("valkey always", lambda directory: start_valkey(directory, appendfsync="always"))
    jetstream = plan.servers.get("nats always", lambda directory: start_nats(directory, synced=True))
    for width in WIDTHS:
        yield Case(
            f"durable/always/{width}",
            f"set, every write synced, {width_title(width)}",
            [
                contender("synap", ours, synap_client, synap_set, width),
                contender("redis-py", theirs, redis_for(width), redis_set, width),
            ],
            rounds=None if width in (1, 100) else SECONDARY,
        )
    for width in (1, WORKERS):
        yield Case(
            f"durable/queue/{width}",
            f"queue cycle, every write synced, {width_title(width)}",
            [
                contender("synap", ours, synap_client, synap_cycle, width),
                contender("redis-py", theirs, redis_client, redis_cycle, width),
                nats_cycle("nats-py", jetstream, width, confirmed=True, storage=StorageType.FILE),
            ],
            unit="cycles",
            rounds=None if width == WORKERS else SECONDARY,
        )
    for width in (1, 100):
        yield Case(
            f"durable/stream/{width}",
            f"stream publish, every write synced, {width_title(width)}",
            [
                contender("synap", ours, synap_client, synap_publish, width),
                contender("redis-py", theirs, redis_client, redis_xadd, width),
                nats_publish(jetstream, width, StorageType.FILE),
            ],
            unit="events",
            rounds=None if width == 100 else SECONDARY,
        )
    long_poll = f"one by one, spin={LONG_POLL:g}"
    yield Case(
        "durable/always/1/spin",
        f"set, every write synced, {long_poll}",
        [
            contender("synap", ours, synap_long_polling, synap_set, 1),
            contender("redis-py", theirs, redis_client, redis_set, 1),
        ],
    )
    yield Case(
        "durable/queue/1/spin",
        f"queue cycle, every write synced, {long_poll}",
        [
            contender("synap", ours, synap_long_polling, synap_cycle, 1),
            contender("redis-py", theirs, redis_client, redis_cycle, 1),
        ],
        unit="cycles",
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
    """What 99.9 % of reads wait at the most beside overwrites that make the server take snapshots, and without any."""
    seconds = max(0.5, 20 * plan.share)
    keys = plan.many(200_000, least=1000)
    ours = plan.servers.get("with", lambda directory: start_synap(directory, fsync="everysec"))
    taken = _stall(plan, ours, keys, seconds)
    none = _stall(plan, plan.servers.synap(), keys, seconds)
    title = f"of a get beside {RATE:,} overwrites/s of {keys:,} keys"
    yield Finding("snapshot/with", f"p99.9 {title}, snapshots taken", taken * 1e3, "ms")
    yield Finding("snapshot/without", f"p99.9 {title}, in memory", none * 1e3, "ms")
    yield Finding("snapshot/stall", "what snapshots add at p99.9", max(0.0, taken - none) * 1e3, "ms")


RATE = 4000


def _stall(plan: Plan, server: Server, keys: int, seconds: float) -> float:
    """Read every two milliseconds beside overwrites of another process; return the p99.9 of a read in seconds."""
    plan.run(load_synap(server, keys, "stall"))
    arguments = [server.url, str(keys), str(RATE), str(seconds)]
    # The program finds the packages where this process found them.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    writer = subprocess.Popen([sys.executable, "-m", "bench.overwrite", *arguments], env=environment)
    latencies: List[float] = []
    try:
        with SynapClient(url=server.url) as client:
            while writer.poll() is None:
                began = time.perf_counter()
                client.kv.get("stall:0")
                latencies.append(time.perf_counter() - began)
                time.sleep(0.002)
    finally:
        writer.kill()
        code = writer.wait()
    if code:
        raise RuntimeError(f"the overwriting program ended with {code}")
    return percentile(sorted(latencies), 0.999)
