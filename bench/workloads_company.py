"""How clients fare in company: several processes at once, a single CPU, CPU hogs, a heavy neighbour.

Clients are processes of their own here (`bench.crew`), and call one by one.
"""

from __future__ import annotations

import contextlib
from typing import Callable, ContextManager, Iterator, List

from bench.clients import synap_client
from bench.crew import NAMES, Crew, confined, hogs
from bench.measure import Case, Contender, Run, Tally
from bench.peers import Server
from bench.plan import SECONDARY, Plan

__all__ = ["company"]

CROWDS = (1, 2, 4)
HOGS = 2
TIMES = 5
"""Beside hogs. The scheduler leaves processes where they are for much of a round, each beside a hog or both on one CPU:
a median of three rounds may be of either kind."""
WAYS = ("sync", "async")


def company(plan: Plan) -> Iterator[Case]:
    """Gets one by one from 1, 2 and 4 processes, on one CPU, beside two CPU hogs, and beside a client with batches."""
    ours, theirs = plan.servers.synap(), plan.servers.valkey()
    plan.run(_load(ours))
    crowds = plan.steps(*CROWDS)
    with Crew(crowds[-1]) as crew, Crew(1) as neighbour:
        for way in WAYS:
            for count in crowds:
                title = f"get, {way}, {count} client process{'es' if count > 1 else ''}"
                yield _case(f"company/{way}/{count}", title, crew, way, ours, theirs, count, _alone)
            yield _case(f"company/{way}/one-cpu", f"get, {way}, all on one CPU", crew, way, ours, theirs, 1, confined)
            title = f"get, {way}, beside {HOGS} CPU hogs"
            with hogs(HOGS):  # for all turns: those that have just begun get more than their share
                yield _case(f"company/{way}/hogs", title, crew, way, ours, theirs, 1, _alone, TIMES)
        quiet = [
            _beside("synap", ours, crew, neighbour, "synap async", "synap batches"),
            _beside("redis-py", theirs, crew, neighbour, "redis-py async", "redis-py batches"),
        ]
        title = "get, async, beside a client with batches of 5,000"
        yield Case("company/quiet", title, quiet, sync=True, rounds=SECONDARY)


async def _load(server: Server) -> None:
    async with synap_client(server) as client:
        for name in NAMES:
            await client.kv.set(name, "x" * 100)


Company = Callable[[List[int]], ContextManager[None]]
"""What surrounds a run, made of the ids of all processes that take part."""


def _alone(pids: List[int]) -> ContextManager[None]:
    return contextlib.nullcontext()


def _case(
    key: str,
    title: str,
    crew: Crew,
    way: str,
    ours: Server,
    theirs: Server,
    count: int,
    company: Company,
    times: int = 1,
) -> Case:
    contenders = [
        _contender("synap", ours, crew, f"synap {way}", count, company),
        _contender("synap, no spin", ours, crew, f"synap {way}, no spin", count, company),
        _contender("redis-py", theirs, crew, f"redis-py {way}", count, company),
    ]
    return Case(key, title, contenders, sync=True, rounds=SECONDARY, times=times)


def _contender(name: str, server: Server, crew: Crew, work: str, count: int, company: Company) -> Contender:
    @contextlib.contextmanager
    def open() -> Iterator[Run]:
        def run(seconds: float) -> Tally:
            with company([server.pid, *crew.pids(count)]):
                return crew.work(work, server, count, seconds)

        yield run

    return Contender(name, server.pid, open)


def _beside(name: str, server: Server, crew: Crew, neighbour: Crew, quiet: str, heavy: str) -> Contender:
    """Measure the quiet client; the heavy one works from before it begins until after it has ended."""

    @contextlib.contextmanager
    def open() -> Iterator[Run]:
        def run(seconds: float) -> Tally:
            neighbour.begin(heavy, server, 1, seconds * 1.2)
            tally = crew.work(quiet, server, 1, seconds)
            neighbour.finish(1, seconds)
            return tally

        yield run

    return Contender(name, server.pid, open)
