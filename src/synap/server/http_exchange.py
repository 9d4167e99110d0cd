"""One HTTP request and its response: content negotiation, compression, limits of bodies, error envelopes."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from synap.engine.callers import Steps, until
from synap.errors import SynapError, http_status
from synap.host import Session
from synap.host.jobs import crowded
from synap.server.apart import Encoded
from synap.server.auth import gone, signed_out
from synap.server.clients import ABORT, ADMITTED, SUBSCRIBERS, UNDER_WAY, Visit
from synap.server.console.sessions import ConsoleSession
from synap.server.preparation import growth
from synap.server.rates import Bucket
from synap.server.service import Principal, Service
from synap.server.single_request import new_request_id
from synap.wire.compression import STEP, WORTH, compress, compress_all, decompress_in_steps
from synap.wire.envelope import WIRES, Wire
from synap.wire.frames import HELD
from synap.wire.large import LARGE

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Header = tuple[bytes, bytes]

CERTIFIED = "certified"
"""The key in a connection's state for the name in its peer's certificate."""
_REFUSES_GZIP = re.compile(rb"gzip\s*;\s*q=0(?:\.0*)?\s*(?:,|$)")
BODY_TIMEOUT = 30.0
"""Seconds that may pass between two pieces of a body."""
LINGER = 2.0
"""Seconds that a refused body is read and dropped, so that its sender gets to read the error."""

_JSON, _PACK = WIRES["json"], WIRES["msgpack"]
_TYPES = {
    b"application/json": _JSON,
    b"application/msgpack": _PACK,
    b"application/x-msgpack": _PACK,
    b"application/vnd.msgpack": _PACK,
}


class Exchange:
    """One request and its response."""

    __slots__ = (
        "_held", "_read", "_request", "_sends", "bucket", "caller", "console_session", "cut", "gave_up", "headers",
        "receive", "scope", "send", "service", "wire",
    )  # fmt: skip

    def __init__(self, service: Service, scope: Any, receive: Receive, send: Send) -> None:
        self.service = service
        self.scope = scope
        self.receive = receive
        self.send = send
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.wire: Wire = _JSON
        """The format of the response."""
        self.bucket: Bucket | None = None
        self.caller = ""
        """The name of the caller's key, once it was admitted."""
        self.gave_up = False
        """Whether the rest of the body is no longer waited for, so that the connection ends with the response."""
        self._request: Session | None = None
        """The request that is being executed."""
        self._held: list[bytes] = []
        """The received pieces of an incomplete body."""
        self._sends = False
        """Whether a response is being sent in pieces, which are in `Transit` meanwhile."""
        self.cut = False
        """Whether the body was aborted by `Transit`."""
        self.console_session: ConsoleSession | None = None
        """The console session that admitted the caller, where it came with the console's cookie."""
        self._read = 0
        """The version of the keys that the caller was admitted by."""

    # ------------------------------------------------------------------------------------------ request

    def admit(self) -> Principal:
        """Authenticate the caller, and count the request. Raises `FORBIDDEN`, `UNAUTHORIZED`, `RATE_LIMIT_EXCEEDED`."""
        headers, service = self.headers, self.service
        key = self._key()
        if key is None and service.console is not None and b"cookie" in headers:
            self.console_session = service.console.sessions.admit(headers[b"cookie"], self._csrf())
        if self.console_session is None:
            certified = self.scope.get("state", {}).get(CERTIFIED)
            principal, self.bucket = service.admit(key, self.address, self.scope["type"], certified)
        else:
            principal = Principal(self.console_session.access, self.address, "console")
            self.bucket = service.bucket(principal.access)
        self.caller = service.key_name(principal.access)
        self._read = service.keys.version
        quota = principal.access.quota
        if quota is None or quota.connections is None:  # plain HTTP doesn't count for one
            self.stay()
        if self.bucket is not None:
            self.bucket.take()
        return principal

    def admit_again(self, principal: Principal) -> None:
        """Apply what changed since `admit`: a body may come long after its head.

        Raises `UNAUTHORIZED` where the key or the console session is gone.
        """
        keys, session = self.service.keys, self.console_session
        if session is not None:
            if session.over:
                raise signed_out()
            principal.access = session.access
        elif keys.on and keys.version != self._read:
            access = keys.find(principal.access)
            if access is None:
                raise gone()
            principal.access = access

    def stay(self) -> None:
        """Note that the connection need not give way to others, where there are as many as may be."""
        admitted = self.scope.get("state", {}).get(ADMITTED)
        if admitted is not None:
            admitted()

    @contextmanager
    def signed_in(self, end: Callable[[], None]) -> Iterator[None]:
        """Have `end` called when the console session ends that admitted the caller, if one did."""
        session = self.console_session
        if session is None:
            yield
            return
        session.on_end.add(end)
        try:
            yield
        finally:
            session.on_end.discard(end)

    def executes(self, request: Session | None) -> None:
        """Have the connection listed with what `request` waits for; with None, no longer."""
        under_way: list[Session | None] = self.scope.get("state", {}).get(UNDER_WAY, [])
        if self._request in under_way:
            under_way.remove(self._request)
        self._request = request
        if request is not None:
            under_way.append(request)

    @contextmanager
    def pushes_to(self, session: Session) -> Iterator[None]:
        """Register `session` as one with subscriptions over this connection."""
        subscribers: list[Session] = self.scope.get("state", {}).get(SUBSCRIBERS, [])
        subscribers.append(session)
        try:
            yield
        finally:
            subscribers.remove(session)

    def visit(self, lane: str, principal: Principal) -> Visit:
        """Describe the connection, which stays open for this caller."""
        return Visit(lane, self.scope.get("client"), self.service.key_name(principal.access))

    @property
    def address(self) -> str:
        """The caller's IP address."""
        client = self.scope.get("client")
        return str(client[0]) if client else ""

    def _key(self) -> str | None:
        key = self.headers.get(b"x-api-key")
        if key is None:
            scheme, _, token = self.headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() == b"bearer":
                key = token.strip()
        return None if key is None else key.decode("latin-1")

    def _csrf(self) -> str | None:
        """Return the console's CSRF token: from a header, or for a WebSocket from its subprotocols."""
        if self.scope["type"] == "websocket":
            offered: list[str] = self.scope.get("subprotocols", [])
            return next((name[5:] for name in offered if name.startswith("csrf.")), None)
        return self.headers.get(b"x-csrf-token", b"").decode("latin-1")

    def formats(self) -> Wire:
        """Negotiate the formats of request and response; returns the request's. Raises `INVALID_REQUEST`."""
        headers = self.headers
        named = headers.get(b"content-type", b"")
        wire = _TYPES.get(named) or _TYPES.get(named.partition(b";")[0].strip().lower())
        accept = headers.get(b"accept")
        if accept is None or accept == b"*/*":
            answer: Wire | None = wire
        else:
            answer = _TYPES.get(accept) or _negotiate(accept, wire or _JSON)
        if answer is not None:
            self.wire = answer
        if wire is None:
            shown = named[:80].decode("latin-1")
            raise SynapError(
                "INVALID_REQUEST", f"Content-Type must be application/json or application/msgpack, got {shown!r}"
            )
        if answer is None:
            assert accept is not None
            shown = accept[:80].decode("latin-1")
            raise SynapError(
                "INVALID_REQUEST", f"Accept must allow application/json or application/msgpack, got {shown!r}"
            )
        return wire

    async def body(self, key: str, most: int | None = None) -> bytes:
        """Read the body and inflate it, in turns with others. `key`: the name of the caller's key, or its address.

        A large one counts as in flight until `release`. `most`: how many bytes it may have, both ways, if that is less
        than for any other. Raises `PAYLOAD_TOO_LARGE`; `SERVICE_UNAVAILABLE` where all are too large together.
        """
        limit = self.service.config.max_body
        limit = limit if most is None else min(most, limit)
        length = self.headers.get(b"content-length")
        if length is not None and int(length) > limit:
            raise self._too_large(limit)
        message = await self.receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            body = await self._rest(body, limit)
        if len(body) > limit:
            raise self._too_large(limit)
        encoding = self.headers.get(b"content-encoding")
        if encoding is None or encoding.lower() == b"identity":
            if len(body) > LARGE:
                self._count(len(body) * HELD)
        else:
            if encoding.lower() != b"gzip":
                shown = encoding[:40].decode("latin-1")
                raise SynapError("INVALID_REQUEST", f"Content-Encoding must be gzip or identity, got {shown!r}")
            grown = growth(body, limit)
            if grown > LARGE:
                if not self.service.transit.has_room(grown):
                    raise crowded()
                self._count(len(body) + grown)
            body = await self.in_turns(key, decompress_in_steps(body, limit), begun=True)
        return body

    async def in_turns(self, key: str, steps: Steps, *, begun: bool = False) -> Any:
        """Run steps on the body as `Turns.work_off` does. Raises `SERVICE_UNAVAILABLE` where it was aborted."""
        done = await self.service.turns.work_off(key, until(steps, lambda: self.cut), begun=begun)
        if self.cut:
            raise crowded()
        return done

    def release(self) -> None:
        """Count the body, or the response, no longer as in flight."""
        self.service.transit.bodies.pop(self, None)

    def _count(self, size: int) -> None:
        self.service.transit.bodies[self] = size
        self.service.transit.add(size)

    def abort(self) -> None:
        """Give the body up, or end the connection over which one is sent: all together are too large."""
        self.cut = True
        if self._sends:
            self.end_connection()
        if self._sends or self._held:  # else it is worked on, and held until its turn comes
            self._held.clear()
            self.release()

    def end_connection(self) -> None:
        """End the connection at once."""
        end = self.scope.get("state", {}).get(ABORT)
        if end is not None:
            end()

    async def gone(self) -> None:
        """Wait until the client has disconnected. Only after the body has been read."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def _rest(self, first: bytes, limit: int) -> bytes:
        transit = self.service.transit
        pieces = self._held
        pieces.append(first)
        size = len(first)
        while True:
            if not self.cut:
                transit.bodies[self] = size
                transit.add(len(pieces[-1]))
            if self.cut:
                self.gave_up = True
                raise crowded()
            try:
                message = await asyncio.wait_for(self.receive(), BODY_TIMEOUT)
            except asyncio.TimeoutError:
                self.gave_up = True
                raise SynapError("INVALID_REQUEST", f"nothing of the body came for {BODY_TIMEOUT:g} s") from None
            if message["type"] == "http.disconnect":
                raise ConnectionResetError
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > limit:
                raise self._too_large(limit)
            if not message.get("more_body"):
                whole = b"".join(pieces)
                pieces.clear()
                return whole

    @staticmethod
    def _too_large(limit: int) -> SynapError:
        return SynapError("PAYLOAD_TOO_LARGE", f"a body may have {limit:,} bytes, this one has more", {"limit": limit})

    # ------------------------------------------------------------------------------------------ response

    @property
    def takes_gzip(self) -> bool:
        """Whether the client takes a response that is compressed."""
        accepted = self.headers.get(b"accept-encoding", b"").lower()
        return b"gzip" in accepted and _REFUSES_GZIP.search(accepted) is None

    async def answer(self, body: bytes | Encoded, status: int = 200, extra: Iterable[Header] = ()) -> None:
        """Send a response in the negotiated format."""
        await self.send_whole(body, status, self.wire.codec.content_type.encode(), extra)

    async def refuse(
        self,
        error: SynapError,
        request_id: str = "",
        status: int = 0,
        extra: Iterable[Header] = (),
        *,
        counted: bool = False,
    ) -> None:
        """Send an error response, and count the error, unless it is `counted` already."""
        if not counted:
            self.service.host.count_error(error.code)
        headers = list(extra)
        retry = error.details.get("retry_after")
        if retry is not None:
            headers.append((b"retry-after", b"%d" % max(1, math.ceil(retry))))
        if error.code == "UNAUTHORIZED":
            headers.append((b"www-authenticate", b"Bearer"))
        body = self.wire.error(request_id or new_request_id(), error)
        unread = self.gave_up or error.code == "PAYLOAD_TOO_LARGE"
        if unread:
            headers.append((b"connection", b"close"))
        await self.send_whole(
            body, status or http_status(error.code), self.wire.codec.content_type.encode(), headers, unread=unread
        )

    async def send_whole(
        self,
        body: bytes | Encoded,
        status: int,
        content_type: bytes,
        extra: Iterable[Header] = (),
        *,
        unread: bool = False,
    ) -> None:
        """Send a complete response. `unread`: the request's body was not read, so the connection must end."""
        headers = [(b"content-type", content_type), *extra]
        pieces, size = body if isinstance(body, Encoded) else ([body], len(body))
        if size >= WORTH:
            headers.append((b"vary", b"accept-encoding"))
            if self.takes_gzip:
                pieces = [compress(*pieces) if size <= LARGE else await self._compressed(pieces, size)]
                size = len(pieces[0])
                headers.append((b"content-encoding", b"gzip"))
        headers.append((b"content-length", b"%d" % size))
        if self.bucket is not None:
            left, reset = self.bucket.left()
            headers.append((b"x-ratelimit-limit", b"%d" % self.bucket.capacity))
            headers.append((b"x-ratelimit-remaining", b"%d" % left))
            headers.append((b"x-ratelimit-reset", b"%d" % reset))
        if size > LARGE:
            self.service.transit.add(size)
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        *before, last = pieces
        if unread:  # an error, which is one piece
            await self.send({"type": "http.response.body", "body": last, "more_body": True})
            await self._drop_body()
            last = b""
        elif before:
            await self._send_before(before, size)
        await self.send({"type": "http.response.body", "body": last})

    async def _send_before(self, pieces: list[bytes], size: int) -> None:
        """Send all pieces but the last, as fast as the peer reads. What it has not read yet counts as in flight."""
        self._sends = True
        try:
            for piece in pieces:
                self.service.transit.bodies[self] = size
                await self.send({"type": "http.response.body", "body": piece, "more_body": True})
                size -= len(piece)
        finally:
            self._sends = False
            self.release()

    async def _compressed(self, pieces: list[bytes], size: int) -> bytes:
        """Compress a large body on another thread. Meanwhile it counts as in flight."""
        self._count(size)
        try:
            return await asyncio.get_running_loop().run_in_executor(None, compress_all, self._in_slices(pieces))
        finally:
            self.release()

    def _in_slices(self, pieces: list[bytes]) -> Iterator[memoryview]:
        """Yield the pieces in slices, on another thread. A stop waits for the thread: it gives up once that is over."""
        for piece in pieces:
            view = memoryview(piece)
            for at in range(0, len(view), STEP):
                if self.service.over:
                    raise ConnectionResetError
                yield view[at : at + STEP]

    async def _drop_body(self) -> None:
        """Read and drop the body for a moment: closing with unread bytes would reset the connection."""
        loop = asyncio.get_running_loop()
        end = loop.time() + LINGER
        while (left := end - loop.time()) > 0:
            try:
                message = await asyncio.wait_for(self.receive(), left)
            except asyncio.TimeoutError:
                return
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                return


def _negotiate(accept: bytes, otherwise: Wire) -> Wire | None:
    """Choose the response's format by an `Accept` header; `otherwise` where any is accepted."""
    best: tuple[float, Wire | None] = 0.0, None
    for part in accept.lower().split(b","):
        name, *parameters = (piece.strip() for piece in part.split(b";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith(b"q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        wire = otherwise if name in (b"*/*", b"application/*") else _TYPES.get(name) if name else None
        if wire is not None and quality > best[0]:
            best = quality, wire
    return best[1]


def refusal(error: SynapError, status: int | None = None, extra: str = "") -> bytes:
    """Build a complete HTTP response that refuses a connection; the connection is closed after it."""
    status = http_status(error.code) if status is None else status
    body = WIRES["json"].error("", error)
    retry = error.details.get("retry_after")
    after = "" if retry is None else f"Retry-After: {max(1, math.ceil(retry))}\r\n"
    if status == 401:
        after = "WWW-Authenticate: Bearer\r\n"
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n{after}{extra}\r\n"
    )
    return head.encode("latin-1") + body
