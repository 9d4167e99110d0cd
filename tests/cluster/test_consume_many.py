"""What one consume of many holds at most: a node and a gateway have all of an answer in memory at once."""

from __future__ import annotations

from typing import Any, List

import pytest

from synap import AsyncSynapClient, SynapError
from synap import commands as c
from synap.cluster import functions
from synap.cluster.memory import Request
from synap.cluster.queues import Delivery
from synap.cluster.running import Running
from synap.engine.limits import ANSWER_BYTES
from synap.testing.cluster import ThrowawayCluster
from tests.cluster.asking import Asking, result

MEGABYTE = 1024 * 1024
FULL = ANSWER_BYTES // MEGABYTE - 1  # a body is a little more than its megabyte


async def publish(asking: Asking, queue: str, values: List[Any]) -> None:
    for value in values:
        await result(asking.host.facilities.queues.publish(c.QueuePublish(queue, value), asking.request()))


def begin(asking: Asking, queues: List[str], most: int) -> Any:
    consumers = asking.host.consumers
    return consumers.begin(c.QUEUE_CONSUME_MANY, c.QueueConsumeMany(queues, most), asking.request())


def first_bytes(found: List[Delivery]) -> List[int]:
    return [delivery.answer.message[1] for delivery in found]


def large(number: int) -> bytes:
    return b'"' + bytes([65 + number]) * MEGABYTE + b'"'


async def test_many_large_messages_come_in_several_answers_in_order(asking: Asking) -> None:
    await publish(asking, "q", [large(number) for number in range(FULL + 3)])
    first = await result(begin(asking, ["q"], 100))
    assert first_bytes(first) == [65 + number for number in range(FULL)]
    second = await result(begin(asking, ["q"], 100))
    assert first_bytes(second) == [65 + number for number in range(FULL, FULL + 3)]
    assert await result(begin(asking, ["q"], 100)) == []
    figures = await result(asking.host.facilities.queues.tend("syn_q_stats", "q"))
    assert (figures[0], figures[1], figures[5]) == (0, FULL + 3, FULL + 3)


async def test_large_messages_behind_small_ones_are_not_one_answer_either(asking: Asking) -> None:
    await publish(asking, "q", [b'"%d"' % number for number in range(40)] + [large(number) for number in range(20)])
    assert len(await result(begin(asking, ["q"], 100))) == 40 + FULL


async def test_each_of_those_that_consume_in_one_turn_gets_one_whatever_the_others_got(asking: Asking) -> None:
    await publish(asking, "q", [large(number) for number in range(FULL + 6)])
    begun = [begin(asking, ["q", "other"], 100) for _ in range(3)]
    assert [len(await result(one)) for one in begun] == [FULL - 2, 1, 1]


async def test_who_has_enough_of_one_queue_takes_none_of_the_next(asking: Asking) -> None:
    await publish(asking, "other", [b"1"])
    await publish(asking, "q", [b"1", *(large(number) for number in range(FULL + 2))])
    assert len(await result(begin(asking, ["q", "not made"], 1))) == 1
    assert (
        "not made"
        not in (
            await result(Running(asking.host.facilities.queues.list(c.QueueList(), asking.request())).start())
        ).queues
    )
    begun = [begin(asking, ["q", "other"], 100) for _ in range(2)]
    assert [{delivery.queue for delivery in await result(one)} for one in begun] == [{"q"}, {"q"}]
    names = [f"q{number}" for number in range(FULL + 4)]
    for name in names:
        await publish(asking, name, [large(0)])
    assert len(await result(begin(asking, names, 100))) == FULL


async def test_one_call_delivers_a_thousand_messages_to_those_it_carries(asking: Asking) -> None:
    await publish(asking, "q", [b"%d" % number for number in range(1100)])
    begun = [begin(asking, ["q"], 1000) for _ in range(2)]
    assert [len(await result(one)) for one in begun] == [999, 1]
    assert len(await result(begin(asking, ["q"], 1000))) == 100


async def test_a_page_of_large_messages_ends_early_and_says_that_there_are_more(asking: Asking) -> None:
    await publish(asking, "q", [large(number) for number in range(FULL + 3)])
    seen: List[int] = []
    sizes: List[int] = []
    after, more = None, True
    while more:
        peek = asking.host.facilities.queues.peek(c.QueuePeek("q", after=after), asking.request())
        page: c.PeekAnswer = await result(Running(peek).start())
        seen += [message.message[1] for message in page.messages]
        sizes.append(len(page.messages))
        after, more = page.messages[-1].message_id, page.has_more
    assert (seen, sizes) == ([65 + number for number in range(FULL + 3)], [FULL, 3])


@pytest.mark.parametrize("named", [True, False])
async def test_large_dead_letters_are_put_back_in_several_calls(
    asking: Asking, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    """400 of 1 MB in one stopped their node for two seconds, and were 400 MB in one go for its replica."""
    queues = asking.host.facilities.queues
    await publish(asking, "q", [b"0"])
    await publish(asking, "q.dlq", [large(number) for number in range(2 * FULL + 3)])
    ids: List[str] = []
    while len(ids) < 2 * FULL:
        page = c.QueuePeek("q.dlq", "ready", ids[-1] if ids else None)
        ids += [m.message_id for m in (await result(Running(queues.peek(page, asking.request())).start())).messages]
    calls: List[str] = []
    whole = queues._whole

    def noted(request: Any, function: str, *arguments: Any) -> Any:
        calls.append(function)
        return whole(request, function, *arguments)

    monkeypatch.setattr(queues, "_whole", noted)
    payload = c.QueueRedrive("q", message_ids=ids[::-1] if named else None)
    wanted = len(ids) if named else 2 * FULL + 3
    first = asking.request()
    for tries in (1, 2):
        request = Request(first.session, first.number, b"1" if tries == 2 else b"", first.kin)
        assert (await result(Running(queues.redrive(payload, request)).start())).redriven == wanted
        assert calls.count("syn_q_redrive") == tries * -(-wanted // FULL)
    depth, *_ = await result(queues.tend("syn_q_stats", "q"))
    assert depth == 1 + wanted


async def test_an_atomic_batch_puts_back_all_dead_letters_or_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = functions.SOURCE.replace(b"BYTES = 8388608", b"BYTES = 1000").replace(
        b"LETTERS = 67108864", b"LETTERS = 9000"
    )
    monkeypatch.setattr(functions, "SOURCE", source)
    with ThrowawayCluster() as cluster:
        async with AsyncSynapClient(url=cluster.url, engine={"durability": "none"}) as client:
            await client.queue.create("q")
            for _ in range(9):
                await client.queue.publish("q.dlq", "x" * 900)
            async with client.pipeline(atomic=True) as pipeline:
                pipeline.queue.redrive("q")
            for _ in range(12):
                await client.queue.publish("q.dlq", "x" * 900)
            async with client.pipeline(atomic=True) as pipeline:
                refused = pipeline.queue.redrive("q")
            with pytest.raises(SynapError, match="at most 9000 bytes"):
                refused.result()
            assert [(await client.queue.stats(name)).depth for name in ("q", "q.dlq")] == [9, 12]
            assert await client.queue.redrive("q") == 12
