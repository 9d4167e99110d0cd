"""What an operation of the engine costs when little is there, and when a lot is.

No sockets, no disk: one call of `Engine.execute` after the other, in this process, so a cost that grows with what is
stored shows as such. Each figure is the median of several rounds, in microseconds. Run it as `python -m bench.growth`;
`--quick` fills a tenth.
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
import statistics
import subprocess
import sys
import time
from typing import Any, Callable, Iterator, List, Tuple

from synap import commands as c
from synap.engine.callers import Caller
from synap.engine.engine import Engine, Limits

ROUNDS = 7
CALLS = 2000
VALUE: Any = b'"' + b"x" * 98 + b'"'

Operation = Callable[[int], object]
"""Does the thing once; told which round of it this is."""


class Subscriber(Caller):
    """Takes everything and keeps nothing."""

    def push(self, subscription_id: int, item: object) -> bool:
        return True

    def answer(self, number: int, answer: object) -> None:
        pass


class Bench:
    """An engine, a clock that stands still, and what is measured on it."""

    def __init__(self) -> None:
        chance = random.Random(1)
        self.random = chance
        limits = Limits(room_events=10_000_000, subscriptions=10_000_000)
        self.engine = Engine(ids=lambda: chance.getrandbits(64), limits=limits)
        self.caller = Subscriber()
        self.now = 1_700_000_000.0

    def run(self, payload: Any) -> Any:
        return self.engine.execute(payload, self.now, self.caller)


def measure(operation: Operation, calls: int = CALLS) -> float:
    """Return the median over rounds of the microseconds that one call takes."""
    rounds: List[float] = []
    done = 0
    gc.collect()
    gc.freeze()
    try:
        for _ in range(ROUNDS):
            begun = time.process_time()
            for number in range(done, done + calls):
                operation(number)
            rounds.append((time.process_time() - begun) / calls * 1e6)
            done += calls
    finally:
        gc.unfreeze()
    return statistics.median(rounds)


# --------------------------------------------------------------------------------------- what is filled, what is done


def keys(count: int) -> Iterator[Tuple[str, float]]:
    bench = Bench()
    for number in range(count):
        bench.run(c.KvSet(f"key:{number:07}", VALUE))
    some = [f"key:{bench.random.randrange(count):07}" for _ in range(CALLS)]
    gets = [c.KvGet(key) for key in some]
    sets = [c.KvSet(key, VALUE) for key in some]
    new = [c.KvSet(f"key:{bench.random.randrange(count):07}:{number}", VALUE) for number in range(ROUNDS * CALLS)]
    pages = [bench.run(c.KvScan("key:", None, 100)).cursor]
    pages += [bench.run(c.KvScan("key:", pages[0], min(count // 2, 10_000))).cursor]
    scans = [c.KvScan("key:", cursor, 100) for cursor in pages]
    yield "kv.get", measure(lambda n: bench.run(gets[n % CALLS]))
    yield "kv.set of a key that is there", measure(lambda n: bench.run(sets[n % CALLS]))
    yield "kv.scan, a page of 100", measure(lambda n: bench.run(scans[n % 2]), 200)
    yield "kv.set of a new key", measure(lambda n: bench.run(new[n]))
    yield "kv.set with ttl", measure(lambda n: bench.run(c.KvSet(some[n % CALLS], VALUE, 60)))
    yield "kv.del", measure(lambda n: bench.run(c.KvDel([new[n].key])))


def expiries(count: int) -> Iterator[Tuple[str, float]]:
    bench = Bench()
    for number in range(count + ROUNDS * CALLS):
        bench.run(c.KvSet(f"key:{number:07}", VALUE, number + 1))

    def expire(number: int) -> None:
        bench.now += 1
        bench.engine.advance(bench.now)

    yield "a key expires", measure(expire)
    assert bench.engine.stats()["keys"] == count


def messages(count: int) -> Iterator[Tuple[str, float]]:
    bench = Bench()
    bench.run(c.QueueCreate("q", c.QueueConfig(max_depth=100_000_000)))
    for _ in range(count):
        bench.run(c.QueuePublish("q", VALUE, bench.random.randrange(10)))
    publish = [c.QueuePublish("q", VALUE, priority) for priority in range(10)]
    answers: List[c.MessageAnswer] = []
    yield "queue.publish, with its position", measure(lambda n: bench.run(publish[n % 10]))
    yield "queue.consume", measure(lambda n: answers.append(bench.run(c.QueueConsume("q"))), CALLS // 20)
    yield "queue.nack", measure(lambda n: bench.run(c.QueueNack("q", answers.pop().message_id)), CALLS // 20)

    def whole(number: int) -> None:
        bench.run(publish[number % 10])
        bench.run(c.QueueAck("q", bench.run(c.QueueConsume("q")).message_id))

    yield "publish, consume and ack", measure(whole)
    yield "queue.stats", measure(lambda n: bench.run(c.QueueStats("q")))


def leases(count: int) -> Iterator[Tuple[str, float]]:
    bench = Bench()
    bench.run(c.QueueCreate("q", c.QueueConfig(max_depth=100_000_000)))
    total = count + ROUNDS * CALLS
    held: List[c.MessageAnswer] = []
    for _ in range(total):
        bench.run(c.QueuePublish("q", VALUE))
    for number in range(total):
        held.append(bench.run(c.QueueConsume("q", 0, 100_00 + number * 0.5)))
    settle = iter(bench.random.sample(held[ROUNDS * CALLS :], count))

    def settle_one(number: int) -> None:
        answer = next(settle)
        bench.run(c.QueueAck("q", answer.message_id, answer.lease))

    yield "queue.extend", measure(lambda n: bench.run(c.QueueExtend("q", held[-1].message_id, 86_000)))
    yield "queue.ack of any lease", measure(settle_one, min(CALLS, count // (2 * ROUNDS)))

    def expire(number: int) -> None:
        bench.now = held[number].deadline
        bench.engine.advance(bench.now)

    yield "a lease ends", measure(expire)
    assert bench.run(c.QueueStats("q")).depth == ROUNDS * CALLS


def events(count: int) -> Iterator[Tuple[str, float]]:
    bench = Bench()
    publish = c.StreamPublish("r", "happened", VALUE)
    for _ in range(count):
        bench.run(publish)
    offsets = [bench.random.randrange(count) for _ in range(CALLS)]
    yield (
        "stream.history, 10 anywhere",
        measure(lambda n: bench.run(c.StreamHistory("r", offsets[n % CALLS], limit=10))),
    )
    yield "stream.publish", measure(lambda n: bench.run(publish))
    bench.engine.limits.room_events = count
    bench.run(publish)
    yield "stream.publish, the oldest going", measure(lambda n: bench.run(publish))


def patterns(count: int) -> Iterator[Tuple[str, float]]:
    bench = Bench()
    for number in range(count):
        kind = number % 4
        pattern = (
            f"shop.{number}.*"
            if kind == 0
            else f"*.{number}.paid"
            if kind == 1
            else f"shop.#.{number}"
            if kind == 2
            else f"shop.{number}.paid"
        )
        bench.run(c.PubSubSubscribe([pattern]))
    topics = [c.PubSubPublish(f"shop.{bench.random.randrange(count)}.paid", VALUE) for _ in range(CALLS)]
    yield "pubsub.publish, 3 words", measure(lambda n: bench.run(topics[n % CALLS]))
    yield (
        "subscribe and unsubscribe",
        measure(lambda n: bench.run(c.PubSubUnsubscribe(bench.run(c.PubSubSubscribe(["shop.*.new"])).subscription_id))),
    )


GROWTH: List[Tuple[str, Callable[[int], Iterator[Tuple[str, float]]], int]] = [
    ("keys", keys, 1_000_000),
    ("keys that expire", expiries, 1_000_000),
    ("ready messages", messages, 1_000_000),
    ("leases", leases, 100_000),
    ("events in a room", events, 100_000),
    ("subscribed patterns", patterns, 100_000),
]


def memory(count: int) -> float:
    """Return the MB that `count` keys of about 11 bytes with values of 100 bytes add to a process, measured in a fresh
    one."""
    code = f"from bench.growth import resident; print(resident({count}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout)


def resident(count: int) -> float:
    """Fill an engine with `count` keys, each value bytes of its own, and return the peak MB of this process."""
    bench = Bench()
    for number in range(count):
        value: Any = b'"%098d"' % number
        bench.run(c.KvSet(f"key:{number:07}", value))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fill a tenth of what the full table fills")
    quick = parser.parse_args().quick
    write = sys.stdout.write
    write(f"{'microseconds a call':<42}{'1,000':>10}{'many':>10}{'ratio':>8}\n")
    for title, fill, many in GROWTH:
        many = many // 10 if quick else many
        write(f"\n{many:,} {title}\n")
        few = dict(fill(1000))
        for name, cost in fill(many):
            write(f"  {name:<40}{few[name]:>10.2f}{cost:>10.2f}{cost / few[name]:>8.2f}\n")
    count = 100_000 if quick else 1_000_000
    write(f"\n{count:,} keys with values of 100 bytes: {memory(count):.0f} MB resident\n")


if __name__ == "__main__":
    main()
