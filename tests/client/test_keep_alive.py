"""With `keep_alive=False` a connection ends as soon as nothing is in flight, and takes no answer with it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, List

import pytest

from synap import AsyncSynapClient
from synap.lanes.native.pending import Pending
from synap.testing.server import ThrowawayServer
from synap.wire.codec import JSON
from synap.wire.frames import Kind, frame
from tests.client.conftest import Make
from tests.helpers.colour import in_thread
from tests.helpers.patience import PATIENCE
from tests.helpers.scripted import Gone, Peer, ScriptedService


async def test_each_call_has_a_connection_of_its_own(make: Make) -> None:
    ended: List[int] = []

    def script(peer: Peer) -> None:
        peer.hello()
        try:
            while True:
                peer.answer(peer.request(), {"value": peer.number})
        except (Gone, OSError):
            ended.append(peer.number)

    with ScriptedService(script) as service:
        client = make(service.url, keep_alive=False)
        assert len({await client.kv.incr("n") for _ in range(3)}) == 3
        await client.close()
    assert len(ended) >= 3


async def test_health_ends_its_connection_too(make: Make) -> None:
    ended = threading.Event()

    def script(peer: Peer) -> None:
        peer.hello()
        try:
            peer.request()
        except (Gone, OSError):
            ended.set()

    with ScriptedService(script) as service:
        client = make(service.url, keep_alive=False)
        assert (await client.health())["status"] == "ok"
        assert await in_thread(ended.wait, PATIENCE)


async def test_a_call_does_not_end_the_connection_while_another_waits_for_a_pong() -> None:
    answered = threading.Event()

    def script(peer: Peer) -> None:
        peer.hello()
        first, second = peer.frame(), peer.frame()
        ping, request = (first, second) if first.kind == Kind.PING else (second, first)
        peer.answer(request, {"value": 1})
        assert answered.wait(PATIENCE)
        peer.say(frame(Kind.PONG, ping.id, JSON.encode({"status": "ok"})))

    with ScriptedService(script) as service:
        async with AsyncSynapClient(url=service.url, keep_alive=False) as client:
            asking = asyncio.ensure_future(client.health())
            assert await client.kv.incr("n") == 1
            answered.set()
            assert (await asking)["status"] == "ok"


async def test_a_cancelled_call_is_withdrawn_and_its_connection_ended() -> None:
    asked, ended = threading.Event(), threading.Event()
    kinds: List[int] = []

    def script(peer: Peer) -> None:
        peer.hello()
        peer.request()
        asked.set()
        try:
            while True:
                kinds.append(peer.frame().kind)
        except (Gone, OSError):
            ended.set()

    with ScriptedService(script) as service:
        async with AsyncSynapClient(url=service.url, keep_alive=False) as client:
            call = asyncio.ensure_future(client.kv.incr("n"))
            assert await in_thread(asked.wait, PATIENCE)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert await in_thread(ended.wait, PATIENCE)
    assert kinds[0] == Kind.CANCEL


async def test_a_message_is_not_lost_with_a_consume_that_is_cancelled_as_it_comes(
    server: ThrowawayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncSynapClient(url=server.url) as other, AsyncSynapClient(url=server.url, keep_alive=False) as client:
        await other.queue.create("letters", ack_deadline=10 * PATIENCE)
        consuming = asyncio.ensure_future(client.queue.consume("letters", timeout=PATIENCE))
        while not (await other.queue.stats("letters")).consumers:
            await asyncio.sleep(0.01)
        answer = Pending.answer

        def answer_and_cancel(pending: Pending, body: bytes) -> None:
            if pending.command.name == "queue.consume":
                pending._loop.call_soon(consuming.cancel)
            answer(pending, body)

        monkeypatch.setattr(Pending, "answer", answer_and_cancel)
        await other.queue.publish("letters", "a letter")
        outcome: Any = (await asyncio.gather(consuming, return_exceptions=True))[0]
        if isinstance(outcome, asyncio.CancelledError):
            found = await other.queue.consume("letters", timeout=PATIENCE)
            assert found is not None
        else:
            assert outcome.message == "a letter"
