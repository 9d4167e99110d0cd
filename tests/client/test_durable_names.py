"""Durable subscriptions through crashes and retention, against a real service."""

from __future__ import annotations

import asyncio
import threading
import urllib.request
from typing import Any, List

import pytest

from synap import AsyncSynapClient, EventsLostError, SynapClient
from synap.results import StreamEvent
from synap.testing.server import ThrowawayServer, can_serve
from tests.client.conftest import Make
from tests.helpers.colour import in_thread
from tests.helpers.patience import PATIENCE
from tests.helpers.scripted import Peer, ScriptedService, event, name_of

pytestmark = pytest.mark.skipif(not can_serve(), reason="the service needs Python 3.10")


async def test_what_retention_removed_before_it_was_seen_is_told() -> None:
    with ThrowawayServer(arguments=["--room-events", "5"]) as server:
        async with AsyncSynapClient(url=server.url) as client:
            told: List[Any] = []
            client.on("error")(told.append)
            for number in range(2):
                await client.stream.publish("room", "n", number)
            await client.stream.commit("room", "reader", 0)
            for number in range(2, 12):
                await client.stream.publish("room", "n", number)
            subscription = await client.stream.subscribe("room", name="reader")
            events = [await asyncio.wait_for(subscription.__anext__(), PATIENCE) for _ in range(5)]
            assert [event.data for event in events] == [7, 8, 9, 10, 11]
            (error,) = told
            assert isinstance(error, EventsLostError)
            assert error.details == {"room": "room", "from": 1, "to": 6}
            await subscription.unsubscribe()


async def test_closing_does_not_wait_long_for_the_answer_to_a_commit(make: Make) -> None:
    second, asked = threading.Event(), threading.Event()

    def note(event: StreamEvent) -> None:
        if event.offset == 1:
            second.set()

    def script(peer: Peer) -> None:
        peer.hello()
        while True:
            request = peer.request()
            if name_of(request) == "stream.subscribe":
                peer.answer(request, {"subscription_id": 1, "room": "room", "next_offset": 0})
                event(peer, 1, 0)
                event(peer, 1, 1)
            elif name_of(request) == "stream.commit":
                asked.set()

    with ScriptedService(script) as service:
        client = make(service.url, timeout=10 * PATIENCE)
        await client.stream.subscribe("room", note, name="reader")
        assert await in_thread(second.wait, PATIENCE)
        await asyncio.wait_for(client.close(), PATIENCE)
        assert await in_thread(asked.wait, PATIENCE)


def test_no_event_is_left_out_over_crashes_and_repeats_are_behind_the_last_commit(tmp_path: Any) -> None:
    rounds, events = 6, 40
    with ThrowawayServer(data=tmp_path / "data") as server:
        handled: List[int] = []
        for round in range(rounds):
            with SynapClient(url=server.url, retries=20, retry_delay=0.05) as client:
                for number in range(events):
                    client.stream.publish("room", "n", round * events + number)
                known = {cursor.name: cursor.offset for cursor in client.stream.cursors("room")}
                begins = known.get("reader", -1) + 1
                subscription = client.stream.subscribe("room", name="reader", replay=True)
                first = True
                for event in subscription:
                    if first:
                        assert event.offset == begins, "it goes on behind the last commit, and nowhere else"
                        first = False
                    handled.append(event.data)
                    if event.data == (round + 1) * events - 1 - (round % 3):
                        break
                if round % 2:
                    server.restart()  # a crash, with the last second not committed
                else:
                    subscription.unsubscribe()
        assert set(handled) >= set(range(rounds * events - 3))
        ordered = list(dict.fromkeys(handled))
        assert ordered == sorted(ordered)


def test_metrics_tell_how_far_behind_each_name_is() -> None:
    with ThrowawayServer() as server, SynapClient(url=server.url) as client:
        for number in range(5):
            client.stream.publish("room", "n", number)
        client.stream.commit("room", "reader", 1)
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=PATIENCE) as answer:
            scrape = answer.read().decode()
    assert 'synap_subscription_lag_events{name="reader",room="room"} 3.0' in scrape
