"""What is on its way is bounded for all connections together, and who takes nothing of it is disconnected."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import json
import random
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest

from synap import SynapClient, SynapError
from synap.commands import COMMANDS
from synap.server.tls import ClosedOnce
from synap.server.transit import Transit, on_its_way
from synap.testing.server import ThrowawayServer
from synap.wire.frames import GZIP, HEADER, Kind, frame
from tests.helpers.certificates import Authority
from tests.helpers.loops import LOOPS, loop_environment
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import Http, Native, dial, read_head, request, wait_for
from tests.server.conftest import Serve

LARGE = 1_600_000
"""Bytes of a value that a service takes whose `--transit-limit` is 8 MiB."""
UPGRADE = (
    b"GET /api/v1/ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)

POST = (
    b"POST /api/v1/command HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)


@pytest.fixture(scope="module", params=LOOPS)
def impatient(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayServer]:
    environment = loop_environment(request.param, tmp_path_factory)
    with ThrowawayServer(arguments=["--unread-timeout", "1s"], environment=environment) as server:
        yield server


@pytest.fixture(scope="module")
def narrow() -> Iterator[ThrowawayServer]:
    with ThrowawayServer(arguments=["--transit-limit", "8MiB"]) as server:
        yield server


def transit(server: ThrowawayServer) -> Any:
    http = Http(server)
    try:
        return http.do("admin.stats").payload["transit"]
    finally:
        http.close()


def fill(server: ThrowawayServer) -> None:
    """Store what is large to read: a value, and a room's events."""
    with contextlib.closing(Http(server)) as http:
        assert http.do("kv.set", key="large", value="x" * LARGE).status == 200
        for _ in range(8):
            assert http.do("stream.publish", room="large", event_type="t", data="x" * 1_000_000).status == 200


@pytest.mark.parametrize("lane", ["http", "websocket", "native"])
def test_an_answer_that_never_fits_is_not_to_be_asked_for_again(
    narrow: ThrowawayServer, lane: Literal["http", "websocket", "native"]
) -> None:
    fill(narrow)
    if lane == "http":
        with contextlib.closing(Http(narrow)) as http:
            error = http.do("kv.mget", keys=["large"] * 6).error
        code, message, details = error["code"], error["message"], error["details"]
    else:
        with SynapClient(url=narrow.url, transport=lane, retries=0) as client:
            with pytest.raises(SynapError) as refused:
                client.kv.mget(*["large"] * 6)
            code, message, details = refused.value.code, refused.value.message, refused.value.details
    assert (code, details) == ("PAYLOAD_TOO_LARGE", {"limit": 8 << 20})
    assert "more than 8,388,608; ask for less at once" in message


@pytest.mark.parametrize("lane", ["websocket", "native"])
def test_an_answer_that_fits_is_sent_whatever_was_received_since_the_last_look(
    narrow: ThrowawayServer, lane: Literal["websocket", "native"]
) -> None:
    """It is counted once, not with its connection and beside it."""
    with SynapClient(url=narrow.url, transport=lane, retries=0) as client:
        for _ in range(5):
            for key in ("large", "other"):
                client.kv.set(key, "x" * LARGE)
            found = client.kv.mget("large", "other", "large")
            assert [len(one.value or "") for one in found] == [LARGE] * 3


def unread_native(server: ThrowawayServer) -> socket.socket:
    native = Native(server)
    native.send(*(request(number, "kv.mget", keys=["large"] * 20) for number in range(1, 11)))
    return native.socket


def unread_http(server: ThrowawayServer) -> socket.socket:
    connection = dial(server)
    body = b'{"command":"kv.mget","payload":{"keys":[%b]}}' % b",".join([b'"large"'] * 20)
    connection.sendall(POST % len(body) + body)
    return connection


def unread_websocket(server: ThrowawayServer) -> socket.socket:
    connection = dial(server)
    connection.sendall(UPGRADE)
    read_head(connection)
    body = b'{"command":"kv.get","payload":{"key":"large"}}'
    connection.sendall((bytes([0x81, 0x80 | len(body)]) + b"\0\0\0\0" + body) * 30)
    return connection


