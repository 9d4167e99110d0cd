"""`GET /api/v1/stream/subscribe`: a room as server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import asyncio
import re
from typing import Any, cast
from urllib.parse import parse_qsl

import msgspec

from synap.commands import STREAM_SUBSCRIBE, EventAnswer, Item
from synap.errors import SynapError, invalid
from synap.server.grants import Access
from synap.server.http_exchange import Exchange
from synap.server.queued_session import QueuedSession
from synap.server.service import Principal
from synap.wire.codec import JSON

HEARTBEAT = 15.0
"""Seconds of silence after which a comment is sent, so that no proxy takes the connection for dead."""


_WHOLE = re.compile("-?[0-9]{1,40}")


class _Listener(QueuedSession):
    """The session of one event source."""

    __slots__ = ("answered", "failed", "principal", "visit")

    def __init__(self, exchange: Exchange, principal: Principal) -> None:
        super().__init__(exchange.service, JSON, exchange.end_connection)
        self.principal = principal
        self.permit = principal.access.permit
        self.visit = exchange.visit("events", principal)
        self.answered = asyncio.Event()
        self.failed: SynapError | None = None

    def lane_name(self) -> str:
        return "events"

    def render_answer(self, number: Any, answer: Any) -> None:
        self.answered.set()

    def render_error(self, number: Any, error: SynapError) -> None:
        self.failed = error
        self.answered.set()

    def render_push(self, subscription_id: int, item: Item) -> bytes:
        assert isinstance(item, EventAnswer)
        body = JSON.encode_answer(item)
        # Line breaks can only be white space between tokens of the JSON that was published.
        if b"\n" in body or b"\r" in body:
            body = body.replace(b"\n", b"").replace(b"\r", b"")
        return b"id: %d\ndata: %b\n\n" % (item.offset, body)

    def render_ended(self, subscription_id: int, error: SynapError) -> bytes:
        self.finish()
        return b"event: ended\ndata: %b\n\n" % JSON.encode_error(error)

    # ---- as the service sees an open connection
    drain = shutdown = QueuedSession.finish

    def disconnect(self) -> None:
        """End the stream at once, without what is unsent."""
        self.abort()
        self.host.leave(self)

    def adopt(self, access: Access) -> None:
        self.principal.access = access
        self.permit = access.permit

    def settled(self) -> bool:
        return not self.queued()


async def subscribe(exchange: Exchange) -> None:
    """Send a room's events until the client goes away, the room ends or the service drains."""
    service = exchange.service
    principal = exchange.admit()
    payload = _payload(exchange)
    service.allow(STREAM_SUBSCRIBE, payload, principal)
    service.check_connections(principal.access)
    exchange.stay()
    service.lanes["events"] += 1
    listener = _Listener(exchange, principal)
    service.listeners.add(listener)
    gone = asyncio.ensure_future(_gone(exchange, listener))
    try:
        with exchange.signed_in(listener.disconnect), exchange.pushes_to(listener):
            await _send(exchange, listener, payload, gone)
    finally:
        gone.cancel()
        service.listeners.discard(listener)
        service.host.leave(listener)


async def _send(exchange: Exchange, listener: _Listener, payload: Any, gone: asyncio.Task[None]) -> None:
    exchange.service.execute(listener, 1, STREAM_SUBSCRIBE, payload, False, listener.principal)
    await listener.answered.wait()
    if listener.failed is not None:
        await exchange.refuse(listener.failed, counted=True)
        return
    headers = [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
    ]
    await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
    await exchange.send({"type": "http.response.body", "body": b": listening\n\n", "more_body": True})
    while not gone.done():
        pieces = await listener.take(HEARTBEAT)
        if not pieces and listener.closed:
            break
        body = b"".join(pieces) if pieces else b": still here\n\n"
        await exchange.send({"type": "http.response.body", "body": body, "more_body": True})
    await exchange.send({"type": "http.response.body", "body": b""})


async def _gone(exchange: Exchange, listener: _Listener) -> None:
    await exchange.gone()
    listener.finish()


def _payload(exchange: Exchange) -> Any:
    """Build the payload of `stream.subscribe` from the query and `Last-Event-ID`."""
    try:
        query = parse_qsl(exchange.scope["query_string"].decode("latin-1"), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise SynapError("INVALID_PAYLOAD", "the query must be UTF-8, percent-encoded") from None
    fields: dict[str, Any] = {}
    for name, value in cast("list[tuple[str, Any]]", query):
        if name in fields:
            raise SynapError("INVALID_PAYLOAD", f"{name[:40]} is given twice", {"field": name[:40]})
        if name == "from_offset":
            value = _offset(name, value)
        elif name == "replay":
            value = {"true": True, "1": True, "false": False, "0": False}.get(value, value)
        fields[name] = value
    last = exchange.headers.get(b"last-event-id")
    if last:
        fields["from_offset"] = _offset("Last-Event-ID", last.decode("latin-1")) + 1
    return JSON.decode_payload(STREAM_SUBSCRIBE, msgspec.json.encode(fields))


def _offset(name: str, text: str) -> int:
    if not _WHOLE.fullmatch(text):  # `int` takes more: signs, underscores, white space, digits of all scripts
        raise invalid(name, "a whole number", text[:40])
    return int(text)
