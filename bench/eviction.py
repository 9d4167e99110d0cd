"""`python -m bench.eviction`: how often a cache that is too small has what is asked for, beside Valkey's volatile-lru.

Keys are read as in Zipf's law and stored where they are missing, with a ttl; there is room for a tenth of them. Both
are given the memory that a tenth of the keys takes in them. A true LRU of that many keys says what there is to reach.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import OrderedDict
from itertools import accumulate
from typing import Any, Callable, Iterator, List

import click
import valkey

from bench.peers import start_valkey
from synap import commands as c
from synap.engine.callers import Caller
from synap.engine.engine import Engine, Limits

TOGETHER = 50
"""Reads that go out together; what is missing is stored behind them."""
TTL = 10**6
VALUE: Any = b'"' + b"v" * 100 + b'"'

Read = Callable[[List[str]], List[bool]]


def trace(keys: int, reads: int, skew: float, seed: int) -> Iterator[List[str]]:
    """Give the names of keys that are read, some at a time."""
    rng = random.Random(seed)
    names = [f"key:{number:08d}" for number in range(keys)]
    rng.shuffle(names)
    weights = list(accumulate(rank**-skew for rank in range(1, keys + 1)))
    for _ in range(reads // TOGETHER):
        yield rng.choices(names, cum_weights=weights, k=TOGETHER)


def hit_rate(read: Read, store: Callable[[List[str]], object], keys: int, reads: int, skew: float) -> float:
    """Run the trace; the first half fills the cache and isn't counted."""
    hits = counted = 0
    for number, names in enumerate(trace(keys, reads, skew, 1)):
        found = read(names)
        if number >= reads // TOGETHER // 2:
            hits += sum(found)
            counted += len(found)
        store([name for name, there in zip(names, found) if not there])
    return hits / counted


def of_lru(keys: int, reads: int, skew: float) -> float:
    """Measure a true LRU."""
    held: OrderedDict[str, None] = OrderedDict()

    def read(names: List[str]) -> List[bool]:
        found = [name in held for name in names]
        for name, there in zip(names, found):
            if there:
                held.move_to_end(name)
        return found

    def store(names: List[str]) -> None:
        for name in names:
            held[name] = None
            if len(held) > keys // 10:
                held.popitem(last=False)

    return hit_rate(read, store, keys, reads, skew)


def of_synap(keys: int, reads: int, skew: float) -> float:
    """Measure the engine behind `synap serve --evict lru`."""
    caller, now = Caller(), 1_000_000.0

    def filled(memory: int, count: int) -> Engine:
        engine = Engine(ids=lambda: 1, limits=Limits(memory=memory, evict=True))
        for number in range(count):
            engine.execute(c.KvSet(f"fil:{number:08d}", VALUE, TTL), now, caller)
        return engine

    engine = filled(filled(1 << 50, keys // 10).budget.used, 0)

    def read(names: List[str]) -> List[bool]:
        answers: List[Any] = [engine.execute(c.KvGet(name), now, caller) for name in names]
        return [answer.found for answer in answers]

    def store(names: List[str]) -> None:
        for name in names:
            engine.execute(c.KvSet(name, VALUE, TTL), now, caller)

    return hit_rate(read, store, keys, reads, skew)


def of_valkey(keys: int, reads: int, skew: float) -> float:
    """Measure valkey-server with `maxmemory-policy volatile-lru`."""
    with tempfile.TemporaryDirectory() as directory:
        server = start_valkey(directory)
        try:
            client: Any = valkey.Valkey(port=server.port)

            def store(names: List[str]) -> None:
                pipeline = client.pipeline(transaction=False)
                for name in names:
                    pipeline.set(name, VALUE, ex=TTL)
                pipeline.execute()

            for first in range(0, keys // 10, 1000):
                store([f"fil:{number:08d}" for number in range(first, first + 1000)])
            memory = client.info("memory")["used_memory"]
            client.flushall()
            client.config_set("maxmemory", memory)
            client.config_set("maxmemory-policy", "volatile-lru")

            def read(names: List[str]) -> List[bool]:
                pipeline = client.pipeline(transaction=False)
                for name in names:
                    pipeline.get(name)
                return [value is not None for value in pipeline.execute()]

            return hit_rate(read, store, keys, reads, skew)
        finally:
            server.stop()


def cost(evict: bool, keys: int = 10_000) -> List[float]:
    """Return the microseconds of processor time that a set and a get of keys with a ttl take in the engine."""
    caller, now = Caller(), 1_000_000.0
    engine = Engine(ids=lambda: 1, limits=Limits(evict=evict))
    names = [f"key:{number:08d}" for number in range(keys)]
    took = []
    for payloads in ([c.KvSet(name, VALUE, TTL) for name in names], [c.KvGet(name) for name in names]):
        rounds = []
        for _ in range(15):
            began = time.process_time()
            for payload in payloads:
                engine.execute(payload, now, caller)
            rounds.append((time.process_time() - began) / keys * 1e6)
        took.append(min(rounds))
    return took


def costs() -> None:
    """Print what eviction costs where it is on; where it is off, its class isn't there."""
    for name, evict in (("off", False), ("on", True)):
        per_set, per_get = min(cost(evict) for _ in range(3))
        click.echo(f"  --evict {name:5} set {per_set:.2f} µs, get {per_get:.2f} µs in the engine")


@click.command()
@click.option("--cost", "only_cost", is_flag=True, help="Only what a set and a get cost, with eviction on and off.")
@click.option("--keys", default=1_000_000, show_default=True, help="Different keys; a tenth of them fits.")
@click.option("--reads", default=2_000_000, show_default=True, help="Reads; the first half fills the cache.")
@click.option("--skew", default=1.0, show_default=True, help="Exponent of Zipf's law.")
def main(only_cost: bool, keys: int, reads: int, skew: float) -> None:
    """Print the hit rate of each, and what a set and a get cost."""
    if only_cost:
        costs()
        return
    click.echo(f"{keys:,} keys, room for {keys // 10:,}, {reads:,} reads, Zipf {skew}")
    for name, measure in (("a true LRU", of_lru), ("synap --evict lru", of_synap), ("valkey volatile-lru", of_valkey)):
        click.echo(f"  {name:20} {measure(keys, reads, skew):.1%}")
    costs()


if __name__ == "__main__":
    main()
