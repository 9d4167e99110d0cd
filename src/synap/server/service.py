"""What all lanes of one service share: the host, who may come in, who is here, and whether it is closing time."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from synap._version import __version__
from synap.commands import (
    ADMIN_CLIENTS,
    ADMIN_CONFIG,
    ADMIN_HEALTH,
    ADMIN_SHUTDOWN,
    ADMIN_STATS,
    ADMIN_WATCH,
    Command,
    Figures,
    Item,
    SuccessAnswer,
)
from synap.errors import PermissionDeniedError, SynapError
from synap.host import Host, Session
from synap.server import clients
from synap.server.auth import Access, Keys
from synap.server.origins import Origins
from synap.server.rates import Bucket, Rates
from synap.server.settings import ServerConfig
from synap.server.sizes import Weighed
from synap.server.watch import Watch
from synap.storage import Durable
from synap.wire.codec import CODECS, Codec
from synap.wire.compression import WORTH, compress
from synap.wire.frames import GZIP

if TYPE_CHECKING:
    from synap.server.console.pages import Console
    from synap.server.tls import Acceptor, Tls

__all__ = ["Service", "Shared"]

log = logging.getLogger("synap.server")


class Listens(Protocol):
    """A conversation that stays open between requests, and so must be told when the service drains."""

    def drain(self) -> None:
        """Take no new requests; say so to the peer where the protocol can."""

    def shutdown(self) -> None:
        """Everything has been said: end once it is sent."""

    def settled(self) -> bool:
        """Whether all that was said is on its way to the peer."""


class Shared:
    """The last pushed item as it leaves in one format: encoded once for all its subscribers."""

    __slots__ = ("_body", "_codec", "_gzip", "_item")

    def __init__(self, codec: Codec, gzip: bool) -> None:
        self._codec = codec
        self._gzip = gzip
        self._item: Any = None
        self._body: tuple[bytes, int] = b"", 0

    def encode(self, item: Item) -> tuple[bytes, int]:
        """Return the item's body and the flags of its frame."""
        if item is not self._item:
            body = self._codec.encode_answer(item)
            if self._gzip and len(body) >= WORTH:
                self._body = compress(body), GZIP
            else:
                self._body = body, 0
            self._item = item
        return self._body


class Service:
    """One running service. `shutdown` is what `admin.shutdown` calls."""

    def __init__(
        self,
        host: Host,
        config: ServerConfig,
        durable: Durable | None = None,
        *,
        tls: Tls | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.host = host
        self.tls = tls
        self.acceptors: list[Acceptor] = []
        """What accepts connections, where they are secured with TLS."""
        self.durable = durable
        self.config = config
        self.keys = Keys(config.api_keys, config.admin_keys)
        self.origins = Origins(config)
        self.rates = Rates(config.rate_limit, clock) if config.rate_limit else None
        self.console: Console | None = None
        """The page at `/`, where it is served."""
        self.draining = False
        self.shutdown: Callable[[], None] = lambda: None
        self.connections: set[Any] = set()
        """Whatever speaks on each open connection: uvicorn's own set, once it runs."""
        self.listeners: set[Listens] = set()
        """Conversations that stay open between requests."""
        self.native: dict[str, Any] = {}
        """The native connection of each session: a session has one at a time."""
        self.lanes = {"http": 0, "websocket": 0, "events": 0, "native": 0}
        """Requests to the plain lane, and connections that were made on the others, since the start."""
        self.copying = False
        """Whether a backup is being made: one at a time."""
        self.refused = 0
        """Connections turned away because there were too many."""
        self.weighed = Weighed()
        self.shared = {(name, gzip): Shared(codec, gzip) for name, codec in CODECS.items() for gzip in (False, True)}
        host.admin[ADMIN_CONFIG] = self._config
        host.admin[ADMIN_SHUTDOWN] = self._shutdown
        self.watch = Watch(self)
        host.admin[ADMIN_STATS] = lambda payload, session: Figures(self.stats())
        host.admin[ADMIN_HEALTH] = lambda payload, session: Figures(self.health())
        host.admin[ADMIN_WATCH] = self.watch.answer
        host.admin[ADMIN_CLIENTS] = functools.partial(clients.answer, self)

    # ------------------------------------------------------------------------------------------ who may do what

    def count_refused(self) -> None:
        """Count a connection that is turned away because there are too many."""
        self.refused += 1

    def admit(self, key: str | None, address: str) -> tuple[Access, Bucket | None]:
        """Let a caller in; raises `UNAUTHORIZED`, or `RATE_LIMIT_EXCEEDED` where wrong keys are tried too fast."""
        try:
            access = self.keys.admit(key, address)
        except SynapError:
            if self.rates is not None:
                self.rates.bucket(address).take()
            raise
        return access, self.bucket(access)

    def bucket(self, access: Access) -> Bucket | None:
        """Return what a caller's requests are counted in, None where there is no limit."""
        return None if self.rates is None else self.rates.bucket(access.name)

    def allow(self, command: Command, access: Access) -> None:
        """Check that a caller may use a command now; raises `FORBIDDEN`, or `SERVICE_UNAVAILABLE` while draining."""
        if self.draining:
            raise self.closing()
        if command.admin and not access.admin:
            raise PermissionDeniedError("FORBIDDEN", f"{command.name} needs an admin key")

    def closing(self) -> SynapError:
        """Build the error that new work gets while the service drains."""
        return SynapError("SERVICE_UNAVAILABLE", "the service is stopping; nothing was done", {"retry_after": 1.0})

    # ------------------------------------------------------------------------------------------ requests

    def execute(self, session: Session, number: Any, command: Command, payload: Any, retried: bool) -> None:
        """Execute a request with a decoded payload, as a turn of its own."""
        self.host.execute(session, number, command, payload, retried, decoded=True)
        self.host.end_turn()

    async def flowing(self) -> None:
        """Wait until the log has caught up."""
        caught_up = asyncio.Event()
        self.host.when_flowing(caught_up.set)
        await caught_up.wait()

    # ------------------------------------------------------------------------------------------ its state

    def health(self) -> dict[str, Any]:
        """Say how the service is: `status` is 'ok', 'degraded' (reads only, `reason` says why) or 'draining'."""
        figures: dict[str, Any] = {"version": __version__, **self.host.health()}
        if self.draining:
            figures["status"] = "draining"
        return figures

    def stats(self, most: int | None = None) -> dict[str, Any]:
        """Return all figures: the host's and the engine's, connections, and what the log does.

        `most`: queues, and rooms, that have figures of their own; all of them where it is None.
        """
        figures: dict[str, Any] = {
            **self.host.stats(most),
            "connections": len(self.connections),
            "connections_refused_total": self.refused,
            "lanes": dict(self.lanes),
            "errors": dict(self.host.errors),
        }
        if self.durable is not None:
            figures["log"] = self.durable.log.figures()
        return figures

    def _config(self, payload: Any, session: Any) -> Figures:
        return Figures(self.config.shown())

    def _shutdown(self, payload: Any, session: Any) -> SuccessAnswer:
        log.info("an admin asked for shutdown")
        self.shutdown()
        return SuccessAnswer()
