"""The ASGI application: `POST /api/v1/command` with one request or batch, and the other HTTP endpoints."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

from synap.commands import SuccessAnswer
from synap.engine.callers import Steps
from synap.errors import SynapError
from synap.server import backup, openapi, sse, websocket
from synap.server.apart import Encoded
from synap.server.auth import signed_out
from synap.server.console.pages import Console
from synap.server.http_exchange import Exchange, Receive, Send
from synap.server.logs import AccessLog
from synap.server.service import Principal, Service
from synap.server.single_request import SingleRequest, identify
from synap.wire.envelope import Unreadable
from synap.wire.large import LARGE

log = logging.getLogger("synap.server")

Page = Callable[[Exchange], Awaitable[None]]

MAX_WITHDRAWN = 10_000
"""Ids of withdrawn requests that are remembered, of all keys together."""

_NOT_KEPT = [(b"cache-control", b"no-store")]
"""A proxy that caches doesn't know that `X-API-Key` is a secret, and that only its holders may see the answer."""
_NOT_ALL = "metrics name every queue and room: they need the grant admin, or queue:read:* and stream:read:*"


class Withdrawn:
    """Ids of withdrawn requests, for requests that are read after their withdrawal: by the name of the caller's key."""

    def __init__(self) -> None:
        self._ids: dict[str, dict[str, None]] = {}
        self._count = 0

    def has(self, key: str, request_id: str) -> bool:
        return self._count > 0 and request_id in self._ids.get(key, ())

    def add(self, key: str, request_id: str) -> None:
        """Remember an id. Where there are too many, the key that has most loses its oldest."""
        own = self._ids.setdefault(key, {})
        self._count += request_id not in own
        own[request_id] = None
        if self._count > MAX_WITHDRAWN:
            most = max(self._ids.values(), key=len)
            del most[next(iter(most))]
            self._count -= 1


