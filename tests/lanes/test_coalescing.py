"""Async calls of one turn travel together, and nobody can tell but by the speed."""

from __future__ import annotations

import asyncio
import re
from typing import Any, AsyncIterator, Callable, List

import pytest

from synap.commands import (
    KV_GET,
    KV_INCR,
    KV_SET,
    QUEUE_CONSUME,
    QUEUE_PUBLISH,
    KvGet,
    KvIncr,
    KvSet,
    QueueConsume,
    QueuePublish,
)
from synap.errors import SynapError
from synap.testing.server import ThrowawayServer
from tests.fault_proxy import Fault, FaultProxy
from tests.lanes.canned import CannedPeer, http_answer
from tests.lanes.lanes import http_lane, made

Names = Callable[[], str]


class Lane:
    """An async HTTP lane, called from the test's own event loop."""

    def __init__(self, url: str, **options: Any) -> None:
        self.lane = http_lane(url, "async", **options).lane

    async def __call__(self, command: Any, payload: Any, timeout: float = 10.0, ticket: Any = None) -> Any:
        number = self.lane.ticket() if ticket is None else ticket
        return await self.lane.call(command, payload, ticket=number, timeout=timeout)


@pytest.fixture
async def proxy(service: ThrowawayServer) -> AsyncIterator[FaultProxy]:
    with FaultProxy("127.0.0.1", service.port) as proxy:
        yield proxy


@pytest.fixture
async def call(proxy: FaultProxy) -> AsyncIterator[Lane]:
    lane = Lane(proxy.url)
    yield lane
    await lane.lane.close()


def requests_of(peer: CannedPeer) -> List[int]:
    """Count the commands in each request that came."""
    return [request.count(b'"command":') for request in peer.requests]


def answer(request: bytes) -> bytes:
    """Answer a request or a bundle with a found value each."""
    found = re.search(rb'"request_id":"([^"]+)"', request)
    assert found is not None
    result = b'{"status":"success","payload":{"found":true,"value":1}'
    if b'"type":"batch"' in request:
        results = b",".join([result + b"}"] * request.count(b'"command":'))
        body = b'{"type":"batch_response","request_id":"%s","success":true,"results":[%s]}' % (found[1], results)
    else:
        body = result + b',"type":"response","request_id":"%s"}' % found[1]
    return http_answer(body)


async def test_calls_of_one_turn_are_one_request_and_a_lone_call_is_one() -> None:
    with CannedPeer(answer) as peer:
        call = Lane(peer.url)
        await call(KV_GET, KvGet("a"))
        assert requests_of(peer) == [1]
        assert b'"type":"batch"' not in peer.requests[0]
        await asyncio.gather(*(call(KV_GET, KvGet("a")) for _ in range(50)))
        assert requests_of(peer) == [1, 50]
        await asyncio.gather(*(call(KV_GET, KvGet("a")) for _ in range(300)))
        assert sorted(requests_of(peer)[2:]) == [44, 128, 128]
        await asyncio.gather(
            *(call(KV_SET, made(KvSet, "a", "x" * 400_000), 10) for _ in range(4)), return_exceptions=True
        )
        assert sorted(requests_of(peer)[5:]) == [2, 2]
        await call.lane.close()


async def test_each_succeeds_or_fails_by_itself(call: Lane, name: Names) -> None:
    key, text = name(), name()
    await call(KV_SET, made(KvSet, text, "text"))
    outcomes = await asyncio.gather(
        call(KV_INCR, KvIncr(key)),
        call(KV_INCR, KvIncr(text)),
        call(KV_INCR, KvIncr(key, amount=10**30)),
        call(KV_INCR, KvIncr(key)),
        return_exceptions=True,
    )
    assert [getattr(outcome, "value", None) or getattr(outcome, "code", None) for outcome in outcomes] == [
        1,
        "WRONG_TYPE",
        "INVALID_PAYLOAD",
        2,
    ]


async def test_a_consume_does_not_hold_up_the_calls_of_its_turn(call: Lane, name: Names) -> None:
    queue = name()
    consume = asyncio.ensure_future(call(QUEUE_CONSUME, QueueConsume(queue, timeout=20), 30))
    assert (await call(KV_INCR, KvIncr(queue))).value == 1
    await call(QUEUE_PUBLISH, made(QueuePublish, queue, "m"))
    assert (await consume).message == "m"


