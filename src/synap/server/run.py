"""Assembles a service, runs it until it is asked to stop, and closes it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import uvicorn

from synap._version import __version__
from synap.config import without_secret
from synap.engine.limits import Limits
from synap.errors import SynapError
from synap.host import Host
from synap.host.clock import Clock
from synap.host.registry import Home, Opened, open_engine
from synap.server import logs
from synap.server.app import App
from synap.server.drain import UNHEEDED, Server, handling
from synap.server.garbage import Collections
from synap.server.machine import default_limit
from synap.server.origins import SECURITY_HEADERS
from synap.server.service import Service
from synap.server.settings import ENGINE_OPTIONS, ServerConfig
from synap.server.sniff import Sniffer
from synap.server.sockets import listen, raise_file_limit, why_not_listening
from synap.server.tls import Tls
from synap.server.uvicorn_glue import PING_EVERY, quieten
from synap.terminal import escaped

log = logging.getLogger("synap.server")

OK, FAILED, UNUSABLE = 0, 1, 2
"""Exit codes: stopped when asked; could not start, or failed; invalid options."""
LATER = ("synap.server.pinging_websocket", "synap.server.metrics")
"""Modules that a start doesn't wait for: with their libraries they take 50 ms of processor time to import."""


class Alarm:
    """Calls the host when something is due. A timer that fires too early is cheaper than resetting it each time."""

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
        # A day at most: timers have a limit, and firing too early is harmless.
        self._timer = asyncio.get_running_loop().call_later(min(delay, 86_400.0), self._ring)

    def _ring(self) -> None:
        self._timer = None
        try:
            self.host.wake()
        except Exception:
            # Whatever it was, later alarms must fire.
            log.exception("what was due failed")
            self(self._clock() + 1.0)


def say(line: str) -> None:
    """Print a line with one write, so that log lines don't get into it. No service ends since nobody can read it."""
    encoding = sys.stdout.encoding or "utf-8"
    text = escaped(line).encode(encoding, "backslashreplace").decode(encoding)
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except OSError as error:
        log.warning("stdout can't be written: %s", error.strerror)
        # What is left in its buffer is written once more when the process ends.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def serve(config: ServerConfig, *, out: Callable[[str], None] = say) -> int:
    """Run a service until it is asked to stop; returns the exit code.

    `out` prints lines for people: where it listens and how to try it. The first has the form `listening on URL`.
    """
    logs.configure(config)
    quieten()
    try:
        sockets = listen(config)
    except OSError as error:
        sys.stderr.write(f"synap serve: {why_not_listening(config, error)}\n")
        return UNUSABLE if isinstance(error, socket.gaierror) else FAILED
    try:
        with handling(dict.fromkeys(UNHEEDED, signal.SIG_IGN)):
            return _run(_main(config, sockets, out))
    except SynapError as error:
        sys.stderr.write(escaped(f"synap serve: {error.message}\n"))
        return UNUSABLE if error.code == "INVALID_REQUEST" else FAILED
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


async def _main(config: ServerConfig, sockets: list[socket.socket], out: Callable[[str], None]) -> int:
    config.max_connections = raise_file_limit(config.max_connections)
    if config.memory_limit is None and config.engine is None:
        config.memory_limit = default_limit()
    clock = Clock()
    alarm = Alarm(clock)
    collections = Collections()
    collections.hold()
    try:
        opened = _open(config, alarm, clock)
    finally:
        collections.begin()
    alarm.host = opened.host
    try:
        if opened.start is not None:
            await opened.start()
        tls = None if config.tls_cert is None else Tls(config)
        service = Service(opened.host, config, opened.durable, tls=tls)
        server = Server(uvicorn_config(config, service), service, collections)
        server.on_started = lambda: _started(config, sockets, out)
        opened.host.end_turn()
        await server.serve(sockets)
        failed = service.failed
    finally:
        # In another thread: the log reports the last commits on this one.
        await asyncio.get_running_loop().run_in_executor(None, opened.close)
    if service.audit is not None:
        service.audit.finish()  # what was on disk only as the log was closed
    return FAILED if failed else OK


