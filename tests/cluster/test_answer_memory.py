"""How long a cluster, and a gateway, keep what they need to answer the same request again."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Awaitable, Callable, List, Tuple

import pytest

from synap import commands as c
from synap.cluster.host import ClusterHost
from synap.cluster.running import Running
from synap.testing.cluster import ThrowawayCluster
from tests.cluster.asking import Asking, result
from tests.cluster.asking_queues import INC, Q, consume, key, publish, whole
from tests.cluster.conftest import options
from tests.helpers.patience import PATIENCE


async def until_none(look: Callable[[], Awaitable[List[bytes]]]) -> None:
    end = time.monotonic() + PATIENCE
    while found := await look():
        assert time.monotonic() < end, found
        await asyncio.sleep(0.02)


async def test_answers_are_remembered_for_ten_minutes_after_the_last_write_of_their_session(asking: Asking) -> None:
    partition = asking.places.partition(Q)
    keys, memory = (
        asking.places.queue(partition, (b"qh", b"qb", b"qr", b"qd", b"qw", b"Q", b"QD"), Q),
        (asking.places.memory(partition, asking.session)),
    )

    async def write() -> int:
        """Write, and return how many ms all that is remembered of the session lives on."""
        own = (b"%d" % (len(keys) + 1), b"%d" % asking._number(), b"0", b"5", b"0", b"body")
        await asking.call(Q, "syn_q_publish", (*keys, memory), *own)
        return int(await asking.command(Q, "PTTL", memory))

    async def minutes() -> List[bytes]:
        return [field for field in await asking.command(Q, "HKEYS", memory) if field.startswith(b"#")]

    assert 600_000 < await write() <= 660_000
    (now,) = await minutes()
    await asking.command(Q, "HDEL", memory, now)
    await asking.command(Q, "HSET", memory, *(part for ago in (1, 9) for part in (b"#%d" % (int(now[1:]) - ago), "")))
    await asking.command(Q, "PEXPIRE", memory, 600_001)
    assert 600_001 < await write() <= 660_000  # the first of a minute puts it off
    assert len(await minutes()) == 1
    assert 600_000 < await write() <= 660_000


async def test_a_set_puts_off_when_answers_are_forgotten_only_where_less_than_ten_minutes_are_left(
    asking: Asking,
) -> None:
    """Each time would be a command more for every replica and file."""
    key = "{k}a"
    partition = asking.places.partition(key)
    memory = asking.places.memory(partition, asking.session)
    keys = (asking.places.key(partition, key), *asking.places.index(partition))

    async def left(before: int) -> int:
        """Set, and return how many ms all that is remembered of the session lives on, where that was `before`."""
        await asking.command(key, "PEXPIRE", memory, before)
        await asking.call(key, "syn_set", (memory, *keys), b"%d" % asking._number(), b"0", key.encode(), b"1")
        return int(await asking.command(key, "PTTL", memory))

    await asking.write(key, "syn_set", keys, key.encode(), b"1")
    assert 600_000 < await asking.command(key, "PTTL", memory) <= 660_000
    assert await left(655_000) <= 655_000
    assert 600_000 < await left(599_000) <= 660_000
    assert await left(1_200_000) > 1_100_000  # said when the clock was ahead


async def test_nothing_is_forgotten_sooner_because_a_clock_went_back_and_came_again(asking: Asking) -> None:
    """What was put off at a later time stays so, until that time is over; the mark of its minute says that it is."""
    partition = asking.places.partition(Q)
    memory = asking.places.memory(partition, asking.session)
    await publish(asking, b"body")
    (now,) = [field for field in await asking.command(Q, "HKEYS", memory) if field.startswith(b"#")]
    await asking.command(Q, "HDEL", memory, now)  # as it was when the clock was nine minutes ahead
    await asking.command(Q, "HSET", memory, b"#%d" % (int(now[1:]) + 9), b"")
    await asking.command(Q, "PEXPIRE", memory, 1_200_000)
    await publish(asking, b"body")
    assert await asking.command(Q, "PTTL", memory) > 1_100_000


async def test_no_function_lets_a_session_be_forgotten_sooner_than_was_said_at_a_later_time(asking: Asking) -> None:
    """A new primary's clock may be behind. Asked are first tries, second ones, and a second that comes first."""
    partition = asking.places.partition(Q)
    memory, room = asking.places.memory(partition, asking.session), asking.places.room(partition, Q)
    name = Q.encode()
    ways: List[Callable[[], Awaitable[Any]]] = [
        lambda: asking.write(Q, "syn_set", key(asking, Q), name, b"1", b"", b""),
        lambda: asking.write(Q, "syn_incr", key(asking, Q)[:2], name, b"1"),
        lambda: asking.write(Q, "syn_q_create", whole(asking), name, INC),
        lambda: asking.write(Q, "syn_s_publish", room, name, INC, b"9", b"86400000", b"e"),
        lambda: asking.write(Q, "syn_atomic", [], b"-", b"0", b"0"),
        lambda: publish(asking, b"body"),
        lambda: consume(asking),
        lambda: result(Running(asking.host.facilities.keys.incr(c.KvIncr(Q, 1), asking.request(b"1"))).start()),
    ]
    await ways[0]()
    for number, way in enumerate(ways):
        await asking.command(Q, "PEXPIRE", memory, 1_200_000)
        await way()
        assert await asking.command(Q, "PTTL", memory) > 1_100_000, number