def unread_native_websocket(server: ThrowawayServer) -> socket.socket:
    connection = dial(server)
    session = b"Sec-WebSocket-Protocol: synap.native\r\nSynap-Session: %b\r\nSynap-Format: json\r\n\r\n" % (b"ab" * 16)
    connection.sendall(UPGRADE[:-2] + session)
    assert read_head(connection).startswith(b"HTTP/1.1 101")
    asked = b"".join(request(number, "kv.get", key="large") for number in range(1, 31))
    connection.sendall(bytes([0x82, 0x80 | 126]) + len(asked).to_bytes(2, "big") + b"\0\0\0\0" + asked)
    return connection


def unread_events(server: ThrowawayServer) -> socket.socket:
    connection = dial(server)
    connection.sendall(b"GET /api/v1/stream/subscribe?room=large&replay=true HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    return connection


LANES = {
    "native": unread_native,
    "http": unread_http,
    "websocket": unread_websocket,
    "native over a WebSocket": unread_native_websocket,
    "events": unread_events,
}


@pytest.mark.parametrize("lane", LANES)
def test_who_takes_nothing_of_what_is_his_is_disconnected(impatient: ThrowawayServer, lane: str) -> None:
    fill(impatient)
    before = transit(impatient)["ended_unread_total"]
    deaf = LANES[lane](impatient)
    try:
        wait_for(lambda: transit(impatient)["ended_unread_total"] > before)
        with contextlib.suppress(ConnectionResetError):
            while deaf.recv(1 << 20):
                pass
    finally:
        deaf.close()


def test_nobody_ends_for_what_was_ended_and_is_not_closed_yet() -> None:
    """However long the event loop takes to close it: `abort` only asks for that."""

    async def work() -> None:
        loop = asyncio.get_running_loop()
        greedy, modest = HoldingConnection(9 << 20), HoldingConnection(5 << 20)
        service = SimpleNamespace(
            config=SimpleNamespace(transit_limit=8 << 20),
            host=SimpleNamespace(memory_limit=None, working_on=0, set_aside=lambda size: None),
            connections={greedy, modest},
            listeners=(),
        )
        transit = Transit(service)  # type: ignore[arg-type]
        for _ in range(3):
            transit.look()
            again = loop.create_future()
            loop.call_later(0.05, again.set_result, None)  # several times what it waits before it looks again
            await again
        assert (greedy.aborts, modest.aborts, transit.ended["too_much"]) == (1, 0, 1)
        service.connections.remove(greedy)
        modest.size = 9 << 20
        transit.look()
        assert modest.aborts == 1
        service.connections.clear()
        transit.look()

    asyncio.run(work())


def test_very_many_are_ended_without_a_look_at_all_for_each() -> None:
    looks = 0

    class Looked(HoldingConnection):
        def __hash__(self) -> int:
            nonlocal looks
            looks += 1
            return id(self)

    async def work() -> None:
        several = [Looked(size << 10) for size in range(2000)]
        service = SimpleNamespace(
            config=SimpleNamespace(transit_limit=1 << 20),
            host=SimpleNamespace(memory_limit=None, working_on=0, set_aside=lambda size: None),
            connections=set(several),
            listeners=(),
        )
        transit = Transit(service)  # type: ignore[arg-type]
        transit.look()
        ended = [one for one in several if one.aborts]
        assert several[-len(ended) :] == ended  # those that held most
        assert sum(one.size for one in several if not one.aborts) <= 1 << 20
        assert looks < 50 * len(several)
        service.connections.clear()
        transit.look()

    asyncio.run(work())


async def test_a_tls_connection_that_was_closed_twice_can_be_measured_and_ended(tmp_path: Path) -> None:
    """asyncio's own transport of one has no answer then, and doesn't end it."""
    authority = Authority(tmp_path)
    loop = asyncio.get_running_loop()
    accepted: asyncio.Future[ClosedOnce] = loop.create_future()
    lost: asyncio.Future[None] = loop.create_future()

    class Accepted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.set_result(ClosedOnce(transport, transport.get_extra_info("socket")))

        def connection_lost(self, exc: Exception | None) -> None:
            lost.set_result(None)

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.sign("localhost"))
    listening = await loop.create_server(Accepted, "127.0.0.1", 0, ssl=context)
    address = listening.sockets[0].getsockname()
    shake = functools.partial(authority.context().wrap_socket, server_hostname="localhost")
    with await loop.run_in_executor(None, lambda: shake(socket.create_connection(address))):  # says no goodbye
        transport = await accepted
        service: Any = SimpleNamespace(
            config=SimpleNamespace(transit_limit=8 << 20, unread_timeout=1.0),
            host=SimpleNamespace(memory_limit=None, working_on=0, set_aside=lambda size: None),
            connections={HoldingConnection(7), OfTransport(cast(asyncio.Transport, transport))},
            listeners=(),
        )
        transit = Transit(service)
        for _ in range(2):
            transport.close()
            transit.look()
            transit.end_unread(loop.time(), chosen=lambda one: isinstance(one, OfTransport))
            assert transit.counted == 7
        service.connections = {OfTransport(cast(asyncio.Transport, transport))}
        while not lost.done():
            transit.end_closed()
            await asyncio.sleep(0.01)
    listening.close()
    await asyncio.gather(listening.wait_closed(), return_exceptions=True)


