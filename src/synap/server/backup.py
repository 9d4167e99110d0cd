"""`GET /api/v1/admin/backup`: a consistent copy of the data, for `synap backup`."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from synap.config import without_secret
from synap.errors import AuthenticationError, SynapError
from synap.server.http_exchange import Exchange
from synap.server.service import UNDER_WAY, WITHDRAWN, Principal, Service
from synap.storage import backup

MOST = 4
"""Backups at a time."""


def _tell(service: Service, principal: Principal, outcome: str) -> None:
    if service.audit is not None:
        service.audit.done(principal.audit_fields(), "backup", outcome)


def _nothing_here(engine: str | None) -> SynapError:
    if engine is None:
        return SynapError("INVALID_REQUEST", "this service keeps nothing on disk (--memory): there is nothing to copy")
    place = without_secret(engine)
    text = f"this service is a gateway, and its cluster holds the data: write that with `synap export {place} FILE`"
    return SynapError("INVALID_REQUEST", text)


async def send(exchange: Exchange) -> None:
    """Send a copy of the database, made while requests are executed. Threads wait for the disk, not the event loop.

    A peer that reads nothing for `idle_timeout` seconds is disconnected, so that its copy doesn't stay on disk.
    """
    service = exchange.service
    principal = exchange.admit()
    if not principal.access.admin:
        service.forbid(principal, "backup", "a backup needs an admin key")
    if service.draining:
        raise service.closing()
    if service.durable is None:
        raise _nothing_here(service.config.engine)
    if service.copies >= MOST:
        raise SynapError("SERVICE_UNAVAILABLE", f"{MOST} backups are under way already", {"retry_after": 5.0})
    service.copies += 1
    _tell(service, principal, UNDER_WAY)
    outcome = WITHDRAWN
    loop = asyncio.get_running_loop()

    def look(done: int, total: int) -> None:  # a stop waits for the thread
        if service.over:
            raise ConnectionResetError

    pieces = backup.stream(service.config.data, progress=look)
    started = False
    gone = asyncio.ensure_future(exchange.gone())  # else what is sent to nobody would count as sent
    try:
        # The copy is complete before its first piece is sent, so an error can still be answered with a status.
        piece = await loop.run_in_executor(None, next, pieces, b"")
        headers = [(b"content-type", b"application/octet-stream"), (b"cache-control", b"no-store")]
        await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
        started = True
        while piece:
            exchange.admit_again(principal)
            if not principal.access.admin or gone.done():
                raise ConnectionResetError
            sending = exchange.send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.wait_for(sending, service.config.idle_timeout)
            piece = await loop.run_in_executor(None, next, pieces, b"")
        if gone.done():
            raise ConnectionResetError
        await exchange.send({"type": "http.response.body", "body": b""})
        outcome = "ok"
    except (OSError, AuthenticationError, asyncio.TimeoutError) as error:
        if started:
            # The copy is incomplete: end the connection without the last chunk, so that the client notices.
            raise ConnectionResetError from error
        why = getattr(error, "strerror", None) or error
        outcome = "SERVICE_UNAVAILABLE"
        raise SynapError(outcome, f"no copy can be made: {why}") from None
    finally:
        gone.cancel()
        _tell(service, principal, outcome)
        try:
            with suppress(ValueError):  # a stop: the thread is still at it, and removes the copy once it looks
                await loop.run_in_executor(None, pieces.close)  # removes the copy
        finally:  # also without a thread to be had
            service.copies -= 1