async def test_calls_that_were_lost_together_are_each_done_once_when_sent_again(
    call: Lane, proxy: FaultProxy, name: Names
) -> None:
    keys = [name() for _ in range(10)]
    await call(KV_GET, KvGet(keys[0]))
    proxy.fail(down=Fault(cut=20))
    tickets = [call.lane.ticket() for _ in keys]
    outcomes = await asyncio.gather(
        *(call(KV_INCR, KvIncr(key), ticket=ticket) for key, ticket in zip(keys, tickets)), return_exceptions=True
    )
    assert [getattr(outcome, "code", None) for outcome in outcomes] == ["CONNECTION_LOST"] * 10
    assert all(isinstance(outcome, SynapError) and outcome.may_have_happened for outcome in outcomes)
    assert len({id(outcome) for outcome in outcomes}) == 10
    proxy.heal()
    # Sent again alone, in another company, and by somebody who was not there before.
    first = await call(KV_INCR, KvIncr(keys[0]), ticket=tickets[0])
    rest = await asyncio.gather(
        *(call(KV_INCR, KvIncr(key), ticket=ticket) for key, ticket in zip(keys[1:], tickets[1:])),
        call(KV_INCR, KvIncr(keys[0])),
    )
    assert [first.value] + [answer.value for answer in rest] == [1] * 10 + [2]


async def test_a_cancelled_call_leaves_its_company_alone(call: Lane, name: Names) -> None:
    keys = [name() for _ in range(6)]
    for turn in range(12):
        calls = [asyncio.ensure_future(call(KV_INCR, KvIncr(key))) for key in keys]
        for _ in range(turn % 4):
            await asyncio.sleep(0)
        calls[turn % 6].cancel()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes] == [
            place == turn % 6 for place in range(6)
        ]


async def test_each_call_keeps_its_own_timeout(call: Lane, proxy: FaultProxy, name: Names) -> None:
    key = name()
    proxy.fail(down=Fault(swallow=True))
    short = asyncio.ensure_future(call(KV_GET, KvGet(key), 0.05))
    long = asyncio.ensure_future(call(KV_GET, KvGet(key), 20.0))
    with pytest.raises(TimeoutError):
        await short
    assert not long.done()
    proxy.heal()
    assert not (await long).found


async def test_answers_that_are_too_large_together_come_one_by_one(
    call: Lane, name: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synap.lanes._async import connections

    monkeypatch.setattr(connections, "MAX_ANSWER", 5000)
    keys = [name() for _ in range(4)]
    for key in keys:
        await call(KV_SET, made(KvSet, key, key * 1000))
    found = await asyncio.gather(*(call(KV_GET, KvGet(key)) for key in keys))
    assert [answer.value for answer in found] == [key * 1000 for key in keys]


async def test_a_service_that_does_not_know_numbers_in_a_batch_is_asked_one_by_one() -> None:
    def refuse(request: bytes) -> bytes:
        if b'"type":"batch"' not in request:
            return answer(request)
        error = b'{"code":"INVALID_REQUEST","message":"unknown field `number`","details":{}}'
        body = b'{"type":"response","request_id":"x","success":false,"status":"error","error":%s}' % error
        return http_answer(body, "400 Bad Request")

    with CannedPeer(refuse) as peer:
        call = Lane(peer.url)
        for _ in range(2):
            found = await asyncio.gather(*(call(KV_GET, KvGet("a")) for _ in range(5)))
            assert [answer.value for answer in found] == [1] * 5
        assert sum(b'"type":"batch"' in request for request in peer.requests) == 1
        await call.lane.close()


async def test_what_can_not_be_stored_is_refused_for_its_caller_alone(call: Lane, name: Names) -> None:
    key = name()
    outcomes = await asyncio.gather(
        call(KV_SET, made(KvSet, key, object())), call(KV_SET, made(KvSet, key, 1)), return_exceptions=True
    )
    assert isinstance(outcomes[0], SynapError)
    assert outcomes[0].code == "INVALID_PAYLOAD"
    assert getattr(outcomes[1], "success", False)
