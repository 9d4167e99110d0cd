"""Blocking streams, plain and in TLS, against a peer made of nothing but the standard library."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Callable, List, Optional, Type

import pytest

from synap.lanes.io.network import network
from synap.lanes.io.threads import Stream
from tests.helpers.patience import PATIENCE

CERTS = Path(__file__).parent / "certs"


def client_context() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(CERTS / "cert.pem"))


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTS / "cert.pem", CERTS / "key.pem")
    return context


class Peer:
    """Takes one connection and does with it what `behave` says."""

    def __init__(self, behave: Callable[[socket.socket], None], tls: bool = False) -> None:
        self.behave = behave
        self.tls = tls
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self._run, daemon=True)

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def __enter__(self) -> Peer:
        self.thread.start()
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.listener.close()
        self.thread.join(PATIENCE)

    def _run(self) -> None:
        try:
            sock, _ = self.listener.accept()
        except OSError:
            return
        with sock:
            sock.settimeout(PATIENCE)
            try:
                if self.tls:
                    sock = server_context().wrap_socket(sock, server_side=True)
                self.behave(sock)
            except OSError:
                pass  # the client has had enough
            finally:
                sock.close()


def echo(sock: socket.socket) -> None:
    while True:
        data = sock.recv(65536)
        if not data:
            return
        sock.sendall(data)


def silent(sock: socket.socket) -> None:
    while sock.recv(65536):
        pass


def soon(seconds: float) -> float:
    """Return a deadline."""
    return monotonic() + seconds


def connect(port: int, *, tls: bool = False, timeout: float = 10.0) -> Stream:
    stream = Stream(network.connect("127.0.0.1", port, soon(timeout), lambda: False))
    if tls:
        try:
            stream.shake_hands(client_context(), "127.0.0.1", soon(timeout))
        except OSError:
            stream.abort()
            raise
    return stream


@pytest.mark.parametrize("tls", [False, True])
def test_bytes_arrive_as_they_were_sent(tls: bool) -> None:
    with Peer(echo, tls) as peer:
        stream = connect(peer.port, tls=tls)
        for size in (1, 100, 70_000):
            stream.send(b"x" * size, soon(10))
            received = b""
            while len(received) < size:
                received += stream.receive(65536, soon(10))
            assert received == b"x" * size
        stream.close()


@pytest.mark.parametrize("tls", [False, True])
def test_one_may_send_while_another_receives(tls: bool) -> None:
    size = 8_000_000
    with Peer(echo, tls) as peer:
        stream = connect(peer.port, tls=tls)
        sender = threading.Thread(target=lambda: stream.send(bytes(size), soon(30)))
        sender.start()
        received = 0
        while received < size:
            received += len(stream.receive(65536, soon(30)))
        sender.join(PATIENCE)
        assert received == size
        stream.close()


@pytest.mark.parametrize("tls", [False, True])
def test_the_end_of_the_other_side_is_the_end(tls: bool) -> None:
    with Peer(lambda sock: sock.sendall(b"bye"), tls) as peer:
        stream = connect(peer.port, tls=tls)
        assert stream.receive(2, soon(10)) + stream.receive(65536, soon(10)) == b"bye"
        assert stream.receive(65536, soon(10)) == b""
        stream.close()


@pytest.mark.parametrize("tls", [False, True])
def test_waiting_ends_in_time_and_harms_nothing(tls: bool) -> None:
    with Peer(echo, tls) as peer:
        stream = connect(peer.port, tls=tls)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                stream.receive(100, soon(0.02))
        stream.send(b"still here", soon(10))
        assert stream.receive(100, soon(10)) == b"still here"
        stream.close()


def test_a_peer_that_takes_nothing_is_not_waited_for() -> None:
    over = threading.Event()

    def stuck(sock: socket.socket) -> None:
        over.wait(PATIENCE)

    with Peer(stuck) as peer:
        stream = connect(peer.port)
        with pytest.raises(TimeoutError):
            stream.send(bytes(50_000_000), soon(0.1))
        stream.abort()
        over.set()


@pytest.mark.parametrize("tls", [False, True])
def test_nothing_follows_what_was_sent_in_part(tls: bool) -> None:
    """The peer would read it as the rest of that."""
    given_up, heard = threading.Event(), {0}

    def slow(sock: socket.socket) -> None:
        given_up.wait(PATIENCE)
        data = b"\0"
        while data:
            heard.update(data)
            data = sock.recv(65536)

    with Peer(slow, tls) as peer:
        stream = connect(peer.port, tls=tls)
        with pytest.raises(TimeoutError):
            stream.send(bytes(50_000_000), soon(0.1))
        with pytest.raises(OSError, match=r"pipe|reset|closed"):
            stream.send(b"next", soon(0.1))
        given_up.set()
        peer.thread.join(PATIENCE)
        stream.abort()
    assert heard == {0}


@pytest.mark.parametrize("tls", [False, True])
def test_aborting_wakes_who_waits(tls: bool) -> None:
    ends: List[object] = []

    def wait() -> None:
        try:
            ends.append(stream.receive(100, soon(20)))
        except OSError:
            ends.append("error")

    with Peer(silent, tls) as peer:
        stream = connect(peer.port, tls=tls)
        waiting = threading.Thread(target=wait)
        waiting.start()
        threading.Event().wait(0.05)  # most likely it waits by now; it must end either way
        stream.abort()
        waiting.join(PATIENCE)
        assert not waiting.is_alive()
        assert ends in ([b""], ["error"])
        with pytest.raises(OSError, match="closed"):
            stream.send(b"late", soon(10))


def test_a_certificate_that_is_not_trusted_is_refused() -> None:
    with Peer(echo, tls=True) as peer:
        stream = connect(peer.port)
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
            stream.shake_hands(ssl.create_default_context(), "127.0.0.1", soon(10))
        stream.abort()


def test_a_peer_that_speaks_no_tls_is_refused() -> None:
    with Peer(lambda sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as peer, pytest.raises(ssl.SSLError):
        connect(peer.port, tls=True)


def test_a_peer_that_never_shakes_hands_is_not_waited_for() -> None:
    with Peer(silent) as peer, pytest.raises(TimeoutError):
        connect(peer.port, tls=True, timeout=0.1)
