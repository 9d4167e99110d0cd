"""The proxy that tests put between a client and its service: it leaves nothing open."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.patience import PATIENCE


def test_a_connection_that_comes_while_the_proxy_ends_is_closed() -> None:
    """`leaves_nothing_open` blames this test otherwise."""
    stands_still = threading.Event()

    def stand_still() -> None:
        stands_still.set()
        until = time.monotonic() + PATIENCE
        while not vars(proxy._loop)["_ready"] and time.monotonic() < until:
            time.sleep(0.001)  # until its end is the next thing to do

    with socket.create_server(("127.0.0.1", 0)) as target:
        with FaultProxy("127.0.0.1", target.getsockname()[1]) as proxy:
            proxy._loop.call_soon_threadsafe(stand_still)
            assert stands_still.wait(PATIENCE)
            late = socket.create_connection(("127.0.0.1", proxy.port))
        # The proxy has accepted the connection in the turn in which it began to end.
        with late, suppress(ConnectionResetError):
            late.settimeout(PATIENCE)
            assert late.recv(1) == b""
