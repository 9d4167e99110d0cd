"""The state that all lanes of a service share: host, authentication, limits, open connections, draining."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, cast

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
from synap.engine.callers import Number, Steps, Subscribed
from synap.engine.figures import MOST_NAMED
from synap.errors import PermissionDeniedError, RateLimitError, SynapError
from synap.host import ANSWER, REFUSE, Host, Output, Session
from synap.host.base import figures
from synap.server import clients
from synap.server.audit import Audit, Entry, Outcomes, Own
from synap.server.auth import Keys, gone
from synap.server.grants import Access
from synap.server.origins import Origins
from synap.server.rates import Bucket, Rates, Weighing, origin
from synap.server.settings import ServerConfig
from synap.server.sizes import Weighed
from synap.server.transit import Transit
from synap.server.translations import Translations
from synap.server.turns import Turns
from synap.server.watch import Watch
from synap.storage import Durable
from synap.wire.codec import CODECS, JSON, Codec
from synap.wire.compression import compress, worth
from synap.wire.frames import GZIP, ROOM

if TYPE_CHECKING:
    from synap.server.console.pages import Console
    from synap.server.single_request import SingleRequest
    from synap.server.tls import Acceptor, Tls

log = logging.getLogger("synap.server")

TELL_EVERY = 60.0
"""Seconds between two log lines about too many connections."""

_TAKEN_AWAY = "this key has no grant for it any more"
WITHDRAWN = "withdrawn"
"""The outcome in the audit log of a command that was given up or cut off: what it had done by then stays done."""
UNDER_WAY = "under_way"
"""The outcome of a command that was not awaited any longer, since too many were; and of a backup that begins."""
MOST_AWAITED = 10_000
"""The most requests in flight whose outcome the audit log waits for."""
KEPT = 256 * 1024
"""Bytes of pushed items that are kept encoded in each format, before compression, unless one alone has more."""


class Principal:
    """An admitted caller: its permissions, address and lane."""

    __slots__ = ("access", "address", "lane")

    def __init__(self, access: Access, address: str, lane: str) -> None:
        self.access = access
        self.address = address
        self.lane = lane

    def audit_fields(self) -> dict[str, str]:
        """Return the caller's fields in the audit log."""
        return {"key": self.access.name, "address": self.address, "lane": self.lane}


class Listens(Protocol):
    """A connection that stays open between requests, and is notified when the service drains."""

    principal: Principal
    subscriptions: dict[int, Subscribed]

    def adopt(self, access: Access) -> None:
        """Apply changed permissions of the key."""

    def disconnect(self) -> None:
        """End the connection: its key was removed, or an admin asked for it."""

    def ended(self, subscription_id: int, error: SynapError) -> None:
        """Called when a subscription ended."""

    def drain(self) -> None:
        """Accept no new requests; tell the peer where the protocol can."""

    def shutdown(self) -> None:
        """End the connection once everything is sent."""

    def settled(self) -> bool:
        """Return whether all output has been sent."""


class Shared:
    """The last pushed items, encoded in one format, for all their subscribers.

    A turn's items are delivered one connection after the other, so each of them is asked for again after the others.
    """

    __slots__ = ("_codec", "_gzip", "_held", "_size")

    def __init__(self, codec: Codec, gzip: bool) -> None:
        self._codec = codec
        self._gzip = gzip
        self._held: dict[int, tuple[Item, tuple[bytes, int]]] = {}
        """Items and what `encode` returned, by the item's identity, which nothing else has while it is held."""
        self._size = 0
        """Bytes of these bodies, before compression: the items are held too."""

    def encode(self, item: Item) -> tuple[bytes, int]:
        """Return the item's body and the flags of its frame."""
        found = self._held.get(id(item))
        return self._add(item) if found is None else found[1]

    def _add(self, item: Item) -> tuple[bytes, int]:
        body = self._codec.encode_answer(item)
        size = len(body)
        self._size += size
        if self._size > KEPT:
            self._held.clear()
            self._size = size
        packed = self._gzip and worth(body)
        _, encoded = self._held[id(item)] = item, (compress(body), GZIP) if packed else (body, 0)
        return encoded