def _open(config: ServerConfig, alarm: Alarm, clock: Clock) -> Opened:
    began = shown = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= 1.0:
            shown = now
            log.info("reading %s: %d of %d MB, %.0f s", config.data, done >> 20, total >> 20, now - began)

    loop = asyncio.get_running_loop()
    home = Home(
        call=loop.call_soon_threadsafe,
        alarm=alarm,
        clock=clock,
        loop=loop,
        soon=loop.call_soon,
        limits=Limits(
            memory=config.memory_limit,
            evict=config.evict == "lru",
            idle=config.idle_queues,
            room_events=config.room_events,
            room_age=config.room_age,
        ),
        options={
            "fsync": config.fsync,
            "progress": progress,
            "snapshot_minimum": config.snapshot_size,
            "reserve": config.disk_reserve,
        },
    )
    if config.engine is not None:
        scheme, _, address = config.engine.partition("://")
        home.options = {name: getattr(config, name) for name in ENGINE_OPTIONS}
        return open_engine(scheme, address, home)
    return open_engine("memory", "", home) if config.memory else open_engine("file", config.data, home)


def uvicorn_config(config: ServerConfig, service: Service) -> uvicorn.Config:
    """Build uvicorn's configuration: connections begin with `Sniffer`, and requests are not logged one by one."""
    front: Any = functools.partial(Sniffer, service)
    return uvicorn.Config(
        App(service),
        http=front,
        ws=_websocket,  # type: ignore[arg-type]  # makes what a class would
        interface="asgi3",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=True,
        headers=SECURITY_HEADERS,
        ws_max_size=config.max_body,
        ws_ping_interval=PING_EVERY,
        ws_ping_timeout=PING_EVERY,
        ws_per_message_deflate=False,
        timeout_keep_alive=config.idle_timeout,  # type: ignore[arg-type]  # passed on to call_later
    )


def _websocket(*arguments: Any, **options: Any) -> asyncio.Protocol:
    """Make the protocol of a WebSocket. The first imports its library, where that comes before `LATER` is imported."""
    from synap.server.pinging_websocket import PingingWebSocket

    return PingingWebSocket(*arguments, **options)


def _started(config: ServerConfig, sockets: list[socket.socket], out: Callable[[str], None]) -> None:
    _announce(config, sockets, out)
    # On another thread, so that nobody's request waits for it. The loop waits for its threads when it ends.
    asyncio.get_running_loop().run_in_executor(None, _import_later)


def _import_later() -> None:
    for module in LATER:
        importlib.import_module(module)


def _announce(config: ServerConfig, sockets: list[socket.socket], out: Callable[[str], None]) -> None:
    address = sockets[0].getsockname()
    host = "localhost" if config.host == "localhost" else address[0]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    scheme = "https" if config.tls_cert else "http"
    url = f"{scheme}://[{host}]:{address[1]}" if ":" in host else f"{scheme}://{host}:{address[1]}"
    key = " -H 'X-API-Key: '$SYNAP_API_KEY" if config.keys_on else ""
    out(f"listening on {url}")
    if config.engine is not None:
        kept = f"data in {without_secret(config.engine)}"
    else:
        kept = "keeping nothing (--memory)" if config.memory else f"data in {os.path.abspath(config.data)}"
    out(f"synap {__version__}, {kept}")
    out("try it:")
    command = '\'{"command": "kv.set", "payload": {"key": "hello", "value": "world"}}\''
    out(f"  curl {url}/api/v1/command{key} -H 'Content-Type: application/json' -d {command}")
    out(f"  python -c \"from synap import SynapClient; print(SynapClient(url='{url}').kv.get('hello'))\"")
    if not config.no_console:
        out(f"  {url}/ in a browser")
