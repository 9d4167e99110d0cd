"""Each function of the library on a real server: what it answers, also to the same request again, and what it keeps."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Awaitable, Callable, List, Tuple

import pytest

from synap import commands as c
from synap.cluster import functions
from synap.cluster.calls import Call, Refused
from synap.cluster.host import ClusterHost
from synap.cluster.memory import Request
from synap.cluster.queues import ACK, CONSUME, PUBLISH
from synap.cluster.running import Pending, Running
from synap.errors import QueueNotFoundError
from synap.testing.cluster import ThrowawayCluster
from tests.cluster.asking import Asking, result
from tests.cluster.conftest import options
from tests.helpers.patience import PATIENCE

Q = "jobs"
INC = b"ab"


def key(asking: Asking, name: str) -> Tuple[bytes, ...]:
    partition = asking.places.partition(name)
    return (asking.places.key(partition, name), *asking.places.index(partition))


def whole(asking: Asking, queue: str = Q) -> List[bytes]:
    return asking.places.whole_queue(asking.places.partition(queue), queue)


async def publish(asking: Asking, *bodies: bytes, priority: int = 5, delay: int = 0, queue: str = Q) -> List[Any]:
    """Publish some messages with one call, as a gateway does that joins them; then the same again."""
    keys = asking.places.queue(asking.places.partition(queue), PUBLISH, queue)
    memory = asking.places.memory(asking.places.partition(queue), asking.session)
    numbers = [b"%d" % asking._number() for _ in bodies]
    answers = []
    for retried in (b"", b"1"):
        arguments: List[bytes] = []
        for number, body in zip(numbers, bodies):
            arguments += [b"%d" % (len(keys) + 1), number, retried, b"%d" % priority, b"%d" % delay, body]
        answers.append(await asking.call(queue, "syn_q_publish", (*keys, memory), *arguments))
    assert answers[0] == answers[1]
    return answers[0] if isinstance(answers[0], list) else [answers[0]]


async def consume(asking: Asking, lease: bytes = b"", most: int = 1, ack: Tuple[bytes, bytes] = (b"", b"")) -> Any:
    """Consume, and the same request again; returns (id, body, tries, lease) of each message, or why it was refused."""
    keys = asking.places.queue(asking.places.partition(Q), CONSUME, Q)
    memory = asking.places.memory(asking.places.partition(Q), asking.session)
    number = b"%d" % asking._number()
    answers = []
    for retried in (b"", b"1"):
        own = (lease, asking.session[:24], b"%d" % most, *ack)
        arguments = (b"", b"%d" % (len(keys) + 1), number, retried, *own)
        answers.append(await asking.call(Q, "syn_q_consume", (*keys, memory), *arguments))
    if isinstance(answers[0], bytes):  # one message
        assert answers[0] == answers[1]
        id, tries, lease, _, _, _, body = answers[0].split(b" ", 6)
        return [(id, body[9:], int(tries), lease)]
    assert answers[0][:-2] == answers[1][:-2]
    count, *found = answers[0][:-2]
    if isinstance(count, bytes):
        return count
    given = []
    for state, body in zip(found[::2], found[1::2]):
        id, tries, lease, *_ = state.split(b" ")
        given.append((id, body[9:], int(tries), lease))
    assert count == len(given)
    return given


async def stats(asking: Asking, queue: str = Q) -> Any:
    return await asking.change(queue, "syn_q_stats", whole(asking, queue), queue.encode())


async def test_the_library_is_loaded_under_a_name_that_carries_its_digest(asking: Asking) -> None:
    listed = await asking.command("", "FUNCTION", "LIST", "LIBRARYNAME", functions.LIBRARY)
    assert len(listed) == 1
    assert functions.VERSION in functions.LIBRARY


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


async def test_a_queue_made_again_in_one_batch_gives_other_ids(asking: Asking) -> None:
    """Time stands still in a function, so ids can't be told apart by it alone."""
    partition = asking.places.partition(Q)
    memory = asking.places.memory(partition, asking.session)
    keys = list(dict.fromkeys((memory, *asking.places.queue(partition, PUBLISH, Q), *whole(asking))))
    arguments: List[bytes] = []
    publishes = ("syn_q_publish", asking.places.queue(partition, PUBLISH, Q), (b"0", b"", b"", b"5", b"0", b"body"))
    for function, own, given in (
        publishes,
        ("syn_q_delete", [memory, *whole(asking)], (b"", b"", Q.encode())),
        publishes,
    ):
        arguments += [functions.name(function), b"%d" % len(own), *(b"%d" % (keys.index(each) + 1) for each in own)]
        arguments += [b"%d" % len(given), *given]
    _, first, _, second = await asking.write(Q, "syn_atomic", keys[1:], *arguments)
    assert len({answer.split(b" ")[0] for answer in (first, second)}) == 2


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