async def test_what_was_made_again_or_never_confirmed_is_dropped_though_its_session_lives_on(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what a session with a bad connection was answered would grow for as long as it lives."""
    monkeypatch.setattr("synap.cluster.memory.LATE", 0.05)
    monkeypatch.setattr("synap.cluster.memory.LINGER", 0.0)
    memory, keys, session = asking.host.memory, asking.host.facilities.keys, asking.session.decode()
    value: Any = b"1"

    async def answered(number: int, retried: bool) -> None:
        request = memory.request(session, number, retried)
        await result(Running(keys.set(c.KvSet("a", value), request)).start())
        memory.answered(session, number, request)

    async def fields() -> List[bytes]:
        at = asking.places.memory(asking.places.partition("a"), asking.session)
        return [field for field in await asking.command("a", "HKEYS", at) if field.isdigit()]

    monkeypatch.setattr(memory, "direct", False)
    await answered(1, True)
    await answered(2, False)
    assert sorted(await fields()) == [b"1", b"2"]
    memory.leave(session)
    await until_none(fields)


def test_a_flood_of_requests_that_are_made_again_takes_bounded_memory(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synap.cluster.memory.MOST_LATE", 10)
    memory = asking.host.memory
    for number in range(100):
        request = memory.request("s", number, True)
        request.touched += [(1, b"%d" % number)] * 3
        memory.answered("s", number, request)
    assert sum(len(fields) for _, _, fields in memory._late) == 12


async def test_sessions_that_neither_confirm_nor_leave_are_forgotten_once_they_have_long_been_silent(
    one_node: ThrowawayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of plain HTTP do, which are no more than a text in each request."""
    monkeypatch.setattr("synap.cluster.host.FORGET_EVERY", 0.01)
    host = ClusterHost(options(one_node, durability="none"))
    await host.open()
    try:
        for number in range(100):
            request = host.memory.request(f"s{number}", 1, False)
            request.touched.append((1, b"1"))
            host.memory.answered(f"s{number}", 1, request)
        while host.memory._kept or host.memory._idle:
            await asyncio.sleep(0.01)
    finally:
        await host.close()


def test_a_session_that_goes_on_writing_is_not_forgotten(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = asking.host.memory
    dropped: List[bytes] = []
    monkeypatch.setattr(memory, "_forget", lambda session, partition, field: dropped.append(field))
    for number in range(1, 4):
        request = memory.request("s", number, False)
        request.touched.append((1, b"%d" % number))
        memory.answered("s", number, request)
        memory.age()
    memory.confirm("s", 3)
    assert dropped == [b"1", b"2"]
    memory.leave("s")
    assert not memory._kept
    assert not memory._idle
    assert [fields for _, _, fields in memory._late] == [[(1, b"3")]]


def test_what_is_to_be_dropped_of_many_sessions_takes_bounded_memory(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of sessions with a request each: beyond the most that linger, those that wait longest are dropped."""
    monkeypatch.setattr("synap.cluster.memory.MOST_LINGERING", 10)
    memory = asking.host.memory
    monkeypatch.setattr(memory, "direct", True)
    sent: List[Tuple[bytes, List[bytes]]] = []
    monkeypatch.setattr(memory, "_send", lambda asked, fields: sent.append((asked[0], fields)))
    for number in range(100):
        request = memory.request(f"s{number}", number, False)
        request.touched.append((1, b"%d" % number))
        memory.answered(f"s{number}", number, request)
        assert len(memory._drop) <= 10
    assert sent == [(b"s%d" % number, [b"%d" % number]) for number in range(90)]


def test_what_lingered_long_enough_is_dropped_a_part_at_a_time(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a flood would keep all others of a gateway waiting half a minute later."""
    monkeypatch.setattr("synap.cluster.memory.LINGER", 0.0)
    monkeypatch.setattr("synap.cluster.memory.MOST_AT_ONCE", 10)
    memory = asking.host.memory
    turns: List[Callable[[], None]] = []
    sent: List[bytes] = []
    monkeypatch.setattr(memory, "direct", True)
    monkeypatch.setattr(memory, "_send", lambda asked, fields: sent.extend(fields))
    monkeypatch.setattr(memory.link, "later", lambda seconds, turn: turns.append(turn))
    for number in range(25):
        request = memory.request(f"s{number}", number, False)
        request.touched.append((1, b"%d" % number))
        memory.answered(f"s{number}", number, request)
    for most in (10, 20, 25):
        turns.pop()()
        assert len(sent) == most
    assert not turns
    assert sent == [b"%d" % number for number in range(25)]
