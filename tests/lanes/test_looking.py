"""A call that is alone looks for its answer before the client sleeps, as long as that pays."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any, List, Optional

import pytest

from synap import AsyncSynapClient, SynapClient
from synap.lanes.native import looking
from synap.lanes.native.looking import LOOKS, PAUSE, PRICE, RESERVE, Luck, crowded, pays
from tests.helpers.scripted import Peer, ScriptedService

WAYS = [(True, 2, True), (False, 2, False), (True, 1, False)]
"""The option, the CPUs that the process may use, and whether it looks."""


@pytest.fixture(autouse=True)
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Have a machine on which nobody else wants to run; tests write otherwise into the file."""
    load = tmp_path / "loadavg"
    load.write_text("0.20 0.18 0.12 1/80 11206\n")
    monkeypatch.setattr(looking, "LOAD", str(load))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    return load


def play(luck: Luck, outcomes: List[bool]) -> int:
    """Make calls that would find their answer or not; return for how many of them one looked."""
    looks = 0
    for found in outcomes:
        if luck.worth():
            looks += 1
            luck.found() if found else luck.missed()
    return looks


def test_looks_that_find_their_answer_go_on() -> None:
    assert play(Luck(), [True] * 1000) == 1000


def test_one_look_in_vain_among_many_changes_nothing() -> None:
    assert play(Luck(), ([True] * 9 + [False]) * 100) == 1000


def test_looks_in_vain_are_given_up_and_tried_again_after_a_pause() -> None:
    luck = Luck()
    first = RESERVE // PRICE
    assert play(luck, [False] * first) == first
    assert play(luck, [False] * PAUSE) == 0
    assert play(luck, [False]) == 1
    assert play(luck, [False] * PAUSE) == 0


def test_after_a_pause_good_looks_are_kept() -> None:
    luck = Luck()
    play(luck, [False] * (RESERVE // PRICE + PAUSE))
    assert play(luck, [True] * 100) == 100


def test_nobody_looks_while_more_threads_want_to_run_than_there_are_cpus(load: Path) -> None:
    luck = Luck()
    assert play(luck, [True] * LOOKS) == LOOKS
    load.write_text("9.20 5.18 2.12 3/80 11206\n")
    assert play(luck, [True] * PAUSE) == 0
    assert play(luck, [True]) == 0
    load.write_text("9.20 5.18 2.12 2/80 11206\n")
    assert play(luck, [True] * PAUSE) == 1
    assert play(luck, [True] * 100) == 100


def test_a_system_that_does_not_say_how_many_want_to_run_is_taken_for_free(load: Path) -> None:
    for text in ("", "nonsense", "1 2 3 x/9 8"):
        load.write_text(text)
        assert not crowded()
    load.unlink()
    assert not crowded()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says it")
def test_this_machine_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "LOAD", "/proc/loadavg")
    monkeypatch.setattr("os.cpu_count", lambda: 0.5)  # who reads runs
    assert crowded()


def cpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(count)), raising=False)


def test_on_one_cpu_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    cpus(monkeypatch, 2)
    assert pays()
    cpus(monkeypatch, 1)
    assert not pays()


@pytest.mark.parametrize("count", [1, 2])
def test_where_the_system_does_not_say_what_a_process_may_use_all_cpus_count(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: count)
    assert pays() == (count > 1)


def answers_slow_at_times(peer: Peer) -> None:
    """Answer ten requests, each third later than anybody looks."""
    peer.hello()
    for number in range(10):
        request = peer.request()
        if number % 3 == 2:
            time.sleep(0.02)
        peer.answer(request, {"value": number})
    peer.frame()


@pytest.mark.parametrize(("spin", "count", "looks"), WAYS)
def test_the_sync_client_is_answered_with_and_without_looking(
    spin: bool, count: int, looks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpus(monkeypatch, count)
    with ScriptedService(answers_slow_at_times) as service, SynapClient(service.url, retries=0, spin=spin) as client:
        assert [client.kv.incr("n") for _ in range(10)] == list(range(10))
        lane: Any = client._calls.lane
        luck: Optional[Luck] = lane._idle[-1].connection._luck
        assert (luck is not None) == looks


@pytest.mark.parametrize(("spin", "count", "looks"), WAYS)
async def test_the_async_client_is_answered_with_and_without_looking(
    spin: bool, count: int, looks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpus(monkeypatch, count)
    with ScriptedService(answers_slow_at_times) as service:
        async with AsyncSynapClient(service.url, retries=0, spin=spin) as client:
            assert [await client.kv.incr("n") for _ in range(10)] == list(range(10))
            assert (connection_of(client)._luck is not None) == looks


def connection_of(client: AsyncSynapClient) -> Any:
    lane: Any = client._calls.lane
    return lane._channel.connection


async def test_a_loop_that_looked_in_vain_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    cpus(monkeypatch, 2)
    asked, answer = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def script(peer: Peer) -> None:
        peer.hello()
        request = peer.request()
        peer.answer(request, {"value": 1})
        request = peer.request()
        loop.call_soon_threadsafe(asked.set)
        asyncio.run_coroutine_threadsafe(answer.wait(), loop).result(20)
        peer.answer(request, {"value": 2})
        peer.frame()

    with ScriptedService(script) as service:
        async with AsyncSynapClient(service.url, retries=0) as client:
            assert await client.kv.incr("n") == 1
            call = asyncio.ensure_future(client.kv.incr("n"))
            await asked.wait()
            connection = connection_of(client)
            while connection._looking:  # polls, and gives up by itself
                await asyncio.sleep(0)
            assert not call.done()
            answer.set()
            assert await call == 2


async def test_other_tasks_go_on_while_a_loop_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    cpus(monkeypatch, 2)
    monkeypatch.setattr("synap.lanes.native.connection.LOOK", 60.0)
    turns: asyncio.Queue[None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def script(peer: Peer) -> None:
        peer.hello()
        request = peer.request()
        for _ in range(100):  # each needs a turn of the loop that looks
            asyncio.run_coroutine_threadsafe(turns.put(None), loop).result(20)
        peer.answer(request, {"value": 1})
        peer.frame()

    with ScriptedService(script) as service:
        async with AsyncSynapClient(service.url, retries=0) as client:
            assert await client.kv.incr("n") == 1
            assert turns.qsize() == 100
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not connection_of(client)._looking