async def until_none(look: Callable[[], Awaitable[List[bytes]]]) -> None:
    end = time.monotonic() + PATIENCE
    while found := await look():
        assert time.monotonic() < end, found
        await asyncio.sleep(0.02)


async def test_set_keeps_the_earlier_value_the_index_and_conditions(asking: Asking) -> None:
    keys = key(asking, "a")
    assert await asking.write("a", "syn_set", keys, b"a", b'"1"', b"", b"") == b"1"
    assert await asking.write("a", "syn_set", keys, b"a", b'"2"', b"60000", b"xx") == b'1"1"'
    assert await asking.write("a", "syn_set", keys, b"a", b'"3"', b"", b"nx") == b'0"2"'
    assert await asking.write("a", "syn_set", keys, b"a", b'"3"', b"keep", b"is", b'"2"', b"") == b'1"2"'
    assert await asking.write("a", "syn_set", keys, b"a", b'"4"', b"", b"is", b'"2"', b"") == b'0"3"'
    value, left = await asking.call("a", "syn_get", keys[:1], b"", changes=False)
    assert value == b'"3"'
    assert 0 < left <= 60_000
    assert await asking.command("a", "ZRANGE", keys[1], 0, -1) == [b"a"]


async def test_an_increment_sent_again_counts_once(asking: Asking) -> None:
    keys = key(asking, "n")
    assert await asking.write("n", "syn_incr", keys, b"n", b"5") == b"5"
    assert await asking.write("n", "syn_incr", keys, b"n", b"-7") == b"-2"
    await asking.write("n", "syn_set", key(asking, "n"), b"n", b"9223372036854775807", b"", b"")
    with pytest.raises(Refused, match="INTEGER_OVERFLOW"):
        await asking.write("n", "syn_incr", keys, b"n", b"1")
    await asking.write("n", "syn_set", key(asking, "n"), b"n", b'"x"', b"", b"")
    with pytest.raises(Refused, match="WRONG_TYPE"):
        await asking.write("n", "syn_incr", keys, b"n", b"1")


async def test_delete_and_expire_compare_and_clean_the_index(asking: Asking) -> None:
    at, index, expiry = key(asking, "k")
    await asking.write("k", "syn_set", (at, index, expiry), b"k", b"1", b"", b"")
    assert await asking.write("k", "syn_expire", (at, expiry), b"k", b"5000", b"1", b"2", b"") == [0]
    assert await asking.write("k", "syn_expire", (at, expiry), b"k", b"5000", b"1", b"1", b"") == [1]
    assert await asking.command("k", "ZCARD", expiry) == 1
    assert await asking.write("k", "syn_expire", (at, expiry), b"k", b"", b"") == [1]
    assert await asking.write("k", "syn_del_if", (index, expiry, at), b"k", b"9", b"") == [0]
    assert await asking.write("k", "syn_del_if", (index, expiry, at), b"k", b"1", b"") == [1]
    assert await asking.write("k", "syn_del", (index, expiry, at), b"k") == [0]
    assert await asking.command("k", "ZCARD", index) == 0
    with pytest.raises(Refused, match="KEY_NOT_FOUND"):
        await asking.write("k", "syn_expire", (at, expiry), b"k", b"5000", b"")


async def test_pages_leave_expired_keys_out_and_the_sweep_takes_them_away(asking: Asking) -> None:
    names = [f"{{t}}{n}" for n in range(3)]
    partition = asking.places.partition(names[0])
    index, expiry = asking.places.index(partition)
    keys = [asking.places.key(partition, name) for name in names]
    pairs = [text for name in names for text in (name.encode(), b"1", b"1" if name.endswith("1") else b"")]
    await asking.write(names[0], "syn_mset", (index, expiry, *keys), *pairs)
    while await asking.command(names[0], "EXISTS", keys[1]):
        await asyncio.sleep(0.005)
    live, last = await asking.call(names[0], "syn_page", (index, expiry), b"-", b"+", b"10", changes=False)
    assert live == [b"{t}0", b"{t}2"]
    assert last == b"{t}2"
    await asking.call(names[0], "syn_sweep", (index, expiry))
    assert await asking.command(names[0], "ZCARD", index) == 2


