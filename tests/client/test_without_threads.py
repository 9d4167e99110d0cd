"""What needs a thread of its own, where none can be started."""

from __future__ import annotations

import threading
from typing import Any, List

import pytest

from synap import ConnectionError, SynapClient
from synap.lanes.io.threads import apart
from tests.helpers.patience import PATIENCE
from tests.helpers.scripted import Peer, ScriptedService, message, subscribe


def test_a_lost_connection_is_replaced_where_no_thread_can_be_started_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, over = threading.Thread.start, threading.Event()
    refused: List[str] = []

    def refuse(thread: threading.Thread) -> None:
        if over.is_set() and len(refused) < 4 and thread.name.startswith("synap"):
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    def script(peer: Peer) -> None:
        peer.hello()
        for number in (1, 2):
            peer.answer(subscribe(peer), {"subscription_id": number, "topics": ["a.b"]})
            if over.is_set():
                message(peer, number, "again")
        if not over.is_set():
            over.set()
            return
        while True:
            peer.request()

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with ScriptedService(script) as service:
        with SynapClient(url=service.url, retry_delay=0.01) as client:
            both = [client.pubsub.subscribe(["a.b"]) for _ in range(2)]
            assert [apart(next, one, name="taking").result(PATIENCE) for one in both] == [("a.b", "again")] * 2
    assert len(refused) == 4


def test_a_subscription_without_a_thread_for_its_callback_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    start, unsubscribed = threading.Thread.start, threading.Event()

    def refuse(thread: threading.Thread) -> None:
        if "subscription" in thread.name:
            raise RuntimeError("can't start new thread")
        start(thread)

    def script(peer: Peer) -> None:
        peer.hello()
        peer.answer(subscribe(peer), {"subscription_id": 1, "topics": ["a.b"]})
        peer.answer(peer.request(), {"unsubscribed": True})
        unsubscribed.set()

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with ScriptedService(script) as service:
        with SynapClient(url=service.url) as client:
            with pytest.raises(RuntimeError, match="can't start new thread"):
                client.pubsub.subscribe(["a.b"], lambda *_: None)
            assert unsubscribed.wait(PATIENCE)
            assert not client._calls.at_close


def test_a_lock_without_a_thread_that_renews_it_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("synap lock"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with SynapClient("memory://") as client:
        lock = client.lock("report")
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                lock.acquire()
        assert not lock.held
        assert lock.acquire(wait=0)
        lock.release()


def test_an_engine_in_this_process_keeps_time_as_soon_as_a_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, refused = threading.Thread.start, [True]

    def refuse(thread: threading.Thread) -> None:
        if refused[0] and thread.name == "synap-timekeeper":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with SynapClient(url="memory://") as client:
        assert client.queue.publish("q", 1, delay=0.1).message_id
        assert client.queue.publish("q", 2, delay=60).message_id
        refused[0] = False
        client.kv.set("k", "any turn of the engine starts it")
        message = client.queue.consume("q", timeout=PATIENCE)
        assert message is not None
        assert message.message == 1


class NoReader:
    """Refuses so many starts of the reader's thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.left = count
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            if thread.name == "synap-reader" and self.left:
                self.left -= 1
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refuse)


def test_a_subscription_in_this_process_without_a_thread_to_read_with_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    NoReader(monkeypatch, 1)
    with SynapClient(url="memory://", retries=0) as client:
        with pytest.raises(ConnectionError, match=r"no thread to read with: can't start new thread") as caught:
            client.pubsub.subscribe(["t"], print)
    assert caught.value.code == "CONNECTION_FAILED"


@pytest.mark.parametrize("retries", [0, 3], ids=["asked again", "retried"])
def test_subscriptions_in_this_process_work_once_a_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch, retries: int
) -> None:
    refusing = NoReader(monkeypatch, 1)
    with SynapClient(url="memory://", retries=retries, retry_delay=0.01) as client:
        got: List[Any] = []
        arrived = threading.Event()

        def take(topic: str, message: Any) -> None:
            got.append(message)
            arrived.set()

        if not retries:
            with pytest.raises(ConnectionError):
                client.pubsub.subscribe(["t"], take)
        client.pubsub.subscribe(["t"], take)
        assert not refusing.left
        assert client.pubsub.publish("t", 1).subscribers_matched == 1
        assert arrived.wait(PATIENCE)
        assert got == [1]
