"""Which engine stands behind a URL: the scheme names what opens it.

`memory://` and `file://` are built in, and so are the clusters (`valkey://` and its kin). A package of somebody else's
adds a scheme with an entry point in the group `synap.engines`, named as the scheme, that leads to an `Opener`.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import random
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Callable, ContextManager, Dict, Mapping, Optional, cast

from synap.engine.engine import Engine
from synap.engine.limits import Limits
from synap.errors import SynapError
from synap.host.base import Host
from synap.host.engine import EngineHost

__all__ = ["GROUP", "Home", "Opened", "Opener", "open_engine", "open_memory"]

GROUP = "synap.engines"
"""The group of entry points that add schemes."""

BUILT_IN = {
    "memory": "synap.host.registry:open_memory",
    "file": "synap.storage.durable:open_file",
    "valkey": "synap.cluster.opening:open_cluster",
    "valkeys": "synap.cluster.opening:open_cluster",
    "redis": "synap.cluster.opening:open_cluster",
    "rediss": "synap.cluster.opening:open_cluster",
}


@dataclass
class Home:
    """What an engine needs to know of whoever opens it."""

    call: Callable[..., object]
    """`call(function, *arguments)` has a function run on the host's thread, from any thread, in the order of calls."""
    alarm: Callable[[Optional[float]], None]
    """Is told when `EngineHost.wake` must be called next (Unix seconds, None: not at all)."""
    guard: Optional[ContextManager[Any]] = None
    """What whoever uses the host holds, where threads share it."""
    loop: Optional[asyncio.AbstractEventLoop] = None
    """The event loop that the host lives in, where it lives in one."""
    soon: Optional[Callable[[Callable[[], None]], object]] = None
    """Has a function called on the host's thread after everybody else had their turn; None: there is no such thing."""
    direct: bool = False
    """Whether all callers are in this process."""
    limits: Optional[Limits] = None
    clock: Optional[Callable[[], float]] = None
    """What tells the time; a `Clock` of the host's own where it is left out."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What else was asked for, by name; an engine takes from it what it knows, such as `fsync`."""


@dataclass
class Opened:
    """An engine that was opened."""

    host: Host
    close: Callable[[], None] = lambda: None
    """Let go of it; may wait for a disk, so not to be called on the host's thread where that is an event loop's."""
    durable: Any = None
    """`synap.storage.Durable`, where the data is in a directory of this machine."""
    start: Optional[Callable[[], Any]] = None
    """To be called, and awaited, in the host's event loop before the first request. Raises `SynapError`."""
    figures: Dict[str, Any] = field(default_factory=dict)
    """What else is to be said of it in the service's first lines, by name."""


Opener = Callable[[str, str, Home], Opened]
"""Opens what a URL names: called with its scheme, what stands behind `://`, and whose it will be. Raises
`SynapError`."""


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
    """Make an engine that keeps nothing; its address is the business of whoever shares it."""
    generator = random.Random(os.urandom(32))
    engine = Engine(ids=lambda: generator.getrandbits(64), limits=home.limits)
    return Opened(EngineHost(engine, alarm=home.alarm, clock=home.clock, soon=home.soon))
