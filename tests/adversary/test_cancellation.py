"""Calls cancelled at random moments, on the native lane 10,000 of them under way: no answer reaches the wrong call."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any, Dict, List, NamedTuple

import pytest

from synap import AsyncSynapClient
from tests.helpers.patience import PATIENCE


class Load(NamedTuple):
    """How many calls are made, and how many of them must be caught under way, in one format."""

    calls: int
    at_once: int
    share: float
    """Of the calls, how many somebody tries to cancel."""
    patience: float
    """Seconds that may pass before a call is cancelled."""
    cancelled: int


LOADS: Dict[str, Dict[str, Load]] = {
    # More calls than are needed: it ends when enough were cancelled.
    "native": {
        "json": Load(40_000, 400, 0.9, 0.004, 6_000),
        "msgpack": Load(40_000, 400, 0.9, 0.004, 6_000),
    },
    "others": {
        "json": Load(10_000, 100, 1 / 3, 0.02, 100),
        "msgpack": Load(2_500, 100, 1 / 3, 0.02, 25),
    },
}


async def ask(client: AsyncSynapClient, name: str, number: int) -> None:
    """Make a call whose answer tells which call it belongs to."""
    kind = number % 6
    if kind == 0:
        result = await client.kv.get(f"{name}:{number % 500}")
        assert result.value == {"number": number % 500}, number
    elif kind == 1:
        assert (await client.kv.set(f"{name}:own:{number}", number)).key == f"{name}:own:{number}"
    elif kind == 2:
        assert await client.kv.incr(f"{name}:count:{number}", number) == number
    elif kind == 3:
        results = await client.kv.mget(*(f"{name}:{(number + step) % 500}" for step in range(3)))
        assert [result.value for result in results] == [{"number": (number + step) % 500} for step in range(3)]
    elif kind == 4:
        topic = f"{name}.{number}"
        assert (await client.pubsub.publish(topic, number)).topic == topic
    else:
        queue = f"{name}:{number}"
        publishing = asyncio.ensure_future(publish_soon(client, queue, number))
        try:
            message = await client.queue.consume(queue, timeout=PATIENCE)
        finally:
            await asyncio.shield(publishing)
        assert message is not None
        assert message.message == number


async def publish_soon(client: AsyncSynapClient, queue: str, number: int) -> None:
    """Publish a message once somebody may wait for it."""
    await asyncio.sleep(0.002 * (number % 3))
    await client.queue.publish(queue, number)


async def cancelled_at_random(call: asyncio.Task[None], dice: random.Random, patience: float = 0.02) -> None:
    """Cancel a call after some turns of the event loop, or after some time."""
    if dice.random() < 0.5:
        for _ in range(dice.randrange(6)):
            await asyncio.sleep(0)
    else:
        await asyncio.sleep(dice.random() * patience)
    call.cancel()


@pytest.mark.parametrize("format", ["json", "msgpack"])
async def test_no_answer_reaches_the_wrong_call(url: str, transport: str, place: str, name: str, format: str) -> None:
    dice = random.Random(name)
    load = LOADS["native" if place == "native" else "others"][format]
    whole = place != "native"
    made = cancelled = answered = 0
    async with AsyncSynapClient(url=url, transport=transport, format=format) as client:
        await client.kv.mset({f"{name}:{number}": {"number": number} for number in range(500)})
        while made < load.calls and (whole or cancelled < load.cancelled):
            under_way: List[asyncio.Task[Any]] = [
                asyncio.create_task(ask(client, name, number)) for number in range(made, made + load.at_once)
            ]
            made += load.at_once
            killers = [
                asyncio.create_task(cancelled_at_random(call, dice, load.patience))
                for call in under_way
                if dice.random() < load.share
            ]
            await asyncio.gather(*killers)
            for outcome in await asyncio.gather(*under_way, return_exceptions=True):
                if isinstance(outcome, asyncio.CancelledError):
                    cancelled += 1
                elif outcome is not None:
                    raise outcome
                else:
                    answered += 1
        assert cancelled + answered == made
        assert cancelled >= load.cancelled, f"{cancelled} of {made} calls were caught under way"
        assert answered > cancelled / 10, "too few calls were answered to show anything"
        for number in range(made, made + 12):
            await ask(client, name, number)


async def test_a_cancelled_consume_takes_no_message_with_it(url: str, transport: str, name: str) -> None:
    dice = random.Random(name)
    published = 300
    received: List[int] = []
    cancelled = 0
    async with AsyncSynapClient(url=url, transport=transport) as client:
        await client.queue.create(name, max_retries=1_000_000)

        async def publish() -> None:
            for number in range(published):
                await client.queue.publish(name, number)
                await asyncio.sleep(dice.random() * 0.004)

        async def take() -> None:
            # Whoever is cancelled here, the message not in its hands yet, must not have been given it for 300 seconds.
            message = await client.queue.consume(name, timeout=1, ack_deadline=300)
            if message is not None:
                received.append(message.message)
                await asyncio.shield(client.queue.ack(name, message.message_id))

        publishing = asyncio.create_task(publish())
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            takers = [asyncio.create_task(take()) for _ in range(20)]
            for taker in takers:
                if dice.random() < 0.5:
                    await cancelled_at_random(taker, dice)
            outcomes = await asyncio.gather(*takers, return_exceptions=True)
            cancelled += sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
            if publishing.done() and len(set(received)) == published and cancelled > 20:
                break
        await publishing
        assert set(received) == set(range(published)), await client.queue.stats(name)
        assert cancelled > 20, "too few were caught under way to show anything"
        until = time.monotonic() + PATIENCE
        while (stats := await client.queue.stats(name)).pending or stats.depth:
            assert time.monotonic() < until, "a message is leased to somebody who is gone"
            await asyncio.sleep(0.01)
