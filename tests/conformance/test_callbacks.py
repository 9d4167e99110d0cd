"""Callbacks and event handlers."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from synap import AsyncSynapClient, StreamEvent, SynapError
from tests.helpers.seen import Seen


async def test_a_callback_may_be_a_coroutine_function(client: AsyncSynapClient, name: str) -> None:
    events = Seen()

    async def on_event(event: StreamEvent) -> None:
        await asyncio.sleep(0)
        events(event.data)

    await client.stream.subscribe(name, on_event, from_offset=0)
    for number in range(3):
        await client.stream.publish(name, "number", number)
    assert await events.first(3) == [0, 1, 2]


@pytest.mark.without("crashing")
async def test_a_topic_callback_may_be_a_coroutine_function(client: AsyncSynapClient, name: str) -> None:
    messages = Seen()

    async def on_message(topic: str, message: Any) -> None:
        await asyncio.sleep(0)
        messages(topic, message)

    await client.pubsub.subscribe([name], on_message)
    await client.pubsub.publish(name, "hello")
    assert await messages.first(1) == [(name, "hello")]


async def test_a_bound_method_is_a_callback(client: AsyncSynapClient, name: str) -> None:
    class Listener:
        def __init__(self) -> None:
            self.seen = Seen()

        def on_event(self, event: StreamEvent) -> None:
            self.seen(event.data)

    listener = Listener()
    await client.stream.subscribe(name, listener.on_event, from_offset=0)
    await client.stream.publish(name, "type", "hello")
    assert await listener.seen.first(1) == ["hello"]


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_a_callback_that_raises_is_logged_and_reported_and_goes_on(
    client: AsyncSynapClient, name: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen, errors = Seen(), Seen()

    @client.on("error")
    def on_error(error: Exception) -> None:
        errors(error)

    def on_event(event: StreamEvent) -> None:
        seen(event.data)
        if event.data == 1:
            raise ValueError("the callback broke")

    async def on_event_async(event: StreamEvent) -> None:
        on_event(event)

    callback: Any = on_event if kind == "plain" else on_event_async
    with caplog.at_level(logging.ERROR, "synap"):
        await client.stream.subscribe(name, callback, from_offset=0)
        for number in range(3):
            await client.stream.publish(name, "number", number)
        assert await seen.first(3) == [0, 1, 2]
        error = (await errors.until(lambda found: isinstance(found, ValueError)))[0]
    assert str(error) == "the callback broke"
    assert any("the callback broke" in (record.exc_text or "") for record in caplog.records), caplog.text


@pytest.mark.without("crashing")
async def test_a_topic_callback_that_raises_does_not_end_the_subscription(
    client: AsyncSynapClient, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()

    def on_message(topic: str, message: Any) -> None:
        seen(message)
        raise ValueError("the callback broke")

    await client.pubsub.subscribe([name], on_message)
    for number in range(3):
        await client.pubsub.publish(name, number)
    assert await seen.first(3) == [0, 1, 2]
    await client.close()
    assert "the callback broke" in caplog.text


async def test_an_error_handler_that_raises_harms_nobody(
    client: AsyncSynapClient, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen, errors = Seen(), Seen()

    @client.on("error")
    def broken(error: Exception) -> None:
        raise RuntimeError("the handler broke too")

    @client.on("error")
    def works(error: Exception) -> None:
        errors(error)

    def on_event(event: StreamEvent) -> None:
        seen(event.data)
        raise ValueError("the callback broke")

    await client.stream.subscribe(name, on_event, from_offset=0)
    await client.stream.publish(name, "type", 1)
    await client.stream.publish(name, "type", 2)
    assert await seen.first(2) == [1, 2]
    await errors.until(lambda error: isinstance(error, ValueError))


async def test_events_of_one_subscription_are_never_handled_at_once(client: AsyncSynapClient, name: str) -> None:
    seen = Seen()
    under_way = 0

    async def on_event(event: StreamEvent) -> None:
        nonlocal under_way
        under_way += 1
        assert under_way == 1
        for _ in range(3):
            await asyncio.sleep(0)
        under_way -= 1
        seen(event.offset)

    await client.stream.subscribe(name, on_event, from_offset=0)
    for number in range(10):
        await client.stream.publish(name, "number", number)
    assert await seen.first(10) == list(range(10))


@pytest.mark.without("crashing")
async def test_a_callback_may_call_the_client(client: AsyncSynapClient, other: AsyncSynapClient, name: str) -> None:
    seen = Seen()

    async def forward(event: StreamEvent) -> None:
        seen(await other.kv.incr(name))

    await client.stream.subscribe(name, forward, from_offset=0)
    for _ in range(3):
        await client.stream.publish(name, "type", None)
    assert await seen.first(3) == [1, 2, 3]


async def test_on_connected_is_called_with_the_first_connection(client: AsyncSynapClient, name: str) -> None:
    connected = Seen()

    @client.on("connected")
    def on_connected() -> None:
        connected("connected")

    assert connected.items == []
    await client.kv.exists(name)
    assert (await connected.first(1))[0] == "connected"


@pytest.mark.only("crashing")
async def test_a_crash_is_told_as_disconnected_and_connected(client: AsyncSynapClient, name: str) -> None:
    told = Seen()

    @client.on("disconnected")
    def on_disconnected(reason: str) -> None:
        assert isinstance(reason, str)
        told("disconnected")

    @client.on("connected")
    def on_connected() -> None:
        told("connected")

    await client.stream.subscribe(name, print)
    for number in range(3):
        await client.stream.publish(name, "number", number)
    said = await told.first(3)
    assert said[:3] == ["connected", "disconnected", "connected"]


async def test_an_unknown_event_is_refused_by_name(client: AsyncSynapClient) -> None:
    name: Any = "conected"
    with pytest.raises(SynapError, match="conected") as caught:
        client.on(name)(print)
    assert caught.value.code == "INVALID_REQUEST"
