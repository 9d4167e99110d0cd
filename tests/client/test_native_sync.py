"""The sync client's native lane: its pool, how long an attempt may take, and what the service says unasked."""

from __future__ import annotations

import select
import socket
import ssl
import threading
from typing import Any, Callable, Dict, List

import pytest

from synap import ConnectionError, StreamEvent, SynapClient, TimeoutError
from synap.lanes import errors
from synap.lanes.native import lane as native_lane
from synap.lanes.native.blocking import BlockingConnection
from synap.lanes.native.lane import NativeLane
from synap.wire.codec import JSON
from synap.wire.compression import WORTH, compress, decompress
from synap.wire.conversation import CONFIRM_EVERY
from synap.wire.frames import GZIP, HEADER, MAX_BODY, Kind, frame
from synap.wire.handshake import accept
from tests.client.test_tls import https, speak_tls, trust
from tests.helpers.frames import Frame
from tests.helpers.patience import PATIENCE, Stopwatch, impatient
from tests.helpers.scripted import Peer, ScriptedService, event_body, name_of, subscribe


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
                name = name_of(request)
                if name in ("queue.consume", "queue.consume_many"):
                    self.together.wait(PATIENCE)
                    peer.answer(request, None if name == "queue.consume" else {"messages": []})
                else:
                    if b"abreast" in request.body:
                        self.abreast.wait(PATIENCE)
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
        thread.join(PATIENCE)
    if failures:
        raise failures[0]


# ------------------------------------------------------------------------------------------ the pool


@pytest.mark.parametrize("several", [False, True])
def test_after_many_have_waited_at_once_the_pool_has_its_size_again_and_keeps_its_connections(several: bool) -> None:
    pool = Pool(8)
    with ScriptedService(pool) as service:
        with SynapClient(url=service.url, transport="native", pool_size=4, timeout=PATIENCE) as client:
            for round in (1, 2, 3):
                if several:
                    at_once(8, lambda: client.queue.consume_many(["queue"], timeout=PATIENCE))
                else:
                    at_once(8, lambda: client.queue.consume("queue", timeout=PATIENCE))
                for _ in range(4):
                    assert pool.ended.acquire(timeout=PATIENCE)
                for _ in range(20):
                    client.kv.incr("n")
                assert len(service.peers) == 4 + 4 * round
            # No place was lost either: the service has four requests before it answers one.
            at_once(4, lambda: client.kv.incr("abreast"))
            assert len(service.peers) == 16
            assert not pool.ended.acquire(blocking=False)


def test_a_first_call_that_finds_no_place_in_the_pool_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ticket = NativeLane.ticket
    taken: List[Any] = []

    def once(lane: NativeLane) -> Any:
        """Give a place to whoever connects, and to nobody after that."""
        if taken:
            raise errors.all_busy(None, 1.0)
        taken.append(ticket(lane))
        return taken[0]

    monkeypatch.setattr(NativeLane, "ticket", once)
    with ScriptedService(Pool(1)) as service:
        with SynapClient(url=service.url, transport="native", retries=0) as client:
            with pytest.raises(TimeoutError, match="all connections are busy"):
                client.kv.incr("n")


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
    """Take a request in bit by bit, with so little room that this system doesn't take it in meanwhile."""
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    peer.hello()
    peer.answer(peer.request(), {"value": 1})
    while not over.wait(0.3) and peer.sock.recv(100_000):
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
        with SynapClient(transport="native", retries=1, retry_delay=0, **options) as client:
            client.kv.incr("n")
            with impatient(client, 5), Stopwatch() as watch, pytest.raises(TimeoutError) as caught:
                client.kv.set("key", "x" * 9_000_000)
            assert watch.seconds < 9.5  # two timeouts would be 10 seconds
            over.set()
    if script in (slow_reading, slow_reading_in_tls):  # whoever has only part of a request can't have done it
        assert not caught.value.may_have_happened