@pytest.mark.skipif(sys.platform != "linux", reason="what the kernel's queues hold differs elsewhere")
async def test_a_closed_tls_connection_keeps_what_the_loop_has_yet_to_write(tmp_path: Path) -> None:
    """A peer that took all that the system had, while the event loop was busy, lost the rest of its answer."""
    authority = Authority(tmp_path)
    loop = asyncio.get_running_loop()
    accepted: asyncio.Future[asyncio.Transport] = loop.create_future()
    lost: asyncio.Future[None] = loop.create_future()

    class Accepted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.set_result(cast(asyncio.Transport, transport))

        def connection_lost(self, exc: Exception | None) -> None:
            lost.set_result(None)

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.sign("localhost"))
    listening = await loop.create_server(Accepted, "127.0.0.1", 0, ssl=context)
    listening.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.connect(listening.sockets[0].getsockname())
    peer.settimeout(PATIENCE)
    shake = functools.partial(authority.context().wrap_socket, peer, server_hostname="localhost")
    with await loop.run_in_executor(None, shake) as secure:
        transport = await accepted
        transport.write(bytes(60_000))
        transport.close()
        service: Any = SimpleNamespace(
            config=SimpleNamespace(transit_limit=8 << 20),
            host=SimpleNamespace(memory_limit=None),
            connections={OfTransport(transport)},
        )
        transit = Transit(service)
        transit.end_closed()
        received = 0
        secure.settimeout(0)
        while on_its_way(transport):  # the event loop has no turn meanwhile
            with contextlib.suppress(ssl.SSLWantReadError):
                received += len(secure.recv(65_536))
        transit.end_closed()
        secure.settimeout(PATIENCE)
        while received < 60_000:
            piece = await loop.run_in_executor(None, secure.recv, 65_536)
            assert piece, "the rest was lost"
            received += len(piece)
        while not lost.done():
            transit.end_closed()
            await asyncio.sleep(0.001)
    listening.close()


class OfTransport:
    """A connection, as far as it is its transport."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport


class HoldingConnection:
    """A connection that holds bytes, and goes on doing so after it was told to end."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.aborts = 0
        self.transport = self

    def get_write_buffer_size(self) -> int:
        return self.size

    def abort(self) -> None:
        self.aborts += 1


