"""A subscriber of topics that is too slow for its buffer is told and dropped; nobody waits for it."""

from __future__ import annotations

import asyncio
from typing import List

import pytest

from synap import AsyncSynapClient, SynapError
from tests.conformance.conftest import Make
from tests.conformance.targets import Target
from tests.helpers.patience import PATIENCE, in_time
from tests.helpers.seen import Gate, Seen

pytestmark = pytest.mark.without("crashing")


async def overwhelm(client: AsyncSynapClient, topic: str, quick: Seen) -> int:
    """Publish until one of the two subscribers has been dropped, the quick one keeping up; returns how many it took."""
    filler = "x" * 20_000
    for number in range(5_000):
        if (await client.pubsub.publish(topic, [number, filler])).subscribers_matched < 2:
            return number + 1
        await quick.first(number + 1)
    raise AssertionError("the slow subscriber was never dropped")


async def test_a_slow_subscriber_is_told_and_dropped_and_nobody_waits_for_it(make: Make, name: str) -> None:
    publisher, slow, fast = make(), make(buffer=8), make()
    quick = Seen()
    subscription = await slow.pubsub.subscribe([name])  # and nothing takes its messages
    await fast.pubsub.subscribe([name], quick)
    published = await overwhelm(publisher, name, quick)
    assert [message[0] for _, message in await quick.first(published)] == list(range(published))
    received: List[int] = []

    async def receive() -> None:
        async for item in in_time(subscription):
            received.append(item[1][0])

    with pytest.raises(SynapError) as caught:
        await asyncio.wait_for(receive(), PATIENCE)
    assert caught.value.code == "SLOW_CONSUMER"
    assert received == list(range(len(received))), "what it did get is in order and without gaps"
    assert len(received) < published


async def test_who_was_dropped_can_call_and_subscribe_again(make: Make, target: Target, name: str) -> None:
    publisher, slow, fast = make(), make(buffer=8), make()
    quick, got, errors = Seen(), Seen(), Seen()
    slow.on("error")(errors)
    gate = Gate(target.colour)
    await slow.pubsub.subscribe([name], gate.before(got))
    await fast.pubsub.subscribe([name], quick)
    await overwhelm(publisher, name, quick)
    gate.open()
    await errors.until(lambda error: isinstance(error, SynapError) and error.code == "SLOW_CONSUMER")
    await slow.kv.set(name, "fine")
    again = Seen()
    await slow.pubsub.subscribe([f"{name}-again"], again)
    await publisher.pubsub.publish(f"{name}-again", 1)
    assert await again.first(1) == [(f"{name}-again", 1)]
