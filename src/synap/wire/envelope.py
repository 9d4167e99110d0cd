"""The messages of HTTP and WebSocket: a request or a batch in, an answer or a push out.

    in   {type?: "request", request_id?, version?, command, payload}
    out  {type: "response", request_id, success, status, payload | error}
    in   {type: "batch", request_id?, version?, commands: [{command, payload}], atomic?}
    out  {type: "batch_response", request_id, success, results: [{status, payload | error}]}

Pushed over the WebSocket: {type: "event" | "message" | "ended", subscription_id, …}.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple, Union

import msgspec
from msgspec import Raw, Struct

from synap import commands as c
from synap.errors import SynapError
from synap.wire.codec import CODECS, MALFORMED, Codec, find
from synap.wire.large import Steps

LONGEST_ID = 256


class Unreadable(Exception):
    """A malformed request: its error, and its id as far as that could be read."""

    def __init__(self, error: SynapError, request_id: Optional[str]) -> None:
        super().__init__(error, request_id)
        self.error = error
        self.request_id = request_id or ""


class Request(Struct, forbid_unknown_fields=True):
    """A request: one command, or (type 'batch') several."""

    type: str = "request"
    request_id: Optional[str] = None
    command: Optional[str] = None
    payload: Raw = Raw(b"")
    commands: Raw = Raw(b"")
    atomic: bool = False
    version: Optional[Any] = None


class Named(Struct):
    """The id of a malformed request, for its error answer."""

    request_id: Optional[str] = None


class Response(Struct, omit_defaults=True):
    """The answer to a request."""

    type: str
    request_id: str
    success: bool
    status: str
    payload: Any = msgspec.UNSET
    error: Optional[c.ErrorAnswer] = None


class BatchResponse(Struct):
    """The answer to a batch."""

    type: str
    request_id: str
    success: bool
    results: List[Any]


class Wire:
    """One format's envelopes."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        module: Any = msgspec.json if codec.format == "json" else msgspec.msgpack
        self._request = module.Decoder(Request).decode
        self._named = module.Decoder(Named).decode
        self._items = module.Decoder(c.BatchItems).decode

    def read_request(self, body: bytes) -> Tuple[Optional[str], c.Command, Any]:
        """Decode a request to its id (None: the service makes one), command, and checked payload.

        Raises `Unreadable` with `INVALID_REQUEST`, `INVALID_COMMAND` or `INVALID_PAYLOAD`.
        """
        request = self._envelope(body)
        try:
            command, payload = self._content(request)
            if command is not c.BATCH:
                payload = self.codec.decode_payload(command, payload)
        except SynapError as error:
            raise Unreadable(error, request.request_id) from None
        return request.request_id, command, payload

    def read_in_steps(self, body: bytes) -> Steps:
        """Decode a large request as `read_request` does, in steps."""
        request = self._envelope(body)
        yield
        try:
            if request.type == "batch":
                try:
                    yield from self.codec.count_list(c.BATCH, "commands", bytes(request.commands))
                except SynapError as error:
                    raise SynapError("INVALID_REQUEST", f"the request is malformed: {error.message}") from None
            command, payload = self._content(request)
            if command is not c.BATCH:
                payload = yield from self.codec.decode_in_steps(command, payload)
        except SynapError as error:
            raise Unreadable(error, request.request_id) from None
        return request.request_id, command, payload

    def _envelope(self, body: bytes) -> Request:
        try:
            request: Request = self._decode(self._request, body)
        except SynapError as error:
            raise Unreadable(error, self.name(body)) from None
        return request

    def name(self, body: bytes) -> Optional[str]:
        """Return the id of a request that may be malformed, where it can be found."""
        try:
            name: Optional[str] = self._decode(self._named, body).request_id
        except SynapError:
            return None
        return name if name is not None and len(name) <= LONGEST_ID else None

    def _content(self, request: Request) -> Tuple[c.Command, Any]:
        """Return the command and its payload, still encoded unless it is a batch."""
        if request.request_id is not None and len(request.request_id) > LONGEST_ID:
            raise SynapError("INVALID_REQUEST", f"request_id must have at most {LONGEST_ID} characters")
        if request.type == "batch":
            if not bytes(request.commands):
                raise SynapError("INVALID_REQUEST", "a batch needs the field 'commands'")
            return c.BATCH, c.BatchRequest(self._decode(self._items, request.commands), request.atomic)
        if request.type != "request":
            raise SynapError("INVALID_REQUEST", f"type must be 'request' or 'batch', got {request.type[:80]!r}")
        if request.command is None:
            raise SynapError("INVALID_REQUEST", "a request needs the field 'command'")
        command = find(request.command)
        return command, bytes(request.payload) or self.codec.empty

    def _decode(self, decode: Any, body: Any) -> Any:
        try:
            return decode(body)
        except RecursionError:
            raise SynapError("INVALID_REQUEST", "the request is nested too deep") from None
        except MALFORMED as error:
            raise SynapError("INVALID_REQUEST", f"the request is malformed: {error}") from None

    def answer(self, request_id: str, answer: Any) -> bytes:
        """Encode the answer to a request or a batch."""
        return self.codec.encode(self.enveloped(request_id, self.codec.render(answer)))

    @staticmethod
    def enveloped(request_id: str, rendered: Any) -> Union[Response, BatchResponse]:
        """Put an answer that is rendered already into its envelope."""
        if type(rendered) is c.BatchAnswer:
            return BatchResponse("batch_response", request_id, True, rendered.results)
        return Response("response", request_id, True, "success", rendered)

    def error(self, request_id: str, error: SynapError) -> bytes:
        """Encode the error answer to a request or a batch."""
        envelope = c.ErrorAnswer.of(error)
        return self.codec.encode(Response("response", request_id, False, "error", error=envelope))

    def push(self, subscription_id: int, item: c.Item) -> bytes:
        """Encode a pushed event or message."""
        rendered = msgspec.structs.asdict(self.codec.render(item))
        kind = "event" if type(item) is c.EventAnswer else "message"
        return self.codec.encode({"type": kind, "subscription_id": subscription_id, **rendered})

    def ended(self, subscription_id: int, error: SynapError) -> bytes:
        """Encode the end of a subscription by the service."""
        envelope = c.ErrorAnswer.of(error)
        return self.codec.encode({"type": "ended", "subscription_id": subscription_id, "error": envelope})


WIRES: Dict[str, Wire] = {name: Wire(codec) for name, codec in CODECS.items()}
