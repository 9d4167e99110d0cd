"""The sync client's native lane: its pool, how long an attempt may take, and what the service says unasked."""

from __future__ import annotations

import threading
import time
from typing import Any, Callable, Dict, List

import pytest

from synap import SynapClient, TimeoutError
from synap.wire.frames import MAX_BODY, Kind, frame
from synap.wire.handshake import accept
from tests.client.scripted import Peer, ScriptedService, name_of
from tests.client.test_tls import https, speak_tls, trust


class Pool:
    """A script that counts connections and keeps consumes until `waiting` of them wait at once."""

    def __init__(self, waiting: int) -> None:
        self.together = threading.Barrier(waiting)
        self.abreast = threading.Barrier(4)
        self.ended = threading.Semaphore(0)
        """Released once for each connection that the client ends."""

    def __call__(self, peer: Peer) -> None:
        peer.hello()
        try:
            while True:
                request = peer.request()
                if name_of(request) == "queue.consume":
                    self.together.wait(10)
                    peer.answer(request, None)
                else:
                    if b"abreast" in request.body:
                        self.abreast.wait(10)
                    peer.answer(request, {"value": 1})
        finally:
            self.ended.release()


def at_once(count: int, function: Callable[[], object]) -> None:
    """Call a function on so many threads; raises what one of them raised."""
    failures: List[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    if failures:
        raise failures[0]


# ------------------------------------------------------------------------------------------ the pool


def test_after_many_have_waited_at_once_the_pool_has_its_size_again_and_keeps_its_connections() -> None:
    pool = Pool(8)
    with ScriptedService(pool) as service:
        with SynapClient(url=service.url, transport="native", pool_size=4, timeout=10) as client:
            for round in (1, 2, 3):
                at_once(8, lambda: client.queue.consume("queue", timeout=20))
                for _ in range(4):
                    assert pool.ended.acquire(timeout=10)
                for _ in range(20):
                    client.kv.incr("n")
                assert len(service.peers) == 4 + 4 * round
            # No place was lost either: the service has four requests before it answers one.
            at_once(4, lambda: client.kv.incr("abreast"))
            assert len(service.peers) == 16
            assert not pool.ended.acquire(blocking=False)


# ------------------------------------------------------------------------------------------ time


def late_handshake(peer: Peer, over: threading.Event) -> None:
    """End the first connection, and let the next wait."""
    peer.head()
    if peer.number > 0:
        over.wait(1.6)
    peer.say(accept("scripted", MAX_BODY))
    request = peer.request()
    if peer.number == 0:
        peer.answer(request, {"value": 1})
    else:
        peer.request()


def slow_reading(peer: Peer, over: threading.Event) -> None:
    """Take a request in bit by bit."""
    peer.hello()
    peer.answer(peer.request(), {"value": 1})
    while not over.wait(0.3) and peer.sock.recv(200_000):
        pass


def slow_reading_in_tls(peer: Peer, over: threading.Event) -> None:
    """Take a request in bit by bit."""
    speak_tls(peer)
    slow_reading(peer, over)


def late_reading(peer: Peer, over: threading.Event) -> None:
    """Take a request in late, and keep it."""
    peer.hello()
    peer.answer(peer.request(), {"value": 1})
    over.wait(1.6)
    peer.request()
    peer.request()


def signs_of_life(peer: Peer, over: threading.Event) -> None:
    """Say things to a request that are no answer."""
    peer.hello()
    peer.answer(peer.request(), {"value": 1})
    number = peer.request().id
    while not over.wait(0.3):
        peer.say(frame(Kind.PING, number))


@pytest.mark.parametrize(
    "script",
    [late_handshake, slow_reading, slow_reading_in_tls, late_reading, signs_of_life],
    ids=lambda way: way.__name__,
)
def test_an_attempt_takes_its_timeout_and_no_more_whatever_it_is_spent_on(
    script: Callable[[Peer, threading.Event], None],
) -> None:
    over = threading.Event()
    with ScriptedService(lambda peer: script(peer, over)) as service:
        options: Dict[str, Any] = {"url": service.url}
        if script is slow_reading_in_tls:
            options = {"url": https(service), "ssl": trust()}
        with SynapClient(transport="native", timeout=2, retries=1, retry_delay=0, **options) as client:
            client.kv.incr("n")
            began = time.monotonic()
            with pytest.raises(TimeoutError) as caught:
                client.kv.set("key", "x" * 9_000_000)
            assert time.monotonic() - began < 3.2
            over.set()
    # Whoever has only part of a request can't have done it.
    assert caught.value.may_have_happened == (script not in (slow_reading, slow_reading_in_tls))


def test_a_service_that_says_anything_but_how_it_is_is_not_waited_for_longer_than_the_timeout() -> None:
    over = threading.Event()

    def script(peer: Peer) -> None:
        peer.hello()
        number = peer.frame().id
        while not over.wait(1.2):
            peer.say(frame(Kind.PING, number))

    with ScriptedService(script) as service:
        with SynapClient(url=service.url, transport="native", timeout=2, retries=0) as client:
            client.connect()
            began = time.monotonic()
            with pytest.raises(TimeoutError, match="gave no sign within 2 seconds"):
                client.health()
            assert time.monotonic() - began < 3
            over.set()
