"""Handlers of the client's events may use the client: they are called while nothing is held that they need."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Callable, List

import pytest

from synap import SynapError
from tests.client.conftest import Make
from tests.helpers.patience import PATIENCE
from tests.helpers.scripted import Gone, Peer, ScriptedService, name_of, subscribe


def answering(peer: Peer) -> None:
    peer.hello()
    while True:
        peer.answer(peer.request(), {"value": 1})


class Told:
    """What a handler's call came to."""

    def __init__(self) -> None:
        self.outcomes: List[Any] = []
        self.done = threading.Event()

    def handler(self, colour: str, call: Callable[[], Any]) -> Callable[..., Any]:
        """Make a handler that calls, once."""

        async def asynchronous(*about: Any) -> None:
            if not self.outcomes:
                self.outcomes.append(None)
                try:
                    self.outcomes[0] = await call()
                except SynapError as error:
                    self.outcomes[0] = error
                self.done.set()

        def synchronous(*about: Any) -> None:
            if not self.outcomes:
                self.outcomes.append(None)
                try:
                    self.outcomes[0] = call()
                except SynapError as error:
                    self.outcomes[0] = error
                self.done.set()

        return asynchronous if colour == "async" else synchronous

    async def outcome(self) -> Any:
        assert await asyncio.get_running_loop().run_in_executor(None, self.done.wait, PATIENCE)
        return self.outcomes[0]


def bare(client: Any) -> Any:
    """Return the client itself: a handler of the sync one makes plain calls."""
    return getattr(client, "_inner", client)


@pytest.mark.parametrize("pool_size", [1, 10])
async def test_who_hears_of_the_first_connection_may_call(make: Make, colour: str, pool_size: int) -> None:
    told = Told()
    with ScriptedService(answering) as service:
        client = make(service.url, pool_size=pool_size)
        client.on("connected")(told.handler(colour, lambda: bare(client).kv.incr("n")))
        assert await asyncio.wait_for(client.kv.incr("n"), PATIENCE) == 1
        assert await told.outcome() == 1


async def test_who_hears_of_an_engine_in_this_process_may_call(make: Make, colour: str) -> None:
    told = Told()
    client = make("memory://")
    client.on("connected")(told.handler(colour, lambda: bare(client).kv.incr("n")))
    await asyncio.wait_for(client.kv.get("n"), PATIENCE)
    assert await told.outcome() == 1


async def test_other_threads_go_on_while_a_handler_calls(make: Make, colour: str) -> None:
    """A handler that waits for another call's answer has it."""
    told = Told()
    client = make("memory://")
    loop = asyncio.get_running_loop()

    def other() -> Any:
        if colour == "async":
            return client.kv.incr("n")
        return asyncio.run_coroutine_threadsafe(client.kv.incr("n"), loop).result(PATIENCE)

    client.on("connected")(told.handler(colour, other))
    await asyncio.wait_for(client.kv.get("n"), PATIENCE)
    assert await told.outcome() == 1


@pytest.mark.parametrize("pool_size", [1, 10])
async def test_who_hears_of_a_lost_connection_may_call(make: Make, colour: str, pool_size: int) -> None:
    told = Told()

    def script(peer: Peer) -> None:
        peer.hello()
        if peer.number == 0:
            peer.request()
            return
        while True:
            peer.answer(peer.request(), {"value": 1})

    with ScriptedService(script) as service:
        client = make(service.url, pool_size=pool_size)
        client.on("disconnected")(told.handler(colour, lambda: bare(client).kv.incr("n")))
        assert await asyncio.wait_for(client.kv.incr("n"), PATIENCE) == 1
        assert await told.outcome() == 1


async def test_who_hears_that_a_subscriptions_connection_is_back_may_subscribe(make: Make, colour: str) -> None:
    asked: List[str] = []

    def script(peer: Peer) -> None:
        peer.hello()
        while True:
            request = subscribe(peer)
            asked.append(name_of(request))
            peer.answer(request, {"subscription_id": len(asked), "topics": ["t"]})
            if len(asked) == 1:
                raise Gone

    told = Told()
    with ScriptedService(script) as service:
        client = make(service.url)
        await client.pubsub.subscribe(["t"], lambda topic, message: None)
        client.on("connected")(
            told.handler(colour, lambda: bare(client).pubsub.subscribe(["t"], lambda topic, message: None))
        )
        assert not isinstance(await told.outcome(), SynapError)
        await client.pubsub.subscribe(["t"], lambda topic, message: None)