async def test_messages_go_out_by_priority_then_in_order(asking: Asking) -> None:
    await publish(asking, b"a", b"b")
    await publish(asking, b"urgent", priority=9)
    given = await consume(asking, most=3)
    assert [message[1] for message in given] == [b"urgent", b"a", b"b"]
    leases = [int(message[3]) for message in given]
    assert len(set(leases)) == 3


async def test_a_full_queue_refuses_and_only_the_request_that_does_not_fit(asking: Asking) -> None:
    await asking.write(Q, "syn_q_create", whole(asking), Q.encode(), INC, b"md", b"1")
    answers = await publish(asking, b"a")
    assert answers[0].startswith(b"Pab ")
    assert await publish(asking, b"b") == [b"F1"]


async def test_an_acknowledgement_needs_the_lease_and_consume_can_carry_it(asking: Asking) -> None:
    await asking.write(Q, "syn_q_create", whole(asking), Q.encode(), INC)
    await publish(asking, b"a", b"b")
    ((id, _, _, lease),) = await consume(asking)
    message = INC + b"-" + id
    assert await consume(asking, ack=(message, b"7")) == b"held_by_another"
    ((second, body, *_),) = await consume(asking, ack=(message, lease))
    assert (second != id, body) == (True, b"b")
    figures = await stats(asking)
    assert (figures[0], figures[1], figures[6]) == (0, 1, 1)


async def test_a_passed_deadline_returns_the_message_to_its_place_and_then_buries_it(asking: Asking) -> None:
    await asking.write(Q, "syn_q_create", whole(asking), Q.encode(), INC, b"mr", b"1")
    await publish(asking, b"a", b"b")
    for tries in range(2):
        given = await consume(asking, lease=b"40")
        assert [(message[1], message[2]) for message in given] == [(b"a", tries)]
        while (await asking.change(Q, "syn_q_settle", whole(asking), Q.encode())) != [b"0"]:
            await asyncio.sleep(0.01)
    figures = await stats(asking)
    assert (figures[0], figures[8]) == (1, 1)
    assert (await stats(asking, Q + ".dlq"))[0] == 1
    assert await asking.write(Q, "syn_q_redrive", whole(asking), Q.encode(), b"10") == [1, 0]
    assert (await stats(asking))[0] == 2


async def test_a_nack_can_delay_and_keeps_the_place(asking: Asking) -> None:
    await asking.write(Q, "syn_q_create", whole(asking), Q.encode(), INC)
    await publish(asking, b"a", b"b")
    ((id, _, _, lease),) = await consume(asking)
    nack = (Q.encode(), INC + b"-" + id, lease, b"", b"1", b"1000")
    assert await asking.write(Q, "syn_q_nack", whole(asking), *nack) == [b"requeued"]
    assert (await stats(asking))[2] == 1
    while (await asking.change(Q, "syn_q_settle", whole(asking), Q.encode())) != [b"0"]:
        await asyncio.sleep(0.01)
    assert [message[1] for message in await consume(asking, most=2)] == [b"a", b"b"]


async def test_retry_delays_grow_up_to_their_most(asking: Asking) -> None:
    rules = (b"mr", b"9", b"rd", b"100000", b"rb", b"2.0", b"rm", b"150000")
    await asking.write(Q, "syn_q_create", whole(asking), Q.encode(), INC, *rules)
    await publish(asking, b"a")
    delays = []
    for _ in range(2):
        ((id, _, _, lease),) = await consume(asking)
        await asking.write(Q, "syn_q_nack", whole(asking), Q.encode(), INC + b"-" + id, lease, b"", b"1", b"")
        delayed = whole(asking)[6]
        _, due = await asking.command(Q, "ZRANGE", delayed, 0, 0, "WITHSCORES")
        seconds, micros = await asking.command(Q, "TIME")
        delays.append(float(due) - int(seconds) * 1000 - int(micros) / 1000)
        await asking.command(Q, "ZADD", delayed, 1, id)  # let it be due
        await asking.change(Q, "syn_q_settle", whole(asking), Q.encode())
    assert 90_000 < delays[0] <= 100_000
    assert 140_000 < delays[1] <= 150_000


