"""Durations run by a clock that nobody can set; people are shown the wall clock."""

from __future__ import annotations

import io
import json
import logging
import time
from typing import Any, Iterator, List

import pytest

from synap import SynapClient
from synap.engine import records as r
from synap.engine.engine import Engine
from synap.host import EngineHost
from synap.host.clock import Clock
from synap.storage.durable import open_host
from synap.storage.portable import export_directory
from synap.storage.recovery import read_directory
from synap.storage.write_directory import new_directory, write_engine
from synap.testing import TestClock
from tests.helpers.driver import Client, Service, c

HOUR = 3600.0


class Hands:
    """The two clocks of a machine, turned by hand."""

    def __init__(self) -> None:
        self.steady = 1000.0
        self.wall = 1_700_000_000.0

    def pass_by(self, seconds: float) -> None:
        self.steady += seconds
        self.wall += seconds

    def clock(self) -> Clock:
        return Clock(wall=lambda: self.wall, steady=lambda: self.steady)


@pytest.fixture
def hands() -> Hands:
    return Hands()


def test_a_clock_goes_on_evenly(hands: Hands) -> None:
    clock = hands.clock()
    begin = clock()
    assert begin == hands.wall
    hands.wall -= HOUR
    hands.pass_by(10)
    assert (clock() - begin, clock.wall() - begin) == (10, 10 - HOUR)


@pytest.fixture
def clock() -> TestClock:
    return TestClock()


@pytest.fixture
def client(clock: TestClock) -> Iterator[SynapClient]:
    with SynapClient(url="memory://", clock=clock) as client:
        yield client


@pytest.mark.parametrize("jump", [900.0, -HOUR, 90 * 86_400.0], ids=["slept", "back", "far"])
def test_a_jump_ends_nothing_early_and_lets_nothing_hang(client: SynapClient, clock: TestClock, jump: float) -> None:
    client.kv.set("key", 1, ttl=100)
    client.queue.publish("delayed", "later", delay=100)
    client.queue.publish("leased", "held")
    held = client.queue.consume("leased", ack_deadline=100)
    assert held is not None
    client.stream.publish("room", "kept", 1)
    clock.set_wall(jump)
    clock.advance(99)
    assert client.kv.ttl("key") == 1
    assert client.queue.consume("delayed") is None
    assert client.queue.stats("leased").pending == 1
    assert client.stream.stats("room").events == 1
    clock.advance(2)
    assert client.kv.get("key").found is False
    message = client.queue.consume("delayed")
    assert message is not None
    assert message.message == "later"
    assert client.queue.stats("leased").pending == 0
    clock.advance(86_400 - 101 - 1)
    assert client.stream.stats("room").events == 1
    clock.advance(2)
    assert client.stream.stats("room").events == 0


def test_people_are_shown_the_wall_clock(client: SynapClient, clock: TestClock) -> None:
    client.stream.publish("room", "before", 1)
    clock.set_wall(-HOUR)
    clock.advance(10)
    client.stream.publish("room", "after", 1)
    first, second = (event.timestamp for event in client.stream.history("room").events)
    assert second - first == 10 - HOUR
    client.queue.publish("q", 1, delay=50)
    peeked = client.queue.peek("q", state="delayed").messages[0]
    assert (peeked.published, peeked.due) == (clock.wall(), clock.wall() + 50)
    clock.set_wall(900)
    clock.advance(1)
    assert client.queue.peek("q", state="delayed").messages[0].due == clock.wall() + 49
    clock.set_wall(-900)
    client.queue.publish("work", 1)
    clock.set_wall(2 * HOUR)
    clock.advance(1)
    message = client.queue.consume("work", ack_deadline=30)
    assert message is not None
    assert message.deadline == clock.wall() + 30
    assert client.queue.peek("q", state="delayed").messages[0].published == clock.wall() - 2 * HOUR - 2
    with client.pubsub.subscribe(["topic"]) as subscription:
        client.pubsub.publish("topic", 1)
        assert next(iter(subscription)).timestamp == int(clock.wall())


def opened(directory: str, hands: Hands) -> Service:
    return Service(directory, clock=hands.clock())


@pytest.mark.parametrize("jump", [900.0, -HOUR], ids=["ahead", "back"])
@pytest.mark.parametrize("when", ["before", "after"], ids=["set-before-the-writes", "set-after-the-writes"])
@pytest.mark.parametrize("folded", [False, True], ids=["log", "snapshot"])
def test_a_restart_after_a_jump_goes_on_with_the_same_time(
    tmp_path: Any, hands: Hands, jump: float, when: str, folded: bool
) -> None:
    directory = str(tmp_path / "data")
    with opened(directory, hands) as service:
        if when == "before":
            hands.wall += jump
        service.do(c.KvSet("key", b"1", ttl=100))
        service.do(c.QueuePublish("delayed", b"1", delay=100))
        service.do(c.StreamPublish("room", "kept", b"1"))
        published = int(hands.wall)
        if when == "after":
            hands.wall += jump
        hands.pass_by(40)
        service.do(c.KvSet("another", b"1"))
        if folded:
            directory = str(tmp_path / "snapshot")
            with new_directory(directory):
                write_engine(directory, service.host.engine)
    hands.pass_by(40)  # it is down
    hands.steady = 5.0
    with opened(directory, hands) as service:
        assert service.do(c.KvGet("key")).ttl == 20
        assert service.do(c.QueueConsume("delayed")) is None
        assert service.do(c.StreamHistory("room")).events[0].timestamp == published
        hands.pass_by(21)
        service.host.wake()
        assert service.do(c.KvGet("key")).found is False
        assert service.do(c.QueueConsume("delayed")).message == b"1"