def test_a_service_that_says_anything_but_how_it_is_is_not_waited_for_longer_than_the_timeout() -> None:
    over = threading.Event()

    def script(peer: Peer) -> None:
        peer.hello()
        number = peer.frame().id
        while not over.wait(1.2):
            peer.say(frame(Kind.PING, number))

    with ScriptedService(script) as service:
        with SynapClient(url=service.url, transport="native", retries=0) as client:
            client.connect()
            with impatient(client, 5), pytest.raises(TimeoutError, match="did not respond within 5 seconds"):
                client.health()
            over.set()


# ------------------------------------------------------------------------------------------ what is said unasked


UNASKED = {
    "a frame longer than anything": (HEADER.pack(2**32 - 1, Kind.ANSWER, 0, 0, 1), "a body may have .* bytes"),
    "a frame of no known kind": (HEADER.pack(0, 255, 0, 0, 1), "frame kind must be"),
    "a client's frame": (frame(Kind.DONE, 1), "frames of kind 8 are a client's"),
    "an error about the connection": (
        frame(Kind.ERROR, 0, JSON.encode({"code": "FORBIDDEN", "message": "not from there", "details": {}})),
        "not from there",
    ),
    "an error that is none": (frame(Kind.ERROR, 0, b"[]"), "unreadable data"),
    "is draining": (frame(Kind.GOAWAY), "is draining"),
}


@pytest.mark.parametrize("unasked", UNASKED)
def test_what_comes_with_the_handshake_and_ends_the_connection_is_a_failed_connection(unasked: str) -> None:
    said, why = UNASKED[unasked]

    def script(peer: Peer) -> None:
        peer.head()
        peer.say(accept("scripted", MAX_BODY) + said)
        peer.frame()
        raise AssertionError("nothing may be sent here")

    with ScriptedService(script) as service:
        with SynapClient(url=service.url, transport="native", retries=0) as client:
            actions: List[Callable[[], object]] = [
                client.connect,
                client.health,
                lambda: client.kv.set("key", 1),
                lambda: client.stream.subscribe("room", print),
            ]
            for action in actions:
                with pytest.raises(ConnectionError, match=why) as caught:
                    action()
                assert (caught.value.code, caught.value.may_have_happened) == ("CONNECTION_FAILED", False)
                assert "nothing was sent" in caught.value.message


def test_what_comes_with_the_handshake_and_asks_for_something_is_answered() -> None:
    heard: List[Frame] = []

    def script(peer: Peer) -> None:
        peer.head()
        peer.say(accept("scripted", MAX_BODY) + frame(Kind.PING, 7) + frame(Kind.PONG, 8) + frame(Kind.PING, 9)[:5])
        heard.append(peer.frame())
        peer.say(frame(Kind.PING, 9)[5:])
        while len(heard) < 3:
            heard.append(peer.frame())
            if heard[-1].kind == Kind.REQUEST:
                peer.answer(heard[-1], {"value": 3})

    with ScriptedService(script) as service:
        with SynapClient(url=service.url, transport="native", retries=0) as client:
            assert client.kv.incr("n") == 3
    assert [received.id for received in heard if received.kind == Kind.PONG] == [7, 9]


def test_what_comes_with_an_answer_is_heard_too() -> None:
    """A connection on which the service wants nothing more is left after the answer, whichever came first."""
    away, answers = frame(Kind.GOAWAY), []

    def script(peer: Peer) -> None:
        peer.hello()
        request = peer.request()
        answer = frame(Kind.ANSWER, request.id, JSON.encode({"value": peer.number}))
        error = frame(Kind.ERROR, 0, JSON.encode({"code": "SERVICE_UNAVAILABLE", "message": "over", "details": {}}))
        peer.say([away + answer, answer + away, answer + error, answer + frame(Kind.PING, 7)][peer.number])
        answers.append(peer.frame().kind)

    with ScriptedService(script) as service:
        with SynapClient(url=service.url, transport="native", retries=0) as client:
            assert [client.kv.incr("n") for _ in range(4)] == [0, 1, 2, 3]
    assert answers == [Kind.PONG]


