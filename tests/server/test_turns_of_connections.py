"""Connections take turns, key by key, and what came on one is done in order. No clock is asked here."""

from __future__ import annotations

import asyncio
import itertools
import json
from types import SimpleNamespace

import pytest

from synap.engine.engine import Engine
from synap.host import EngineHost
from synap.server import native, turns
from synap.server.grants import Access
from synap.server.service import Service
from synap.server.settings import ServerConfig
from synap.wire.frames import Kind, frame
from tests.helpers.frames import Frame
from tests.helpers.inside import Line, line
from tests.helpers.raw import request


def place() -> Service:
    numbers = iter(range(10**9))
    soon = asyncio.get_running_loop().call_soon
    return Service(EngineHost(Engine(ids=lambda: next(numbers)), soon=soon), ServerConfig())


async def answers(connection: Line, count: int) -> list[Frame]:
    told: list[Frame] = []
    while len(told) < count:
        await asyncio.sleep(0)
        told += connection.frames()
    return told


async def test_who_pipelines_a_lot_is_done_in_several_turns_and_in_order() -> None:
    service = place()
    connection, other = line(service), line(service)
    connection.receive(*(request(number, "kv.incr", key="n") for number in range(1, 20_001)))
    done = len(connection.frames())
    assert done < 20_000
    other.receive(request(1, "kv.get", key="n"), frame(Kind.PING, 2))
    assert [told.kind for told in other.frames()] == [Kind.ANSWER, Kind.PONG]
    told = await answers(connection, 20_000 - done)
    assert [one.id for one in told] == list(range(done + 1, 20_001))
    assert service.turns.taken > 3


async def test_keys_take_turns_whatever_the_number_of_their_connections() -> None:
    service = place()
    greedy = [line(service) for _ in range(5)]
    modest = line(service)
    for connection in greedy:
        connection.session.principal.access = Access("greedy", False)
    modest.session.principal.access = Access("modest", False)
    for connection in (*greedy, modest):
        connection.receive(*(request(number, "kv.incr", key="n") for number in range(1, 10_001)))
    told = len(modest.frames())
    while told < 10_000:
        await asyncio.sleep(0)
        told += len(modest.frames())
    assert sum(len(connection.frames()) for connection in greedy) < 50_000


@pytest.mark.parametrize("late", [False, True])
async def test_what_one_poll_brought_many_connections_is_queued_once_a_round_s_time_is_over(
    late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count(step=turns.ROUND if late else 0)
    monkeypatch.setattr(turns, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr(native, "SECONDS", float("inf"))  # a turn of its own ends none of them here
    service = place()
    some = [line(service) for _ in range(5)]
    modest = line(service)
    requests = [request(number, "kv.incr", key="n") for number in range(1, 101)]
    assert native.LITTLE < len(b"".join(requests)) < native.PIECE
    for connection in some:
        connection.session.data_received(b"".join(requests))
    modest.session.data_received(request(1, "kv.incr", key="modest") + request(2, "kv.incr", key="modest"))
    done = [len(connection.frames()) for connection in some]
    assert done == ([100, 100, 0, 0, 0] if late else [100] * 5)
    assert len(modest.frames()) == 2
    some[4].session.data_received(request(101, "kv.get", key="n"))
    for connection in some[2 if late else 5 :]:
        told = await answers(connection, 100 + (connection is some[4]))
        assert [one.id for one in told] == list(range(1, len(told) + 1))
    await asyncio.sleep(0)
    modest.session.data_received(b"".join(requests))  # which another poll brought
    assert len(modest.frames()) == 100


async def test_what_comes_behind_a_long_batch_is_done_behind_it() -> None:
    connection = line(place())
    connection.receive(
        request(1, "batch", commands=[{"command": "kv.incr", "payload": {"key": "n"}}] * 10_000),
        request(2, "kv.get", key="n"),
        request(3, "queue.consume", queue="q", timeout=0),
    )
    told = await answers(connection, 3)
    assert [one.id for one in told] == [1, 2, 3]
    assert json.loads(told[1].body)["value"] == 10_000


@pytest.mark.parametrize("how", ["connection_lost", "supersede", "disconnect"])
async def test_who_leaves_while_requests_wait_for_their_turn_takes_no_more_turns(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "SECONDS", -1.0)
    service = place()
    gone = line(service)
    gone.receive(*(request(number, "kv.incr", key="n") for number in range(1, 1_000)))
    assert service.turns
    getattr(gone.session, how)(*[None] * (how == "connection_lost"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not service.turns


async def test_a_turn_that_fails_leaves_the_others_theirs(caplog: pytest.LogCaptureFixture) -> None:
    service = place()
    done: list[int] = []

    def fail() -> None:
        raise RuntimeError("a bug")

    service.turns.ask("key", fail)
    service.turns.ask("key", lambda: done.append(1))
    while not done:
        await asyncio.sleep(0)
    assert "a turn failed" in caplog.text
