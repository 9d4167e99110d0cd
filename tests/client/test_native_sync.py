"""The sync client's native lane: its pool, how long an attempt may take, and what the service says unasked."""

from __future__ import annotations

import threading
from typing import Callable, List

from synap import SynapClient
from tests.client.scripted import Peer, ScriptedService, name_of


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
