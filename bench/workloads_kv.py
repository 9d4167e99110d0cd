"""Keys and values: one by one and many under way, async and sync, small and large, one million of them, in batches.

An operation is made by the same function for the async and the blocking client: what it returns is awaited or not.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any, Callable, Iterator, List

from bench.clients import (
    contender,
    echo_line,
    echo_pipe,
    redis_client,
    redis_for,
    redis_sync,
    synap_client,
    synap_msgpack,
    synap_sync,
    sync_contender,
)
from bench.measure import Case
from bench.peers import Server
from bench.plan import SECONDARY, THREADS, WIDTHS, Plan, threads_title, width_title

__all__ = ["batch", "kv", "load_redis", "load_synap", "mixed", "redis_set", "sizes", "synap_set", "sync"]

NAMES = [f"key:{number}" for number in range(1000)]
TEXT = "x" * 100
RAW = TEXT.encode()
BATCH = 200

Prepare = Callable[[Any], Callable[[int], Any]]
"""Makes an operation of a connected client."""


def synap_set(client: Any) -> Callable[[int], Any]:
    set = client.kv.set
    return lambda number: set(NAMES[number % 1000], TEXT)


def redis_set(client: Any) -> Callable[[int], Any]:
    set = client.set
    return lambda number: set(NAMES[number % 1000], RAW)


def synap_get(client: Any) -> Callable[[int], Any]:
    get = client.kv.get
    return lambda number: get(NAMES[number % 1000])


def redis_get(client: Any) -> Callable[[int], Any]:
    get = client.get
    return lambda number: get(NAMES[number % 1000])


def synap_incr(client: Any) -> Callable[[int], Any]:
    incr = client.kv.incr
    return lambda number: incr("counter")


def redis_incr(client: Any) -> Callable[[int], Any]:
    incr = client.incr
    return lambda number: incr("counter")


def echo(client: Any) -> Callable[[int], Any]:
    return client.call  # type: ignore[no-any-return]


OPERATIONS = (("get", synap_get, redis_get), ("set", synap_set, redis_set), ("incr", synap_incr, redis_incr))


def kv(plan: Plan) -> Iterator[Case]:
    """Set, get and incr with 1, 10, 100 and 1000 calls under way, beside redis-py and the bare echo."""
    ours, theirs, floor = plan.servers.synap(), plan.servers.valkey(), plan.servers.echo()
    plan.run(_load(plan, len(NAMES), "key"))
    for name, synap_one, redis_one in OPERATIONS:
        for width in WIDTHS:
            contenders = [
                contender("synap", ours, synap_client, synap_one, width),
                contender("redis-py", theirs, redis_for(width), redis_one, width),
            ]
            if name == "get":
                contenders.append(contender("echo", floor, echo_pipe, echo, width))
            rounds = None if name != "incr" and width in (1, 100) else SECONDARY
            yield Case(f"{name}/async/{width}", f"{name}, async, {width_title(width)}", contenders, rounds=rounds)


# ---------------------------------------------------------------------------------------------------------------- sync


def sync(plan: Plan) -> Iterator[Case]:
    """Set, get and incr with the blocking clients, from one thread and from eight, beside a blocking echo."""
    ours, theirs, floor = plan.servers.synap(), plan.servers.valkey(), plan.servers.echo()
    plan.run(_load(plan, len(NAMES), "key"))
    for name, synap_one, redis_one in OPERATIONS:
        for threads in THREADS:
            contenders = [
                sync_contender("synap", ours, synap_sync, synap_one, threads),
                sync_contender("redis-py", theirs, redis_sync, redis_one, threads),
            ]
            if name == "get":
                contenders.append(sync_contender("echo", floor, echo_line, echo, threads))
            rounds = None if name != "incr" and threads == 1 else SECONDARY
            title = f"{name}, sync, {threads_title(threads)}"
            yield Case(f"{name}/sync/{threads}", title, contenders, sync=True, rounds=rounds)


# --------------------------------------------------------------------------------------------------------------- mixed


def mixed(plan: Plan) -> Iterator[Case]:
    """Four reads to one write over a million keys of 100 bytes, async and sync."""
    keys = plan.many(1_000_000, least=1000)
    ours, theirs = plan.servers.synap(), plan.servers.valkey()
    plan.run(_load(plan, keys, "mixed"))
    choices = random.Random(15500)
    order = [f"mixed:{choices.randrange(keys)}" for _ in range(min(keys, 100_000))]
    size = len(order)

    def synap_mixed(client: Any) -> Callable[[int], Any]:
        get, set = client.kv.get, client.kv.set
        return lambda number: set(order[number % size], TEXT) if number % 5 == 0 else get(order[number % size])

    def redis_mixed(client: Any) -> Callable[[int], Any]:
        get, set = client.get, client.set
        return lambda number: set(order[number % size], RAW) if number % 5 == 0 else get(order[number % size])

    for width in WIDTHS:
        contenders = [
            contender("synap", ours, synap_client, synap_mixed, width),
            contender("redis-py", theirs, redis_for(width), redis_mixed, width),
        ]
        title = f"80/20 over {keys:,} keys, async, {width_title(width)}"
        yield Case(f"mixed/async/{width}", title, contenders, rounds=None if width == 100 else SECONDARY)
    for threads in THREADS:
        contenders = [
            sync_contender("synap", ours, synap_sync, synap_mixed, threads),
            sync_contender("redis-py", theirs, redis_sync, redis_mixed, threads),
        ]
        title = f"80/20 over {keys:,} keys, sync, {threads_title(threads)}"
        yield Case(f"mixed/sync/{threads}", title, contenders, sync=True, rounds=SECONDARY)


async def _load(plan: Plan, keys: int, prefix: str) -> None:
    await asyncio.gather(
        load_synap(plan.servers.synap(), keys, prefix), load_redis(plan.servers.valkey(), keys, prefix)
    )


async def load_synap(server: Server, keys: int, prefix: str, text: str = TEXT) -> None:
    """Store `keys` values (of 100 bytes where nothing else is said), in batches."""
    async with synap_client(server) as client:
        for numbers in _portions(keys, len(text)):
            await client.batch(
                [{"command": "kv.set", "payload": {"key": f"{prefix}:{number}", "value": text}} for number in numbers]
            )


async def load_redis(server: Server, keys: int, prefix: str, text: str = TEXT) -> None:
    """Store the same in valkey, in pipelines."""
    raw = text.encode()
    async with redis_client(server) as client:
        for numbers in _portions(keys, len(text)):
            pipeline = client.pipeline(transaction=False)
            for number in numbers:
                pipeline.set(f"{prefix}:{number}", raw)
            await pipeline.execute()


def _portions(keys: int, size: int) -> Iterator[range]:
    """Split so many keys with values of `size` bytes into portions that one request can carry."""
    portion = max(1, min(5000, 5_000_000 // size))
    for start in range(0, keys, portion):
        yield range(start, min(start + portion, keys))


# --------------------------------------------------------------------------------------------------------------- batch


def batch(plan: Plan) -> Iterator[Case]:
    """Batches of 200 commands, half of them writes, beside a pipeline of the same, async and sync.

    Up to 100 batches at once. With 1000 of them 200,000 commands would be under way, about a second's work: a turn
    would show how long it takes to fill and to empty a queue.
    """
    ours, theirs = plan.servers.synap(), plan.servers.valkey()
    half = BATCH // 2

    def synap_batch(client: Any) -> Callable[[int], Any]:
        def operation(number: int) -> Any:
            commands: List[Any] = [
                {"command": "kv.set", "payload": {"key": name, "value": TEXT}} for name in NAMES[:half]
            ]
            commands += [{"command": "kv.get", "payload": {"key": name}} for name in NAMES[:half]]
            return client.batch(commands)

        return operation

    def redis_pipeline(client: Any) -> Callable[[int], Any]:
        def operation(number: int) -> Any:
            pipeline = client.pipeline(transaction=False)
            for name in NAMES[:half]:
                pipeline.set(name, RAW)
            for name in NAMES[:half]:
                pipeline.get(name)
            return pipeline.execute()

        return operation

    for width in WIDTHS[:3]:
        contenders = [
            contender("synap", ours, synap_client, synap_batch, width, weight=BATCH),
            contender("redis-py", theirs, redis_for(width), redis_pipeline, width, weight=BATCH),
        ]
        key, rounds = (f"batch/{BATCH}", None) if width == 1 else (f"batch/{BATCH}/{width}", SECONDARY)
        title = f"batch of {BATCH}, half writes, async, {width_title(width)}"
        yield Case(key, title, contenders, unit="commands", rounds=rounds)
    for threads in THREADS:
        contenders = [
            sync_contender("synap", ours, synap_sync, synap_batch, threads, weight=BATCH),
            sync_contender("redis-py", theirs, redis_sync, redis_pipeline, threads, weight=BATCH),
        ]
        title = f"batch of {BATCH}, half writes, sync, {threads_title(threads)}"
        key = f"batch/{BATCH}/sync/{threads}"
        yield Case(key, title, contenders, unit="commands", sync=True, rounds=SECONDARY)


# --------------------------------------------------------------------------------------------------------------- sizes


def sizes(plan: Plan) -> Iterator[Case]:
    """Values of 100 bytes, 10 KB and 1 MB, written and read in turn.

    Each key is written and then read: a client that reads what one of the other format wrote has it translated.

    A megabyte with 1 and 10 under way only: from 100 on, 100 MB and more would be in buffers on each side, and what is
    measured is how fast memory can be had.
    """
    ours, theirs = plan.servers.synap(), plan.servers.valkey()
    for size, shown in ((100, "100 B"), (10_000, "10 KB"), (1_000_000, "1 MB")):
        text = "x" * size
        plan.run(load_synap(ours, 20, f"size:{size}", text))
        plan.run(load_redis(theirs, 20, f"size:{size}", text))
        for width in WIDTHS if size < 1_000_000 else WIDTHS[:2]:
            contenders = [
                contender("synap", ours, synap_client, _synap_sized(size, text), width),
                contender("redis-py", theirs, redis_for(width), _redis_sized(size, text.encode()), width),
            ]
            key = f"size/{size}" if width == 10 else f"size/{size}/{width}"
            title = f"set and get of {shown} in turn, async, {width_title(width)}"
            yield Case(key, title, contenders, rounds=None if key == "size/1000000" else SECONDARY)
            if size > 100 and width <= 10:
                contenders = [
                    contender("synap", ours, synap_msgpack, _synap_sized(size, text), width),
                    contender("redis-py", theirs, redis_for(width), _redis_sized(size, text.encode()), width),
                ]
                title = f"set and get of {shown} in turn, MessagePack, async, {width_title(width)}"
                yield Case(f"size/{size}/msgpack/{width}", title, contenders, rounds=SECONDARY)


def _synap_sized(size: int, text: str) -> Prepare:
    names = [f"size:{size}:{number}" for number in range(20)]

    def prepare(client: Any) -> Callable[[int], Any]:
        get, set = client.kv.get, client.kv.set
        return lambda number: get(names[number // 2 % 20]) if number % 2 else set(names[number // 2 % 20], text)

    return prepare


def _redis_sized(size: int, raw: bytes) -> Prepare:
    names = [f"size:{size}:{number}" for number in range(20)]

    def prepare(client: Any) -> Callable[[int], Any]:
        get, set = client.get, client.set
        return lambda number: get(names[number // 2 % 20]) if number % 2 else set(names[number // 2 % 20], raw)

    return prepare
