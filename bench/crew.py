"""Client processes beside this one, for what one process can't show: a crowd of clients, a heavy neighbour, CPU hogs.

Each is a fresh interpreter that does one run of a workload each time it is told to, and stays connected in between.
What it may do is in `WORKS`, since a function of here can't be handed to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Semaphore
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from bench.clients import redis_client, redis_sync, synap_client, synap_sync
from bench.measure import Tally, threaded, under_way
from bench.peers import Server

__all__ = ["WORKS", "Crew", "confined", "hogs"]

NAMES = [f"key:{number}" for number in range(1000)]
HEAVY = 5000
"""Commands of a heavy client's batch."""
PATIENCE = 120.0
"""Seconds a process may take to connect, or to answer after its run should be over."""

Answer = Tuple[int, List[float], float]
"""Operations, how long each took, and the processor time of it all, in seconds."""


def _synap_sync(server: Server, spin: bool) -> Iterator[Callable[[float], Tally]]:
    with synap_sync(server, spin=spin) as client:
        get = client.kv.get
        yield lambda seconds: threaded(lambda number: get(NAMES[number % 1000]), 1, seconds)


def _redis_sync(server: Server) -> Iterator[Callable[[float], Tally]]:
    with redis_sync(server) as client:
        get = client.get
        yield lambda seconds: threaded(lambda number: get(NAMES[number % 1000]), 1, seconds)


def _asynchronous(connect: Any, prepare: Callable[[Any], Callable[[int], Any]]) -> Iterator[Callable[[float], Tally]]:
    loop = asyncio.new_event_loop()
    try:
        client = loop.run_until_complete(connect.__aenter__())
        operation = prepare(client)
        yield lambda seconds: loop.run_until_complete(under_way(operation, 1, seconds))
        loop.run_until_complete(connect.__aexit__(None, None, None))
    finally:
        loop.close()


def _get(client: Any) -> Callable[[int], Any]:
    get = client.kv.get
    return lambda number: get(NAMES[number % 1000])


def _redis_get(client: Any) -> Callable[[int], Any]:
    get = client.get
    return lambda number: get(NAMES[number % 1000])


def _synap_batches(client: Any) -> Callable[[int], Any]:
    commands = [{"command": "kv.get", "payload": {"key": NAMES[number % 1000]}} for number in range(HEAVY)]
    return lambda number: client.batch(commands)


def _redis_pipelines(client: Any) -> Callable[[int], Any]:
    def operation(number: int) -> Any:
        pipeline = client.pipeline(transaction=False)
        for count in range(HEAVY):
            pipeline.get(NAMES[count % 1000])
        return pipeline.execute()

    return operation


WORKS: Dict[str, Callable[[Server], Iterator[Callable[[float], Tally]]]] = {
    "synap sync": lambda server: _synap_sync(server, True),
    "synap sync, no spin": lambda server: _synap_sync(server, False),
    "synap async": lambda server: _asynchronous(synap_client(server), _get),
    "synap async, no spin": lambda server: _asynchronous(synap_client(server, spin=False), _get),
    "redis-py sync": _redis_sync,
    "redis-py async": lambda server: _asynchronous(redis_client(server), _redis_get),
    "synap batches": lambda server: _asynchronous(synap_client(server), _synap_batches),
    "redis-py batches": lambda server: _asynchronous(redis_client(server), _redis_pipelines),
}


Task = Tuple[str, Server, float]
"""Which work to do, at which server, for how many seconds."""


def _serve(connection: Connection) -> None:
    """Be such a process: answer each task with what a run of it did, until None comes."""
    connected: Dict[Tuple[str, int, int], Tuple[Iterator[Any], Callable[[float], Tally]]] = {}
    while True:
        task: Optional[Task] = connection.recv()
        if task is None:
            break
        work, server, seconds = task
        place = work, server.port, _cpus()  # where there is one CPU only, a client decides otherwise as it connects
        if place not in connected:
            runs = WORKS[work](server)
            connected[place] = runs, next(runs)
        began = time.process_time()
        tally = connected[place][1](seconds)
        answer: Answer = (tally.operations, tally.latencies, time.process_time() - began)
        connection.send(answer)
    for runs, _ in connected.values():
        next(runs, None)
    connection.close()


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0


def _burn(parent: int, burning: Semaphore) -> None:
    """Keep a CPU busy until the parent ends this process, or is gone."""
    burning.release()
    while os.getppid() == parent:
        for _ in range(100_000):
            pass


class Crew:
    """Processes that do the same work at the same time. To be used as a context."""

    def __init__(self, count: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._count = count
        self._processes: List[Any] = []
        self._connections: List[Connection] = []

    def __enter__(self) -> Crew:
        for _ in range(self._count):
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)
        return self

    def __exit__(self, *error: object) -> None:
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.send(None)
        for process, connection in zip(self._processes, self._connections):
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
            connection.close()

    def pids(self, count: int) -> List[int]:
        """Return the ids of the first `count` processes."""
        return [process.pid for process in self._processes[:count]]

    def begin(self, work: str, server: Server, count: int, seconds: float) -> None:
        """Let `count` processes do that work for so long."""
        # What a process is given must be pickled, which a server with its process can't be.
        place = Server(server.name, server.port, server.directory, [], _never)
        for connection in self._connections[:count]:
            connection.send((work, place, seconds))

    def finish(self, count: int, seconds: float) -> Tally:
        """Return what they did together, with their processor time."""
        tally = Tally(0, [], client_cpu=0.0)
        for connection in self._connections[:count]:
            operations, latencies, cpu = _hear(connection, seconds)
            tally.operations += operations
            tally.latencies += latencies
            tally.client_cpu = (tally.client_cpu or 0.0) + cpu
        return tally

    def work(self, work: str, server: Server, count: int, seconds: float) -> Tally:
        """Let them work, and return what they did together."""
        self.begin(work, server, count, seconds)
        return self.finish(count, seconds)


def _hear(connection: Connection, seconds: float) -> Answer:
    if not connection.poll(seconds + PATIENCE):
        raise TimeoutError("a client process does not answer")
    try:
        answer: Answer = connection.recv()
    except EOFError:
        raise RuntimeError("a client process ended") from None
    return answer


def _never(port: int) -> bool:
    raise AssertionError("this server is looked at elsewhere")


@contextlib.contextmanager
def hogs(count: int) -> Iterator[None]:
    """Keep `count` processes computing, at usual priority, from before this yields."""
    context = multiprocessing.get_context("spawn")
    burning = context.Semaphore(0)
    processes = [context.Process(target=_burn, args=(os.getpid(), burning), daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        for _ in processes:
            if not burning.acquire(timeout=PATIENCE):
                raise TimeoutError("a process that should keep a CPU busy does not begin")
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


@contextlib.contextmanager
def confined(pids: Sequence[int]) -> Iterator[None]:
    """Leave one CPU to these processes together, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = {pid: os.sched_getaffinity(pid) for pid in pids}
    for pid, cpus in before.items():
        os.sched_setaffinity(pid, {min(cpus)})
    try:
        yield
    finally:
        for pid, cpus in before.items():
            with contextlib.suppress(OSError):
                os.sched_setaffinity(pid, cpus)
