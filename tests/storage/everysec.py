"""Measure what `fsync=everysec` loses when the service is killed: `python -m tests.storage.everysec [--kills 30]`.

Each round writes to a service under load, kills it with SIGKILL at a moment of chance, starts it again and counts the
writes that were answered before the kill and are gone. Ages count back from the kill to when the client had the
answer. A kill of the process takes nothing that was handed to the system, so this says nothing about power cuts.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import tempfile
import time
import urllib.request
from typing import Dict, List, NamedTuple, Tuple

from synap import AsyncSynapClient, SynapClient, SynapError
from synap.testing.server import ThrowawayServer

__all__ = ["LOADS", "Load", "Outcome", "run"]


class Load(NamedTuple):
    """How is written: so many callers at once, values of so many bytes, so many seconds between bursts."""

    callers: int
    size: int
    pause: float = 0.0


LOADS = {
    "one by one": Load(1, 100),
    "100 under way": Load(100, 100),
    "1,000 under way": Load(1000, 100),
    "100 under way, 20 KB each": Load(100, 20_000),
    "bursts of 2,000": Load(2000, 100, 0.2),
}


class Outcome(NamedTuple):
    """What became of what was answered: for each caller, in order, seconds before the kill, and whether it is there."""

    callers: List[List[Tuple[float, bool]]]

    @property
    def answered(self) -> int:
        return sum(map(len, self.callers))

    @property
    def lost(self) -> List[float]:
        """The ages of the answers that are lost, the oldest first."""
        return sorted((age for caller in self.callers for age, there in caller if not there), reverse=True)


def _commits(server: ThrowawayServer) -> float:
    """Return how many commits the service's log has made."""
    with urllib.request.urlopen(server.url + "/metrics", timeout=60) as answer:
        found = re.search(rb"^synap_log_commits_total (\S+)", answer.read(), re.M)
    assert found is not None
    return float(found[1])


async def _write(server: ThrowawayServer, load: Load, answers: int, seconds: float) -> List[List[float]]:
    """Write until so many answers have come, one commit was made and so many seconds have passed, and kill.

    Returns the ages of the answers.
    """
    loop = asyncio.get_running_loop()
    before = await loop.run_in_executor(None, _commits, server)
    answered: List[List[float]] = [[] for _ in range(load.callers)]
    value = "x" * load.size
    over = asyncio.Event()

    async def write(client: AsyncSynapClient, caller: int) -> None:
        while not over.is_set():
            try:
                await client.kv.set(f"{caller}:{len(answered[caller])}", value)
            except SynapError:
                return
            answered[caller].append(time.monotonic())
            if load.pause:
                await asyncio.sleep(load.pause - time.monotonic() % load.pause)  # all callers at the same time

    async with AsyncSynapClient(url=server.url, retries=0) as client:
        writers = [asyncio.ensure_future(write(client, caller)) for caller in range(load.callers)]
        await asyncio.sleep(seconds)
        while sum(map(len, answered)) < answers or await loop.run_in_executor(None, _commits, server) == before:
            await asyncio.sleep(0.01)
        killed = time.monotonic()
        await loop.run_in_executor(None, server.kill)
        over.set()
        await asyncio.gather(*writers)
    return [[killed - at for at in caller] for caller in answered]


def run(load: Load, fsync: str, answers: int, seconds: float = 0.0) -> Outcome:
    """Do one round."""
    with tempfile.TemporaryDirectory(prefix="synap-everysec-") as data:
        with ThrowawayServer(data=data, arguments=("--fsync", fsync)) as server:
            ages = asyncio.run(_write(server, load, answers, seconds))
            server.start()
            keys = [f"{caller}:{number}" for caller, own in enumerate(ages) for number in range(len(own))]
            there: Dict[str, bool] = {}
            with SynapClient(url=server.url, timeout=60.0) as client:
                for at in range(0, len(keys), 1000):
                    some = keys[at : at + 1000]
                    there.update(zip(some, (found.found for found in client.kv.mget(*some))))
    return Outcome(
        [[(age, there[f"{caller}:{number}"]) for number, age in enumerate(own)] for caller, own in enumerate(ages)]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.storage.everysec",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=30, help="rounds, taking the loads in turn (default: %(default)s)")
    parser.add_argument("--fsync", default="everysec", choices=("everysec", "no", "always"))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    rounds: Dict[str, List[Outcome]] = {name: [] for name in LOADS}
    for number in range(options.kills):
        name = list(LOADS)[number % len(LOADS)]
        rounds[name].append(run(LOADS[name], options.fsync, 1, chance.uniform(0.5, 2.5)))
    columns = ("kills", "answered", "lost", "most at once", "oldest", "apart")
    sys.stdout.write(f"{'load':<26}" + "".join(f"{column:>14}" for column in columns) + "\n")
    for name, outcomes in rounds.items():
        losses = [one.lost for one in outcomes if one.lost] or [[0.0]]
        figures = (
            f"{len(outcomes)}",
            f"{sum(one.answered for one in outcomes):,}",
            f"{sum(len(one.lost) for one in outcomes):,}",
            f"{max(len(one.lost) for one in outcomes):,}" if outcomes else "",
            f"{1000 * max(0.0, *(loss[0] for loss in losses)):.0f} ms",
            f"{1000 * max(loss[0] - loss[-1] for loss in losses):.0f} ms",
        )
        sys.stdout.write(f"{name:<26}" + "".join(f"{figure:>14}" for figure in figures) + "\n")
    sys.stdout.write(
        "oldest: when before the kill the oldest of the lost was answered; apart: oldest and newest of the lost\n"
    )


if __name__ == "__main__":
    main()
