"""Handlers of 'error' may use the client, also for errors that the thread which reads for subscriptions has found."""

from __future__ import annotations

import threading
from typing import Any, List

from synap import SynapClient
from synap.testing.server import ThrowawayServer
from tests.helpers.patience import PATIENCE
from tests.helpers.scripted import Peer, ScriptedService, event, name_of


def subscribing(client: SynapClient) -> List[Any]:
    """Have errors answered by another subscription; returns what came of that: the error's code, then an event."""
    done: List[Any] = [None, threading.Event()]

    @client.on("error")
    def on_error(error: Any) -> None:
        client.pubsub.subscribe(["from.the.handler"], lambda topic, message: None)
        done[0] = getattr(error, "code", error)
        done[1].set()

    return done


def test_who_is_too_slow_may_subscribe_again_at_once(server: ThrowawayServer) -> None:
    release = threading.Event()
    with SynapClient(url=server.url, buffer=1, timeout=10 * PATIENCE) as client:
        done = subscribing(client)
        client.pubsub.subscribe(["news"], lambda topic, message: release.wait(PATIENCE))
        for number in range(3):
            client.pubsub.publish("news", number)
        try:
            assert done[1].wait(PATIENCE)
        finally:
            release.set()
    assert done[0] == "SLOW_CONSUMER"


def test_who_is_superseded_may_subscribe_to_something_else(server: ThrowawayServer) -> None:
    with SynapClient(url=server.url, timeout=10 * PATIENCE) as client, SynapClient(url=server.url) as other:
        done = subscribing(client)
        client.stream.subscribe("superseded", lambda event: None, name="reader")
        other.stream.subscribe("superseded", lambda event: None, name="reader")
        assert done[1].wait(PATIENCE)
    assert done[0] == "SUPERSEDED"


def test_who_hears_of_lost_events_may_subscribe_to_something_else() -> None:
    first, second = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        peer.hello()
        while True:
            request = peer.request()
            if name_of(request) == "stream.subscribe":
                peer.answer(request, {"subscription_id": 1, "room": "room", "next_offset": 0})
                event(peer, 1, 0)
                assert first.wait(PATIENCE)
                event(peer, 1, 5)
            elif name_of(request) == "pubsub.subscribe":
                peer.answer(request, {"subscription_id": 2, "topics": ["from.the.handler"]})
            else:
                peer.answer(request, {"success": True})

    with ScriptedService(script) as service, SynapClient(url=service.url, timeout=10 * PATIENCE) as client:
        done = subscribing(client)
        client.stream.subscribe("room", lambda event: (second if event.offset else first).set(), name="reader")
        assert done[1].wait(PATIENCE)
        assert second.wait(PATIENCE)
    assert done[0] == "EVENTS_LOST"


def test_an_iterator_ends_once_the_handler_has_heard_why(server: ThrowawayServer) -> None:
    order: List[str] = []
    with SynapClient(url=server.url) as client, SynapClient(url=server.url) as other:
        client.on("error")(lambda error: order.append("handler"))
        events = client.stream.subscribe("ordered", name="reader")
        other.stream.subscribe("ordered", lambda event: None, name="reader")
        try:
            next(events)
        except Exception as error:
            order.append(getattr(error, "code", repr(error)))
    assert order == ["handler", "SUPERSEDED"]