def test_a_connection_that_drains_and_stays_ends_with_the_client() -> None:
    """Subscriptions on it stay, and further ones have a new one."""
    ended = threading.Semaphore(0)

    def script(peer: Peer) -> None:
        peer.hello()
        try:
            while True:
                request = peer.request()
                if peer.number == 1:
                    peer.say(frame(Kind.GOAWAY))
                peer.answer(request, {"subscription_id": peer.number, "topics": ["topic"]})
        finally:
            ended.release()

    with ScriptedService(script) as service:
        with SynapClient(url=service.url) as client:
            client.pubsub.subscribe(["topic"])
            client.pubsub.subscribe(["topic"])
            assert len(service.peers) == 3
        for _ in service.peers:
            assert ended.acquire(timeout=PATIENCE)


def wait_for_news(client: SynapClient) -> None:
    """Wait until something has come on the client's idle connection."""
    lane: Any = client._calls.lane
    assert select.select([lane._idle[-1].connection.stream.socket], [], [], 10)[0]


def goodbye(sock: socket.socket) -> None:
    """Say that nothing more comes, and leave the connection be."""
    if isinstance(sock, ssl.SSLSocket):
        sock.settimeout(0)
        try:
            sock.unwrap()
        except ssl.SSLWantReadError:
            pass  # the client's goodbye
    else:
        sock.shutdown(socket.SHUT_WR)


def hanging_up(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_RDWR)


def reset(sock: socket.socket) -> None:
    Peer(sock, 0).reset()


def draining(sock: socket.socket) -> None:
    sock.sendall(frame(Kind.PING, 7) + frame(Kind.GOAWAY))


def a_last_word(sock: socket.socket) -> None:
    sock.sendall(frame(Kind.PING, 7))
    goodbye(sock)


@pytest.mark.parametrize("how", [goodbye, hanging_up, reset, draining, a_last_word], ids=lambda how: how.__name__)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_an_idle_connection_that_the_service_has_ended_costs_no_request(
    how: Callable[[socket.socket], None], tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_lane, "IDLE", -1)
    idle, ended = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        if tls:
            speak_tls(peer)
        peer.hello()
        peer.answer(peer.request(), {"value": peer.number})
        if peer.number == 0:
            assert idle.wait(PATIENCE)
            how(peer.sock)
            ended.set()
        peer.frame()

    with ScriptedService(script) as service:
        options = {"url": https(service), "ssl": trust()} if tls else {"url": service.url}
        with SynapClient(transport="native", retries=0, **options) as client:
            assert client.kv.incr("n") == 0
            idle.set()
            assert ended.wait(PATIENCE)
            wait_for_news(client)
            assert client.kv.incr("n") == 1


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_an_idle_connection_on_which_something_was_said_is_used_on(tls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_lane, "IDLE", -1)
    idle, said = threading.Event(), threading.Event()
    kinds: List[int] = []

    def script(peer: Peer) -> None:
        if tls:
            speak_tls(peer)
        peer.hello()
        peer.answer(peer.request(), {"value": 1})
        assert idle.wait(PATIENCE)
        if isinstance(peer.sock, ssl.SSLSocket) and peer.sock.version() == "TLSv1.3":
            peer.sock.verify_client_post_handshake()  # something of TLS's own, like the tickets after its handshake
        peer.say(frame(Kind.PING, 7))
        said.set()
        while kinds[-2:] != [Kind.PONG, Kind.REQUEST]:
            received = peer.frame()
            kinds.append(received.kind)
        peer.answer(received, {"value": 2})

    with ScriptedService(script) as service:
        context = trust()
        context.post_handshake_auth = True
        options = {"url": https(service), "ssl": context} if tls else {"url": service.url}
        with SynapClient(transport="native", retries=0, **options) as client:
            assert client.kv.incr("n") == 1
            idle.set()
            assert said.wait(PATIENCE)
            wait_for_news(client)
            assert client.kv.incr("n") == 2
        assert len(service.peers) == 1


