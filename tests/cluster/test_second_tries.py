"""A request that comes again though the first took effect, or before the first does, through the host's own methods."""

from __future__ import annotations

import asyncio
from typing import Any, List

import pytest

from synap import commands as c
from synap.cluster.calls import Call
from synap.cluster.memory import Request
from synap.cluster.running import Pending, Running
from synap.errors import QueueNotFoundError, SynapError
from synap.host import ANSWER, REFUSE
from tests.cluster.asking import Asking, result
from tests.cluster.asking_queues import INC, Q, consume, publish, stats, whole
from tests.cluster.callers import Noted
from tests.helpers.patience import PATIENCE


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


async def test_an_acknowledgement_in_a_queue_that_is_not_there_is_refused_alike_again(asking: Asking) -> None:
    assert await consume(asking, ack=(INC + b"-15", b"")) == b"no_queue"


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


async def test_a_clear_that_ended_half_way_takes_the_rest_when_it_comes_again(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pages are remembered by their numbers, and the first one left is another one than the first one before."""
    keys, left = asking.host.facilities.keys, 2
    delete = keys._delete
    value: Any = b"1"
    monkeypatch.setattr("synap.cluster.keys.PIECE", 5)

    async def some(*given: Any) -> int:
        nonlocal left
        if not left:
            raise SynapError("SERVICE_UNAVAILABLE", "the gateway is gone")
        left -= 1
        return await delete(*given)

    for number in range(20):
        await result(Running(keys.set(c.KvSet(f"{{t}}{number}", value), asking.request())).start())
    asked = asking.request()
    monkeypatch.setattr(keys, "_delete", some)
    with pytest.raises(SynapError):
        await result(Running(keys.clear(c.KvClear("{t}"), asked)).start())
    monkeypatch.setattr(keys, "_delete", delete)
    again = keys.clear(c.KvClear("{t}"), asking.request(b"1", int(asked.number)))
    assert (await result(Running(again).start())).deleted == 20
    assert (await result(Running(keys.scan(c.KvScan(), asked)).start())).keys == []


async def test_a_clear_ends_however_fast_keys_come_behind_it(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, stored = asking.host.facilities.keys, 0
    delete = keys._delete
    value: Any = b"1"
    monkeypatch.setattr("synap.cluster.keys.PIECE", 5)

    async def store(count: int) -> None:
        nonlocal stored
        for _ in range(count):
            stored += 1
            await keys.set(c.KvSet(f"{{t}}{stored:04}", value), asking.request())

    async def while_others_store(*given: Any) -> int:
        deleted = await delete(*given)
        await store(10)
        assert stored < 200
        return deleted

    await result(Running(store(20)).start())
    monkeypatch.setattr(keys, "_delete", while_others_store)
    assert (await result(Running(keys.clear(c.KvClear("{t}"), asking.request())).start())).deleted == 20


@pytest.mark.parametrize(
    ("command", "payload"),
    [(c.QUEUE_CONSUME, c.QueueConsume(Q, PATIENCE)), (c.QUEUE_CONSUME_MANY, c.QueueConsumeMany([Q], 1, PATIENCE))],
)
async def test_a_consume_that_waits_and_is_sent_again_on_another_connection_takes_one_message(
    asking: Asking, command: c.Command, payload: Any
) -> None:
    """Both tries waited in one line, and one call took a message for each: the older one's stayed leased."""
    host = asking.host
    told: List[Any] = []
    older, newer = [Noted(host, told, "a" * 32) for _ in range(2)]
    await asking.write(Q, "syn_q_create", whole(asking), Q.encode(), INC)
    for session, again in ((older, False), (newer, True)):
        host.execute(session, 7, command, payload, again, decoded=True)
        host.end_turn()
        while not host.consumers.waiting or any(line.asking for line in host.consumers.lines.values()):
            await asyncio.sleep(0.001)
    await publish(asking, b"\x92\xc0\xa1a", b"\x92\xc0\xa1b", b"\x92\xc0\xa1c")
    while not any(who is newer for who, *_ in told):
        await asyncio.sleep(0.001)
    ready, leased, *_ = await stats(asking)
    assert (ready, leased) == (2, 1)
    assert [(who, what, number) for who, what, number, _ in told] == [(older, REFUSE, 7), (newer, ANSWER, 7)]
    host.leave(older)  # its connection is found dead: the message stays with the newer one
    ready, leased, *_ = await stats(asking)
    assert (ready, leased) == (2, 1)
