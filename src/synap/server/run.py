"""Puts a service together, runs it until it is asked to stop, and lets it go in order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any

import uvicorn

from synap._version import __version__
from synap.engine.engine import Engine
from synap.engine.limits import Limits
from synap.errors import SynapError
from synap.host import Host
from synap.server.front import Front
from synap.server.http import App
from synap.server.service import Service
from synap.server.settings import ServerConfig
from synap.server.websocket import PING_EVERY, PingingWebSocket
from synap.storage import Durable, open_host

__all__ = ["serve"]

log = logging.getLogger("synap.server")

OK, FAILED, UNUSABLE, FORCED = 0, 1, 2, 130
"""Exit codes: stopped when asked; could not start or broke; told something impossible; stopped by force."""

SWEEP = 2.0
"""Seconds between looks for connections that take too long to say what they want."""


class Alarm:
    """Calls the host when something is due. A timer that fires too early costs less than setting it anew each time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.host: Host
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0

    def __call__(self, when: float | None) -> None:
        if when is None or (self._timer is not None and self._at <= when):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._at = when
        delay = max(0.0, when - self._clock())
        # A day at most: timers far ahead are the wall clock's business, which may be set meanwhile.
        self._timer = asyncio.get_running_loop().call_later(min(delay, 86_400.0), self._ring)

    def _ring(self) -> None:
        self._timer = None
        try:
            self.host.wake()
        except Exception:
            # Whatever it was, later alarms must ring.
            log.exception("what was due failed")
            self(self._clock() + 1.0)


class Server(uvicorn.Server):
    """uvicorn's server, stopping the way this service stops."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        service.connections = self.server_state.connections
        service.shutdown = self.stop
        self.on_started: Callable[[], None] = lambda: None

    def stop(self) -> None:
        """Begin to drain."""
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        def asked(number: int, frame: FrameType | None) -> None:
            if self.should_exit:
                # Asked twice: now. What was answered is safe; what was not, was not answered.
                os._exit(FORCED)
            self.stop()

        signals = (signal.SIGINT, signal.SIGTERM)
        try:
            before = [signal.signal(number, asked) for number in signals]
        except ValueError:  # Not the main thread, whose business signals are.
            yield
            return
        try:
            yield
        finally:
            for number, handler in zip(signals, before):
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._sweeping = asyncio.ensure_future(self._sweep())
        self.on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        service = self.service
        log.info("stopping: no new work, answers under way go out")
        service.draining = True
        self._sweeping.cancel()
        for server in self.servers:
            server.close()
        for conversation in list(service.listeners):
            conversation.drain()
        service.host.drain()
        loop = asyncio.get_running_loop()
        end = loop.time() + service.config.drain_timeout
        while loop.time() < end and not self._settled():  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # what it waits for happens in many places, and this once in a service's life
        for conversation in list(service.listeners):
            conversation.shutdown()
        await asyncio.sleep(0)
        self.config.timeout_graceful_shutdown = max(1, math.ceil(end - loop.time()))
        await super().shutdown(sockets)

    def _settled(self) -> bool:
        host = self.service.host
        return not host.pending and not host.held and all(one.settled() for one in self.service.listeners)

    async def _sweep(self) -> None:
        """Close connections whose heads don't come."""
        loop = asyncio.get_running_loop()
        patience = self.service.config.handshake_timeout
        while True:
            await asyncio.sleep(min(SWEEP, patience / 4))
            before = loop.time() - patience
            for connection in list(self.service.connections):
                since = getattr(connection, "since", None)
                if since is not None and since < before:
                    connection.overdue()


def listen(config: ServerConfig) -> list[socket.socket]:
    """Open the sockets; all addresses that the host's name has, on one port. Raises `OSError`."""
    found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = list(dict.fromkeys((family, address[:2]) for family, _, _, _, address in found))
    sockets: list[socket.socket] = []
    port = config.port
    try:
        for family, (host, _) in addresses:
            try:
                opened = socket.socket(family, socket.SOCK_STREAM)
            except OSError:
                continue  # IPv6 that this machine doesn't have.
            sockets.append(opened)
            if os.name == "posix":
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            _notice_dead_peers(opened)
            try:
                opened.bind((host, port))
            except OSError as error:
                if len(sockets) > 1 and error.errno == errno.EADDRNOTAVAIL:
                    sockets.pop().close()
                    continue
                raise
            port = opened.getsockname()[1]
            opened.listen(4096)
            opened.setblocking(False)
    except OSError:
        for opened in sockets:
            opened.close()
        raise
    return sockets


def _notice_dead_peers(opened: socket.socket) -> None:
    """Have the system ask silent peers whether they live; connections inherit it from the listening socket."""
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def raise_file_limit(connections: int) -> int:
    """Let the process have as many connections as it may; returns how many that are."""
    try:
        import resource
    except ImportError:
        return connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + 128
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return max(16, min(connections, soft - 128))
    return connections


