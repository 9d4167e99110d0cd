"""Keys and values: one by one and many under way, async and sync, small and large, one million of them, in batches."""

from __future__ import annotations

import asyncio
import random
from typing import Any, Awaitable, Callable, Iterator, List

from bench.clients import (
    Operation,
    contender,
    crowded_redis_client,
    echo_pipe,
    redis_client,
    redis_sync,
    synap_client,
    synap_sync,
    sync_contender,
)
from bench.echo import Pipe
from bench.measure import Case, Contender
from bench.plan import Plan

__all__ = ["batch", "kv", "mixed", "sizes", "sync"]

NAMES = [f"key:{number}" for number in range(1000)]
TEXT = "x" * 100
RAW = TEXT.encode()
WIDTHS = (1, 10, 100, 1000)
BATCH = 200

Prepare = Callable[[Any], Awaitable[Operation]]


async def synap_set(client: Any) -> Operation:
    set = client.kv.set
    return lambda number: set(NAMES[number % 1000], TEXT)


async def redis_set(client: Any) -> Operation:
    set = client.set
    return lambda number: set(NAMES[number % 1000], RAW)


async def synap_get(client: Any) -> Operation:
    await client.kv.mset(dict.fromkeys(NAMES, TEXT))
    get = client.kv.get
    return lambda number: get(NAMES[number % 1000])


async def redis_get(client: Any) -> Operation:
    await client.mset(dict.fromkeys(NAMES, RAW))
    get = client.get
    return lambda number: get(NAMES[number % 1000])


async def synap_incr(client: Any) -> Operation:
    incr = client.kv.incr
    return lambda number: incr("counter")


async def redis_incr(client: Any) -> Operation:
    incr = client.incr
    return lambda number: incr("counter")


async def echo(pipe: Pipe) -> Operation:
    return pipe.call


def kv(plan: Plan) -> Iterator[Case]:
    """Set, get and incr with 1, 10, 100 and 1000 calls under way, beside redis-py and the bare echo."""
    ours, theirs, floor = plan.servers.synap(), plan.servers.valkey(), plan.servers.echo()
    for name, synap_one, redis_one in (
        ("get", synap_get, redis_get),
        ("set", synap_set, redis_set),
        ("incr", synap_incr, redis_incr),
    ):
        for width in WIDTHS:
            contenders = [
                contender("synap", ours, synap_client, synap_one, width),
                contender("redis-py", theirs, redis_client if width <= 100 else crowded_redis_client, redis_one, width),
            ]
            if name == "get":
                contenders.append(contender("echo", floor, echo_pipe, echo, width))
            yield Case(f"{name}/async/{width}", f"{name}, async, {_under_way(width)}", contenders)


def _under_way(width: int) -> str:
    return "one by one" if width == 1 else f"{width} under way"


# ---------------------------------------------------------------------------------------------------------------- sync


def sync(plan: Plan) -> Iterator[Case]:
    """Set and get with the blocking clients, from one thread and from eight."""
    ours, theirs = plan.servers.synap(), plan.servers.valkey()

    def synap_getter(client: Any) -> Callable[[int], Any]:
        client.kv.mset(dict.fromkeys(NAMES, TEXT))
        get = client.kv.get
        return lambda number: get(NAMES[number % 1000])

    def redis_getter(client: Any) -> Callable[[int], Any]:
        client.mset(dict.fromkeys(NAMES, RAW))
        get = client.get
        return lambda number: get(NAMES[number % 1000])

    def synap_setter(client: Any) -> Callable[[int], Any]:
        set = client.kv.set
        return lambda number: set(NAMES[number % 1000], TEXT)

    def redis_setter(client: Any) -> Callable[[int], Any]:
        set = client.set
        return lambda number: set(NAMES[number % 1000], RAW)

    for name, synap_one, redis_one in (("get", synap_getter, redis_getter), ("set", synap_setter, redis_setter)):
        for threads in (1, 8):
            contenders = [
                sync_contender("synap", ours, synap_sync, synap_one, threads),
                sync_contender("redis-py", theirs, redis_sync, redis_one, threads),
            ]
            title = f"{name}, sync, {'one by one' if threads == 1 else f'{threads} threads'}"
            yield Case(f"{name}/sync/{threads}", title, contenders, sync=True)


# --------------------------------------------------------------------------------------------------------------- mixed


