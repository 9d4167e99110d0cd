"""A caller that leaves a gateway ends all it had there, and the cluster is told in few calls."""

from __future__ import annotations

import asyncio
import json
from itertools import groupby
from typing import Any, List

import pytest

from synap import commands as c
from synap.cluster.host import ClusterHost
from synap.cluster.memory import Request
from synap.cluster.topics import TOLD_TOGETHER
from tests.cluster.asking import result
from tests.cluster.callers import Noted


def counted(host: ClusterHost, monkeypatch: pytest.MonkeyPatch) -> List[str]:
    """Write down the functions that a host calls."""
    called: List[str] = []
    call = host.link.call

    def noted(partition: int, function: str, *arguments: Any, **more: Any) -> Any:
        called.append(function)
        return call(partition, function, *arguments, **more)

    monkeypatch.setattr(host.link, "call", noted)
    return called


async def test_of_many_waits_that_end_with_their_caller_each_queue_is_told_once(
    host: ClusterHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: List[Any] = []
    leaving, stays, publisher = Noted(host, []), Noted(host, told), Noted(host, [])
    asked = c.QUEUE_CONSUME_MANY, json.dumps({"queues": ["a", "b", "c"], "timeout": 60}).encode()
    for number in range(100):
        host.execute(leaving, number, *asked)
    host.execute(stays, 1, c.QUEUE_CONSUME, b'{"queue":"a","timeout":60}')
    while host.consumers.waiting < 301:
        await asyncio.sleep(0.001)
    called = counted(host, monkeypatch)
    host.leave(leaving)
    assert (called.count("syn_q_withdraw"), host.consumers.waiting) == (3, 1)
    for queue in ("a", "b"):
        host.execute(publisher, 1, c.QUEUE_PUBLISH, json.dumps({"queue": queue, "message": queue}).encode())
    while not told:
        await asyncio.sleep(0.001)
    assert bytes(told[0][3].message) == b'"a"'
    while (await result(host.facilities.queues.tend("syn_q_stats", "b")))[0] != 1:  # nobody waits for it any more
        await asyncio.sleep(0.001)


async def test_of_many_subscriptions_that_end_with_their_caller_the_registry_is_told_some_at_a_time(
    host: ClusterHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: List[Any] = []
    leaving = Noted(host, told)
    many = 3 * TOLD_TOGETHER
    for number in range(many):
        host.execute(leaving, number, c.PUBSUB_SUBSCRIBE, b'{"topics":["a.%d"]}' % number)
    while len(told) < many:
        await asyncio.sleep(0.001)
    called = counted(host, monkeypatch)
    host.leave(leaving)
    assert len(called) <= TOLD_TOGETHER
    stats: Any = None
    while stats is None or stats.subscriptions:
        stats = await result(host.facilities.begin(c.PUBSUB_STATS, c.PubSubStats(), Request(b"", b"", b"", b"")))
    assert called.count("syn_p_change") == many
    assert max(len(list(alike)) for name, alike in groupby(called) if name == "syn_p_change") <= TOLD_TOGETHER
    assert called.count("syn_p_tell") < many
