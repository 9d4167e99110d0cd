"""Requests that are written before their turn ends: how many at once, and what makes it more."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import List

import pytest

from synap import AsyncSynapClient
from synap.lanes.native.pipelining import FEWEST, MOST, QUICK, RECHECK, STEADY, Pipelining
from synap.wire.codec import JSON
from synap.wire.frames import Kind, frame
from tests.helpers.cpus import set_runnable, use_cpus
from tests.helpers.patience import PATIENCE
from tests.helpers.scripted import Peer, ScriptedService

SLOW = 10 * QUICK
IN_FLIGHT = [0, 1, 2, 5, 10, 50, 100, 200, 1000]
QUICK_SIZES = [MOST, 1, 1, 1, 2, 12, MOST, MOST, 125]
SLOW_SIZES = [MOST, FEWEST, FEWEST, FEWEST, 5, MOST, MOST, MOST, 125]


@pytest.fixture(autouse=True)
def two_cpus(load: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cpus(monkeypatch, 2)


def sizes(decision: Pipelining) -> List[int]:
    return [decision.size(in_flight) for in_flight in IN_FLIGHT]


def answer(decision: Pipelining, seconds: float, times: int = 1) -> None:
    for _ in range(times):
        decision.answered(seconds)


def test_few_are_written_at_once_where_answers_are_quick() -> None:
    decision = Pipelining()
    answer(decision, QUICK, STEADY - 1)
    assert sizes(decision) == SLOW_SIZES
    answer(decision, QUICK)
    assert sizes(decision) == QUICK_SIZES


def test_a_slow_answer_among_many_quick_ones_changes_nothing() -> None:
    decision = Pipelining()
    for _ in range(20):
        answer(decision, QUICK, 2 * STEADY)
        answer(decision, SLOW, 3)
        assert sizes(decision) == QUICK_SIZES


def test_more_are_written_at_once_soon_after_answers_become_slow() -> None:
    decision = Pipelining()
    answer(decision, QUICK, 500)
    answer(decision, SLOW, STEADY)
    assert sizes(decision) == SLOW_SIZES
    answer(decision, SLOW, 500)
    answer(decision, QUICK, STEADY)
    assert sizes(decision) == QUICK_SIZES


def test_more_are_written_at_once_where_every_second_answer_is_slow() -> None:
    decision = Pipelining()
    answer(decision, QUICK, STEADY)
    for _ in range(STEADY):
        answer(decision, SLOW)
        answer(decision, QUICK)
    assert sizes(decision) == SLOW_SIZES


def test_more_are_written_at_once_on_one_cpu(load: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cpus(monkeypatch, 1)
    decision = Pipelining()
    for runnable in (1, 3, 1):
        set_runnable(load, runnable)
        answer(decision, QUICK, 3 * RECHECK)
        assert sizes(decision) == SLOW_SIZES


def test_more_are_written_at_once_while_more_threads_are_runnable_than_there_are_cpus(load: Path) -> None:
    decision = Pipelining()
    set_runnable(load, 3)
    for _ in range(4 * RECHECK):
        answer(decision, QUICK)
        assert decision.size(10) == 5
    set_runnable(load, 2)
    answer(decision, QUICK, RECHECK + STEADY)
    assert sizes(decision) == QUICK_SIZES
    set_runnable(load, 3)
    answer(decision, QUICK, RECHECK)
    assert sizes(decision) == SLOW_SIZES


@pytest.mark.parametrize("seconds", [QUICK / 2, SLOW], ids=["quick", "slow"])
async def test_a_connection_notes_how_long_answers_take_after_its_turns(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: List[float] = []
    monkeypatch.setattr(Pipelining, "answered", lambda self, took: noted.append(took))
    clock = [0.0]
    monkeypatch.setattr("synap.lanes.native.connection.monotonic", lambda: clock[0])
    loop = asyncio.get_running_loop()

    async def pass_time() -> None:
        clock[0] += seconds

    def script(peer: Peer) -> None:
        peer.hello()
        for number in range(3):
            requests = [peer.request(), peer.request()]
            asyncio.run_coroutine_threadsafe(pass_time(), loop).result(PATIENCE)
            peer.say(b"".join(frame(Kind.ANSWER, one.id, JSON.encode({"value": number})) for one in requests))
        peer.answer(peer.request(), {"value": 3})
        peer.frame()

    with ScriptedService(script) as service:
        async with AsyncSynapClient(service.url, retries=0) as client:
            for number in range(3):
                assert list(await asyncio.gather(client.kv.incr("n"), client.kv.incr("n"))) == [number, number]
            assert await client.kv.incr("n") == 3  # a lone call
    assert noted == pytest.approx([seconds] * 3)