def _tells_news(record: logging.LogRecord) -> bool:
    """Whether a record is worth a line: uvicorn takes every WebSocket that was refused with an answer for a fault."""
    return "without completing handshake" not in record.getMessage()


def serve(config: ServerConfig, *, out: Callable[[str], None] = print) -> int:
    """Run a service until it is asked to stop; returns the exit code.

    `out` takes lines for people: where it listens and how to try it. The first has the form `listening on URL`.
    """
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    # uvicorn tells of every stray byte on the port below this level, and of one kind of them above it.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    logging.getLogger("uvicorn.error").addFilter(lambda record: not record.getMessage().startswith("Invalid UTF-8"))
    logging.getLogger("uvicorn.error").addFilter(_tells_news)
    try:
        sockets = listen(config)
    except OSError as error:
        sys.stderr.write(f"synap serve: {_why_not_listening(config, error)}\n")
        return UNUSABLE if isinstance(error, socket.gaierror) else FAILED
    try:
        return _run(_main(config, sockets, out))
    except SynapError as error:
        sys.stderr.write(f"synap serve: {error.message}\n")
        return FAILED
    finally:
        for opened in sockets:
            opened.close()


def _run(main: Coroutine[Any, Any, int]) -> int:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    code: int = uvloop.run(main)
    return code


def _why_not_listening(config: ServerConfig, error: OSError) -> str:
    place = f"{config.host}:{config.port}"
    if error.errno == errno.EADDRINUSE:
        return f"port {config.port} is in use on {config.host}; give another with --port, or 0 for a free one"
    if error.errno == errno.EACCES:
        return f"this user may not listen on {place}"
    return f"can't listen on {place}: {error.strerror or error}"


async def _main(config: ServerConfig, sockets: list[socket.socket], out: Callable[[str], None]) -> int:
    config.max_connections = raise_file_limit(config.max_connections)
    alarm = Alarm(time.time)
    limits = Limits(memory=config.memory_limit, room_events=config.room_events, room_age=config.room_age)
    durable = None if config.memory else _open(config, alarm, limits)
    host = Host(Engine(ids=_ids(), limits=limits), alarm=alarm) if durable is None else durable.host
    alarm.host = host
    try:
        service = Service(host, config, durable)
        server = Server(uvicorn_config(config, service), service)
        server.on_started = lambda: _announce(config, sockets, out)
        host.end_turn()
        await server.serve(sockets)
    finally:
        if durable is not None:
            # In a thread: what the log has to say about the last commits is said on this one.
            await asyncio.get_running_loop().run_in_executor(None, durable.close)
    return OK


def _open(config: ServerConfig, alarm: Alarm, limits: Limits) -> Durable:
    began = said = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= 1.0:
            said = now
            log.info("reading %s: %d of %d MB, %.0f s", config.data, done >> 20, total >> 20, now - began)

    return open_host(
        config.data,
        fsync=config.fsync,
        call=asyncio.get_running_loop().call_soon_threadsafe,
        alarm=alarm,
        limits=limits,
        progress=progress,
        snapshot_minimum=config.snapshot_size,
    )


def _ids() -> Callable[[], int]:
    import random

    generator = random.Random(os.urandom(32))
    return functools.partial(generator.getrandbits, 64)


def uvicorn_config(config: ServerConfig, service: Service) -> uvicorn.Config:
    """Say how uvicorn is to run a service: connections are met by `Front`, and nothing is logged for each request."""
    front: Any = functools.partial(Front, service)
    return uvicorn.Config(
        App(service),
        http=front,
        ws=PingingWebSocket,
        interface="asgi3",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=True,
        ws_max_size=config.max_body,
        ws_ping_interval=PING_EVERY,
        ws_ping_timeout=PING_EVERY,
        ws_per_message_deflate=False,
        timeout_keep_alive=config.idle_timeout,  # type: ignore[arg-type]  # passed on to call_later
        ssl_certfile=config.tls_cert,
        ssl_keyfile=config.tls_key,
    )


def _announce(config: ServerConfig, sockets: list[socket.socket], out: Callable[[str], None]) -> None:
    address = sockets[0].getsockname()
    host = "localhost" if config.host == "localhost" else address[0]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    scheme = "https" if config.tls_cert else "http"
    url = f"{scheme}://[{host}]:{address[1]}" if ":" in host else f"{scheme}://{host}:{address[1]}"
    key = " -H 'X-API-Key: '$SYNAP_API_KEY" if config.keys_on else ""
    option = ", api_key=..." if config.keys_on else ""
    out(f"listening on {url}")
    kept = "keeping nothing (--memory)" if config.memory else f"data in {os.path.abspath(config.data)}"
    out(f"synap {__version__}, {kept}")
    out("try it:")
    command = '\'{"command": "kv.set", "payload": {"key": "hello", "value": "world"}}\''
    out(f"  curl {url}/api/v1/command{key} -H 'Content-Type: application/json' -d {command}")
    out(f"  python -c \"from synap import SynapClient; print(SynapClient(url='{url}'{option}).kv.get('hello'))\"")
    sys.stdout.flush()