async def test_a_queue_without_dead_letters_puts_back_and_drops_only_when_told(asking: Asking) -> None:
    await asking.write(Q, "syn_q_create", whole(asking), Q.encode(), INC, b"mr", b"0", b"dl", b"0")
    await publish(asking, b"a")
    for requeue, action in ((b"1", b"requeued"), (b"1", b"requeued"), (b"0", b"dropped")):
        ((id, _, _, lease),) = await consume(asking)
        nack = (Q.encode(), INC + b"-" + id, lease, b"", requeue, b"")
        assert await asking.write(Q, "syn_q_nack", whole(asking), *nack) == [action]
    assert (await stats(asking))[9] == 1


async def test_a_delivery_that_nobody_received_goes_back_and_its_try_does_not_count(asking: Asking) -> None:
    await asking.write(Q, "syn_q_create", whole(asking), Q.encode(), INC)
    await publish(asking, b"a")
    ((id, _, _, lease),) = await consume(asking)
    given = (Q.encode(), INC + b"-" + id, lease)
    assert await asking.change(Q, "syn_q_return", whole(asking), *given) == [1]
    assert await asking.change(Q, "syn_q_return", whole(asking), *given) == [0]
    ((_, body, tries, _),) = await consume(asking)
    assert (body, tries) == (b"a", 0)


async def test_peek_looks_and_changes_nothing(asking: Asking) -> None:
    await publish(asking, b"a", b"b", b"c")
    keys = asking.places.queue(asking.places.partition(Q), (b"qh", b"qb", b"qr"), Q)
    before = await asking.dump()
    inc, more, first, second = await asking.call(Q, "syn_q_peek", keys, Q, b"", b"2", b"1", changes=False)
    assert (more, first[1], second[1]) == (1, b"a", b"b")
    after = inc + b"-" + second[0]
    _, more, third = await asking.call(Q, "syn_q_peek", keys, Q, after, b"2", b"1", changes=False)
    assert (more, third[1]) == (0, b"c")
    assert await asking.dump() == before


async def test_purge_and_delete(asking: Asking) -> None:
    await publish(asking, b"a", b"b")
    assert await asking.write(Q, "syn_q_purge", whole(asking), Q.encode()) == [2]
    assert (await stats(asking))[0] == 0
    assert await asking.write(Q, "syn_q_delete", whole(asking), Q.encode()) == [1]
    with pytest.raises(Refused, match="QUEUE_NOT_FOUND"):
        await stats(asking)
    assert [name for name in await asking.dump() if Q.encode() in name] == []


async def test_events_have_offsets_without_gaps_and_a_repeated_publish_is_one_event(asking: Asking) -> None:
    keys = asking.places.room(asking.places.partition("r"), "r")
    offsets = [
        (await asking.write("r", "syn_s_publish", keys, b"r", b"ab", b"3", b"86400000", b"e%d" % n))[1]
        for n in range(5)
    ]
    assert offsets == [0, 1, 2, 3, 4]
    _, oldest, next, events, _ = await asking.call(
        "r", "syn_s_history", keys[1:3], b"-2", b"", b"10", b"1000", b"", changes=False
    )
    assert (oldest, next) == (2, 5)
    assert [entry[1][3] for entry in events] == [b"e3", b"e4"]
    assert await asking.write("r", "syn_s_commit", keys, b"r", b"me", b"3") == [1]
    assert await asking.call("r", "syn_s_cursors", keys[1:2], changes=False) == [5, b"me", b"4"]
    assert await asking.write("r", "syn_s_forget", keys, b"r", b"me") == [1]
    assert await asking.write("r", "syn_s_delete", keys, b"r") == [1]


