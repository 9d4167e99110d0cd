"""Connects to a host. Tests replace these classes to simulate a network.

One deadline covers the look-up of the name and all addresses together.
"""

from __future__ import annotations

import asyncio
import errno
import os
import selectors
import socket
import ssl
from collections import deque
from concurrent.futures import TimeoutError as FutureTimeoutError
from time import monotonic
from typing import Any, Callable, Deque, List, Optional, Set, Tuple

from synap.lanes.io.addresses import ATTEMPT_DELAY, Address, explained, in_turns, numeric, prepared
from synap.lanes.io.threads import LONGEST, apart

CHECK_INTERVAL = 0.25
"""Seconds between two checks whether the connection is still wanted."""

_IN_PROGRESS = (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR, getattr(errno, "WSAEWOULDBLOCK", errno.EINPROGRESS))


class AsyncNetwork:
    """The network of an event loop."""

    async def connect(
        self, protocol: asyncio.BaseProtocol, host: str, port: int, context: Optional[ssl.SSLContext]
    ) -> None:
        """Connect `protocol` to a host, with TLS where there is a `context`. Raises `OSError`.

        Cancelling it closes the socket.
        """
        loop = asyncio.get_running_loop()
        addresses = numeric(host, port)
        if not addresses:
            try:
                addresses = in_turns(await _asked(loop, host, port))
            except UnicodeError:
                raise OSError(f"{host!r} is no name of a host") from None
        sock = await _first_of(addresses)
        name = host if context is not None else None
        await loop.create_connection(lambda: protocol, sock=sock, ssl=context, server_hostname=name)


async def _asked(loop: asyncio.AbstractEventLoop, host: str, port: int) -> List[Tuple[Any, ...]]:
    """Look a name up, on a thread where one can be started: not while the interpreter ends."""
    found: List[Tuple[Any, ...]]
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except RuntimeError:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return found


async def _first_of(addresses: List[Address]) -> socket.socket:
    """Return a socket connected to the first address that answers."""
    if len(addresses) == 1:
        return await _connected(addresses[0])
    waiting: Deque[Address] = deque(addresses)
    attempts: Set[asyncio.Task[socket.socket]] = set()
    failures: List[OSError] = []
    winner: Optional[socket.socket] = None
    try:
        while winner is None and (waiting or attempts):
            if waiting:
                attempts.add(asyncio.ensure_future(_connected(waiting.popleft())))
            done, attempts = await asyncio.wait(
                attempts, timeout=ATTEMPT_DELAY if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for attempt in done:
                error = attempt.exception()
                if error is None and winner is None:
                    winner = attempt.result()
                elif error is None:
                    attempt.result().close()
                elif isinstance(error, OSError):
                    failures.append(error)
                else:
                    raise error
    finally:
        for attempt in attempts:
            attempt.add_done_callback(_close_late)
            attempt.cancel()
    if winner is None:
        raise explained(failures) if failures else OSError("the host has no address")
    return winner


async def _connected(address: Address) -> socket.socket:
    sock = prepared(address)
    try:
        await asyncio.get_running_loop().sock_connect(sock, address.place)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, os.strerror(error.errno)) from None  # asyncio's message repeats the address
        raise
    return sock


def _close_late(attempt: asyncio.Task[socket.socket]) -> None:
    """Close the socket of an attempt that succeeded after another one had."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


class Network:
    """The network of threads."""

    def connect(self, host: str, port: int, deadline: float, unwanted: Callable[[], bool]) -> socket.socket:
        """Return a connected, non-blocking socket.

        Raises `OSError`; a builtin `TimeoutError` at `deadline` (of `time.monotonic`), or soon after `unwanted()` is
        true.
        """
        addresses = numeric(host, port) or _looked_up(host, port, deadline)
        waiting: Deque[Address] = deque(addresses)
        failures: List[OSError] = []
        due = 0.0
        with selectors.DefaultSelector() as selector:
            try:
                while True:
                    now = monotonic()
                    if now >= deadline or unwanted():
                        raise TimeoutError("nothing answered in time")
                    if waiting and now >= due:
                        due = now + ATTEMPT_DELAY
                        begun = _begin(waiting.popleft(), selector, failures)
                        if begun is not None:
                            return begun
                    if not selector.get_map():
                        if not waiting:
                            raise explained(failures) if failures else OSError("the host has no address")
                        due = 0.0
                        continue
                    pause = min(deadline - now, CHECK_INTERVAL, max(due - now, 0.0) if waiting else CHECK_INTERVAL)
                    for key, _ in selector.select(pause):
                        sock: socket.socket = key.fileobj  # type: ignore[assignment]  # what was registered
                        selector.unregister(sock)
                        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                        if code == 0:
                            return sock
                        sock.close()
                        failures.append(OSError(code, os.strerror(code)))
                        due = 0.0
            finally:
                for key in list(selector.get_map().values()):
                    key.fileobj.close()  # type: ignore[union-attr]  # what was registered


def _begin(address: Address, selector: selectors.BaseSelector, failures: List[OSError]) -> Optional[socket.socket]:
    """Start connecting; returns the socket where it is connected at once."""
    try:
        sock = prepared(address)
    except OSError as error:  # a family that this machine doesn't have
        failures.append(error)
        return None
    code = sock.connect_ex(address.place)
    if code == 0:
        return sock
    if code in _IN_PROGRESS:
        selector.register(sock, selectors.EVENT_WRITE)
    else:
        sock.close()
        failures.append(OSError(code, os.strerror(code)))
    return None


def _looked_up(host: str, port: int, deadline: float) -> List[Address]:
    """Look a name up until `deadline`, on a thread, if one can be started: the resolver takes no timeout."""
    try:
        try:
            found = apart(socket.getaddrinfo, host, port, 0, socket.SOCK_STREAM, name="synap look-up")
        except RuntimeError:
            return in_turns(socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM))
        return in_turns(found.result(min(max(deadline - monotonic(), 0.0), LONGEST)))
    except FutureTimeoutError:
        raise TimeoutError(f"the name {host} was not found in time") from None
    except UnicodeError:
        raise OSError(f"{host!r} is no name of a host") from None


async_network = AsyncNetwork()
network = Network()
