"""Figures of durability on this machine: `python -m tests.storage.measure [name …]`.

commits     cost of a commit, one by one and with 100 writes under way, by mode
recovery    seconds until 1,000,000 keys, messages or events are served again
stalls      how long a request waits at most, with and without a snapshot being taken
disk        bytes on disk under endless overwrites, against what is live
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import shutil
import sys
import tempfile
import threading
import time
from typing import Any, Callable, Dict, List

from msgspec import Struct

from synap.engine.engine import Engine
from synap.host import EngineHost
from synap.storage import open_host
from tests.helpers.driver import Client, c

VALUE: Any = b'"' + b"x" * 98 + b'"'


def directory_size(directory: str) -> int:
    """Return the bytes that a directory's files take."""
    total = 0
    for entry in os.scandir(directory):
        try:
            total += entry.stat().st_blocks * 512
        except FileNotFoundError:
            pass
    return total


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Load:
    """Keeps `under_way` requests under way on one host in the running loop and notes how long each takes."""

    def __init__(self, host: EngineHost, make: Callable[[int], Struct], under_way: int) -> None:
        self.host = host
        self.make = make
        self.under_way = under_way
        self.client = Client(host, "a" * 32)
        self.client.on_answer = self._answered
        self.begun: Dict[int, float] = {}
        self.waits: List[float] = []
        self.sent = self.count = 0
        self.until = 0.0
        self.done = asyncio.Event()
        self._ready = 0
        self._scheduled = False

    async def run(self, count: int) -> float:
        """Do `count` requests; returns requests a second."""
        self.count = self.sent + count
        self.done.clear()
        began = time.perf_counter()
        self._ready = self.under_way
        self._send()
        await self.done.wait()
        return count / (time.perf_counter() - began)

    def _send(self) -> None:
        self._scheduled = False
        ready, self._ready = self._ready, 0
        if self.host.stalled:
            self._scheduled = True
            self._ready = ready
            self.host.when_flowing(self._send)
            return
        now = time.perf_counter()
        for _ in range(min(ready, self.count - self.sent)):
            self.sent += 1
            self.begun[self.sent] = now
            payload = self.make(self.sent)
            self.host.execute(self.client, self.sent, c.BY_PAYLOAD[type(payload)], payload, decoded=True)
        self.host.end_turn()

    def _answered(self, number: Any, outcome: Any) -> None:
        self.client.answers.clear()
        self.waits.append(time.perf_counter() - self.begun.pop(number))
        if self.sent < self.count:
            self._ready += 1
            if not self._scheduled:
                self._scheduled = True
                asyncio.get_running_loop().call_soon(self._send)
        elif not self.begun:
            self.done.set()


def setter(keys: int) -> Callable[[int], Struct]:
    return lambda number: c.KvSet(f"key:{number * 7919 % keys:012d}", VALUE)


def quantile(waits: List[float], share: float) -> float:
    return sorted(waits)[min(int(len(waits) * share), len(waits) - 1)]


async def commits(directory: str) -> None:
    loop = asyncio.get_running_loop()
    memory = Load(EngineHost(Engine(ids=lambda: 1)), setter(100_000), 100)
    base = await memory.run(100_000)
    say(f"memory     100 under way: {base:9,.0f} sets/s (host only, no sockets)")
    for mode in ("always", "everysec", "no"):
        target = os.path.join(directory, mode)
        durable = open_host(target, fsync=mode, call=loop.call_soon_threadsafe)
        cpu = resource.getrusage(resource.RUSAGE_SELF)
        one = await Load(durable.host, setter(100_000), 1).run(2_000)
        load = Load(durable.host, setter(100_000), 100)
        many = await load.run(100_000)
        used = resource.getrusage(resource.RUSAGE_SELF)
        figures = durable.log.figures()
        each = figures["commit_seconds_total"] / figures["commits_total"] * 1e6
        spent = used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime
        await loop.run_in_executor(None, durable.close)
        say(
            f"{mode:9}  one by one {one:7,.0f}/s, 100 under way {many:8,.0f}/s ({many / base:.0%} of memory), "
            f"{each:5.0f} µs a commit, {spent / 102_000 * 1e6:.1f} µs CPU a set"
        )


MAKERS: Dict[str, Callable[[int], Struct]] = {
    "keys": setter(1_000_000),
    "messages": lambda number: c.QueuePublish(f"queue:{number % 10}", VALUE),
    "events": lambda number: c.StreamPublish(f"room:{number % 10}", "said", VALUE),
}