async def test_an_atomic_batch_that_fails_leaves_every_key_byte_for_byte_as_it_was(asking: Asking) -> None:
    tag = "{acct}"
    partition = asking.places.partition(tag + "x")
    memory = asking.places.memory(partition, asking.session)

    def kv(name: str) -> List[bytes]:
        return [memory, asking.places.key(partition, tag + name), *asking.places.index(partition)]

    await asking.write(tag, "syn_set", kv("old")[1:], (tag + "old").encode(), b'"old"', b"600000", b"")
    await asking.write(tag, "syn_set", kv("n")[1:], (tag + "n").encode(), b"5", b"", b"")
    await publish(asking, b"first", queue=tag + "q")
    room = asking.places.room(partition, tag + "r")
    await asking.write(tag, "syn_s_publish", room, (tag + "r").encode(), b"ab", b"9", b"86400000", b"e0")
    none = (b"", b"")
    items: List[Tuple[str, List[bytes], Tuple[bytes, ...]]] = [
        ("syn_set", kv("new"), (*none, (tag + "new").encode(), b"1", b"", b"")),
        ("syn_set", kv("old"), (*none, (tag + "old").encode(), b'"x"', b"", b"")),
        ("syn_del", [kv("n")[0], kv("n")[2], kv("n")[3], kv("n")[1]], (*none, (tag + "n").encode())),
        (
            "syn_q_publish",
            asking.places.queue(partition, PUBLISH, tag + "q"),
            (b"0", b"", b"", b"5", b"0", b"second"),
        ),
        ("syn_s_publish", [memory, *room], (*none, (tag + "r").encode(), b"ab", b"9", b"86400000", b"e1")),
    ]
    bad = ("syn_q_ack", asking.places.queue(partition, ACK, tag + "q"), (b"0", b"", b"", b"ab-15", b"3", b""))

    async def run(*batch: Tuple[str, List[bytes], Tuple[bytes, ...]]) -> Any:
        keys = {memory: 1}
        arguments: List[bytes] = []
        for function, own, given in batch:
            arguments += [functions.name(function), b"%d" % len(own)]
            arguments += [b"%d" % keys.setdefault(each, len(keys) + 1) for each in own]
            arguments += [b"%d" % len(given), *given]
        return await asking.write(tag + "x", "syn_atomic", list(keys)[1:], *arguments)

    before = await asking.dump()
    failed = await run(*items, bad)
    assert failed[0] == 6
    assert failed[1].startswith(b"SYNAP MESSAGE_NOT_FOUND")
    assert await asking.dump() == before
    answers = await run(*items)
    assert answers[0] == 0
    assert len(answers) == 6
    assert (await stats(asking, tag + "q"))[0] == 2


async def test_a_first_try_that_comes_after_the_second_takes_no_effect(asking: Asking) -> None:
    """It is on its way at another gateway, whose caller has gone to this one meanwhile."""
    keys, queues, consumers = asking.host.facilities.keys, asking.host.facilities.queues, asking.host.consumers

    value: Any = b"1"

    async def second_then_first(command: Any, payload: Any) -> List[Any]:
        asked = asking.request(b"1")
        requests = (asked, *(asking.request(b"", int(asked.number)) for _ in range(2)))
        answers = []
        for one in requests:
            begun = command(payload, one)
            answers.append(await result(begun if isinstance(begun, Pending) else Running(begun).start()))
        return answers

    first, *late = await second_then_first(keys.incr, c.KvIncr("n", 5))
    assert [answer.value for answer in (first, *late)] == [5, 5, 5]
    first, *late = await second_then_first(keys.set, c.KvSet("once", value, nx=True))
    assert [answer.success for answer in (first, *late)] == [True, True, True]
    first, *late = await second_then_first(queues.publish, c.QueuePublish("q", value))
    assert {answer.message_id for answer in late} == {first.message_id}
    await result(queues.publish(c.QueuePublish("q", value), asking.request()))
    first, *late = await second_then_first(consumers.consume, c.QueueConsume("q"))
    assert [len(found) for found in (first, *late)] == [1, 0, 0]
    (held,) = first
    await second_then_first(queues.ack, c.QueueAck("q", held.message_id.decode()))
    figures = await result(Running(queues.stats(c.QueueStats("q"), asking.request())).start())
    assert (figures.depth, figures.pending, figures.acked_total) == (1, 0, 1)


