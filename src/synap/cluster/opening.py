"""Open the cluster behind a URL: in the event loop of a gateway, or in a thread of its own for clients in this
process."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from typing import TYPE_CHECKING

from synap.errors import SynapError
from synap.host.registry import Home, Opened

if TYPE_CHECKING:
    from synap.cluster.host import ClusterHost


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
    return _in_a_thread(ClusterHost(options, limits=home.limits, direct=True, guard=home.guard))


def _in_a_thread(host: ClusterHost) -> Opened:
    """Open a host in the event loop of a thread of its own, in which it lives until it is closed."""
    loop = asyncio.new_event_loop()

    def live() -> None:
        loop.run_forever()
        loop.close()

    thread = threading.Thread(target=live, name="synap-cluster", daemon=True)

    def end() -> None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)

    def close() -> None:
        if thread.is_alive():  # else this is a fork
            asyncio.run_coroutine_threadsafe(host.close(), loop).result(10)
            end()

    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(host.open(), loop).result()
    except BaseException:
        end()
        raise
    return Opened(host, close)
