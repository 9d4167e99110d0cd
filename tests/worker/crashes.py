"""Kill workers and the service while jobs run, and account for every job.

    python -m tests.worker.crashes --jobs 10000        10,000 jobs, kill -9 of both all the while (some minutes)

Every job is done at least once, its effects through `message.pipeline()` are there exactly once, and the ticks of the
periodic job fired once each. The test suite does the same with some hundreds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional

from synap import AsyncSynapClient
from synap.testing import ThrowawayServer

__all__ = ["Account", "crash_rounds"]

ROOT = Path(__file__).resolve().parents[2]
PART = 100
"""Jobs that are published together."""


@dataclass
class Account:
    """What came of all jobs."""

    jobs: int
    done: Dict[int, int]
    tries: int
    total: int
    ticks: List[int]
    worker_kills: int
    service_kills: int

    def check(self) -> None:
        """Raise `AssertionError` unless each job took effect exactly once."""
        wrong = {job: self.done.get(job, 0) for job in range(self.jobs) if self.done.get(job, 0) != 1}
        assert not wrong, f"{len(wrong)} jobs took effect not once: {dict(list(wrong.items())[:10])}"
        assert self.total == self.jobs
        assert self.tries >= self.jobs
        assert all(count == 1 for count in self.ticks), "a tick took effect twice"


class Workers:
    """Worker processes, which are replaced when they are killed."""

    def __init__(self, url: str, name: str, count: int, lease: float) -> None:
        self._environment = {**os.environ, "SYNAP_URL": url, "SYNAP_TEST_NAME": name, "SYNAP_TEST_LEASE": str(lease)}
        self._processes: List[subprocess.Popen[bytes]] = []
        for _ in range(count):
            self._start()

    def _start(self) -> None:
        command = [sys.executable, "-m", "synap.worker", "tests.worker.app:worker", "--lifeline"]
        self._processes.append(
            subprocess.Popen(command, cwd=ROOT, env=self._environment, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        )

    def kill_one(self, chance: random.Random) -> None:
        """Kill one with SIGKILL and start another."""
        process = self._processes.pop(chance.randrange(len(self._processes)))
        _end(process)
        self._start()

    def close(self) -> None:
        """Kill them all."""
        for process in self._processes:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


async def crash_rounds(
    jobs: int, data: str, *, workers: int = 2, lease: float = 1.0, pause: float = 0.7, seed: Optional[int] = None
) -> Account:
    """Publish jobs, kill a worker or the service every `pause` seconds until all are done, and count.

    A part of the jobs is published after each kill, so that there is something to do however fast the workers are.
    """
    chance = random.Random(seed)
    name = f"crash{chance.randrange(10**9)}"
    worker_kills = service_kills = 0
    with ThrowawayServer(data=data) as server:
        async with AsyncSynapClient(url=server.url, retries=30, retry_max_delay=0.5) as client:
            parts = iter([range(start, min(jobs, start + PART)) for start in range(0, jobs, PART)])

            async def publish_a_part() -> None:
                async with client.pipeline() as p:
                    published = [p.queue.publish(name, number) for number in next(parts, ())]
                for handle in published:
                    handle.result()

            await publish_a_part()
            running = Workers(server.url, name, workers, lease)
            try:
                until = time.monotonic() + 240 + jobs / 5
                before = -1
                while True:
                    await asyncio.sleep(pause * chance.uniform(0.5, 1.5))
                    found = await client.kv.get(f"{name}:total")
                    total = found.value or 0
                    if total >= jobs:
                        break
                    assert time.monotonic() < until, f"{total} of {jobs} jobs done"
                    if total == before:
                        continue  # whoever was killed last has to be back at work, however slow this machine is
                    before = total
                    if chance.random() < 0.4:
                        server.kill()
                        await asyncio.sleep(chance.uniform(0, 0.3))
                        server.start()
                        service_kills += 1
                    else:
                        running.kill_one(chance)
                        worker_kills += 1
                    await publish_a_part()
            finally:
                running.close()
            done: Dict[int, int] = {}
            tries = 0
            for start in range(0, jobs, 1000):
                numbers = range(start, min(jobs, start + 1000))
                for number, result in zip(numbers, await client.kv.mget(*(f"{name}:done:{n}" for n in numbers))):
                    done[number] = result.value or 0
                tries += sum(r.value or 0 for r in await client.kv.mget(*(f"{name}:tries:{n}" for n in numbers)))
            total = (await client.kv.get(f"{name}:total")).value or 0
            page = await client.kv.scan(f"{name}:tick:", count=10_000)
            ticks = [result.value or 0 for result in await client.kv.mget(*page.keys)] if page.keys else []
    return Account(jobs, done, tries, total, ticks, worker_kills, service_kills)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as data:
        began = time.monotonic()
        account = asyncio.run(crash_rounds(options.jobs, data, workers=options.workers, seed=options.seed))
        account.check()
        print(  # noqa: T201
            f"{account.jobs} jobs, {account.tries} tries, {account.worker_kills} workers and {account.service_kills} "
            f"times the service killed, {len(account.ticks)} ticks, in {time.monotonic() - began:.0f} s: each job "
            "took effect exactly once"
        )


if __name__ == "__main__":
    main()
