"""Take and lose one lock thousands of times, and see that its fences tell who came later.

    python -m tests.adversary.locks --rounds 10000     in one process, by a clock that is stepped (a minute or two)
    python -m tests.adversary.locks --processes 4      processes that are stopped, continued and killed, and a service
                                                       that is killed as well (--seconds 60)

Holders change a resource that does what the guide tells a resource to do: it remembers the greatest fence it has seen
and refuses smaller ones. Each change reads a number, lets others run, and writes the number plus one. If two holders
ever had fences that don't tell which of them came later, a change would be lost, or made twice.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from synap import AsyncSynapClient, LockLostError, SynapClient, SynapError
from synap.testing import TestClock, ThrowawayServer

__all__ = ["Resource", "check_log", "process_rounds", "rounds"]

ROOT = Path(__file__).resolve().parents[2]


class Refused(Exception):
    """The resource has seen a greater fence."""


class Resource:
    """A number that holders count up, and the fences by which each step was made."""

    def __init__(self) -> None:
        self.value = 0
        self.greatest = 0
        self.log: List[Tuple[int, str, int]] = []

    def read(self, fence: int) -> int:
        """Return the number to a holder with this fence."""
        self._admit(fence)
        return self.value

    def write(self, fence: int, holder: str, value: int) -> None:
        """Set the number."""
        self._admit(fence)
        self.value = value
        self.log.append((fence, holder, value))

    def _admit(self, fence: int) -> None:
        if fence < self.greatest:
            raise Refused(f"fence {fence}, and {self.greatest} was here")
        self.greatest = fence


def check_log(log: List[Tuple[int, str, int]]) -> None:
    """Raise `AssertionError` unless every step was made once, in the order of the fences, one holder a fence."""
    fences = [fence for fence, _, _ in log]
    assert fences == sorted(set(fences)), "a fence came twice, or after a greater one"
    assert [value for _, _, value in log] == list(range(1, len(log) + 1)), "a step was lost or made twice"


# ------------------------------------------------------------------------------------------ one process


async def rounds(count: int, *, holders: int = 6, seed: Optional[int] = None) -> Dict[str, int]:
    """Hold the lock `count` times: given back, abandoned as by a crash, or kept by one who was paused too long.

    The engine's clock is stepped all the while, far faster than anybody renews, so that locks run out under holders
    that believe to have them.
    """
    chance = random.Random(seed)
    clock = TestClock()
    url = f"memory://{uuid.uuid4().hex}"
    resource = Resource()
    fates: Dict[str, int] = Counter()
    left = count

    async def hold(who: str) -> None:
        nonlocal left
        async with AsyncSynapClient(url=url, clock=clock) as client:
            while left > 0:
                lock = client.lock("the one", ttl=2)
                await lock.acquire()
                left -= 1
                fate = chance.choice(("given back", "given back", "abandoned", "paused"))
                if fate != "given back":
                    lock._released.set()  # nobody renews it any more, as in a process that stands still
                if fate == "paused":
                    over = clock.now + chance.uniform(0, 4)
                    while clock.now < over:
                        await asyncio.sleep(0.001)
                try:
                    number = resource.read(lock.fence)
                    await asyncio.sleep(0)
                    resource.write(lock.fence, who, number + 1)
                except Refused:
                    fate = "refused"
                if fate != "abandoned":
                    try:
                        await lock.release()
                    except LockLostError:
                        fate += ", lost"
                fates[fate] += 1

    async def step() -> None:
        while True:
            await asyncio.sleep(0.001)
            clock.advance(chance.uniform(0, 1))

    stepping = asyncio.ensure_future(step())
    await asyncio.gather(*(hold(f"holder {number}") for number in range(holders)))
    stepping.cancel()
    await asyncio.wait({stepping})
    check_log(resource.log)
    assert sum(fates.values()) >= count
    return dict(fates)


# ------------------------------------------------------------------------------------------ processes


class FileResource:
    """The same in a file, for several processes; what a process that is killed has begun is not there."""

    def __init__(self, path: str) -> None:
        self._path = path

    @contextlib.contextmanager
    def open(self) -> Iterator[Resource]:
        """Give the resource to one process at a time, and keep what it did."""
        with open(self._path + ".mutex", "w") as mutex:
            fcntl.flock(mutex, fcntl.LOCK_EX)
            resource = Resource()
            if os.path.exists(self._path):
                with open(self._path) as file:
                    state: Dict[str, Any] = json.load(file)
                resource.value, resource.greatest = state["value"], state["greatest"]
                resource.log = [(fence, holder, value) for fence, holder, value in state["log"]]
            yield resource
            with open(self._path + ".new", "w") as file:
                json.dump({"value": resource.value, "greatest": resource.greatest, "log": resource.log}, file)
            os.replace(self._path + ".new", self._path)


def holder(url: str, path: str) -> None:
    """Hold the lock again and again, until killed."""
    files = FileResource(path)
    who = str(os.getpid())
    chance = random.Random()
    with SynapClient(url=url, retries=50, retry_max_delay=0.2) as client:
        while True:
            try:
                with client.lock("the one", ttl=1) as lock:
                    with files.open() as resource:
                        number = resource.read(lock.fence)
                    time.sleep(chance.uniform(0, 0.01))
                    with files.open() as resource:
                        resource.write(lock.fence, who, number + 1)
            except (Refused, SynapError):
                continue


def process_rounds(seconds: float, folder: str, *, processes: int = 3, seed: Optional[int] = None) -> Resource:
    """Stop, continue and kill holders, and kill the service, for so long; returns the resource."""
    chance = random.Random(seed)
    path = os.path.join(folder, "resource.json")
    with ThrowawayServer(data=os.path.join(folder, "data")) as server:
        command = [sys.executable, "-m", "tests.adversary.locks", "--hold", server.url, path]
        running = [subprocess.Popen(command, cwd=ROOT) for _ in range(processes)]
        try:
            begun = time.monotonic() + 120
            while not os.path.exists(path) and time.monotonic() < begun:  # until one of them has held the lock
                time.sleep(0.05)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                time.sleep(chance.uniform(0.1, 0.5))
                process = chance.choice(running)
                what = chance.random()
                if what < 0.5:  # longer than the lock lasts
                    process.send_signal(signal.SIGSTOP)
                    time.sleep(chance.uniform(1.1, 2.0))
                    process.send_signal(signal.SIGCONT)
                elif what < 0.8:
                    process.kill()
                    process.wait()
                    running.remove(process)
                    running.append(subprocess.Popen(command, cwd=ROOT))
                else:
                    server.restart()
        finally:
            for process in running:
                process.kill()
                process.wait()
    with FileResource(path).open() as resource:
        check_log(resource.log)
        return resource


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--processes", type=int)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--hold", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hold:
        holder(*options.hold)
    began = time.monotonic()
    if options.processes:
        with tempfile.TemporaryDirectory() as folder:
            resource = process_rounds(options.seconds, folder, processes=options.processes, seed=options.seed)
        said = f"{resource.value} steps by {len({who for _, who, _ in resource.log})} processes"
    else:
        said = ", ".join(
            f"{n} {fate}" for fate, n in sorted(asyncio.run(rounds(options.rounds, seed=options.seed)).items())
        )
    print(f"{said}; in {time.monotonic() - began:.0f} s, and no step was lost or made twice")  # noqa: T201


if __name__ == "__main__":
    main()
