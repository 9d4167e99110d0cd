"""How things are measured: contenders take turns, every figure is a median over the rounds.

A *contender* is a client with its server. `open` connects it and gives a *run*: called with a number of seconds it
keeps its workload going that long and tells what it did. Contenders of a case take turns, A B A B, and every second
round the other way round, so that what else the machine does hits all of them alike. A ratio is the median of the
ratios of the rounds.

Processor time is what noise moves least. It is read from the process itself for the client, from /proc for the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import math
import os
import statistics
import threading
import time
from dataclasses import dataclass, field
from typing import Any, AsyncContextManager, Awaitable, Callable, ContextManager, Dict, List, Optional, Sequence, Union

__all__ = [
    "AsyncRun",
    "Case",
    "Contender",
    "Outcome",
    "Run",
    "Sample",
    "Tally",
    "alternate",
    "alternate_sync",
    "percentile",
    "processor_seconds",
    "threaded",
    "under_way",
]

clock = time.perf_counter
PATIENCE = 60.0
"""Seconds a run may take longer than it was told to; then something is stuck, and the benchmark says so."""
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass
class Tally:
    """What one run did: operations, and how long single calls took (seconds; a call may be many operations)."""

    operations: int
    latencies: List[float] = field(default_factory=list)
    client_cpu: Optional[float] = None
    """Seconds of processor time, where other processes than this one were the clients."""


AsyncRun = Callable[[float], Awaitable[Tally]]
Run = Callable[[float], Tally]


@dataclass
class Sample:
    """One run, measured. Times in seconds; processor time is of user and system together."""

    operations: int
    seconds: float
    client_cpu: float
    server_cpu: float
    p50: float
    p99: float
    p999: float

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds


@dataclass
class Outcome:
    """All runs of one contender in one case."""

    contender: str
    samples: List[Sample]

    @property
    def rate(self) -> float:
        return statistics.median(sample.rate for sample in self.samples)

    @property
    def p50(self) -> float:
        return statistics.median(sample.p50 for sample in self.samples)

    @property
    def p99(self) -> float:
        return statistics.median(sample.p99 for sample in self.samples)

    @property
    def p999(self) -> float:
        return statistics.median(sample.p999 for sample in self.samples)

    @property
    def client_cpu(self) -> float:
        """Client seconds of processor time for one operation, over all rounds."""
        return self._each("client_cpu")

    @property
    def server_cpu(self) -> float:
        """Server seconds of processor time for one operation, over all rounds."""
        return self._each("server_cpu")

    def _each(self, name: str) -> float:
        operations = sum(sample.operations for sample in self.samples)
        return float(sum(getattr(sample, name) for sample in self.samples)) / operations if operations else math.nan

    def ratio(self, other: Outcome) -> float:
        """How many times faster than `other`: the median over rounds measured side by side."""
        return statistics.median(a.rate / b.rate for a, b in zip(self.samples, other.samples))


@dataclass
class Contender:
    """A client with its server: `pid` of the server's process, or None where there is none of its own."""

    name: str
    pid: Optional[int]
    open: Callable[[], Union[AsyncContextManager[AsyncRun], ContextManager[Run]]]


@dataclass
class Case:
    """One thing to measure. `key` names it in the JSON; `unit` is what one operation is."""

    key: str
    title: str
    contenders: List[Contender]
    unit: str = "operations"
    sync: bool = False
    rounds: Optional[int] = None
    """Fewer rounds than asked for, where one is long."""
    times: int = 1
    """How many times as many rounds as that, where they differ a lot."""
    outcomes: Dict[str, Outcome] = field(default_factory=dict)
    """Filled when it has been measured."""


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of the sorted `values` don't exceed (nearest rank)."""
    if not values:
        return math.nan
    return values[min(len(values) - 1, max(0, math.ceil(share * len(values)) - 1))]


