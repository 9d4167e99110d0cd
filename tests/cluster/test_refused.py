"""A consume that is refused has acknowledged nothing, on one machine and on a cluster; one that fails behind its
acknowledgement says that it may have happened."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any, AsyncIterator, Dict, List

import pytest
from pytest_asyncio import fixture as async_fixture

from synap import commands as c
from synap.cluster.host import ClusterHost
from synap.cluster.waiting import _after
from synap.engine.engine import Engine
from synap.errors import SynapError
from synap.host import EngineHost, Host, Output, Session
from synap.testing.cluster import ThrowawayCluster
from synap.wire.codec import JSON
from tests.cluster.conftest import options


class Caller(Session):
    """Asks a host, and waits for what it is told."""

    def __init__(self, host: Host) -> None:
        super().__init__(host, JSON, uuid.uuid4().hex)
        self.told: asyncio.Queue[Any] = asyncio.Queue()

    def deliver(self, output: List[Output]) -> None:
        for _, number, content, _ in output:
            self.told.put_nowait((number, content))

    def send(self, number: int, command: c.Command, **payload: Any) -> None:
        self.host.execute(self, number, command, json.dumps(payload).encode())
        self.host.end_turn()

    async def ask(self, number: int, command: c.Command, **payload: Any) -> Any:
        self.send(number, command, **payload)
        answered, content = await self.told.get()
        assert answered == number
        return content

    async def figures(self) -> Dict[str, int]:
        stats = await self.ask(90, c.QUEUE_STATS, queue="jobs")
        return {"acked": stats.acked_total, "leased": stats.pending}


@async_fixture(params=["engine", "cluster"])
async def caller(request: pytest.FixtureRequest, one_node: ThrowawayCluster) -> AsyncIterator[Caller]:
    if request.param == "engine":
        yield Caller(EngineHost(Engine(ids=lambda: 1)))
        return
    host = ClusterHost(options(one_node, durability="none"))
    await host.open()
    yield Caller(host)
    await host.close()


async def held(caller: Caller) -> str:
    """Publish a message and lease it; returns its id."""
    await caller.ask(1, c.QUEUE_PUBLISH, queue="jobs", message=1)
    text: str = (await caller.ask(2, c.QUEUE_CONSUME, queue="jobs")).message_id
    return text


@pytest.mark.parametrize("many", [False, True])
async def test_the_number_of_a_request_that_waits_can_not_acknowledge(caller: Caller, many: bool) -> None:
    message = await held(caller)
    caller.send(3, c.QUEUE_CONSUME, queue="jobs", timeout=3600)
    if many:
        ack = [{"queue": "jobs", "message_id": message}]
        refused = await caller.ask(3, c.QUEUE_CONSUME_MANY, queues=["jobs"], timeout=3600, ack=ack)
    else:
        refused = await caller.ask(3, c.QUEUE_CONSUME, queue="jobs", timeout=3600, ack=message)
    assert (refused.code, "waits already" in refused.message) == ("INVALID_REQUEST", True)
    assert await caller.figures() == {"acked": 0, "leased": 1}
    caller.send(4, c.QUEUE_PUBLISH, queue="jobs", message=2)
    told = dict([await caller.told.get() for _ in range(2)])  # the one that waits goes on
    assert told[3].message == b"2"


@pytest.mark.parametrize("many", [False, True])
async def test_a_consume_whose_queue_goes_unheard_says_that_it_has_acknowledged(
    host: ClusterHost, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    async def lost(*_: Any) -> None:
        raise SynapError("SERVICE_UNAVAILABLE", "no node answers", {"retry_after": 1})

    caller = Caller(host)
    message = await held(caller)
    monkeypatch.setattr(host.channels, "listen", lost)
    if many:
        ack = [{"queue": "jobs", "message_id": message}]
        refused = await caller.ask(3, c.QUEUE_CONSUME_MANY, queues=["jobs"], timeout=1, ack=ack)
    else:
        refused = await caller.ask(3, c.QUEUE_CONSUME, queue="jobs", timeout=1, ack=message)
    assert (refused.code, refused.may_have_happened) == ("SERVICE_UNAVAILABLE", True)
    assert await caller.figures() == {"acked": 1, "leased": 0}
    refused = await caller.ask(4, c.QUEUE_CONSUME, queue="jobs", timeout=1)
    assert not refused.may_have_happened


def test_an_error_that_several_share_is_marked_for_the_one_that_has_taken_effect_only() -> None:
    shared = SynapError("SERVICE_UNAVAILABLE", "not now")
    with pytest.raises(SynapError) as caught, _after(True):
        raise shared
    assert (caught.value.code, caught.value.may_have_happened, shared.may_have_happened) == (shared.code, True, False)
    with pytest.raises(SynapError) as caught, _after(False):
        raise shared
    assert caught.value is shared
