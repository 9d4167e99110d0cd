"""Each function of the library on a real server: what it answers, also to the same request again, and what it keeps."""

from __future__ import annotations

import asyncio
from typing import Any, List, Tuple

import pytest

from synap.cluster import functions
from synap.cluster.calls import Refused
from synap.cluster.queues import ACK, PUBLISH
from tests.cluster.asking import Asking
from tests.cluster.asking_queues import INC, Q, consume, key, publish, stats, whole


async def test_the_library_is_loaded_under_a_name_that_carries_its_digest(asking: Asking) -> None:
    listed = await asking.command("", "FUNCTION", "LIST", "LIBRARYNAME", functions.LIBRARY)
    assert len(listed) == 1
    assert functions.VERSION in functions.LIBRARY


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
    assert last == b""
    live, last = await asking.call(names[0], "syn_page", (index, expiry), b"-", b"+", b"2", changes=False)
    assert (live, last) == ([b"{t}0"], b"{t}1")
    await asking.command(names[0], "ZADD", expiry, "1", names[1])  # for long, by each node's clock
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
    nack = (Q.encode(), INC + b"-" + id, lease, b"", b"1", b"500000")
    assert await asking.write(Q, "syn_q_nack", whole(asking), *nack) == [b"requeued"]
    assert (await stats(asking))[2] == 1
    await asking.command(Q, "ZADD", whole(asking)[6], 1, id)  # let it be due
    await asking.change(Q, "syn_q_settle", whole(asking), Q.encode())
    assert (await stats(asking))[2] == 0
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
    assert await asking.write("r", "syn_s_commit", keys, b"r", b"me", b"3", b"9") == [1]
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
