"""Carry a native connection's bytes in the binary messages of a WebSocket, without I/O.

For proxies that refuse the upgrade to `synap/1` and pass WebSockets. The protocol is implemented by the `websockets`
library, which is used without its I/O. Message boundaries mean nothing: the frames inside have their own lengths.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, List, Optional

from websockets.client import ClientProtocol
from websockets.exceptions import WebSocketException
from websockets.frames import Opcode
from websockets.http11 import Response
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from synap._version import __version__
from synap.config import ClientConfig, Target
from synap.errors import SynapError
from synap.lanes.errors import NotOffered, connect_failed
from synap.lanes.opening import Framing, Opening, hello_of, refusal
from synap.wire.conversation import Fault
from synap.wire.frames import MAX_ANSWER
from synap.wire.handshake import MAX_MESSAGE, SUBPROTOCOL, WEBSOCKET_PATH, hello_headers


class WebSocketFraming(Framing):
    """A WebSocket whose handshake is done."""

    def __init__(self, protocol: ClientProtocol) -> None:
        self._protocol = protocol

    def wrap(self, data: bytes) -> bytes:
        protocol = self._protocol
        try:
            for start in range(0, len(data), MAX_MESSAGE):
                protocol.send_binary(data[start : start + MAX_MESSAGE])
        except WebSocketException:
            pass  # it is being closed, and what is sent now wouldn't be read
        return self.take_out()

    def unwrap(self, data: bytes) -> bytes:
        protocol = self._protocol
        if data:
            protocol.receive_data(data)
        else:
            protocol.receive_eof()
        return self.payload(protocol.events_received())

    def payload(self, events: List[Any]) -> bytes:
        """Return the bytes of frames in received messages. Raises `Fault`."""
        protocol = self._protocol
        parts: List[bytes] = []
        for event in events:
            opcode = event.opcode
            if opcode is Opcode.BINARY or opcode is Opcode.CONT:
                parts.append(bytes(event.data))
            elif opcode is Opcode.TEXT:
                raise Fault("the service sent a text message where binary ones carry frames")
        if protocol.parser_exc is not None and not isinstance(protocol.parser_exc, EOFError):
            raise Fault(f"the service sent what is no WebSocket frame: {protocol.parser_exc}")
        if not parts and protocol.close_rcvd is not None:
            close = protocol.close_rcvd
            raise Fault(f"the service closed it ({close.code}{' ' + close.reason if close.reason else ''})")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def take_out(self) -> bytes:
        return b"".join(self._protocol.data_to_send())

    def goodbye(self) -> bytes:
        with suppress(WebSocketException):  # it is closed already
            self._protocol.send_close(1000)
        return self.take_out()


class WebSocketOpening(Opening):
    """The handshake of a WebSocket with the subprotocol `synap.native`."""

    def __init__(self, config: ClientConfig, target: Target, session: str) -> None:
        super().__init__(target)
        scheme = "wss" if target.scheme == "https" else "ws"
        uri = parse_uri(f"{scheme}://{target.authority}{WEBSOCKET_PATH}")
        protocol = self._protocol = ClientProtocol(
            uri, subprotocols=[Subprotocol(SUBPROTOCOL)], max_size=MAX_ANSWER + MAX_MESSAGE
        )
        request = protocol.connect()
        request.headers["User-Agent"] = f"synap-client/{__version__}"
        for name, value in hello_headers(hello_of(config, session)):
            request.headers[name] = value
        protocol.send_request(request)
        self.request = b"".join(protocol.data_to_send())
        self._answered = False

    def feed(self, data: bytes) -> Optional[bytes]:
        self._answered = True
        protocol = self._protocol
        protocol.receive_data(data)
        return self._opened(protocol)

    def _opened(self, protocol: ClientProtocol) -> Optional[bytes]:
        events: List[Any] = protocol.events_received()
        if not events:
            if protocol.handshake_exc is not None or protocol.parser_exc is not None:
                why = protocol.handshake_exc or protocol.parser_exc
                raise connect_failed(self.place, f"no WebSocket there: {why}")
            return None
        response: Response = events[0]  # frames may have come with it
        if protocol.handshake_exc is not None:
            raise self._refused(response)
        if protocol.subprotocol != SUBPROTOCOL:
            text = f"the WebSocket at {self.place} doesn't take the subprotocol {SUBPROTOCOL}; nothing was sent"
            raise NotOffered("CONNECTION_FAILED", text, {"place": self.place})
        self._take_limit(response.headers.get("Synap-Max-Body", ""))
        framing = self.framing = WebSocketFraming(protocol)
        try:
            return framing.payload(events[1:])
        except Fault as fault:
            raise connect_failed(self.place, str(fault)) from None

    def _refused(self, response: Response) -> SynapError:
        if response.status_code == 101:
            return connect_failed(self.place, f"no WebSocket there: {self._protocol.handshake_exc}")
        headers = {name.lower(): value for name, value in response.headers.raw_items()}
        what = f"a WebSocket at {WEBSOCKET_PATH}"
        return refusal(self.place, what, response.status_code, headers, bytes(response.body or b""))

    def ended(self) -> SynapError:
        protocol = self._protocol
        protocol.receive_eof()
        try:
            if self._answered:
                self._opened(protocol)
        except SynapError as error:
            return error
        return super().ended()
