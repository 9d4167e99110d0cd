"""Open the cluster behind a URL: in the event loop of a gateway, or in a thread of its own for clients in this
process."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from typing import Any, Optional

from synap.errors import SynapError
from synap.host.registry import Home, Opened


def check_hiredis() -> None:
    """Raise `INVALID_REQUEST` where the package that clusters need is not installed."""
    if importlib.util.find_spec("hiredis") is None:
        text = "a cluster needs the package hiredis: pip install 'synap-client[cluster]'"
        raise SynapError("INVALID_REQUEST", text, {"option": "url"})


def open_cluster(scheme: str, address: str, home: Home) -> Opened:
    """Open a cluster. Raises `SynapError`; for a gateway, `Opened.start` does that."""
    check_hiredis()
    from synap.cluster.host import ClusterHost
    from synap.cluster.options import EngineOptions

    options = EngineOptions.read(f"{scheme}://{address}", home.options)
    if home.loop is not None:
        host = ClusterHost(options, limits=home.limits, direct=home.direct, guard=home.guard)
        loop = home.loop

        def close() -> None:
            """End it from another thread than the event loop's; one that is closed already has ended it."""
            if not loop.is_closed():
                asyncio.run_coroutine_threadsafe(host.close(), loop).result(10)

        return Opened(host, close, start=host.open)
    thread = _Thread(ClusterHost(options, limits=home.limits, direct=True, guard=home.guard))
    thread.begin()
    return Opened(thread.host, thread.end)


class _Thread:
    """The thread in which a host lives that clients in this process use."""

    def __init__(self, host: Any) -> None:
        self.host = host
        self._ready = threading.Event()
        self._error: Optional[BaseException] = None
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._over: Optional[asyncio.Event] = None
        self._thread = threading.Thread(target=self._live, name="synap-cluster", daemon=True)

    def begin(self) -> None:
        """Start the thread and wait until the host is open; raises what that raised."""
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error

    def _live(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        try:
            await self.host.open()
        except BaseException as error:
            self._error = error
            return
        finally:
            self._ready.set()
        await self._over.wait()
        await self.host.close()

    def end(self) -> None:
        """Close the host and end the thread."""
        if self._loop is not None and self._over is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(10)
