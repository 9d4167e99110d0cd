"""A port that is held for a process: that process gets it, as often as it likes, and nobody else does."""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import Iterator

import pytest

from synap.testing.ports import ReservedPort
from synap.testing.server import ThrowawayServer, can_serve

HOST = "127.0.0.1"
IP_LOCAL_PORT_RANGE = 51
"""A socket's own range of ports to be given one from (Linux 6.3 and newer)."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ports are held on Linux")


def asker(*, reuse: bool, near: int) -> socket.socket:
    """Return a socket that is given one of the eleven ports around `near`, where the system can be told so."""
    asking = socket.socket()
    asking.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
    with contextlib.suppress(OSError):
        low, high = near - 5, near + 5
        asking.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, (high << 16 | low).to_bytes(4, sys.byteorder))
    return asking


@pytest.fixture
def taken() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("way", ["bind", "bind again", "connect"])
def test_who_asks_for_any_port_is_not_given_it(taken: contextlib.ExitStack, way: str) -> None:
    reserved = ReservedPort()
    listener = taken.enter_context(socket.create_server((HOST, 0), backlog=64))
    given = []
    for _ in range(40):
        asking = taken.enter_context(asker(reuse=way == "bind again", near=reserved.number))
        try:
            if way == "connect":
                asking.connect(listener.getsockname())
            else:
                asking.bind((HOST, 0))
        except OSError:  # all others of the eleven are given
            break
        given.append(asking.getsockname()[1])
    assert given
    assert reserved.number not in given


def test_who_was_told_of_it_has_it_again_and_again() -> None:
    reserved = ReservedPort()
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, reserved.number))
        with socket.create_server((HOST, reserved.number)) as listening:
            with socket.create_connection(listening.getsockname()), pytest.raises(OSError, match="in use"):
                socket.create_server((HOST, reserved.number))
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((HOST, reserved.number))


def test_it_is_free_when_nobody_wants_it_any_more() -> None:
    reserved = ReservedPort()
    number = reserved.number
    del reserved
    with socket.socket() as other:
        other.bind((HOST, number))


@pytest.mark.skipif(not can_serve(), reason="needs a service")
def test_a_service_keeps_its_port_while_it_is_down() -> None:
    server = ThrowawayServer()
    with server:
        port = server.port
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((HOST, port))
    with server:
        assert (server.port, server.url) == (port, f"http://{HOST}:{port}")