# ------------------------------------------------------------------------------------------ compression


@pytest.mark.parametrize("compression", [False, True], ids=["as-is", "gzip"])
def test_requests_are_compressed_from_1024_bytes_on_where_that_is_wanted(compression: bool) -> None:
    requests: List[Frame] = []

    def script(peer: Peer) -> None:
        assert peer.hello().compression == compression
        while True:
            requests.append(peer.request())
            peer.answer(requests[-1], {"success": True, "key": "key"})

    with ScriptedService(script) as service:
        with SynapClient(url=service.url, transport="native", retries=0, compression=compression) as client:
            client.kv.set("key", "")
            around = len(requests[0].body)
            for size in (1023, 1024, 100_000):
                client.kv.set("key", "x" * (size - around))
    assert WORTH == 1024
    assert [request.flags for request in requests] == [0, 0, GZIP, GZIP] if compression else [0, 0, 0, 0]
    sizes = [len(decompress(request.body, MAX_BODY) if request.flags else request.body) for request in requests]
    assert sizes == [around, 1023, 1024, 100_000]
    assert all(len(request.body) < 1024 for request in requests if request.flags)


def test_compressed_answers_and_pushes_are_read() -> None:
    value = "x" * 5000

    def script(peer: Peer) -> None:
        peer.hello()
        request = subscribe(peer) if peer.number else peer.request()
        if peer.number:
            peer.answer(request, {"subscription_id": 1, "room": "room", "next_offset": 0})
            event = {**event_body(0), "data": value}
            peer.say(frame(Kind.EVENT, 1, compress(JSON.encode(event)), flags=GZIP))
        else:
            answer = {"found": True, "value": value, "ttl": None}
            peer.say(frame(Kind.ANSWER, request.id, compress(JSON.encode(answer)), flags=GZIP))
        peer.frame()

    with ScriptedService(script) as service:
        with SynapClient(url=service.url, transport="native", retries=0, compression=True) as client:
            assert client.kv.get("key").value == value
            event = next(iter(client.stream.subscribe("room")))
            assert isinstance(event, StreamEvent)
            assert event.data == value


# ------------------------------------------------------------------------------------------ what is confirmed


def test_no_answer_is_confirmed_before_it_is_there() -> None:
    confirmed: List[int] = []
    asked: List[int] = []

    def script(peer: Peer) -> None:
        peer.hello()
        while True:
            received = peer.frame()
            if received.kind == Kind.DONE:
                confirmed.append(received.id)
                assert received.id <= asked[-1] + 1, "all below are answered; the next one is about to be sent"
            elif received.kind == Kind.REQUEST:
                asked.append(received.id)
                peer.answer(received, {"value": 1})

    with ScriptedService(script) as service:
        with SynapClient(service.url, transport="native", pool_size=1) as client:
            for _ in range(3 * CONFIRM_EVERY):
                client.kv.incr("n")
    assert len(confirmed) == 3


def test_every_attempt_of_a_call_ends_when_the_call_does(monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines: List[float] = []
    first = BlockingConnection.receive_first

    def noted(connection: Any, deadline: float, **options: Any) -> bytes:
        deadlines.append(deadline)
        return first(connection, deadline, **options)

    monkeypatch.setattr(BlockingConnection, "receive_first", noted)

    def script(peer: Peer) -> None:
        peer.hello()
        request = peer.request()
        if peer.number < 3:
            peer.reset()
        else:
            peer.answer(request, {"value": 1})
            peer.frame()

    with ScriptedService(script) as service:
        with SynapClient(service.url, transport="native", timeout=30, retries=5, retry_delay=0.05) as client:
            assert client.kv.incr("n") == 1
    assert len(deadlines) == 4
    assert len(set(deadlines)) == 1
