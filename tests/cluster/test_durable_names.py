"""How many durable names a room may have, on one machine and on a cluster."""

from __future__ import annotations

from typing import Any, AsyncIterator

import pytest
from pytest_asyncio import fixture as async_fixture

from synap import commands as c
from synap.cluster.host import ClusterHost
from synap.engine.engine import Engine
from synap.engine.limits import Limits
from synap.host import EngineHost
from synap.testing.cluster import ThrowawayCluster
from tests.cluster.conftest import options
from tests.cluster.test_refused import Caller

FEW = Limits(names=2)


@async_fixture(params=["engine", "cluster"])
async def caller(request: pytest.FixtureRequest, one_node: ThrowawayCluster) -> AsyncIterator[Caller]:
    if request.param == "engine":
        yield Caller(EngineHost(Engine(ids=lambda: 1, limits=FEW)))
        return
    host = ClusterHost(options(one_node, durability="none"), limits=FEW)
    await host.open()
    yield Caller(host)
    await host.close()


def of_commit(name: str) -> Any:
    return {"room": "r", "name": name, "offset": 0}


async def test_a_new_name_is_refused_where_a_room_has_as_many_as_it_may(caller: Caller) -> None:
    await caller.ask(1, c.STREAM_PUBLISH, room="r", event_type="t", data=1)
    assert (await caller.ask(2, c.STREAM_COMMIT, **of_commit("a"))).success
    assert (await caller.ask(3, c.STREAM_SUBSCRIBE, room="r", name="b")).next_offset == 1
    batch = {"atomic": True, "commands": [{"command": "stream.commit", "payload": of_commit("c")}]}
    refused = [
        await caller.ask(4, c.STREAM_COMMIT, **of_commit("c")),
        await caller.ask(5, c.STREAM_SUBSCRIBE, room="r", name="c"),
        (await caller.ask(6, c.BATCH, **batch)).results[0].error,
    ]
    text = "the room 'r' knows 2 names, the most allowed; forget some"
    assert [(error.code, error.message, error.details) for error in refused] == [
        ("MEMORY_LIMIT", text, {"limit": 2})
    ] * 3
    assert (await caller.ask(7, c.STREAM_STATS, room="r")).subscribers == 1
    for number, name in enumerate("ab", 8):
        assert (await caller.ask(number, c.STREAM_COMMIT, **of_commit(name))).success
    await caller.ask(10, c.STREAM_FORGET, room="r", name="a")
    assert (await caller.ask(11, c.STREAM_COMMIT, **of_commit("c"))).success
    assert [cursor.name for cursor in (await caller.ask(12, c.STREAM_CURSORS, room="r")).cursors] == ["b", "c"]
