"""The checker on histories known to be good and bad, and histories of a service and of a cluster that fails over."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Any, Callable, Coroutine, List, Optional

import pytest

from synap import AsyncSynapClient
from synap.errors import SynapError
from synap.testing import ThrowawayServer
from synap.testing.cluster import ThrowawayCluster
from tests.cluster.linear import UNKNOWN, Operation, linearizable, unexplained
from tests.cluster.nemesis.rows import fail_over, kill
from tests.helpers.patience import STEADY
from tests.helpers.thorough import rounds


def op(kind: str, given: Any, answered: Any, called: float, returned: float = float("inf")) -> Operation:
    return Operation("k", kind, given, answered, called, returned)


GOOD = {
    "one after the other": [op("set", 1, True, 0, 1), op("get", None, 1, 2, 3)],
    "a read beside a write sees either": [
        op("set", 1, True, 0, 10),
        op("get", None, None, 1, 2),
        op("get", None, 1, 3, 4),
    ],
    "an increment left open took effect": [op("incr", 1, UNKNOWN, 0), op("get", None, 1, 5, 6)],
    "an increment left open took effect late": [
        op("incr", 1, UNKNOWN, 0),
        op("get", None, None, 5, 6),
        op("incr", 1, 2, 7, 8),
    ],
    "an increment left open took none yet": [op("incr", 1, UNKNOWN, 0), op("get", None, None, 5, 6)],
    "two compares, one wins": [
        op("set", 1, True, 0, 1),
        op("compare", (1, 2), True, 2, 9),
        op("compare", (1, 3), False, 2, 9),
        op("get", None, 2, 10, 11),
    ],
}
BAD = {
    "a read misses a write that was answered": [op("set", 1, True, 0, 1), op("get", None, None, 2, 3)],
    "a read goes back": [
        op("set", 1, True, 0, 10),
        op("get", None, 1, 1, 2),
        op("get", None, None, 3, 4),
    ],
    "an increment twice": [op("incr", 1, 1, 0, 1), op("get", None, 2, 2, 3)],
    "an increment lost": [op("incr", 1, 1, 0, 1), op("incr", 1, 1, 2, 3)],
    "two compares win": [
        op("set", 1, True, 0, 1),
        op("compare", (1, 2), True, 2, 9),
        op("compare", (1, 3), True, 2, 9),
    ],
    "a delete of what nobody had stored": [op("delete", None, True, 0, 1)],
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_history_is_explained(name: str) -> None:
    assert linearizable(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history_is_not(name: str) -> None:
    assert not linearizable(BAD[name])


def test_a_history_that_was_good_is_bad_with_one_answer_changed() -> None:
    generator = random.Random(1)
    for _ in range(50):
        history = [op("incr", 1, number + 1, number, number + 1 + generator.random() * 3) for number in range(30)]
        assert linearizable(history)
        spoiled = generator.randrange(30)
        history[spoiled] = history[spoiled]._replace(answered=99)
        assert not linearizable(history)


async def record(
    make: Callable[[], AsyncSynapClient],
    nemesis: Optional[Callable[[], Coroutine[Any, Any, None]]] = None,
) -> List[Operation]:
    """Let six clients work on a few keys, and note what they asked and were answered."""
    history: List[Operation] = []
    stopped = asyncio.Event()

    async def work(worker: int) -> None:
        generator = random.Random(worker)
        number = 0
        async with make() as client:
            while not stopped.is_set():
                number += 1
                await one(client, generator, worker * 1_000_000 + number)
                await asyncio.sleep(0.004)

    async def one(client: AsyncSynapClient, generator: random.Random, value: int) -> None:
        kind = generator.choice(("get", "get", "set", "delete", "compare", "incr", "incr"))
        key = ("n" if kind == "incr" else "r") + str(generator.randrange(4))
        if kind == "get" and generator.random() < 0.5:
            key = "n" + key[1:]
        given: Any = {"set": value, "incr": 1}.get(kind)
        called = time.monotonic()
        answered: Any
        try:
            if kind == "get":
                answered = (await client.kv.get(key)).value
            elif kind == "set":
                answered = (await client.kv.set(key, value)).success
            elif kind == "delete":
                answered = await client.kv.delete(key) == 1
            elif kind == "incr":
                answered = await client.kv.incr(key)
            else:
                given = (0, 0)
                seen = (await client.kv.get(key)).value
                if seen is None:
                    return
                called = time.monotonic()
                given = (seen, value)
                answered = (await client.kv.set(key, value, if_value=seen)).success
        except SynapError as error:
            if error.may_have_happened:
                history.append(Operation(key, kind, given, UNKNOWN, called))
            return
        history.append(Operation(key, kind, given, answered, called, time.monotonic()))

    async def noted(count: int) -> None:
        while len(history) < count:
            assert not any(worker.done() for worker in workers)
            await asyncio.sleep(0.01)

    workers = [asyncio.ensure_future(work(worker)) for worker in range(6)]
    try:
        await noted(100)
        if nemesis is not None:
            await nemesis()
        await noted(len(history) + 200)
    finally:
        stopped.set()
        await asyncio.gather(*workers)
    return history


async def test_a_service_is_linearizable() -> None:
    with ThrowawayServer() as server:
        history = await record(lambda: AsyncSynapClient(url=server.url))
    assert unexplained(history) == []


async def crashes_of_a_service(data: Path) -> List[Operation]:
    with ThrowawayServer(data=data, arguments=["--fsync", "always"]) as server:

        async def crash() -> None:
            for _ in range(5):
                await asyncio.get_running_loop().run_in_executor(None, server.restart)
                await asyncio.sleep(0.3)

        return await record(lambda: AsyncSynapClient(url=server.url, retries=30, timeout=40), crash)


@pytest.mark.parametrize("turn", range(rounds(1, 30)))
async def test_a_durable_service_is_linearizable_through_crashes(tmp_path: Path, turn: int) -> None:
    """Answers wait for the disk, those of reads too, so nobody sees what a crash takes back."""
    assert unexplained(await crashes_of_a_service(tmp_path)) == []


PATIENT = {"durability": "replicated", "patience": 30}


@pytest.mark.parametrize("turn", range(rounds(1, 20)))
async def test_a_cluster_is_linearizable_through_failovers(turn: int) -> None:
    # Others than are asked for would be crashes: a primary that stood still answers reads until it knows of its heir.
    with ThrowawayCluster(3, 1, node_timeout=STEADY) as cluster:
        history = await record(
            lambda: AsyncSynapClient(url=cluster.url, engine=PATIENT, timeout=40), lambda: fail_over(3)(cluster)
        )
    assert unexplained(history) == []


def effects(history: List[Operation]) -> List[Operation]:
    """Leave out what changed nothing: it may have seen another's write that no replica had yet."""
    return [
        operation
        for operation in history
        if operation.kind in ("set", "incr") or (operation.kind != "get" and operation.answered is not False)
    ]


async def crashes_of_a_cluster() -> List[Operation]:
    with ThrowawayCluster(3, 1, persistent=True) as cluster:
        return await record(
            lambda: AsyncSynapClient(url=cluster.url, engine=PATIENT, timeout=60), lambda: kill(2)(cluster)
        )


@pytest.mark.parametrize("turn", range(rounds(1, 20)))
async def test_what_a_cluster_did_is_linearizable_through_crashes_of_primaries(turn: int) -> None:
    assert unexplained(effects(await crashes_of_a_cluster())) == []
