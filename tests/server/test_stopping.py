"""Whom a stop doesn't wait for: `--drain-timeout` is for answers under way, not for what may never come or be read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from synap import SynapClient
from synap.commands import COMMANDS
from synap.host import jobs
from synap.server.drain import Server
from synap.server.garbage import Collections
from synap.server.http_exchange import Exchange
from synap.server.run import uvicorn_config
from synap.server.settings import ServerConfig
from synap.testing.server import ThrowawayServer
from synap.wire.compression import STEP
from synap.wire.frames import Kind, frame
from synap.wire.handshake import SUBPROTOCOL, Hello, greet
from synap.wire.large import LARGE
from tests.helpers import inside
from tests.helpers.raw import Http, Native, dial, read_all, read_head, request, wait_for

Serve = Callable[..., ThrowawayServer]

HEAD = b"POST /api/v1/command HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
ASK = b'{"command":"kv.exists","payload":{"key":"a"}}'
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(ASK), ASK)
WAIT = b'{"command":"queue.consume","payload":{"queue":"q","timeout":3600}}'
WAITING = HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(WAIT), WAIT)
EVENTS = b"GET /api/v1/stream/subscribe?room=r&from_offset=0 HTTP/1.1\r\nHost: x\r\n\r\n"
SMALL = 4096
"""Bytes that a peer which doesn't read has room for."""


@pytest.fixture
def patient(serve: Serve) -> Iterator[ThrowawayServer]:
    """A service that would wait for an hour; `stop` fails where it does."""
    service = serve("--drain-timeout", "3600", "--handshake-timeout", "3600")
    service.patience = 60
    yield service
    assert not service.running


def has_connections(service: ThrowawayServer, count: int) -> bool:
    """Whether so many connections are open, beside the one that asks."""
    http = Http(service)
    try:
        return bool(http.do("admin.stats").payload["connections"] == count + 1)
    finally:
        http.close()


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(WHOLE, id="one request"),
        pytest.param(WHOLE + WHOLE, id="two requests"),
        pytest.param(WHOLE + b"\r\n", id="a line between requests"),
    ],
)
def test_an_idle_connection_is_closed(patient: ThrowawayServer, sent: bytes) -> None:
    with dial(patient) as idle:
        idle.sendall(sent)
        wait_for(lambda: has_connections(patient, 1))
        assert patient.stop() == 0
        assert read_all(idle).count(b"HTTP/1.1 200 ") == sent.count(b"POST")


@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        pytest.param(b"GET /api", [b"503"], id="a first line"),
        pytest.param(b"GET /api/v1/native HTTP/1.1\r\nHost: x\r\n", [b"503"], id="a native head"),
        pytest.param(HEAD, [b"503"], id="a head"),
        pytest.param(WHOLE + HEAD, [b"200", b"503"], id="a second head"),
        pytest.param(WAITING + HEAD, [b"200"], id="a head behind one that waits"),
        pytest.param(WHOLE[:-1], [b"503"], id="a body"),
        pytest.param(WHOLE + WHOLE[:-1], [b"200", b"503"], id="a second body"),
        pytest.param(WAITING + WHOLE[:-1], [b"200", b"503"], id="a body behind one that waits"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", [b"503"], id="a chunk"),
    ],
)
def test_what_has_not_come_whole_is_refused(patient: ThrowawayServer, sent: bytes, answers: list[bytes]) -> None:
    with dial(patient) as partial:
        partial.sendall(sent)
        wait_for(lambda: has_connections(patient, 1))
        if sent.startswith(WAITING):
            with SynapClient(url=patient.url) as client:
                wait_for(lambda: client.queue.stats("q").consumers == 1)
        assert patient.stop() == 0
        told = read_all(partial)
    heads = [head for head in told.split(b"HTTP/1.1 ")[1:] if not head.startswith(b"100")]
    assert [head[:3] for head in heads] == answers
    assert b"connection: close\r\n" in heads[-1].lower()
    assert heads[-1].startswith(b"200") or b'"SERVICE_UNAVAILABLE"' in heads[-1]


def test_who_waits_is_answered(patient: ThrowawayServer) -> None:
    with dial(patient) as waiting, SynapClient(url=patient.url) as client:
        waiting.sendall(WAITING + WHOLE)
        wait_for(lambda: client.queue.stats("q").consumers == 1)
        assert patient.stop() == 0
        first, second = read_all(waiting).split(b"HTTP/1.1 ")[1:]
    assert json.loads(first.partition(b"\r\n\r\n")[2])["payload"] is None
    assert second.startswith(b"503 ")  # it came whole, and was not begun


