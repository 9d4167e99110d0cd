"""`GET /api/v1/ws`: the messages of `POST /api/v1/command`, many in flight at once, and pushes in between.

With the subprotocol `synap.native` it carries native frames instead, see `native_websocket`. Otherwise text frames hold
JSON, binary frames MessagePack; each is answered in the same format, and a subscription pushes in the format of its
request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from time import perf_counter
from typing import Any

from synap.commands import Command, Item
from synap.engine.callers import Number, until
from synap.errors import SynapError, http_status
from synap.host import ANSWER, Output, Session
from synap.server.apart import PIECES, Encoded, Pieces
from synap.server.auth import gone, signed_out
from synap.server.console.sessions import SUBPROTOCOL as CONSOLE
from synap.server.grants import Access
from synap.server.http_exchange import Exchange, Receive, Send
from synap.server.logs import connection_ended
from synap.server.native_websocket import SERVICE_RESTART, carry, end_tasks
from synap.server.queued_session import QueuedSession
from synap.server.service import Principal, Service
from synap.server.single_request import Identity, SingleRequest, identify
from synap.server.turns import TURN
from synap.wire.codec import JSON
from synap.wire.envelope import WIRES, Unreadable, Wire
from synap.wire.frames import HELD
from synap.wire.handshake import SUBPROTOCOL, read_hello
from synap.wire.large import LARGE

POLICY, SIGNED_OUT = 1008, 4401
"""Close codes: an admin asked for it (registered), the console's session is over (ours)."""
UNREAD = 4 * 1024 * 1024
"""Bytes of unsent answers from which on no further requests are read."""
MAX_UNDER_WAY = 10_000
"""The most requests in flight of one connection."""


async def converse(service: Service, scope: Any, receive: Receive, send: Send) -> None:
    """Serve one WebSocket until it ends."""
    exchange = Exchange(service, scope, receive, send)
    await receive()
    try:
        service.origins.check(exchange.headers)
        if scope["path"] != "/api/v1/ws":
            there = f"there is no WebSocket at {scope['path'][:200]!r}, but at /api/v1/ws"
            await _reject(exchange, SynapError("INVALID_REQUEST", there), 404)
            return
        principal = exchange.admit()
        if service.draining:
            raise service.closing()
        service.check_connections(principal.access)
        exchange.stay()
        hello = None
        if SUBPROTOCOL in scope["subprotocols"]:  # a client of native frames
            hello = read_hello(
                {name.decode("latin-1"): text.decode("latin-1") for name, text in exchange.headers.items()}
            )
    except SynapError as error:
        await _reject(exchange, error)
        return
    if hello is not None:
        await carry(exchange, hello, principal)
        return
    offered = CONSOLE in scope.get("subprotocols", ())
    await send({"type": "websocket.accept", "subprotocol": CONSOLE if offered else None})
    conversation = _Conversation(exchange, principal)
    try:
        with exchange.signed_in(conversation.sign_out), exchange.pushes_to(conversation):
            await conversation.run()
    finally:
        connection_ended(conversation.visit)


async def _reject(exchange: Exchange, error: SynapError, status: int = 0) -> None:
    exchange.service.host.count_error(error.code)
    headers = [(b"content-type", b"application/json")]
    if error.code == "UNAUTHORIZED":
        headers.append((b"www-authenticate", b"Bearer"))
    status = status or http_status(error.code)
    await exchange.send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await exchange.send({"type": "websocket.http.response.body", "body": WIRES["json"].error("", error)})


class _Request(SingleRequest):
    """A request over a WebSocket."""

    __slots__ = ("_conversation",)

    def __init__(self, conversation: _Conversation, wire: Wire, identity: Identity) -> None:
        super().__init__(conversation.service, wire.codec, identity)
        self._conversation = conversation

    def lane_name(self) -> str:
        return "websocket"

    @property
    def owner(self) -> Any:
        return self._conversation

    def beside(self) -> Iterable[Session]:
        return self._conversation.under_way

    def _tell(self, outcome: Any) -> None:
        self._conversation.under_way.discard(self)
        self._conversation.reply(self._wire, self._identity.request_id, outcome)


