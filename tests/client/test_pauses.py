"""Pauses that another's connection ends, where the service takes connections and answers nothing on them."""

from __future__ import annotations

import asyncio
import threading
from time import monotonic, sleep
from typing import List

from synap import SynapClient, SynapError
from synap.client._async.pauses import AsyncPauses
from synap.errors import ConnectionError
from synap.lanes.io import AsyncEvent
from tests.client.conftest import Make
from tests.helpers.patience import PATIENCE
from tests.helpers.scripted import Gone, Peer, ScriptedService, name_of

LOST = ConnectionError("CONNECTION_LOST", "as scripted")
CALLERS = 4
RETRIES = 2


async def test_callers_that_lose_each_connection_they_get_end_each_others_pauses_once(make: Make) -> None:
    """Each had its own in the sync client, and so they took turns without a pause, as fast as they could connect."""
    most = CALLERS * CALLERS * (RETRIES + 1)
    """A first try, or one after a whole pause, brings about one of each other caller."""

    def script(peer: Peer) -> None:
        peer.hello()
        request = peer.request()
        if peer.number > most:
            peer.answer(request, {"value": 1})

    with ScriptedService(script) as service:
        client = make(service.url, retries=RETRIES, retry_max_delay=0.05, timeout=PATIENCE)
        calls = [asyncio.ensure_future(client.kv.incr("n")) for _ in range(CALLERS)]
        outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), PATIENCE)
        assert [getattr(outcome, "code", outcome) for outcome in outcomes] == ["CONNECTION_LOST"] * CALLERS
        assert len(service.peers) <= most


def test_a_subscription_and_calls_that_lose_each_connection_end_each_others_pauses_once() -> None:
    def script(peer: Peer) -> None:
        peer.hello()
        request = peer.request()
        if name_of(request) == "pubsub.subscribe":
            peer.answer(request, {"subscription_id": 1, "topics": ["t"]})
        raise Gone

    with ScriptedService(script) as service:
        with SynapClient(service.url, retry_delay=3600.0, retry_max_delay=3600.0, timeout=9000.0) as client:
            client.pubsub.subscribe(["t"], lambda topic, message: None)
            pauses = client._calls.pauses

            def wait_until(paused: int, peers: int = 0) -> None:
                end = monotonic() + PATIENCE
                while len(pauses._homes) < paused or len(service.peers) < peers:
                    assert monotonic() < end
                    sleep(0.001)

            wait_until(paused=1)
            codes: List[str] = []

            def call() -> None:
                try:
                    client.kv.incr("n")
                except SynapError as error:
                    codes.append(error.code)

            calling = [threading.Thread(target=call) for _ in range(2)]
            for pausing, thread in enumerate(calling, 2):
                thread.start()
                wait_until(pausing)
            wait_until(paused=3, peers=5)
        for thread in calling:
            thread.join(PATIENCE)
        assert codes == ["CONNECTION_LOST"] * 2
        assert len(service.peers) == 5, (
            "a call's, the subscription's, the other call's, and two that this brought about"
        )


async def test_a_connection_ends_pauses_but_not_one_that_another_brought_about() -> None:
    pauses = AsyncPauses()
    waiting = asyncio.ensure_future(pauses.wait(AsyncEvent(), 3600.0, LOST))
    await asyncio.sleep(0)

    async def connect() -> None:
        pauses.connected()
        await asyncio.ensure_future(connect_apart())  # as the async lane does

    async def connect_apart() -> None:
        pauses.connected()

    await pauses.follow(connect)
    await asyncio.sleep(0)
    assert not waiting.done()
    await connect()
    assert await asyncio.wait_for(waiting, PATIENCE)


async def test_what_began_in_such_a_try_makes_connections_as_any_other() -> None:
    """A handler's task, say, which outlives it."""
    pauses = AsyncPauses()
    goes_on = asyncio.Event()

    async def later() -> None:
        await goes_on.wait()
        pauses.connected()

    async def attempt() -> asyncio.Future[None]:
        return asyncio.ensure_future(later())

    outliving = await pauses.follow(attempt)
    waiting = asyncio.ensure_future(pauses.wait(AsyncEvent(), 3600.0, LOST))
    await asyncio.sleep(0)
    goes_on.set()
    await outliving
    assert await asyncio.wait_for(waiting, PATIENCE)
