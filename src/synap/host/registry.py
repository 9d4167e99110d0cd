"""Maps the scheme of a URL to the function that opens its engine.

`memory://`, `file://` and the clusters (`valkey://`, `redis://`, …) are built in. Other packages add a scheme with an
entry point in the group `synap.engines`, named as the scheme, that refers to an `Opener`.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import random
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Callable, ContextManager, Mapping, Optional, cast

from synap.config import CLUSTERS
from synap.engine.engine import Engine
from synap.engine.limits import Limits
from synap.errors import SynapError
from synap.host.base import Host
from synap.host.engine import EngineHost

GROUP = "synap.engines"
"""The group of entry points that add schemes."""

BUILT_IN = {
    "memory": "synap.host.registry:open_memory",
    "file": "synap.storage.durable:open_file",
    **dict.fromkeys(CLUSTERS, "synap.cluster.opening:open_cluster"),
}


@dataclass
class Home:
    """The environment of an engine, given by its opener."""

    call: Callable[..., object]
    """`call(function, *arguments)` runs a function on the host's thread, from any thread, in the order of calls."""
    alarm: Callable[[Optional[float]], None]
    """`alarm(when)` asks for the next call of `Host.wake` (Unix seconds, None: none)."""
    guard: Optional[ContextManager[Any]] = None
    """The lock under which the host is used, where threads share it."""
    loop: Optional[asyncio.AbstractEventLoop] = None
    """The event loop that the host runs in, where it runs in one."""
    soon: Optional[Callable[[Callable[[], None]], object]] = None
    """`soon(function)` schedules a function on the host's thread, after pending events; None: there is no scheduler."""
    direct: bool = False
    """Whether all callers are in this process."""
    limits: Optional[Limits] = None
    clock: Optional[Callable[[], float]] = None
    """The clock (Unix seconds); None: the host makes its own `Clock`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further options by name; an engine uses those it knows, such as `fsync`."""


@dataclass
class Opened:
    """An opened engine."""

    host: Host
    close: Callable[[], None] = lambda: None
    """Closes it. May wait for a disk, so don't call it in an event loop."""
    durable: Any = None
    """`synap.storage.Durable`, where the data is in a directory of this machine."""
    start: Optional[Callable[[], Any]] = None
    """Awaited in the host's event loop before the first request. Raises `SynapError`."""
    still: Callable[[], ContextManager[Any]] = nullcontext
    """Keeps the engine's threads out of libraries whose locks a forked child would have for ever, while it forks."""


Opener = Callable[[str, str, Home], Opened]
"""Opens the engine of a URL: called with the scheme, the text after `://`, and the environment. Raises `SynapError`."""


def open_engine(scheme: str, address: str, home: Home) -> Opened:
    """Open the engine that a URL names. Raises `INVALID_REQUEST` where nothing is registered for its scheme."""
    place = BUILT_IN.get(scheme)
    if place is not None:
        module, _, name = place.partition(":")
        opener = getattr(importlib.import_module(module), name)
    else:
        opener = _registered(scheme)
    return cast(Opener, opener)(scheme, address, home)


def _registered(scheme: str) -> Any:
    from importlib import metadata  # takes a while, and few ask for a scheme that isn't built in

    found: Any = metadata.entry_points()
    # Before Python 3.10 a dict of lists.
    group = found.select(group=GROUP) if hasattr(found, "select") else found.get(GROUP, ())
    names = []
    for point in group:
        if point.name == scheme:
            return point.load()
        names.append(point.name)
    known = ", ".join(f"{name}://" for name in [*BUILT_IN, *sorted(names)])
    raise SynapError("INVALID_REQUEST", f"no engine is registered for {scheme}://; there is {known}")


def open_memory(scheme: str, address: str, home: Home) -> Opened:
    """Make an engine in memory. Its name matters only to `host.inprocess`, which shares engines."""
    generator = random.Random(os.urandom(32))
    engine = Engine(ids=lambda: generator.getrandbits(64), limits=home.limits)
    return Opened(EngineHost(engine, alarm=home.alarm, clock=home.clock, soon=home.soon))