class _Conversation(QueuedSession):
    """One WebSocket. It is the session of its subscriptions; every other request is a session of its own."""

    __slots__ = (
        "_bucket", "_close_code", "_decoding", "_formats", "_number", "_read_on", "_receive", "_send", "_subscribing",
        "principal", "service", "under_way", "visit",
    )  # fmt: skip

    def __init__(self, exchange: Exchange, principal: Principal) -> None:
        super().__init__(exchange.service, JSON, exchange.end_connection)
        self.visit = exchange.visit("websocket", principal)
        self.service = exchange.service
        self.principal = principal
        self.permit = principal.access.permit
        self._bucket = exchange.bucket
        self._close_code = SERVICE_RESTART
        self._decoding = 0
        """Bytes that are held while a large request is decoded."""
        self._receive = exchange.receive
        self._send = exchange.send
        self._number = 0
        self._subscribing: dict[int, tuple[Wire, str]] = {}
        self._formats: dict[int, Wire] = {}
        """The format of each subscription's pushes."""
        self._read_on = asyncio.Event()
        self.under_way: set[_Request] = set()

    async def run(self) -> None:
        """Read and write until either ends."""
        service = self.service
        service.lanes["websocket"] += 1
        service.listeners.add(self)
        writer = asyncio.ensure_future(self._write())
        reader = asyncio.ensure_future(self._read())
        try:
            await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
        finally:
            service.listeners.discard(self)
            self.closed = True
            for request in self.under_way:
                request.abandon()
            service.host.leave(self)
            await end_tasks("a WebSocket", reader, writer)

    # ------------------------------------------------------------------------------------------ in

    async def _read(self) -> None:
        turns, key = self.service.turns, self.principal.access.name
        spent = 0.0
        while True:
            message = await self._receive()
            began = perf_counter()
            if message["type"] != "websocket.receive":
                return
            text = message.get("text")
            wire, body = (WIRES["msgpack"], message["bytes"]) if text is None else (WIRES["json"], text.encode())
            message = text = None
            if not self.closed:  # else what comes while the last answers are sent is dropped
                await self._handle(wire, body)
            body = b""  # nothing of a message is held while the next one is waited for
            if self.host.stalled:
                await self.service.flowing()
            while self.unsent + self.sending > UNREAD and not self.closed:
                self._read_on.clear()
                await self._read_on.wait()
            spent += perf_counter() - began
            if spent > TURN:
                spent = 0.0
                await turns.turn(key)

    async def _handle(self, wire: Wire, body: bytes) -> None:
        try:
            if self._bucket is not None:
                self._bucket.take()
            self.service.count_bytes(self.principal.access, len(body))
        except SynapError as error:
            self.host.count_error(error.code)
            self.reply(wire, wire.name(body) or "", error)
            return
        try:
            if len(body) > LARGE:
                self._decoding = HELD * len(body)
                self.service.transit.add(self._decoding)
                steps = until(wire.read_in_steps(body), lambda: self.closed)
                read = await self.service.turns.work_off(self.principal.access.name, steps)
                if self.closed:
                    return
            else:
                read = wire.read_request(body)
            self._take(wire, body, *read)
        except Unreadable as unreadable:
            self.host.count_error(unreadable.error.code)
            self.reply(wire, unreadable.request_id, unreadable.error)
        except Exception:  # a bug is an error to its own caller
            self.reply(wire, wire.name(body) or "", self.host.crashed("reading a request"))
        finally:
            self._decoding = 0

    def _take(self, wire: Wire, body: bytes, request_id: str | None, command: Command, payload: Any) -> None:
        service = self.service
        try:
            if len(self.under_way) >= MAX_UNDER_WAY:
                raise SynapError("INVALID_REQUEST", f"{MAX_UNDER_WAY} requests are under way on this connection")
            identity = identify(request_id, body, service.key_name(self.principal.access))
            request_id = identity.request_id
            if command.pushes or command.ends is not None:
                service.allow(command, payload, self.principal)
                service.check_quota(command, self.principal.access, len(self.subscriptions), ())
                self._subscribe(wire, request_id, command, payload)
                return
            request = _Request(self, wire, identity)
            self.under_way.add(request)
            try:
                request.begin(service, command, payload, self.principal, self._bucket, len(body))
            except SynapError:
                self.under_way.discard(request)
                raise
            except Exception:  # a bug is an error to its own caller, who may have been answered
                request.fail(self.host.crashed(command.name))
        except SynapError as error:
            service.host.count_error(error.code)
            self.reply(wire, request_id or "", error)

    def _subscribe(self, wire: Wire, request_id: str, command: Command, payload: Any) -> None:
        self._number += 1
        self._subscribing[self._number] = wire, request_id
        try:
            self.service.execute(self, self._number, command, payload, False, self.principal)
        except Exception:  # likewise
            error = self.host.crashed(command.name)
            if self._subscribing.pop(self._number, None) is not None:
                self.host.end_turn()  # the subscription ends with its answer, before anything is pushed
                self.reply(wire, request_id, error)

    # ------------------------------------------------------------------------------------------ out

    async def _write(self) -> None:
        while True:
            messages = await self.take()
            self._read_on.set()
            if not messages and self.closed:
                await self._send({"type": "websocket.close", "code": self._close_code})
                return
            for message in messages:
                what = PIECES if isinstance(message, Pieces) else "text" if isinstance(message, str) else "bytes"
                await self._send({"type": "websocket.send", what: message})
            self.sending = 0
            self._read_on.set()

    def reply(self, wire: Wire, request_id: str, outcome: Any) -> None:
        """Send the answer to a request, or the error."""
        try:
            message = self._render(wire, request_id, outcome)
        except Exception as failure:  # it is an error to its own caller
            message = self._render(wire, request_id, self.undeliverable(ANSWER, 0, failure))
        self.put(message)

    @staticmethod
    def _render(wire: Wire, request_id: str, outcome: Any) -> Any:
        if isinstance(outcome, Encoded):
            return Pieces(outcome, text=wire.codec is JSON)
        failed = isinstance(outcome, SynapError)
        return _message(wire, wire.error(request_id, outcome) if failed else wire.answer(request_id, outcome))

    def lane_name(self) -> str:
        return "websocket"

    def deliver(self, output: list[Output]) -> None:
        if self.service.awaited:
            self.service.record_outcomes(self, output)
        super().deliver(output)

    def dropped(self, number: Number) -> None:
        self.service.awaited.pop((self, number), None)

    def render_answer(self, number: Any, answer: Any) -> Any:
        subscription_id = getattr(answer, "subscription_id", None)
        if number not in self._subscribing:  # it was answered with an error
            if subscription_id is not None:
                self.host.unsubscribe(self, subscription_id)
            return None
        wire, request_id = self._subscribing[number]
        message = self._render(wire, request_id, answer)
        del self._subscribing[number]
        if subscription_id is not None:
            self._formats[subscription_id] = wire
        return message

    def render_error(self, number: Any, error: SynapError) -> Any:
        wire, request_id = self._subscribing.pop(number)
        return self._render(wire, request_id, error)

    def format_of(self, subscription_id: int) -> str:
        return self._formats.get(subscription_id, WIRES["json"]).codec.format

    def render_push(self, subscription_id: int, item: Item) -> Any:
        wire = self._formats.get(subscription_id, WIRES["json"])
        return _message(wire, wire.push(subscription_id, item))

    def render_ended(self, subscription_id: int, error: SynapError) -> Any:
        wire = self._formats.pop(subscription_id, WIRES["json"])
        return _message(wire, wire.ended(subscription_id, error))

    # ---- as the service sees an open connection
    def drain(self) -> None:
        """Do nothing: further requests are refused, and the end is a close frame."""

    shutdown = QueuedSession.finish

    def disconnect(self) -> None:
        self._end_now(POLICY, gone())

    def _end_now(self, code: int, error: SynapError) -> None:
        """Close the connection without what is unsent: a peer that reads slowly would go on being given messages."""
        self._close_code = code
        for request in list(self.under_way):
            request.take_back(error)
        self.abort()
        self.host.leave(self)

    def adopt(self, access: Access) -> None:
        """Apply changed permissions of the key."""
        self.principal.access = access
        for session in (self, *self.under_way):
            session.permit = access.permit
        self._bucket = self.service.bucket(access)

    def sign_out(self) -> None:
        """Close the connection: the console's session that opened it is over."""
        self._end_now(SIGNED_OUT, signed_out())

    def queued(self) -> int:
        return super().queued() + self._decoding

    def settled(self) -> bool:
        return not (self.queued() or self.under_way)


def _message(wire: Wire, body: bytes) -> str | bytes:
    """Return text, which a text frame carries, for JSON, and bytes for MessagePack."""
    return body.decode() if wire.codec is JSON else body