@pytest.mark.parametrize("loop", LOOPS)
def test_who_reads_behind_is_not_read_meanwhile(
    serve: Serve, loop: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of many large answers only a few are made ahead of a peer that takes none for a while, then one by one."""
    service = serve("--transit-limit", "64MiB", environment=loop_environment(loop, tmp_path_factory))
    fill(service)
    native = Native(service)
    native.send(*(request(number, "kv.get", key="large") for number in range(1, 41)))
    for _ in range(50):  # rounds of the service's event loop: more than there are answers
        assert transit(service)["bytes"] < 8 * 5_000_000
    for number in range(1, 41):
        assert native.read().id == number
        found = transit(service)
        assert found["bytes"] < 8 * 5_000_000
    assert found["ended_too_much_total"] == 0
    native.close()


def test_who_reads_slowly_stays(serve: Serve) -> None:
    """It takes something now and then, while others that take nothing are disconnected twice."""
    service = serve("--unread-timeout", "6s")
    fill(service)
    slow = unread_native(service)
    for round in (1, 2):
        deaf = unread_native(service)

        def gone(round: int = round) -> bool:
            assert slow.recv(1 << 14)
            return bool(transit(service)["ended_unread_total"] >= round)

        wait_for(gone)
        deaf.close()
    assert transit(service)["ended_unread_total"] == 2
    assert slow.recv(1)
    slow.close()


def part_of_a_frame(server: ThrowawayServer) -> socket.socket:
    native = Native(server)
    with contextlib.suppress(OSError):  # the service may end it meanwhile
        native.send(HEADER.pack(1_600_000, Kind.REQUEST, 0, COMMANDS["kv.set"].code, 1) + b"x" * 1_500_000)
    return native.socket


def part_of_a_body(server: ThrowawayServer) -> socket.socket:
    connection = dial(server)
    with contextlib.suppress(OSError):
        connection.sendall(POST % 1_600_000 + b"x" * 1_500_000)
    return connection


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_the_largest_body_that_is_allowed_fits_what_may_be_in_flight(narrow: ThrowawayServer, encoding: str) -> None:
    http = Http(narrow)
    most = http.do("admin.config").payload["max_body"]
    assert most == (8 << 20) // 5
    whole = json.dumps({"command": "kv.set", "payload": {"key": "k", "value": random.Random(1).randbytes(most).hex()}})
    for size, status in ((most, 200), (most + 1, 413)):
        body = (whole[: size - 3] + '"}}').encode()
        headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
        answer = http.request("POST", "/api/v1/command", gzip.compress(body) if encoding == "gzip" else body, headers)
        assert answer.status == status
    http.close()


@pytest.mark.parametrize("flags", [0, GZIP])
def test_so_does_a_frame(narrow: ThrowawayServer, flags: int) -> None:
    value = random.Random(1).randbytes(1 << 20).hex()
    body = (json.dumps({"key": "k", "value": value})[: (8 << 20) // 5 - 2] + '"}').encode()
    native = Native(narrow)
    native.send(
        frame(Kind.REQUEST, 1, gzip.compress(body) if flags else body, COMMANDS["kv.set"].code, flags),
    )
    assert native.read().kind == Kind.ANSWER
    native.close()


@pytest.mark.parametrize("begin", [part_of_a_frame, part_of_a_body])
def test_what_all_have_on_their_way_is_bounded_together(
    narrow: ThrowawayServer, begin: Callable[[ThrowawayServer], socket.socket]
) -> None:
    fill(narrow)
    modest = Native(narrow)
    before = transit(narrow)["ended_too_much_total"]
    greedy = [begin(narrow) for _ in range(6)]
    wait_for(lambda: transit(narrow)["ended_too_much_total"] > before)
    wait_for(lambda: transit(narrow)["bytes"] <= 8 * 1024 * 1024)
    modest.send(frame(Kind.PING, 1))
    assert modest.read().kind == Kind.PONG
    modest.close()
    for connection in greedy:
        connection.close()


def test_metrics_tell_what_is_on_its_way(narrow: ThrowawayServer) -> None:
    http = Http(narrow)
    scrape = http.request("GET", "/metrics").body.decode()
    http.close()
    assert "synap_transit_limit_bytes 8.388608e+06" in scrape
    assert "synap_transit_bytes " in scrape
    for reason in ("too_much", "unread"):
        assert f'synap_connections_ended_total{{reason="{reason}"}}' in scrape


def test_a_message_in_very_many_frames_ends(impatient: ThrowawayServer) -> None:
    connection = dial(impatient)
    connection.sendall(UPGRADE)
    read_head(connection)
    connection.settimeout(PATIENCE)
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        connection.sendall(bytes([0x01, 0x80]) + b"\0\0\0\0" + (bytes([0x00, 0x80]) + b"\0\0\0\0") * 50_000)
        while connection.recv(65536):
            pass
    connection.close()