def processor_seconds(pid: int) -> float:
    """Return the processor time a process has used so far, NaN where there is no /proc."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return math.nan
    return (int(fields[11]) + int(fields[12])) / _TICKS


# -------------------------------------------------------------------------------------------- keeping calls under way


async def under_way(
    operation: Callable[[int], Awaitable[Any]], width: int, seconds: float, *, weight: int = 1
) -> Tally:
    """Keep `width` calls of `operation` under way for `seconds`, each caller at least one. Each counts as `weight`."""
    latencies: List[float] = []
    numbers = itertools.count()
    deadline = clock() + seconds

    async def caller() -> None:
        while True:
            began = clock()
            await operation(next(numbers))
            ended = clock()
            latencies.append(ended - began)
            if ended >= deadline:
                break

    if width == 1:
        await caller()
    else:
        await asyncio.gather(*(caller() for _ in range(width)))
    return Tally(len(latencies) * weight, latencies)


def threaded(operation: Callable[[int], Any], threads: int, seconds: float, *, weight: int = 1) -> Tally:
    """Keep `threads` threads calling `operation` for `seconds`, each at least once."""
    latencies: List[float] = []
    numbers = itertools.count()
    deadline = clock() + seconds
    failures: List[BaseException] = []

    def caller() -> None:
        try:
            while True:
                began = clock()
                operation(next(numbers))
                ended = clock()
                latencies.append(ended - began)
                if ended >= deadline:
                    break
        except BaseException as error:
            failures.append(error)

    if threads == 1:
        caller()
    else:
        pool = [threading.Thread(target=caller) for _ in range(threads)]
        for thread in pool:
            thread.start()
        for thread in pool:
            thread.join()
    if failures:
        raise failures[0]
    return Tally(len(latencies) * weight, latencies)


# -------------------------------------------------------------------------------------------------------- taking turns


class _Watch:
    """Stands beside one run and makes a `Sample` of it."""

    def __init__(self, contender: Contender) -> None:
        self._pid = contender.pid
        gc.collect()
        self._server = self._server_cpu()
        self._client = time.process_time()
        self._began = clock()

    def _server_cpu(self) -> float:
        return math.nan if self._pid is None else processor_seconds(self._pid)

    def sample(self, tally: Tally) -> Sample:
        seconds = clock() - self._began
        client = time.process_time() - self._client if tally.client_cpu is None else tally.client_cpu
        server = self._server_cpu() - self._server
        tally.latencies.sort()
        p50, p99, p999 = (percentile(tally.latencies, share) for share in (0.5, 0.99, 0.999))
        return Sample(tally.operations, seconds, client, server, p50, p99, p999)


def _turns(contenders: List[Contender], rounds: int) -> List[List[Contender]]:
    return [contenders if number % 2 == 0 else contenders[::-1] for number in range(rounds)]


async def alternate(contenders: List[Contender], *, rounds: int, seconds: float) -> List[Outcome]:
    """Open all contenders, warm each up, then let them take turns."""
    outcomes = {contender.name: Outcome(contender.name, []) for contender in contenders}
    async with contextlib.AsyncExitStack() as stack:
        runs: Dict[str, Any] = {}
        for contender in contenders:
            runs[contender.name] = await stack.enter_async_context(contender.open())  # type: ignore[arg-type]
        for contender in contenders:
            await asyncio.wait_for(runs[contender.name](min(seconds / 3, 0.3)), PATIENCE)
        for turn in _turns(contenders, rounds):
            for contender in turn:
                watch = _Watch(contender)
                tally = await asyncio.wait_for(runs[contender.name](seconds), seconds + PATIENCE)
                outcomes[contender.name].samples.append(watch.sample(tally))
    return list(outcomes.values())


def alternate_sync(contenders: List[Contender], *, rounds: int, seconds: float) -> List[Outcome]:
    """Do the same for clients that block."""
    outcomes = {contender.name: Outcome(contender.name, []) for contender in contenders}
    with contextlib.ExitStack() as stack:
        runs: Dict[str, Any] = {}
        for contender in contenders:
            runs[contender.name] = stack.enter_context(contender.open())  # type: ignore[arg-type]
        for contender in contenders:
            runs[contender.name](min(seconds / 3, 0.3))
        for turn in _turns(contenders, rounds):
            for contender in turn:
                watch = _Watch(contender)
                tally = runs[contender.name](seconds)
                outcomes[contender.name].samples.append(watch.sample(tally))
    return list(outcomes.values())