async def recovery(directory: str, count: int = 1_000_000) -> None:
    loop = asyncio.get_running_loop()
    for what, make in MAKERS.items():
        target = os.path.join(directory, what)
        durable = open_host(target, fsync="no", call=loop.call_soon_threadsafe)
        load = Load(durable.host, make, 1000)
        load.client.session = ""
        await load.run(count)
        await loop.run_in_executor(None, durable.close)
        del durable, load
        for attempt in ("from snapshot and log", "again"):
            began = time.perf_counter()
            durable = open_host(target, fsync="no", call=loop.call_soon_threadsafe)
            took = time.perf_counter() - began
            log = durable.log.snapshots.log_bytes
            figures = durable.log.figures()
            say(
                f"{count:,} {what}: served again after {took:.2f} s ({attempt}: "
                f"{figures['snapshot_bytes'] / 1e6:.0f} MB of snapshot, {log / 1e6:.0f} MB of log, "
                f"{directory_size(target) / 1e6:.0f} MB on disk)"
            )
            await loop.run_in_executor(None, durable.close)
            del durable


async def stalls(directory: str) -> None:
    loop = asyncio.get_running_loop()
    for mode in ("always", "everysec"):
        target = os.path.join(directory, mode)
        durable = open_host(target, fsync=mode, call=loop.call_soon_threadsafe, snapshot_minimum=1 << 40)
        await Load(durable.host, setter(1_000_000), 1000).run(1_000_000)
        snapshots = durable.log.snapshots
        for attempt in ("without", "with"):
            load = Load(durable.host, setter(1_000_000), 20)
            if attempt == "with":
                before = snapshots.taken
                snapshots.running = True
                snapshots.begin()
                while snapshots.taken == before:
                    await load.run(2_000)
            else:
                for _ in range(20):
                    await load.run(2_000)
            p50, p99, p999 = (quantile(load.waits, share) * 1e3 for share in (0.5, 0.99, 0.999))
            say(
                f"{mode:9} {attempt:8} a snapshot of 1M keys: {len(load.waits)} sets, 20 under way: p50 {p50:.2f} ms, "
                f"p99 {p99:.2f} ms, p99.9 {p999:.2f} ms, most {max(load.waits) * 1e3:.2f} ms"
            )
        await loop.run_in_executor(None, durable.close)
        shutil.rmtree(target)


async def disk(directory: str) -> None:
    loop = asyncio.get_running_loop()
    for mode in ("always", "everysec"):
        target = os.path.join(directory, mode)
        durable = open_host(target, fsync=mode, call=loop.call_soon_threadsafe)
        keys = 1_000_000
        load = Load(durable.host, setter(keys), 1000)
        load.client.session = ""
        await load.run(keys)
        live = keys * (16 + 100)
        most: List[int] = [0]
        stop = threading.Event()

        def watch(target: str = target, most: List[int] = most, stop: threading.Event = stop) -> None:
            while not stop.wait(0.02):
                most[0] = max(most[0], directory_size(target))

        watcher = threading.Thread(target=watch)
        watcher.start()
        rate = await load.run(keys * 4)
        stop.set()
        watcher.join()
        figures = durable.log.figures()
        say(
            f"{mode:9} {keys:,} keys of 116 bytes overwritten 4 times at {rate:,.0f}/s: live {live / 1e6:.1f} MB "
            f"(as records {figures['snapshot_bytes'] / 1e6:.1f} MB), most on disk {most[0] / 1e6:.1f} MB = "
            f"{most[0] / figures['snapshot_bytes']:.2f} x the records, {most[0] / live:.2f} x keys and values; "
            f"{figures['snapshots_total']} snapshots"
        )
        await loop.run_in_executor(None, durable.close)


def main() -> None:
    known = {"commits": commits, "recovery": recovery, "stalls": stalls, "disk": disk}
    parser = argparse.ArgumentParser(
        "python -m tests.storage.measure", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(known)}; all of them by default")
    names: List[str] = parser.parse_args().names
    for name in names:
        if name not in known:
            parser.error(f"there is no {name!r}, there is {', '.join(known)}")
    for name in names or known:
        with tempfile.TemporaryDirectory(prefix="synap-measure-") as directory:
            asyncio.run(known[name](directory))


if __name__ == "__main__":
    main()