class App:
    """The service as an ASGI application."""

    def __init__(self, service: Service) -> None:
        self.service = service
        config = service.config
        if not config.no_console:
            service.console = Console(config.console_session, secure=config.tls_cert is not None)
        self._pages: dict[tuple[str, str], Page] = {
            ("POST", "/api/v1/command"): self._command,
            ("DELETE", "/api/v1/command"): self._cancel,
            ("GET", "/api/v1/stream/subscribe"): sse.subscribe,
            ("GET", "/api/v1/admin/backup"): backup.send,
            ("GET", "/health"): self._health,
            ("HEAD", "/health"): self._health,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/openapi.json"): self._openapi,
        }
        self._upgrades = ("/api/v1/ws", "/api/v1/native")
        self._logs = config.access_log
        self._withdrawn = Withdrawn()
        self._described: bytes | None = None
        self._expose: Callable[[Service, str], Steps] | None = None
        """`metrics.expose`, once it is imported."""

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            logged = AccessLog(scope, send) if self._logs else None
            exchange = Exchange(self.service, scope, receive, send if logged is None else logged.send)
            page = self._pages.get((scope["method"], scope["path"]))
            if page is None and self.service.console is not None:
                page = self.service.console.page(scope["method"], scope["path"], exchange.headers)
            try:
                self.service.origins.check(exchange.headers, page=scope["path"] == "/")
                if page is None:
                    await self._nowhere(exchange)
                else:
                    await page(exchange)
            except SynapError as error:
                await exchange.refuse(error)
            except ConnectionResetError:
                pass
            except asyncio.CancelledError:
                if not self.service.over:
                    raise
            except Exception:  # a bug: the caller gets an answer all the same
                log.exception("%s %s failed", scope["method"], scope["path"])
                await exchange.refuse(
                    SynapError("INTERNAL_ERROR", "this failed inside the service, whose log says how")
                )
            finally:
                exchange.release()
                exchange.executes(None)
                if logged is not None:
                    logged.done(exchange.caller)
        elif kind == "websocket":
            try:
                await websocket.converse(self.service, scope, receive, send)
            except asyncio.CancelledError:
                if not self.service.over:
                    raise

    # ------------------------------------------------------------------------------------------ requests

    async def _command(self, exchange: Exchange) -> None:
        service = self.service
        service.lanes["http"] += 1
        wire = exchange.formats()
        principal = exchange.admit()
        body = await exchange.body(principal.access.name)
        service.count_bytes(principal.access, len(body))
        if service.host.stalled:
            await service.flowing()
        try:
            if len(body) > LARGE:
                read = await exchange.in_turns(principal.access.name, wire.read_in_steps(body))
            else:
                read = wire.read_request(body)
            request_id, command, payload = read
        except Unreadable as unreadable:
            await exchange.refuse(unreadable.error, unreadable.request_id)
            return
        if self._withdrawn.has(exchange.caller, request_id):
            error = SynapError("INVALID_REQUEST", "this request was withdrawn")
            error.may_have_happened = command.has_effects  # it may have been sent twice
            raise error
        exchange.admit_again(principal)
        identity = identify(request_id, body, service.key_name(principal.access))
        call = SingleRequest(service, wire.codec, identity, exchange.wire.codec.format)
        exchange.executes(call)
        done = exchange.headers.get(b"synap-done")
        if done is not None and done.isdigit() and len(done) < 19:
            service.host.confirm(call, int(done))
        try:
            call.begin(service, command, payload, principal, exchange.bucket, len(body))
        except SynapError as error:
            await exchange.refuse(error, identity.request_id)
            return
        exchange.release()
        del body, read, payload  # its caller may take the answer slowly
        if not (call.done or call.waiting or call.translating or service.host.busy):
            await call.moved()  # for the disk, a cluster, or lines of the audit log: it can't be withdrawn
        if not call.done and not await self._answered_in_time(call, exchange, principal):
            return
        outcome = call.outcome
        failed = isinstance(outcome, SynapError)
        if not failed:
            answer: bytes | Encoded
            if isinstance(outcome, Encoded):
                answer, size = outcome, outcome.size
            else:
                answer = exchange.wire.answer(identity.request_id, outcome)
                size = len(answer)
            if size <= LARGE or service.transit.has_room(size):
                await exchange.answer(answer)
                return
            outcome = service.transit.refusal(size, outcome)
        await exchange.refuse(outcome, identity.request_id, counted=failed)

    async def _answered_in_time(self, call: SingleRequest, exchange: Exchange, principal: Principal) -> bool:
        """Wait for the answer; returns False where the client disconnected before, and withdraws the request."""
        gone = asyncio.ensure_future(exchange.gone())
        settled = asyncio.ensure_future(call.settled())
        waiting = self.service.waiting
        waiting[call] = principal
        try:
            with exchange.signed_in(lambda: call.take_back(signed_out())):
                await asyncio.wait((gone, settled), return_when=asyncio.FIRST_COMPLETED)
            if not call.done:
                call.abandon()
                return False
            return True
        finally:
            del waiting[call]
            gone.cancel()
            settled.cancel()

    async def _cancel(self, exchange: Exchange) -> None:
        """Withdraw the request that the query names: it waits no longer, and a message that it was given goes back.

        A command that is worked off in turns for a waiting caller (`kv.clear`) stops; what it has done stays done. The
        request was sent on another connection, and may be read only after this: then it is refused.
        """
        exchange.admit()
        name, _, request_id = exchange.scope["query_string"].decode("latin-1").partition("=")
        request_id = unquote(request_id)
        identity = identify(request_id, b"")
        if name != "request_id" or not isinstance(identity.number, int) or not identity.session:
            raise SynapError("INVALID_REQUEST", "request_id must be session:number, as the request had it")
        self._withdrawn.add(exchange.caller, request_id)
        host = self.service.host
        call = self.service.under_way.get((identity.session, identity.number))
        if call is not None:
            call.withdraw()
        else:
            host.cancel(SingleRequest(self.service, exchange.wire.codec, identity), identity.number)
        host.end_turn()
        await exchange.answer(exchange.wire.answer(identity.request_id, SuccessAnswer()))

    # ------------------------------------------------------------------------------------------ pages

    async def _health(self, exchange: Exchange) -> None:
        figures = self.service.health(admin=not self.service.keys.on)
        serves = figures["status"] == "ok" or (figures["status"] == "degraded" and self.service.host.partial)
        await exchange.send_whole(json.dumps(figures).encode(), 200 if serves else 503, b"application/json", _NOT_KEPT)

    async def _metrics(self, exchange: Exchange) -> None:
        principal = exchange.admit()
        if not principal.access.sees_all:
            self.service.forbid(principal, "metrics", _NOT_ALL)
        if self._expose is None:
            # Imported on another thread, here where the first scrape comes before `run.LATER` is imported.
            loop = asyncio.get_running_loop()
            metrics = await loop.run_in_executor(None, importlib.import_module, "synap.server.metrics")
            self._expose = metrics.expose
        steps = self._expose(self.service, exchange.headers.get(b"accept", b"").decode("latin-1"))
        body, content_type = await self.service.turns.work_off(principal.access.name, steps)
        await exchange.send_whole(body, 200, content_type.encode(), _NOT_KEPT)

    async def _openapi(self, exchange: Exchange) -> None:
        if self._described is None:
            # On another thread, since it takes 20 ms.
            self._described = await asyncio.get_running_loop().run_in_executor(None, self._describe)
        await exchange.send_whole(self._described, 200, b"application/json")

    def _describe(self) -> bytes:
        return json.dumps(openapi.describe(keys=self.service.keys.on)).encode()

    async def _nowhere(self, exchange: Exchange) -> None:
        method, path = exchange.scope["method"], exchange.scope["path"]
        allowed = [known for known, page in self._pages if page == path]
        if path in self._upgrades and method == "GET":
            protocol = b"websocket" if path.endswith("ws") else b"synap/1"
            error = SynapError("INVALID_REQUEST", f"{path} takes an Upgrade to {protocol.decode()}")
            await exchange.refuse(error, status=426, extra=[(b"upgrade", protocol)])
        elif allowed or path in self._upgrades:
            allow = ", ".join(allowed or ["GET"])
            error = SynapError("INVALID_REQUEST", f"{path} takes {allow}, not {method[:20]}", {"allowed": allow})
            await exchange.refuse(error, status=405, extra=[(b"allow", allow.encode())])
        else:
            pages = sorted({page for _, page in self._pages} | set(self._upgrades))
            message = f"there is nothing at {path[:200]!r}; there is {', '.join(pages)}"
            if self.service.console is not None:
                message += ", and the console at / for browsers (Accept: text/html)"
            error = SynapError("INVALID_REQUEST", message)
            await exchange.refuse(error, status=404)