def mixed(plan: Plan) -> Iterator[Case]:
    """Four reads to one write over a million keys of 100 bytes, 100 under way."""
    keys = plan.many(1_000_000, least=1000)
    ours, theirs = plan.servers.synap(), plan.servers.valkey()
    plan.run(_load(plan, keys))
    choices = random.Random(15500)
    order = [f"mixed:{choices.randrange(keys)}" for _ in range(min(keys, 100_000))]
    size = len(order)

    async def synap_mixed(client: Any) -> Operation:
        get, set = client.kv.get, client.kv.set
        return lambda number: set(order[number % size], TEXT) if number % 5 == 0 else get(order[number % size])

    async def redis_mixed(client: Any) -> Operation:
        get, set = client.get, client.set
        return lambda number: set(order[number % size], RAW) if number % 5 == 0 else get(order[number % size])

    contenders = [
        contender("synap", ours, synap_client, synap_mixed, 100),
        contender("redis-py", theirs, redis_client, redis_mixed, 100),
    ]
    yield Case("mixed/async/100", f"80/20 over {keys:,} keys, async, 100 under way", contenders)


async def _load(plan: Plan, keys: int) -> None:
    await asyncio.gather(load_synap(plan.servers.synap(), keys), load_redis(plan.servers.valkey(), keys))


async def load_synap(server: Any, keys: int, prefix: str = "mixed") -> None:
    """Store `keys` values of 100 bytes, in batches."""
    async with synap_client(server) as client:
        for start in range(0, keys, 5000):
            numbers = range(start, min(start + 5000, keys))
            await client.batch(
                [{"command": "kv.set", "payload": {"key": f"{prefix}:{number}", "value": TEXT}} for number in numbers]
            )


async def load_redis(server: Any, keys: int, prefix: str = "mixed") -> None:
    """Store the same in valkey, in pipelines."""
    async with redis_client(server) as client:
        for start in range(0, keys, 5000):
            pipeline = client.pipeline(transaction=False)
            for number in range(start, min(start + 5000, keys)):
                pipeline.set(f"{prefix}:{number}", RAW)
            await pipeline.execute()


# --------------------------------------------------------------------------------------------------------------- batch


def batch(plan: Plan) -> Iterator[Case]:
    """Batches of 200 commands, half of them writes, one batch at a time, beside a pipeline of the same."""
    ours, theirs = plan.servers.synap(), plan.servers.valkey()
    half = BATCH // 2

    async def synap_batch(client: Any) -> Operation:
        def operation(number: int) -> Awaitable[Any]:
            commands: List[Any] = [
                {"command": "kv.set", "payload": {"key": name, "value": TEXT}} for name in NAMES[:half]
            ]
            commands += [{"command": "kv.get", "payload": {"key": name}} for name in NAMES[:half]]
            return client.batch(commands)  # type: ignore[no-any-return]

        return operation

    async def redis_pipeline(client: Any) -> Operation:
        def operation(number: int) -> Awaitable[Any]:
            pipeline = client.pipeline(transaction=False)
            for name in NAMES[:half]:
                pipeline.set(name, RAW)
            for name in NAMES[:half]:
                pipeline.get(name)
            return pipeline.execute()  # type: ignore[no-any-return]

        return operation

    contenders = [
        contender("synap", ours, synap_client, synap_batch, 1, weight=BATCH),
        contender("redis-py", theirs, redis_client, redis_pipeline, 1, weight=BATCH),
    ]
    yield Case(f"batch/{BATCH}", f"batch of {BATCH}, half writes, one batch at a time", contenders, unit="commands")


# --------------------------------------------------------------------------------------------------------------- sizes


def sizes(plan: Plan) -> Iterator[Case]:
    """Values of 100 bytes, 10 KB and 1 MB, written and read in turn, 10 under way."""
    ours, theirs = plan.servers.synap(), plan.servers.valkey()
    for size, shown in ((100, "100 B"), (10_000, "10 KB"), (1_000_000, "1 MB")):
        title = f"set and get in turn, values of {shown}, async, 10 under way"
        yield Case(f"size/{size}", title, _sized(ours, theirs, size))


def _sized(ours: Any, theirs: Any, size: int) -> List[Contender]:
    text = "x" * size
    raw = text.encode()

    async def synap_one(client: Any) -> Operation:
        get, set = client.kv.get, client.kv.set
        for name in NAMES[:20]:
            await set(name, text)
        return lambda number: get(NAMES[number % 20]) if number % 2 else set(NAMES[number % 20], text)

    async def redis_one(client: Any) -> Operation:
        get, set = client.get, client.set
        for name in NAMES[:20]:
            await set(name, raw)
        return lambda number: get(NAMES[number % 20]) if number % 2 else set(NAMES[number % 20], raw)

    return [
        contender("synap", ours, synap_client, synap_one, 10),
        contender("redis-py", theirs, redis_client, redis_one, 10),
    ]