def test_events_end(patient: ThrowawayServer) -> None:
    with dial(patient) as events:
        events.sendall(EVENTS)
        read_head(events)
        assert patient.stop() == 0
        assert read_all(events).endswith(b"0\r\n\r\n")


@contextlib.contextmanager
def stalled_events(service: ThrowawayServer) -> Iterator[None]:
    with dial(service) as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        stalled.sendall(EVENTS)
        yield


@contextlib.contextmanager
def stalled_native(service: ThrowawayServer) -> Iterator[None]:
    native = Native(service)
    native.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    native.send(request(1, "stream.subscribe", room="r", from_offset=0))
    yield
    native.close()


@contextlib.contextmanager
def stalled_websocket(service: ThrowawayServer) -> Iterator[None]:
    with stalled_upgrade(service, b"") as stalled:
        text = json.dumps({"command": "stream.subscribe", "payload": {"room": "r", "from_offset": 0}}).encode()
        stalled.sendall(masked(1, text))
        yield


@contextlib.contextmanager
def stalled_frames(service: ThrowawayServer) -> Iterator[None]:
    hello = greet("x", Hello("0" * 32, "json", False, None)).split(b"\r\n")
    own = [line for line in hello if line.lower().startswith(b"synap-")]
    with stalled_upgrade(
        service, b"\r\n".join([*own, b"Sec-WebSocket-Protocol: " + SUBPROTOCOL.encode(), b""])
    ) as stalled:
        stalled.sendall(masked(2, request(1, "stream.subscribe", room="r", from_offset=0)))
        yield


@contextlib.contextmanager
def stalled_upgrade(service: ThrowawayServer, headers: bytes) -> Iterator[socket.socket]:
    with dial(service) as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        stalled.sendall(
            b"GET /api/v1/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n" + headers + b"\r\n"
        )
        assert read_head(stalled).startswith(b"HTTP/1.1 101 ")
        yield stalled


def masked(opcode: int, body: bytes) -> bytes:
    """One frame of a client's, masked with zeros."""
    return bytes((0x80 | opcode, 0x80 | 126)) + len(body).to_bytes(2, "big") + bytes(4) + body


@pytest.mark.parametrize("stall", [stalled_events, stalled_native, stalled_websocket, stalled_frames])
def test_a_subscriber_that_does_not_read_is_cut(
    patient: ThrowawayServer, stall: Callable[[ThrowawayServer], contextlib.AbstractContextManager[None]]
) -> None:
    with SynapClient(url=patient.url) as client:
        for _ in range(400):
            client.stream.publish("r", "t", "x" * 20_000)
        with stall(patient):
            wait_for(lambda: client.stream.stats("r").subscribers == 1)
            assert patient.stop() == 0


def test_a_websocket_that_never_closes_is_not_waited_for(patient: ThrowawayServer) -> None:
    with stalled_upgrade(patient, b"") as silent:
        silent.sendall(masked(1, ASK)[:-1])
        with connect(f"ws://127.0.0.1:{patient.port}/api/v1/ws", proxy=None) as other:
            assert patient.stop() == 0
            with pytest.raises(ConnectionClosed) as closed:
                other.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012


def test_a_thread_that_compresses_gives_up_once_the_time_is_over() -> None:
    service = SimpleNamespace(over=False)
    nobody: Any = None
    exchange = Exchange(cast(Any, service), {"headers": ()}, nobody, nobody)
    slices = exchange._in_slices([bytes(3 * STEP)])
    assert len(next(slices)) == STEP
    service.over = True
    with pytest.raises(ConnectionResetError):
        next(slices)


async def test_who_begins_to_wait_during_a_stop_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "SLICE", 0.0)
    later: list[Callable[[], None]] = []
    place = inside.service(ServerConfig(drain_timeout=10.0), soon=later.append)
    server = Server(uvicorn_config(place.config, place), place, Collections())
    caller = inside.line(place)
    body = b'{"queues":["q"],"timeout":3600}' + b" " * LARGE
    caller.receive(frame(Kind.REQUEST, 1, body, COMMANDS["queue.consume_many"].code))
    place.draining = True
    ending = asyncio.ensure_future(server.end())
    while not (told := caller.frames()):
        await asyncio.sleep(0)
    while later:  # the request was being decoded
        later.pop(0)()
    await ending
    told += caller.frames()
    assert [(one.kind, one.id) for one in told] == [(Kind.GOAWAY, 0), (Kind.ANSWER, 1)]


def test_half_a_frame_is_not_waited_for(patient: ThrowawayServer) -> None:
    native = Native(patient)
    native.send(request(1, "kv.exists", key="a")[:-1])
    assert patient.stop() == 0
    assert native.ended()
    native.close()