@pytest.mark.parametrize("retried", [b"1", b""])
async def test_what_took_effect_is_answered_so_though_its_queue_was_deleted_since(
    asking: Asking, retried: bytes
) -> None:
    queues, consumers = asking.host.facilities.queues, asking.host.consumers
    value: Any = b"1"

    async def answer(begun: Any) -> Any:
        return await result(begun if isinstance(begun, Pending) else Running(begun).start())

    requests = [asking.request(b"1") for _ in range(6)]
    held = []
    for _ in requests:
        await answer(queues.publish(c.QueuePublish(Q, value), asking.request()))
        (message,) = await answer(consumers.consume(c.QueueConsume(Q), asking.request()))
        held.append(message.message_id.decode())

    def settle(*again: Request) -> List[Any]:
        return [
            queues.ack(c.QueueAck(Q, held[0]), again[0]),
            queues.ack(c.QueueAck(Q, held[1]), again[1]),
            queues.nack(c.QueueNack(Q, held[2]), again[2]),
            queues.extend(c.QueueExtend(Q, held[3], 60), again[3]),
            queues.purge(c.QueuePurge(Q), again[4]),
            queues.delete(c.QueueDelete(Q), again[5]),
        ]

    before = [await answer(begun) for begun in settle(*requests)]
    begun = settle(*(asking.request(retried, int(one.number)) for one in requests))
    fresh = queues.ack(c.QueueAck(Q, held[3]), asking.request())  # leaves in one call with the two
    assert [await answer(one) for one in begun] == before
    with pytest.raises(QueueNotFoundError):
        await answer(fresh)
    assert [name for name in await asking.dump() if Q.encode() in name] == []


@pytest.mark.parametrize("made_again", [False, True])
@pytest.mark.parametrize("many", [False, True])
async def test_a_consume_sent_again_takes_what_there_is_where_the_queue_of_its_lease_was_deleted(
    asking: Asking, many: bool, made_again: bool
) -> None:
    queues, consumers = asking.host.facilities.queues, asking.host.consumers

    async def answer(begun: Any) -> Any:
        return await result(begun if isinstance(begun, Pending) else Running(begun).start())

    await publish(asking, b"\x92\xc0\xa1a", b"\x92\xc0\xa1b")
    (held,) = await answer(consumers.consume(c.QueueConsume(Q), asking.request()))
    text, lease = held.message_id.decode(), held.answer.lease

    def consume(request: Request) -> Any:
        if many:
            payload = c.QueueConsumeMany([Q], 1, ack=[c.Held(Q, text, lease)])
            return answer(consumers.consume_many(payload, request))
        return answer(consumers.consume(c.QueueConsume(Q, ack=text, ack_lease=lease), request))

    first = asking.request(b"0")
    assert len(await consume(first)) == 1
    await answer(queues.delete(c.QueueDelete(Q), asking.request()))
    if made_again:
        await publish(asking, b"\x92\xc0\xa1c")
    found = await consume(asking.request(b"1", int(first.number)))
    assert [one.answer.message for one in found] == (["c"] if made_again else [])
    figures = await answer(queues.stats(c.QueueStats(Q), asking.request()))
    assert (figures.acked_total, figures.pending) == (0, int(made_again))


async def test_a_consume_of_which_only_the_answer_was_lost_is_found_again_behind_what_was_due_meanwhile(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is sent again, the node asks that what is due be settled first; that is no reason to do it twice."""
    consumers, usual = asking.host.consumers, asking.host.consumers._call
    await asking.write(Q, "syn_q_create", whole(asking), Q.encode(), INC)
    await publish(asking, b"\x92\xc0\xa1a", b"\x92\xc0\xa1b", b"\x92\xc0\xa1c")

    async def consume_once(payload: c.QueueConsume) -> Any:
        return await result(consumers.consume(payload, asking.request(b"0")))

    (held,) = await consume_once(c.QueueConsume(Q))
    again = Call.plain(())

    def lost(*given: Any) -> Call:
        monkeypatch.undo()
        again.uncertain = True
        usual(*given).when_done(lambda: again.finish([b"due"]))
        return again

    monkeypatch.setattr(consumers, "_call", lost)
    (next_one,) = await consume_once(c.QueueConsume(Q, ack=held.message_id.decode()))
    assert next_one.message_id == b"ab-25"
    figures = await stats(asking)
    assert (figures[0], figures[1], figures[6]) == (1, 1, 1)