class Service:
    """One running service. `shutdown` is called by `admin.shutdown`."""

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
        """Accept connections, where the service speaks TLS."""
        self.durable = durable
        self.config = config
        self.keys = Keys(config, clock)
        self.awaited: dict[tuple[Session, Number], Entry] = {}
        """What the audit log has to tell of requests in flight, by the very session, as callers choose its name."""
        self._outcomes = Outcomes(host, JSON)
        self.origins = Origins(config)
        self._rates = Rates(config.rate_limit or math.inf, clock)
        self._sizes = Rates(math.inf, clock, counted="bytes")
        self.console: Console | None = None
        """The page at `/`, where it is served."""
        self.draining = False
        self.over = False
        """Whether the time to drain is over: what is still under way is given up, on threads too."""
        self.failed = False
        """Whether the data is lost for good, so that the process must not exit with success."""
        self.shutdown: Callable[[], None] = lambda: None
        self.connections: set[Any] = set()
        """The protocols of open connections: uvicorn's own set, once it runs."""
        self.listeners: set[Listens] = set()
        """Connections that stay open between requests."""
        self.waiting: dict[SingleRequest, Principal] = {}
        """Requests over HTTP that wait, and their callers."""
        self.under_way: dict[tuple[str, Number], SingleRequest] = {}
        """Requests over HTTP and WebSockets that are not answered yet, by session and number."""
        self.native: dict[str, Any] = {}
        """The native connection of each session: a session has one at a time."""
        self.lanes = {"http": 0, "websocket": 0, "events": 0, "native": 0}
        """Counts since the start: requests over plain HTTP, connections on the other lanes."""
        self.copies = 0
        """Backups in progress, each of which takes as much disk space as the data."""
        self.strangers: OrderedDict[Any, Callable[[], object]] = OrderedDict()
        """What ends each of the connections over which nobody was admitted yet, oldest first."""
        self.refused = 0
        """Connections refused, or ended for others, because there were too many."""
        self._clock = clock
        self._next_told_full = -math.inf
        self.turns = Turns()
        self.audit = None if config.audit_log is None else Audit(config.audit_log)
        self.translations = Translations(self)
        self.room = memoryview(bytearray(ROOM))
        """What connections on the native lane receive into while a large body is on its way."""
        self.weighed = Weighed()
        self.shared = {(name, gzip): Shared(codec, gzip) for name, codec in CODECS.items() for gzip in (False, True)}
        host.admin[ADMIN_CONFIG] = self._config
        host.admin[ADMIN_SHUTDOWN] = self._shutdown
        self.watch = Watch(self)
        self.transit = Transit(self)
        host.has_room = self.transit.has_room
        host.admin[ADMIN_STATS] = lambda payload, session: figures(self.survey(MOST_NAMED))
        host.admin[ADMIN_HEALTH] = lambda payload, session: Figures(self.health())
        host.admin[ADMIN_WATCH] = self.watch.answer
        host.unwatch = self.watch.take_back
        host.admin[ADMIN_CLIENTS] = functools.partial(clients.answer, self)

    # ------------------------------------------------------------------------------------------ who may do what

    def full(self) -> bool:
        """Return whether one more connection has to be refused: there are as many as may be, and somebody was admitted
        over each of them. Else the oldest of the others ends, so that strangers keep nobody out.
        """
        if len(self.connections) < self.config.max_connections:
            return False
        self.refused += 1
        now = self._clock()
        if now >= self._next_told_full:
            self._next_told_full = now + TELL_EVERY
            log.warning(
                "%d connections are open, as many as --max-connections allows: further ones are refused, or take the "
                "place of one that nobody has used yet",
                len(self.connections),
            )
        if not self.strangers:
            return True
        _, end = self.strangers.popitem(last=False)
        end()
        return False

    def admit(
        self, key: str | None, address: str, lane: str, certified: str | None = None
    ) -> tuple[Principal, Bucket | None]:
        """Authenticate a caller; raises `UNAUTHORIZED`, or `RATE_LIMIT_EXCEEDED` after too many wrong keys."""
        try:
            access = self.keys.admit(key, address, certified)
        except SynapError as error:
            if self.audit is not None:
                self.audit.refused(error.code, {"key": "", "address": address, "lane": lane}, "sign in")
            if self.config.rate_limit is not None:
                self._rates.bucket(origin(address)).take()
            raise
        return Principal(access, address, lane), self.bucket(access)

    def bucket(self, access: Access) -> Bucket | None:
        """Return the token bucket for a caller's commands; None where there is no limit."""
        rate = access.quota.requests if access.quota is not None else None
        rate = self.config.rate_limit if rate is None else rate
        return None if rate is None else self._rates.bucket(access.name, rate)

    def meter(self, access: Access) -> Bucket | Weighing | None:
        """Return what counts a connection's requests, and their bytes where its key has a quota of them."""
        bucket = self.bucket(access)
        rate = None if access.quota is None else access.quota.bytes
        return bucket if rate is None else Weighing(bucket, self._sizes.bucket(access.name, rate))

    def key_name(self, access: Access) -> str:
        """Return the name of a caller's key; empty where none is needed. Text request ids are scoped by it."""
        return access.name if self.keys.on else ""

    def allow(self, command: Command, payload: Any, principal: Principal) -> None:
        """Check that a caller may execute a command now; raises `FORBIDDEN`, or `SERVICE_UNAVAILABLE` while draining.

        `payload` may be None where the caller has no grants to check it against.
        """
        if self.draining:
            raise self.closing()
        self.check(command, payload, principal)

    def check(self, command: Command, payload: Any, principal: Principal) -> None:
        """Check that a caller has the grant for a command; raises `FORBIDDEN`, which is in the audit log then."""
        try:
            principal.access.check(command, payload)
        except SynapError as error:
            if self.audit is not None:
                names = () if payload is None else command.names(payload) or ()
                self.audit.refused(error.code, principal.audit_fields(), command.name, names)
            raise

    def forbid(self, principal: Principal, what: str, why: str) -> NoReturn:
        """Raise `FORBIDDEN` for a page that a caller's key has no grant for, which is in the audit log then."""
        if self.audit is not None:
            self.audit.refused("FORBIDDEN", principal.audit_fields(), what)
        raise PermissionDeniedError("FORBIDDEN", why)

    def note(self, session: Session, number: Any, command: Command, payload: Any, principal: Principal) -> None:
        """Have a command that is executed now written to the audit log, once its outcome is known."""
        if self.audit is not None and (command.audited or command.bundle):
            who = principal.audit_fields()
            self.awaited[session, number] = Entry(self.audit, session, number, command, payload, who)
            if len(self.awaited) > MOST_AWAITED:
                oldest = next(iter(self.awaited))
                self._record(
                    *oldest, REFUSE, SynapError(UNDER_WAY, "too many requests are in flight to await them all")
                )

    def _record(self, session: Session, number: Any, what: int, content: Any) -> None:
        entry = self.awaited.pop((session, number), None)
        if entry is not None:
            entry.write(what, content)

    def record_outcomes(self, session: Session, output: list[Output], *, delivered: bool = True) -> None:
        """Pass outcomes to the audit log, where it waits for them. Those not `delivered` yet may wait for the disk."""
        for what, number, content, _ in output:
            if what in (ANSWER, REFUSE) and (session, number) in self.awaited:
                entry = self.awaited[session, number]
                if type(entry.number) is Own:
                    if entry.number is not number:
                        continue
                elif entry.earlier:
                    entry.earlier -= 1
                    continue
                if delivered or not self.host.holds:
                    self._record(session, number, what, content)
                else:
                    self._outcomes.tell(what, self.awaited.pop((session, number)), content)

    def record_withdrawn(self, session: Session, number: Number | None = None) -> None:
        """Tell the audit log of a session's requests that wait, or of one of them: they are given up half-way."""
        if self.awaited:
            for one in session.waiting if number is None else session.waiting & {number}:
                self._record(session, one, REFUSE, SynapError(WITHDRAWN, "given up by its caller"))

    def record_repeated(self, session: Session, number: Number, place: int | None) -> None:
        """Have the audit log leave out a request, or the one at a place of a batch, that is not executed again."""
        if place is None:
            self.awaited.pop((session, number), None)
        elif (session, number) in self.awaited:
            self.awaited[session, number].repeated.add(place)

    def record_unfinished(self) -> None:
        """Tell the audit log of all requests that a stop cuts off."""
        for session, number in list(self.awaited):
            self._record(session, number, REFUSE, SynapError(WITHDRAWN, "cut off by a stop"))

    def check_connections(self, access: Access) -> None:
        """Raise `RATE_LIMIT_EXCEEDED` for a connection beyond the key's quota."""
        most = None if access.quota is None else access.quota.connections
        if most is not None and sum(one.principal.access.name == access.name for one in self.listeners) >= most:
            raise _too_many(f"{most} connections at a time")

    def count_bytes(self, access: Access, size: int) -> None:
        """Count the bytes of a request; raises `RATE_LIMIT_EXCEEDED` beyond the key's quota."""
        if access.quota is not None and access.quota.bytes is not None:
            self._sizes.bucket(access.name, access.quota.bytes).charge(size)

    def check_quota(self, command: Command, access: Access, subscribed: int, sessions: Iterable[Session]) -> None:
        """Raise `RATE_LIMIT_EXCEEDED` for a command beyond the key's quota on one connection, which has so many
        subscriptions, and these sessions whose requests may wait.
        """
        quota = access.quota
        if quota is None:
            return
        if command.pushes and quota.subscriptions is not None and subscribed >= quota.subscriptions:
            raise _too_many(f"{quota.subscriptions} subscriptions on a connection")
        if command.waits and quota.waiting is not None and sum(len(one.waiting) for one in sessions) >= quota.waiting:
            raise _too_many(f"{quota.waiting} requests wait on a connection")

    def reload(self) -> None:
        """Read certificates and keys again, and reopen the audit log. Where one is invalid, the old one is kept."""
        for what, again in (
            ("certificates", None if self.tls is None else self.tls.reload),
            ("keys", self.reload_keys),
            ("the audit log", None if self.audit is None else self.audit.reopen),
        ):
            if again is not None:
                try:
                    again()
                    log.info("read again: %s", what)
                except SynapError as error:
                    log.error("%s stay as they were: %s", what, error.message)
                except Exception:  # of a bug; the others are read all the same, and the service goes on
                    log.exception("reading %s failed", what)

    def reload_keys(self) -> None:
        """Read the keys again, and apply them to open connections. A turn of its own."""
        self.keys.reload()
        if not self.keys.on:
            return
        waits = clients.waits(self)
        for one in list(self.listeners):
            access = self.keys.find(one.principal.access)
            queues = clients.queues_of(one, waits)
            if access is None or not all(access.may("queue", "consume", queue) for queue in queues):
                one.disconnect()
                continue
            one.adopt(access)
            watched = 0 if access.admin else self.watch.drop(one)
            if watched:
                one.ended(watched, PermissionDeniedError("FORBIDDEN", _TAKEN_AWAY))
            for number, subscription in list(one.subscriptions.items()):
                facility = "stream" if hasattr(subscription, "room") else "pubsub"
                verbs = ("read", "write") if getattr(subscription, "name", "") else ("read",)  # as `Access.check` does
                if not all(access.may(facility, verb, name) for verb in verbs for name in subscription.named()):
                    self.host.unsubscribe(cast(Session, one), number)
                    one.ended(number, PermissionDeniedError("FORBIDDEN", _TAKEN_AWAY))
        for request, principal in list(self.waiting.items()):
            access = self.keys.find(principal.access)
            if access is None:
                request.take_back(gone())
            elif not all(access.may("queue", "consume", queue) for queue in waits.get(request, ())):
                request.take_back(PermissionDeniedError("FORBIDDEN", _TAKEN_AWAY))
            else:
                principal.access, request.permit = access, access.permit
        self.host.end_turn()
        if self.console is not None:
            self.console.sessions.reconsider(self.keys.find)

    @staticmethod
    def closing() -> SynapError:
        """Build the error for new work while the service drains."""
        return SynapError("SERVICE_UNAVAILABLE", "the service is stopping; nothing was done", {"retry_after": 1.0})

    # ------------------------------------------------------------------------------------------ requests

    def execute(
        self, session: Session, number: Any, command: Command, payload: Any, retried: bool, principal: Principal
    ) -> None:
        """Execute a request with a decoded payload, as a turn of its own."""
        self.note(session, number, command, payload, principal)
        self.host.execute(session, number, command, payload, retried, decoded=True)
        if self.awaited:
            self.record_outcomes(session, session.output, delivered=False)
        self.host.end_turn()

    async def flowing(self) -> None:
        """Wait until the host is no longer stalled."""
        caught_up = asyncio.Event()
        self.host.when_flowing(caught_up.set)
        await caught_up.wait()

    # ------------------------------------------------------------------------------------------ its state

    def health(self, *, admin: bool = True) -> dict[str, Any]:
        """Return the health: `status` is 'ok', 'degraded' (reads only, with a `reason`) or 'draining'.

        Who isn't an `admin` is shown no warnings: they name machines.
        """
        figures: dict[str, Any] = {"version": __version__, **self.host.health()}
        if not admin:
            figures.pop("warnings", None)
        if self.draining:
            figures["status"] = "draining"
        return figures

    def survey(self, most: int, named: Callable[[str], bool] | None = None) -> Steps:
        """Return all figures, in steps: of the host, the engine, connections and the log.

        `most`: queues, and rooms, that have figures of their own, beside the queues that `named` selects.
        """
        figures: dict[str, Any] = {
            **(yield from self.host.survey(most, named)),
            "connections": len(self.connections),
            "connections_refused_total": self.refused,
            "lanes": dict(self.lanes),
            "errors": dict(self.host.errors),
            "transit": {
                "bytes": self.transit.counted,
                "limit": self.transit.limit,
                **{f"ended_{reason}_total": count for reason, count in self.transit.ended.items()},
            },
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


def _too_many(what: str) -> RateLimitError:
    """Build the error for what is beyond a key's quota."""
    return RateLimitError("RATE_LIMIT_EXCEEDED", f"this key may have {what}", {"retry_after": 1.0})
