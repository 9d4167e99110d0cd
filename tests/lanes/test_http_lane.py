"""The HTTP lane against a real service."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, List, Set

import pytest
from msgspec import Raw

from synap.commands import (
    ADMIN_STATS,
    BATCH,
    KV_GET,
    KV_INCR,
    KV_MGET,
    KV_SET,
    QUEUE_CONSUME,
    QUEUE_PUBLISH,
    QUEUE_STATS,
    AdminStats,
    BatchItem,
    BatchRequest,
    KvGet,
    KvIncr,
    KvMGet,
    KvSet,
    QueueConsume,
    QueuePublish,
    QueueStats,
)
from synap.errors import AuthenticationError, ConnectionError, QueueNotFoundError, SynapError
from synap.lanes._async.http import CONFIRM_EVERY
from synap.testing.server import ThrowawayServer
from tests.fault_proxy import Fault, FaultProxy
from tests.lanes.lanes import http_lane, made

Names = Callable[[], str]


@pytest.mark.parametrize("options", [{}, {"format": "msgpack"}, {"compression": True}, {"keep_alive": False}], ids=str)
def test_what_is_stored_comes_back(service: ThrowawayServer, colour: str, name: Names, options: Dict[str, Any]) -> None:
    key, value = name(), {"text": "ü" * 3000, "number": 1.0, "list": [None, True]}
    with http_lane(service.url, colour, **options) as lane:
        assert lane.call(KV_SET, made(KvSet, key, value)).success
        assert lane.call(KV_GET, KvGet(key)).value == value
        assert lane.health()["status"] == "ok"
        with pytest.raises(QueueNotFoundError):
            lane.call(QUEUE_STATS, QueueStats(name()))


def test_a_batch_is_answered_item_by_item(service: ThrowawayServer, colour: str, name: Names) -> None:
    with http_lane(service.url, colour) as lane:
        raw = lane.lane.codec
        items = [
            BatchItem("kv.set", Raw(raw.encode({"key": name(), "value": 1}))),
            BatchItem("queue.stats", Raw(raw.encode({"queue": name()}))),
        ]
        first, second = lane.call(BATCH, BatchRequest(items)).results
        assert (first.status, second.status, second.error["code"]) == ("success", "error", "QUEUE_NOT_FOUND")


def test_the_same_request_sent_again_is_answered_again_and_not_done_again(
    service: ThrowawayServer, colour: str, name: Names
) -> None:
    key = name()
    with http_lane(service.url, colour) as lane:
        ticket = lane.lane.ticket()
        assert lane.call(KV_INCR, KvIncr(key), ticket=ticket).value == 1
        assert lane.call(KV_INCR, KvIncr(key), ticket=ticket).value == 1
        assert lane.call(KV_INCR, KvIncr(key)).value == 2


def test_a_request_that_may_be_sent_again_is_not_confirmed_by_those_of_other_threads(
    service: ThrowawayServer, colour: str, name: Names
) -> None:
    """Two threads take their tickets in the same moment, and the later number is noted first."""
    key = name()
    with http_lane(service.url, colour) as lane:
        for _ in range(2 * CONFIRM_EVERY - 3):
            lane.call(KV_GET, KvGet(key))
        earlier = lane.lane.ticket()  # until this one is over, nothing more is confirmed; then it is time to
        numbers = lane.lane._numbers
        other = threading.Thread(target=lane.lane.ticket)

        class Interrupted:
            def __next__(self) -> int:
                number = next(numbers)
                lane.lane._numbers = numbers
                other.start()
                other.join(0.3)  # it may have to wait for this thread
                return int(number)

        lane.lane._numbers = Interrupted()
        ticket = lane.lane.ticket()
        other.join(10)
        assert lane.call(KV_INCR, KvIncr(key), ticket=ticket).value == 1
        lane.lane.drop(earlier)
        lane.call(KV_GET, KvGet(key))
        assert lane.call(KV_INCR, KvIncr(key), ticket=ticket).value == 1


def test_a_wrong_key_is_refused_when_connecting(colour: str) -> None:
    with ThrowawayServer(arguments=["--api-key", "right"]) as server:
        with http_lane(server.url, colour, api_key="wrong") as lane, pytest.raises(AuthenticationError):
            lane.connect()
        with http_lane(server.url, colour, api_key="right") as lane:
            lane.connect()


def test_a_pool_bounds_connections_but_not_the_consumers_that_wait(
    service: ThrowawayServer, colour: str, name: Names
) -> None:
    queue = name()
    with FaultProxy("127.0.0.1", service.port) as proxy, http_lane(proxy.url, colour, pool_size=2) as lane:
        taken: List[Any] = []

        def consume() -> None:
            taken.append(lane.call(QUEUE_CONSUME, QueueConsume(queue, timeout=20), timeout=30))

        consumers = [threading.Thread(target=consume) for _ in range(5)]
        for thread in consumers:
            thread.start()
        while lane.call(QUEUE_PUBLISH, made(QueuePublish, name(), 1)) and _waiting(lane, queue) < 5:
            pass
        numbers: List[int] = []
        callers = [
            threading.Thread(target=lambda: numbers.append(lane.call(KV_INCR, KvIncr(queue)).value)) for _ in range(20)
        ]
        for thread in callers:
            thread.start()
        for thread in callers:
            thread.join(20)
        assert sorted(numbers) == list(range(1, 21))
        assert proxy.connections <= 5 + 2
        for message in range(5):
            lane.call(QUEUE_PUBLISH, made(QueuePublish, queue, message))
        for thread in consumers:
            thread.join(20)
        assert sorted(message.message for message in taken) == [0, 1, 2, 3, 4]


def _waiting(lane: Any, queue: str) -> int:
    try:
        count: int = lane.call(QUEUE_STATS, QueueStats(queue)).consumers
    except QueueNotFoundError:
        return 0
    return count


def test_a_pool_that_stays_busy_is_said_to_be(service: ThrowawayServer, colour: str, name: Names) -> None:
    with FaultProxy("127.0.0.1", service.port) as proxy, http_lane(proxy.url, colour, pool_size=1) as lane:
        proxy.fail(down=Fault(swallow=True))
        stuck = threading.Thread(target=_time_out, args=(lane,))
        stuck.start()
        while proxy.connections == 0:
            pass
        with pytest.raises(TimeoutError, match="all connections are busy; nothing was sent") as caught:
            _scan(lane, 0.1)
        assert isinstance(caught.value, SynapError)
        assert not caught.value.may_have_happened
        stuck.join(10)


def _time_out(lane: Any) -> None:
    with pytest.raises(TimeoutError):
        _scan(lane, 1.0)


def _scan(lane: Any, timeout: float) -> Any:
    # A consume that does not wait is sent by itself in both colours, and takes a place in the pool.
    return lane.call(QUEUE_CONSUME, QueueConsume("nothing"), timeout=timeout)


def test_closing_fails_what_is_under_way_and_what_comes_later_connects_anew(
    service: ThrowawayServer, colour: str, name: Names
) -> None:
    queue = name()
    failures: List[str] = []

    def consume() -> None:
        with pytest.raises(ConnectionError) as caught:
            lane.call(QUEUE_CONSUME, QueueConsume(queue, timeout=20), timeout=30)
        failures.append(caught.value.code)

    with http_lane(service.url, colour) as lane:
        waiting = threading.Thread(target=consume)
        waiting.start()
        while _waiting(lane, queue) < 1:
            pass
        lane.close()
        waiting.join(10)
        assert failures == ["CONNECTION_LOST"]
        assert not lane.call(KV_GET, KvGet(queue)).found


def test_a_service_that_restarts_is_found_again(colour: str) -> None:
    with ThrowawayServer() as server, http_lane(server.url, colour) as lane:
        came: List[str] = []
        lane.lane.connected = lambda: came.append("connected")
        lane.lane.disconnected = lambda reason: came.append("disconnected")
        lane.connect()
        server.kill()
        with pytest.raises(ConnectionError):
            lane.call(KV_GET, KvGet("a"))
        server.start()
        assert not lane.call(KV_GET, KvGet("a")).found
        assert came == ["connected", "disconnected", "connected"]


async def test_a_cancelled_consume_takes_no_message_with_it(service: ThrowawayServer, name: Names) -> None:
    lane = http_lane(service.url, "async").lane

    async def call(command: Any, payload: Any) -> Any:
        return await lane.call(command, payload, ticket=lane.ticket(), timeout=10.0)

    for turn in range(40):
        queue = name()
        consumer = asyncio.ensure_future(call(QUEUE_CONSUME, QueueConsume(queue, timeout=20)))
        if turn % 2:  # else it is cancelled wherever it is: connecting, sending, waiting
            while await _depth(call, queue, "consumers") == 0:
                pass
        for _ in range(turn % 4):
            await asyncio.sleep(0)
        publisher = asyncio.ensure_future(call(QUEUE_PUBLISH, made(QueuePublish, queue, turn)))
        for _ in range(turn % 7):
            await asyncio.sleep(0)
        consumer.cancel()
        await publisher
        try:
            assert (await consumer).message == turn  # it was too late to cancel
            continue
        except asyncio.CancelledError:
            pass
        message = await call(QUEUE_CONSUME, QueueConsume(queue, timeout=5))
        assert (message.message, message.retry_count) == (turn, 0)
    await lane.close()


async def _depth(call: Any, queue: str, figure: str) -> int:
    try:
        return int(getattr(await call(QUEUE_STATS, QueueStats(queue)), figure))
    except QueueNotFoundError:
        return 0


async def test_cancelled_calls_disturb_no_other(service: ThrowawayServer, name: Names) -> None:
    lane = http_lane(service.url, "async").lane
    prefix = name()
    for number in range(20):
        await lane.call(KV_SET, made(KvSet, f"{prefix}/{number}", number), ticket=lane.ticket(), timeout=10.0)
    wrong: Set[int] = set()

    async def get(number: int) -> None:
        found = await lane.call(KV_GET, KvGet(f"{prefix}/{number}"), ticket=lane.ticket(), timeout=10.0)
        if found.value != number:
            wrong.add(number)

    for turn in range(50):
        calls = [asyncio.ensure_future(get(number)) for number in range(20)]
        for _ in range(turn % 6):
            await asyncio.sleep(0)
        for call in calls[turn % 3 :: 3]:
            call.cancel()
        for call in calls:
            try:
                await call
            except asyncio.CancelledError:
                assert call in calls[turn % 3 :: 3]
    assert wrong == set()
    await lane.close()


def test_a_lane_goes_from_one_event_loop_to_the_next(service: ThrowawayServer, name: Names) -> None:
    lane = http_lane(service.url, "async").lane
    key = name()

    async def use() -> int:
        try:
            return int((await lane.call(KV_INCR, KvIncr(key), ticket=lane.ticket(), timeout=10.0)).value)
        finally:
            await lane.close()

    with ThreadPoolExecutor(1) as elsewhere:  # not in the event loop of the test run
        assert [elsewhere.submit(asyncio.run, use()).result(30) for _ in range(3)] == [1, 2, 3]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_leaves_its_parents_connections_alone(service: ThrowawayServer, name: Names) -> None:
    key = name()
    with http_lane(service.url, "sync") as lane:
        assert lane.call(KV_INCR, KvIncr(key)).value == 1
        child = os.fork()
        if child == 0:
            code = 1
            try:
                lane.lane.abandon()
                code = 0 if lane.call(KV_INCR, KvIncr(key)).value == 2 else 2
                lane.close()
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert lane.call(KV_INCR, KvIncr(key)).value == 3


def test_threads_share_a_lane(service: ThrowawayServer, name: Names) -> None:
    key = name()
    numbers: List[int] = []
    with http_lane(service.url, "sync", pool_size=3) as lane:

        def count() -> None:
            for _ in range(50):
                numbers.append(lane.call(KV_INCR, KvIncr(key)).value)

        threads = [threading.Thread(target=count) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert sorted(numbers) == list(range(1, 401))


def test_a_large_answer_comes_whole(service: ThrowawayServer, colour: str, name: Names) -> None:
    key = name()
    with http_lane(service.url, colour) as lane:
        lane.call(KV_SET, made(KvSet, key, "x" * 5_000_000))
        assert [len(found.value) for found in lane.call(KV_MGET, KvMGet([key])).values] == [5_000_000]


def test_a_service_need_not_remember_what_its_client_has(service: ThrowawayServer, colour: str, name: Names) -> None:
    key = name()
    with http_lane(service.url, colour) as lane:
        before = lane.call(ADMIN_STATS, AdminStats())["replies"]
        for _ in range(300):
            ticket = lane.lane.ticket()
            lane.call(KV_INCR, KvIncr(key), ticket=ticket)
            lane.lane.drop(ticket)
        assert lane.call(ADMIN_STATS, AdminStats())["replies"] - before < 150


def test_what_may_still_be_sent_again_stays_remembered(service: ThrowawayServer, colour: str, name: Names) -> None:
    doubtful, busy = name(), name()
    with http_lane(service.url, colour) as lane:
        first = lane.lane.ticket()
        assert lane.call(KV_INCR, KvIncr(doubtful), ticket=first).value == 1
        for _ in range(300):
            ticket = lane.lane.ticket()
            lane.call(KV_INCR, KvIncr(busy), ticket=ticket)
            lane.lane.drop(ticket)
        assert lane.call(KV_INCR, KvIncr(doubtful), ticket=first).value == 1


def test_a_request_taken_back_before_it_is_read_is_refused(service: ThrowawayServer, name: Names) -> None:
    queue = name()
    with http_lane(service.url, "sync") as lane:
        lane.call(QUEUE_PUBLISH, made(QueuePublish, queue, "m"))
        ticket = lane.lane.ticket()
        tried = threading.Event()
        lane.lane._withdrawals.add(lane.lane._id(ticket), tried.set)
        assert tried.wait(10)
        with pytest.raises(SynapError, match="taken back"):
            lane.call(QUEUE_CONSUME, QueueConsume(queue), ticket=ticket)
        assert lane.call(QUEUE_CONSUME, QueueConsume(queue)).message == "m"
