"""Busy polling for the answer of a lone call: when it is done, when it is given up; answers come either way."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any, List, Optional, Union

import pytest

from synap import AsyncSynapClient, ClientConfig, SynapClient, SynapError
from synap.lanes.native import cpus
from synap.lanes.native.busy_poll import (
    BUDGET,
    MISS_COST,
    PAUSE,
    POLL_TIME,
    POLLS,
    RECHECK,
    BusyPoll,
)
from synap.lanes.native.cpus import has_cpus, overcommitted
from tests.helpers.cpus import set_runnable, use_cpus
from tests.helpers.patience import PATIENCE
from tests.helpers.scripted import Peer, ScriptedService

WAYS = [(True, 2, True), (4e-4, 2, True), (False, 2, False), (True, 1, False), (4e-4, 1, False)]
"""The option, the CPUs that the process may use, and whether it polls."""


pytestmark = pytest.mark.usefixtures("load")


def play(decision: BusyPoll, outcomes: List[bool]) -> int:
    """Make calls whose polls would hit or miss; return for how many of them it polled."""
    polls = 0
    for found in outcomes:
        if decision.allowed():
            polls += 1
            decision.hit() if found else decision.miss()
    return polls


def test_who_polls_says_for_how_long() -> None:
    assert (BusyPoll().polls, BusyPoll(True).seconds) == (POLLS, POLL_TIME)
    assert (BusyPoll(10 * POLL_TIME).polls, BusyPoll(10 * POLL_TIME).seconds) == (10 * POLLS, 10 * POLL_TIME)
    assert BusyPoll(1e-9).polls == 1


@pytest.mark.parametrize("spin", [0.0, -1e-4, 0.011, float("nan"), 1, "0.001", None])
def test_a_time_that_makes_no_sense_is_refused(spin: Any) -> None:
    with pytest.raises(SynapError, match=r"True, False, or a number of seconds up to 0\.01"):
        ClientConfig("http://localhost", spin=spin)


def test_polls_that_hit_go_on() -> None:
    assert play(BusyPoll(), [True] * 1000) == 1000


def test_one_miss_among_many_hits_changes_nothing() -> None:
    assert play(BusyPoll(), ([True] * 9 + [False]) * 100) == 1000


def test_polling_that_misses_is_given_up_and_tried_again_after_a_pause() -> None:
    decision = BusyPoll()
    first = BUDGET // MISS_COST
    assert play(decision, [False] * first) == first
    assert play(decision, [False] * PAUSE) == 0
    assert play(decision, [False]) == 1
    assert play(decision, [False] * PAUSE) == 0


def test_polling_that_hits_after_a_pause_is_kept() -> None:
    decision = BusyPoll()
    play(decision, [False] * (BUDGET // MISS_COST + PAUSE))
    assert play(decision, [True] * 100) == 100


def test_nothing_polls_while_more_threads_are_runnable_than_there_are_cpus(load: Path) -> None:
    decision = BusyPoll()
    assert play(decision, [True] * RECHECK) == RECHECK
    set_runnable(load, 3)
    assert play(decision, [True] * PAUSE) == 0
    assert play(decision, [True]) == 0
    set_runnable(load, 2)
    assert play(decision, [True] * PAUSE) == 1
    assert play(decision, [True] * 100) == 100


def test_a_system_that_does_not_tell_its_load_is_taken_for_idle(load: Path) -> None:
    for text in ("", "nonsense", "1 2 3 x/9 8"):
        load.write_text(text)
        assert not overcommitted()
    load.unlink()
    assert not overcommitted()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells it")
def test_the_load_of_this_machine_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "LOADAVG", "/proc/loadavg")
    monkeypatch.setattr("os.cpu_count", lambda: 0.5)  # who reads runs
    assert overcommitted()


def test_nothing_polls_on_one_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    use_cpus(monkeypatch, 2)
    assert has_cpus()
    use_cpus(monkeypatch, 1)
    assert not has_cpus()


@pytest.mark.parametrize("count", [1, 2])
def test_where_the_system_does_not_say_what_a_process_may_use_all_cpus_count(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: count)
    assert has_cpus() == (count > 1)


def answers_slow_at_times(peer: Peer) -> None:
    """Answer ten requests, each third later than anybody polls."""
    peer.hello()
    for number in range(10):
        request = peer.request()
        if number % 3 == 2:
            time.sleep(0.02)
        peer.answer(request, {"value": number})
    peer.frame()


@pytest.mark.parametrize(("spin", "count", "polls"), WAYS)
def test_the_sync_client_is_answered_with_and_without_polling(
    spin: Union[bool, float], count: int, polls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cpus(monkeypatch, count)
    with ScriptedService(answers_slow_at_times) as service, SynapClient(service.url, retries=0, spin=spin) as client:
        assert [client.kv.incr("n") for _ in range(10)] == list(range(10))
        lane: Any = client._calls.lane
        decision: Optional[BusyPoll] = lane._idle[-1].connection._busy_poll
        assert (decision is not None) == polls


@pytest.mark.parametrize(("spin", "count", "polls"), WAYS)
async def test_the_async_client_is_answered_with_and_without_polling(
    spin: Union[bool, float], count: int, polls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cpus(monkeypatch, count)
    with ScriptedService(answers_slow_at_times) as service:
        async with AsyncSynapClient(service.url, retries=0, spin=spin) as client:
            assert [await client.kv.incr("n") for _ in range(10)] == list(range(10))
            assert (connection_of(client)._busy_poll is not None) == polls


def connection_of(client: AsyncSynapClient) -> Any:
    lane: Any = client._calls.lane
    return lane._channel.connection


async def test_a_loop_sleeps_after_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    use_cpus(monkeypatch, 2)
    asked, answer = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def script(peer: Peer) -> None:
        peer.hello()
        request = peer.request()
        peer.answer(request, {"value": 1})
        request = peer.request()
        loop.call_soon_threadsafe(asked.set)
        asyncio.run_coroutine_threadsafe(answer.wait(), loop).result(PATIENCE)
        peer.answer(request, {"value": 2})
        peer.frame()

    with ScriptedService(script) as service:
        async with AsyncSynapClient(service.url, retries=0) as client:
            assert await client.kv.incr("n") == 1
            call = asyncio.ensure_future(client.kv.incr("n"))
            await asked.wait()
            connection = connection_of(client)
            while connection._polling:  # polls, and gives up by itself
                await asyncio.sleep(0)
            assert not call.done()
            answer.set()
            assert await call == 2


async def test_a_loop_that_polls_for_one_answer_after_the_other_stops_where_cpus_become_scarce(
    load: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cpus(monkeypatch, 2)
    monkeypatch.setattr("synap.lanes.native.busy_poll.POLL_TIME", 60.0)

    def script(peer: Peer) -> None:
        peer.hello()
        for number in range(3 * RECHECK):
            peer.answer(peer.request(), {"value": number})
        peer.frame()

    with ScriptedService(script) as service:
        async with AsyncSynapClient(service.url, retries=0) as client:
            for _ in range(RECHECK):
                await client.kv.incr("n")
            set_runnable(load, 3)
            for _ in range(RECHECK):
                await client.kv.incr("n")
            assert not connection_of(client)._polling


async def test_other_tasks_go_on_while_a_loop_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    use_cpus(monkeypatch, 2)
    monkeypatch.setattr("synap.lanes.native.busy_poll.POLL_TIME", 60.0)
    turns: asyncio.Queue[None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def script(peer: Peer) -> None:
        peer.hello()
        request = peer.request()
        for _ in range(100):  # each needs a turn of the loop that polls
            asyncio.run_coroutine_threadsafe(turns.put(None), loop).result(PATIENCE)
        peer.answer(request, {"value": 1})
        peer.frame()

    with ScriptedService(script) as service:
        async with AsyncSynapClient(service.url, retries=0) as client:
            assert await client.kv.incr("n") == 1
            assert turns.qsize() == 100
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not connection_of(client)._polling
