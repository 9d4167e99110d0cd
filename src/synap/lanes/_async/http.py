"""The HTTP lane: plain requests to `POST /api/v1/command`, and a WebSocket for what is pushed.

It is for servers and proxies that do not offer the native lane. A request's id is `session:number`; both stay the same
at every attempt, so that a service which has done the request already answers it again.
"""

from __future__ import annotations

import itertools
import threading
import uuid
from functools import partial
from typing import Any, Dict, List, Optional, Set, Tuple

import h11
from msgspec import MsgspecError, Raw, Struct

from synap._version import __version__
from synap.commands import BATCH, KV_EXISTS, BatchItem, Command, KvExists, QueueConsume
from synap.config import ClientConfig, Target
from synap.errors import SynapError, from_wire
from synap.lanes import errors
from synap.lanes._async.base import AsyncLane, Listener
from synap.lanes._async.connections import (
    Answer,
    AsyncPool,
    Broken,
    Crowded,
    Oversized,
    Unconnected,
)
from synap.lanes._async.websocket import AsyncWebSocket
from synap.lanes.coalescing import Call, Coalescer, Refused  # ASYNC
from synap.lanes.io import AsyncLock, monotonic
from synap.lanes.withdrawals import Withdrawals
from synap.wire.codec import CODECS, JSON, Codec
from synap.wire.compression import WORTH, compress, decompress
from synap.wire.envelope import WIRES, Inbound
from synap.wire.frames import MAX_ANSWER, MAX_BODY

__all__ = ["AsyncHttpLane"]

COMMAND = "/api/v1/command"
HEALTH = "/health"
CONFIRM_EVERY = 64
"""Requests after which the service is told that it may forget what it answered to those before."""

_CODES = {
    401: "UNAUTHORIZED",
    403: "FORBIDDEN",
    413: "PAYLOAD_TOO_LARGE",
    429: "RATE_LIMIT_EXCEEDED",
    503: "SERVICE_UNAVAILABLE",
}
"""What a status means that comes without an error envelope, from something between us and the service."""