@pytest.mark.parametrize("session", ["s" * 32, ""], ids=["session", "no-session"])
@pytest.mark.parametrize("folded", [False, True], ids=["log", "snapshot"])
@pytest.mark.parametrize(
    "last",
    [
        c.KvSet("another", b"1"),
        c.KvExpire("key", 100),
        c.QueuePublish("q", b"1"),
        c.QueueConsume("leased"),
        c.StreamPublish("room", "kept", b"1"),
    ],
    ids=lambda payload: type(payload).__name__,
)
def test_a_wall_clock_that_was_set_back_while_nothing_ran_takes_nothing_back(
    tmp_path: Any, hands: Hands, caplog: pytest.LogCaptureFixture, session: str, folded: bool, last: Any
) -> None:
    """Whatever was written last, and whoever wrote it."""
    directory = str(tmp_path / "data")
    with Service(directory, clock=hands.clock(), session=session) as service:
        service.do(c.KvSet("key", b"1", ttl=100))
        service.do(c.QueuePublish("leased", b"1"))
        service.do(c.QueuePublish("delayed", b"1", delay=100))
        hands.pass_by(40)
        service.do(last)
        if folded:
            directory = str(tmp_path / "snapshot")
            with new_directory(directory):
                write_engine(directory, service.host.engine)
    hands.wall -= HOUR
    with caplog.at_level(logging.WARNING), opened(directory, hands) as service:
        assert service.do(c.KvGet("key")).ttl == (100 if isinstance(last, c.KvExpire) else 60)
        hands.pass_by(59)
        assert service.do(c.QueueConsume("delayed")) is None
        hands.pass_by(2)
        service.host.wake()
        assert service.do(c.QueueConsume("delayed")).message == b"1"
        assert service.host.wall() == hands.wall
    assert "3600 s behind" in caplog.text


def test_the_time_is_noted_once_a_second(tmp_path: Any, hands: Hands) -> None:
    """Where nobody has a session; who has one says it with each turn."""
    kinds: List[int] = []

    def sets(session: str) -> List[int]:
        with Service(str(tmp_path / session / "data"), clock=hands.clock(), session=session) as service:
            for number in range(35):
                service.do(c.KvSet(f"{number}", b"1"))
                hands.pass_by(0.1)
        read_directory(str(tmp_path / session / "data"), lambda records: kinds.extend(one[0] for one in records))
        return [kinds.count(r.TIME), kinds.count(r.KEY), kinds.count(r.KEY_SET)]

    assert sets("") == [4, 35, 0]
    kinds.clear()
    assert sets("s" * 32) == [0, 0, 35]


@pytest.mark.parametrize("jump", [8 * HOUR, -HOUR], ids=["slept", "back"])
@pytest.mark.parametrize("noticed", ["read", "woken", "left", "drained"])
def test_a_jump_with_no_write_after_it_is_kept(tmp_path: Any, hands: Hands, jump: float, noticed: str) -> None:
    """Such as a laptop's that is closed, opened, and switched off."""
    directory = str(tmp_path / "data")
    with opened(directory, hands) as service:
        service.do(c.KvSet("key", b"1", ttl=HOUR))
        service.do(c.QueuePublish("q", b"1"))
        service.do(c.QueueConsume("q", ack_deadline=3600))
        hands.pass_by(30)
        hands.wall += jump
        if noticed == "read":
            service.do(c.KvGet("none"))
        elif noticed == "woken":
            service.host.wake()
        elif noticed == "left":
            service.host.leave(service.client)
        else:
            service.host.drain()
    hands.pass_by(10)  # it is down
    hands.steady = 5.0
    with opened(directory, hands) as service:
        assert service.do(c.KvGet("key")).ttl == HOUR - 40
        assert service.do(c.QueueStats("q")).pending == 1


def test_an_export_has_the_times_of_the_wall_clock(tmp_path: Any, hands: Hands) -> None:
    directory = str(tmp_path / "data")
    with opened(directory, hands) as service:
        service.do(c.QueuePublish("q", b"1"))
        published = hands.wall
        hands.wall -= HOUR
        hands.pass_by(10)
        service.do(c.KvSet("key", b"1", ttl=100))
        service.do(c.QueuePublish("q", b"2", delay=50))
    out = io.BytesIO()
    export_directory(directory, out, now=hands.wall)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    found = {line["message"]: line for line in lines if line["type"] == "message"}
    assert next(line for line in lines if line["type"] == "key")["expires"] == pytest.approx(hands.wall + 100)
    assert found[1]["published"] == pytest.approx(published)
    assert (found[2]["published"], found[2]["due"]) == pytest.approx((hands.wall, hands.wall + 50))


def test_a_directory_of_an_earlier_version_is_in_wall_time(tmp_path: Any) -> None:
    durable = open_host(str(tmp_path / "data"), call=lambda function, *arguments: function(*arguments))
    assert durable.host.clock() == pytest.approx(time.time(), abs=60)
    durable.close()


def test_a_turn_has_one_time_and_the_next_one_its_own() -> None:
    clock = TestClock()
    reads = []

    def counting() -> float:
        reads.append(clock())
        return reads[-1]

    host = EngineHost(Engine(ids=lambda: 1), clock=counting)
    caller = Client(host)
    host.end_turn()
    reads.clear()
    for number in range(3):
        host.execute(caller, number, c.KV_SET, c.KvSet(f"{number}", b"1", ttl=10), decoded=True)
    host.end_turn()
    assert len(reads) == 1
    clock.advance(9.5)
    host.execute(caller, 3, c.KV_TTL, c.KvTtl("0"), decoded=True)
    host.end_turn()
    assert caller.answers[3] == c.TtlAnswer(1)
    assert len(reads) == 2
