"""What one consume of many holds at most: a node and a gateway have all of an answer in memory at once."""

from __future__ import annotations

from typing import Any, List

from synap import commands as c
from synap.cluster.queues import Delivery
from synap.cluster.running import Running
from synap.cluster.waiting import MOST_BYTES
from tests.cluster.asking import Asking, result

MEGABYTE = 1024 * 1024
FULL = MOST_BYTES // MEGABYTE


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
    await publish(asking, "q", [large(number) for number in range(FULL + 2)])
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
