"""The engine in this process: what a call costs without any socket."""

from __future__ import annotations

import time
from typing import Callable, Iterator

from bench.plan import Finding, Plan
from synap import AsyncSynapClient, SynapClient

__all__ = ["memory"]

TEXT = "x" * 100


def memory(plan: Plan) -> Iterator[Finding]:
    """What get and set cost on memory://, blocking and async."""
    calls = plan.many(50_000, least=200)
    with SynapClient(url="memory://") as client:
        yield Finding("memory/set/sync", "memory:// set, sync", _best(lambda: _set(client, calls), calls, plan), "µs")
        yield Finding("memory/get/sync", "memory:// get, sync", _best(lambda: _get(client, calls), calls, plan), "µs")
    yield Finding("memory/get/async", "memory:// get, async", plan.run(_async(plan, calls)), "µs")


def _set(client: SynapClient, calls: int) -> None:
    set = client.kv.set
    for _ in range(calls):
        set("key", TEXT)


def _get(client: SynapClient, calls: int) -> None:
    get = client.kv.get
    for _ in range(calls):
        get("key")


def _best(work: Callable[[], None], calls: int, plan: Plan) -> float:
    """Return the microseconds of one call in the best round: what else the machine does only ever adds."""
    best = float("inf")
    for _ in range(plan.rounds):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best / calls * 1e6


async def _async(plan: Plan, calls: int) -> float:
    best = float("inf")
    async with AsyncSynapClient(url="memory://") as client:
        await client.kv.set("key", TEXT)
        get = client.kv.get
        for _ in range(plan.rounds):
            began = time.perf_counter()
            for _ in range(calls):
                await get("key")
            best = min(best, time.perf_counter() - began)
    return best / calls * 1e6