class AsyncHttpLane(AsyncLane):
    """Speaks plain HTTP with a service."""

    def __init__(self, config: ClientConfig, target: Target, codec: Codec) -> None:
        super().__init__(config, target, codec)
        self.place = f"{target.scheme}://{target.authority}"
        self._session = uuid.uuid4().hex
        self._numbers = itertools.count(1)
        self._numbering = threading.Lock()
        self._open: Dict[int, None] = {}
        """Numbers of the requests that may be sent again, in ascending order."""
        self._withdrawn: Set[int] = set()
        """Those of them that are being taken back: until then the service has to remember what it answered."""
        self._confirmed = 0
        self._wire = WIRES[codec.format]
        self._pool = AsyncPool(config, target, self._opened)
        self._reached = False
        self._socket: Optional[AsyncWebSocket] = None
        self._socket_lock = AsyncLock()
        self._headers = [
            ("Host", target.authority),
            ("User-Agent", f"synap-client/{__version__}"),
            ("Accept", codec.content_type),
            ("Accept-Encoding", "gzip" if config.compression else "identity"),
        ]
        if config.api_key is not None:
            self._headers.append(("X-API-Key", config.api_key))
        if not config.keep_alive:
            self._headers.append(("Connection", "close"))
        self._withdrawals = Withdrawals(config, target, self._headers)
        self._post_headers = [*self._headers, ("Content-Type", codec.content_type)]
        if True:  # ASYNC
            self._coalescer: Optional[Coalescer] = Coalescer(self._alone, self._together)

    # ------------------------------------------------------------------------------------------ requests

    async def connect(self) -> None:
        ticket = self.ticket()
        try:
            await self.call(KV_EXISTS, KvExists("synap"), ticket=ticket, timeout=self.config.timeout)
        finally:
            self.drop(ticket)

    def ticket(self) -> int:
        with self._numbering:  # in another order, one thread would confirm what another may send again
            number = next(self._numbers)
            self._open[number] = None
        return number

    def drop(self, ticket: Any) -> None:
        if ticket not in self._withdrawn:
            self._open.pop(ticket, None)

    def _forget(self, number: int) -> None:
        self._withdrawn.discard(number)
        self._open.pop(number, None)

    async def call(self, command: Command, payload: Struct, *, ticket: Any, timeout: Optional[float]) -> Any:
        if command.code == BATCH.code:
            return await self._post(command, self._wire.request(self._id(ticket), command, payload), ticket, timeout)
        body = self.codec.encode_payload(command, payload)
        if True:  # ASYNC
            if self._coalescer is not None and command.batchable:
                return await self._coalescer.call(command, body, ticket, timeout)
        message = self._wire.request(self._id(ticket), command, body)
        if not isinstance(payload, QueueConsume):
            return await self._post(command, message, ticket, timeout)
        try:
            return await self._post(command, message, ticket, timeout, lingers=payload.timeout != 0)
        except SynapError:
            raise
        except BaseException:
            # Cancelled. The service may have answered just now: the message is not to wait for the end of its lease.
            self._withdrawn.add(ticket)
            self._withdrawals.add(self._id(ticket), partial(self._forget, ticket))
            raise

    if True:  # ASYNC

        async def _alone(self, call: Call) -> Any:
            message = self._wire.request(self._id(call.number), call.command, call.body)
            return await self._post(call.command, message, call.number, call.timeout)

        async def _together(self, calls: List[Call], timeout: Optional[float]) -> List[Any]:
            items = [BatchItem(call.command.name, Raw(call.body), call.number) for call in calls]
            try:
                answer = await self._exchange(self._wire.bundle(self._id(0), items), timeout)
                inbound = self._read(BATCH, 0, answer)
            except Oversized:
                # The limit is for one answer. Together they passed it, so each must come by itself.
                raise Refused from None
            except Broken as broken:
                return [self._explain(call.command, broken, call.timeout) for call in calls]
            except SynapError as error:
                if error.code in ("INVALID_REQUEST", "INVALID_PAYLOAD", "PAYLOAD_TOO_LARGE"):
                    if error.code != "PAYLOAD_TOO_LARGE":
                        self._coalescer = None  # this service knows batches, but not numbers in them
                    raise Refused from None
                return [_copy(error, call.command) for call in calls]
            outcomes = inbound.results or []
            if len(outcomes) != len(calls):
                reason = f"{len(calls)} requests were answered with {len(outcomes)} outcomes"
                return [errors.lost(call.command, True, reason) for call in calls]
            results: List[Any] = []
            codec = CODECS[_format(answer) or "json"]
            for call, outcome in zip(calls, outcomes):
                if outcome.error is not None:
                    results.append(from_wire(outcome.error.code, outcome.error.message, outcome.error.details))
                else:
                    results.append(_decode(codec, call.command, outcome.payload))
            return results

    def _id(self, number: int) -> str:
        return f"{self._session}:{number}"

    async def _post(
        self, command: Command, message: bytes, number: int, timeout: Optional[float], *, lingers: bool = False
    ) -> Any:
        """Send one message and return what it was answered with."""
        try:
            repeatable = not command.has_effects
            answer = await self._exchange(message, timeout, repeatable, lingers)
            inbound = self._read(command, number, answer)
        except Broken as broken:
            raise self._explain(command, broken, timeout) from None
        codec = CODECS[_format(answer) or "json"]
        result = _decode(codec, command, answer.body if command.code == BATCH.code else inbound.payload)
        if isinstance(result, SynapError):
            raise result
        return result

    async def _exchange(
        self, message: bytes, timeout: Optional[float], repeatable: bool = False, lingers: bool = False
    ) -> Answer:
        if len(message) > MAX_BODY:
            raise SynapError(
                "PAYLOAD_TOO_LARGE",
                f"a request may have {MAX_BODY} bytes, this one has {len(message)}; nothing was sent",
                {"limit": MAX_BODY},
            )
        headers = list(self._post_headers)
        done = next(iter(list(self._open)), 0)
        if done - self._confirmed >= CONFIRM_EVERY:
            self._confirmed = done
            headers.append(("Synap-Done", str(done)))
        if self.config.compression and len(message) >= WORTH:
            message = compress(message)
            headers.append(("Content-Encoding", "gzip"))
        headers.append(("Content-Length", str(len(message))))
        request = h11.Request(method="POST", target=COMMAND, headers=headers)
        deadline = None if timeout is None else monotonic() + timeout
        try:
            answer = await self._pool.exchange(
                request, message, deadline=deadline, repeatable=repeatable, lingers=lingers
            )
        except Broken as broken:
            self._broke(broken)
            raise
        return _inflated(answer)

    # ------------------------------------------------------------------------------------------ answers

    def _read(self, command: Command, number: int, answer: Answer) -> Inbound:
        """Read an answer; raises the error it holds, or `Broken` where it is none of this service's."""
        format = _format(answer)
        if format is None:
            raise self._foreign(answer)
        try:
            inbound = WIRES[format].read(answer.body)
        except SynapError:
            raise self._foreign(answer) from None
        if inbound.error is not None:
            raise from_wire(inbound.error.code, inbound.error.message, inbound.error.details)
        expected = "batch_response" if command.code == BATCH.code else "response"
        if inbound.type != expected or inbound.request_id != self._id(number) or answer.status != 200:
            raise self._foreign(answer)
        return inbound

    def _foreign(self, answer: Answer) -> Exception:
        """Build the error for an answer that no service of ours gives."""
        kind = answer.content_type or "nothing that it has a name for"
        shown = answer.body[:60].decode("utf-8", "replace")
        text = f"what answered at {self.place} is not a Synap service: {answer.status}, {kind}, {shown!r}"
        if answer.status in _CODES:
            details = {"retry_after": int(answer.retry_after)} if answer.retry_after.isdigit() else {}
            return from_wire(_CODES[answer.status], text, details)
        # Who doesn't know the path, or sends us elsewhere, has done nothing.
        return Broken(text, sent=not 300 <= answer.status < 500, silent=False)

    def _explain(self, command: Command, broken: Broken, timeout: Optional[float]) -> SynapError:
        """Build the error of a request whose exchange broke."""
        if isinstance(broken, Crowded):
            return errors.out_of_room(command, timeout)
        if isinstance(broken, Oversized):
            error = SynapError("PAYLOAD_TOO_LARGE", f"{broken.reason}; ask for less at a time")
            error.may_have_happened = command.has_effects
            return error
        if isinstance(broken, Unconnected):
            return errors.failed(self.place, broken.reason)
        if broken.timed_out:
            return errors.timed_out(command, broken.sent, timeout)
        return errors.lost(command, broken.sent, broken.reason)

    def _opened(self) -> None:
        if not self._reached:
            self._reached = True
            self.connected()

    def _broke(self, broken: Broken) -> None:
        if self._reached and not broken.timed_out and not isinstance(broken, Oversized):
            self._reached = False
            reason = broken.reason
            self.disconnected(reason if isinstance(reason, str) else errors.why(reason))

    async def health(self) -> Dict[str, Any]:
        timeout = self.config.timeout
        request = h11.Request(method="GET", target=HEALTH, headers=[*self._headers, ("Content-Length", "0")])
        try:
            answer = _inflated(await self._pool.exchange(request, deadline=monotonic() + timeout, repeatable=True))
        except Broken as broken:
            raise self._explain(KV_EXISTS, broken, timeout) from None
        codec = CODECS.get(_format(answer) or "")
        try:
            figures = codec.decode(answer.body) if codec is not None else None
        except (MsgspecError, ValueError, RecursionError):
            figures = None
        if not isinstance(figures, dict):
            foreign = self._foreign(answer)
            raise self._explain(KV_EXISTS, foreign, timeout) if isinstance(foreign, Broken) else foreign
        if isinstance(figures.get("error"), dict):
            raise JSON.decode_error(JSON.encode(figures["error"]))
        return figures

    # ------------------------------------------------------------------------------------------ subscriptions

    async def subscribe(self, command: Command, payload: Struct, listener: Listener) -> Tuple[Any, Any]:
        async with self._socket_lock:
            socket = self._socket
            if socket is None or not socket.usable:
                socket = AsyncWebSocket(self.config, self.target, self.codec, self._pool.context())
                await socket.connect(self.config.timeout)
                self._socket = socket
                self._opened()
        return await socket.subscribe(command, payload, listener, self.config.timeout)

    async def unsubscribe(self, handle: Any) -> None:
        socket, subscription_id = handle
        await socket.unsubscribe(subscription_id, self.config.timeout)

    # ------------------------------------------------------------------------------------------ the end

    async def close(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close()
        await self._pool.close()
        self._reached = False

    def abandon(self) -> None:
        if self._socket is not None:
            self._socket.abandon()
            self._socket = None
        self._socket_lock = AsyncLock()
        self._withdrawals.abandon()
        self._session = uuid.uuid4().hex
        self._numbering = threading.Lock()
        self._open = {}
        self._withdrawn = set()
        self._reached = False
        self._pool.abandon()
        if True:  # ASYNC
            if self._coalescer is not None:
                self._coalescer.abandon()


def _format(answer: Answer) -> Optional[str]:
    """Name the format of an answer, None where it is in none of ours."""
    format = answer.content_type.rpartition("/")[2]
    return format if answer.content_type == f"application/{format}" and format in CODECS else None


def _inflated(answer: Answer) -> Answer:
    if answer.encoding in ("", "identity"):
        return answer
    if answer.encoding != "gzip":
        raise Broken(f"the answer is encoded as {answer.encoding!r}, which nobody asked for", sent=True, silent=False)
    try:
        return answer._replace(body=decompress(answer.body, MAX_ANSWER))
    except SynapError as error:
        raise Oversized() if error.code == "PAYLOAD_TOO_LARGE" else Broken(error, sent=True, silent=False) from None


def _decode(codec: Codec, command: Command, body: Any) -> Any:
    """Decode a result; an error where it is none."""
    try:
        return codec.decode_result(command, body)
    except (MsgspecError, ValueError, RecursionError) as error:
        return errors.lost(command, True, f"the answer is not one to {command.name}: {error}")


def _copy(error: SynapError, command: Command) -> SynapError:
    """Make an error of its own for one of several calls that share it."""
    return from_wire(error.code, error.message, dict(error.details))
