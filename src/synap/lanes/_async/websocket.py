"""The HTTP lane's WebSocket: subscriptions, and what is pushed to them.

The protocol itself is that of `websockets`, without its I/O; connecting, reading and waiting are ours. Losing the
connection ends all that it carried: calls fail, listeners are told, and whoever wants to go on makes a new one.
"""

from __future__ import annotations

import itertools
import ssl
import uuid
from typing import Any, Dict, List, Optional, Tuple, Union

from msgspec import MsgspecError, Struct
from websockets.client import ClientProtocol
from websockets.exceptions import WebSocketException
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from synap._version import __version__
from synap.commands import PUBSUB_UNSUBSCRIBE, STREAM_SUBSCRIBE, STREAM_UNSUBSCRIBE, Command
from synap.config import ClientConfig, Target
from synap.errors import ConnectionError, SynapError, from_wire
from synap.lanes import errors
from synap.lanes._async.base import Listener
from synap.lanes.io import AsyncLock, AsyncPromise, AsyncStream, AsyncWorker, async_spawn, monotonic
from synap.wire.codec import JSON, Codec
from synap.wire.envelope import WIRES, Inbound
from synap.wire.frames import MAX_ANSWER

__all__ = ["AsyncWebSocket"]

PATH = "/api/v1/ws"
CHUNK = 128 * 1024
SILENCE = 20.0
"""Seconds without a word after which the service is asked whether it is there; as many later it is given up."""


class _Call:
    """A request that waits for its answer; `listener` gets what is pushed once a subscription stands."""

    __slots__ = ("command", "listener", "promise")

    def __init__(self, command: Command, listener: Optional[Listener]) -> None:
        self.command = command
        self.listener = listener
        self.promise: AsyncPromise[Any] = AsyncPromise()


class AsyncWebSocket:
    """One WebSocket connection, from `connect` until it is lost or closed."""

    def __init__(
        self,
        config: ClientConfig,
        target: Target,
        codec: Codec,
        context: Optional[ssl.SSLContext],
        *,
        silence: float = SILENCE,
    ) -> None:
        self.config = config
        self.target = target
        self.codec = codec
        self.place = f"{target.scheme}://{target.authority}"
        self._context = context
        self._silence = silence
        self._wire = WIRES[codec.format]
        self._session = uuid.uuid4().hex
        self._numbers = itertools.count(1)
        self._protocol: Any = None
        self._stream: Optional[AsyncStream] = None
        self._reader: Optional[AsyncWorker] = None
        self._lock = AsyncLock()  # for the protocol's state and the order of what is sent
        self._calls: Dict[str, _Call] = {}
        self._listeners: Dict[int, Tuple[Command, Listener]] = {}
        self._parts: List[bytes] = []
        self._text = False
        self._failure: Optional[str] = None

    @property
    def usable(self) -> bool:
        """Whether requests can be sent on it."""
        return self._stream is not None and self._failure is None

    # ------------------------------------------------------------------------------------------ beginning

    async def connect(self, timeout: float) -> None:
        """Connect. Raises `CONNECTION_FAILED`, or what the service refused it with."""
        deadline = monotonic() + timeout
        target = self.target
        uri = parse_uri(f"{'ws' if self._context is None else 'wss'}://{target.authority}{PATH}")
        protocol = self._protocol = ClientProtocol(uri, max_size=MAX_ANSWER)
        request = protocol.connect()
        request.headers["User-Agent"] = f"synap-client/{__version__}"
        if self.config.api_key is not None:
            request.headers["X-API-Key"] = self.config.api_key
        protocol.send_request(request)
        stream: Optional[AsyncStream] = None
        try:
            stream = await AsyncStream.connect(target.host, target.port, self._context, timeout)
            await stream.send(b"".join(protocol.data_to_send()), deadline - monotonic())
            events: List[Any] = []
            while not events:
                data = await stream.receive(CHUNK, deadline - monotonic())
                if data:
                    protocol.receive_data(data)
                else:
                    protocol.receive_eof()
                events = protocol.events_received()
                if not data and not events:
                    raise self._refusal(None)
            if protocol.handshake_exc is not None:
                raise self._refusal(events[0])
        except (OSError, UnicodeError) as error:
            if stream is not None:
                stream.abort()
            raise error if isinstance(error, SynapError) else errors.failed(self.place, error) from None
        except BaseException:
            if stream is not None:
                stream.abort()
            raise
        self._stream = stream
        self._reader = async_spawn(self._read, stream, events[1:], name="synap websocket")

    def _refusal(self, response: Optional[Response]) -> SynapError:
        """Build the error for a service that doesn't let us in."""
        if response is None:
            why = self._protocol.handshake_exc
            return errors.failed(self.place, "no WebSocket there" if why is None else f"no WebSocket there: {why}")
        content_type = response.headers.get("Content-Type", "")
        try:
            envelope: Any = JSON.decode(response.body or b"") if content_type.startswith("application/json") else None
            error = envelope["error"]
            return from_wire(error["code"], error["message"], error.get("details"))
        except (MsgspecError, ValueError, TypeError, KeyError, RecursionError):
            text = f"no WebSocket there, it answered {response.status_code}"
            if response.status_code in (401, 403):
                return from_wire("UNAUTHORIZED" if response.status_code == 401 else "FORBIDDEN", text)
            return errors.failed(self.place, text)

    # ------------------------------------------------------------------------------------------ requests

    async def subscribe(
        self, command: Command, payload: Struct, listener: Listener, timeout: Optional[float]
    ) -> Tuple[Any, Any]:
        """Subscribe; returns what `AsyncHttpLane.unsubscribe` takes, and the answer."""
        call = _Call(command, listener)
        answer = await self._request(call, self.codec.encode_payload(command, payload), timeout)
        return (self, answer.subscription_id), answer

    async def unsubscribe(self, subscription_id: int, timeout: Optional[float]) -> None:
        """End a subscription; silent where the connection is gone."""
        found = self._listeners.pop(subscription_id, None)
        if found is not None and self.usable:
            command = _ending_command(found[0])
            body = self.codec.encode_payload(command, command.payload(subscription_id))
            try:
                await self._request(_Call(command, None), body, timeout)
            except SynapError:
                pass  # it has ended anyhow, or ends with the connection

    async def _request(self, call: _Call, body: bytes, timeout: Optional[float]) -> Any:
        request_id = f"{self._session}:{next(self._numbers)}"
        self._calls[request_id] = call
        sent = given_up = False
        try:
            if not self.usable:
                raise errors.failed(self.place, self._failure or "the connection is closed")
            message = self._wire.request(request_id, call.command, body)
            async with self._lock:
                self._enqueue(message)
                sent = True
                await self._flush(timeout)
            return await call.promise.wait(timeout)
        except SynapError:
            raise
        except (OSError, WebSocketException) as error:
            if not isinstance(error, TimeoutError):
                raise errors.lost(call.command, sent, error) from None
            given_up = sent and call.promise.fail(error)
            if sent and not given_up:
                return await call.promise.wait()  # the answer came in the last moment
            raise errors.timed_out(call.command, sent, timeout) from None
        except BaseException as error:
            given_up = sent and call.promise.fail(error)
            if sent and not given_up:
                await self._undo(call)
            raise
        finally:
            # The answer to a call that was given up may still come: a subscription nobody wants must be ended then.
            if not given_up:
                self._calls.pop(request_id, None)

    async def _undo(self, call: _Call) -> None:
        """End the subscription of a call that was answered and cancelled at once."""
        try:
            answer = await call.promise.wait()
        except SynapError:
            return
        if call.listener is not None and self._listeners.pop(answer.subscription_id, None) is not None:
            async_spawn(self._drop, _ending_command(call.command), answer.subscription_id, name="synap unsubscribe")

    def _enqueue(self, message: bytes) -> None:
        if self.codec.format == "json":
            self._protocol.send_text(message)
        else:
            self._protocol.send_binary(message)

    async def _flush(self, timeout: Optional[float]) -> None:
        assert self._stream is not None
        data = b"".join(self._protocol.data_to_send())
        if data:
            await self._stream.send(data, timeout)

    # ------------------------------------------------------------------------------------------ what comes in

    async def _read(self, stream: AsyncStream, early: List[Any]) -> None:
        reason: Union[str, BaseException, None] = None
        asked = False
        try:
            await self._receive(early)
            reason = self._ending(b"early")
            while reason is None:
                try:
                    data = await stream.receive(CHUNK, self._silence)
                except TimeoutError:
                    if asked:
                        reason = f"not a word for {2 * self._silence:g} seconds"
                        break
                    asked = True
                    async with self._lock:
                        self._protocol.send_ping(b"")
                        await self._flush(self._silence)
                    continue
                asked = False
                async with self._lock:
                    if data:
                        self._protocol.receive_data(data)
                    else:
                        self._protocol.receive_eof()
                    await self._flush(self._silence)
                    events = self._protocol.events_received()
                    reason = self._ending(data)
                await self._receive(events)
        except _Nonsense as error:
            reason = str(error)
        except (OSError, WebSocketException) as error:
            reason = error
        finally:
            stream.abort()
            self._lost(errors.why(reason) if not isinstance(reason, str) else reason)

    def _ending(self, data: bytes) -> Optional[str]:
        """Say why nothing more will come, None where more will."""
        protocol = self._protocol
        if protocol.parser_exc is not None and data:
            return f"not WebSocket as it should be: {protocol.parser_exc}"
        if protocol.close_rcvd is not None:
            said = protocol.close_rcvd
            return f"the service closed it ({said.code}{' ' + said.reason if said.reason else ''})"
        return None if data else "the other side closed the connection"

    async def _receive(self, frames: List[Any]) -> None:
        for frame in frames:
            for command, subscription_id in self._take(frame):
                await self._drop(command, subscription_id)

    def _take(self, frame: Frame) -> List[Tuple[Command, int]]:
        """Take a frame; returns how to end the subscriptions that it tells of and nobody wants."""
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._text = frame.opcode is Opcode.TEXT
        elif frame.opcode is not Opcode.CONT:
            return []
        self._parts.append(bytes(frame.data))
        if not frame.fin:
            return []
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        wire = WIRES["json" if self._text else "msgpack"]
        try:
            inbound = wire.read(body)
            if inbound.type == "event" or inbound.type == "message":
                found = self._listeners.get(inbound.subscription_id)
                if found is not None:
                    decode = wire.codec.decode_event if inbound.type == "event" else wire.codec.decode_message
                    found[1].push(decode(body))
            elif inbound.type == "response":
                return self._answered(inbound, wire.codec)
            elif inbound.type == "ended":
                found = self._listeners.pop(inbound.subscription_id, None)
                if found is not None:
                    found[1].ended(_error(inbound))
            return []
        except (SynapError, MsgspecError, ValueError, RecursionError) as error:
            raise _Nonsense(f"not a message of this protocol: {error}") from None

    def _answered(self, inbound: Inbound, codec: Codec) -> List[Tuple[Command, int]]:
        call = self._calls.pop(inbound.request_id, None)
        if call is None:
            if inbound.error is not None and not inbound.request_id:
                raise _error(inbound)
            return []
        if inbound.error is not None:
            call.promise.fail(_error(inbound))
            return []
        answer = codec.decode_result(call.command, inbound.payload)
        if call.listener is not None:
            # Before the next frame is looked at, which may be the first push.
            self._listeners[answer.subscription_id] = (call.command, call.listener)
        if not call.promise.resolve(answer) and call.listener is not None:
            del self._listeners[answer.subscription_id]
            return [(_ending_command(call.command), answer.subscription_id)]
        return []

    async def _drop(self, command: Command, subscription_id: int) -> None:
        """End a subscription that nobody waits for any more."""
        body = self.codec.encode_payload(command, command.payload(subscription_id))
        message = self._wire.request(f"{self._session}:{next(self._numbers)}", command, body)
        try:
            async with self._lock:
                self._enqueue(message)
                await self._flush(self._silence)
        except (OSError, WebSocketException):
            pass  # it ends with the connection

    # ------------------------------------------------------------------------------------------ ending

    def _lost(self, reason: str) -> None:
        """The connection is gone: tell everybody, once."""
        if self._failure is not None:
            return
        self._failure = reason
        calls, self._calls = self._calls, {}
        listeners, self._listeners = self._listeners, {}
        for call in calls.values():
            call.promise.fail(errors.lost(call.command, True, reason))
        for _, listener in listeners.values():
            listener.lost(ConnectionError("CONNECTION_LOST", f"the connection was lost: {reason}"))

    async def close(self) -> None:
        """Say goodbye and let go. Calls under way fail; listeners are not told, they belong to who closes."""
        self._listeners = {}
        stream, reader = self._stream, self._reader
        if stream is None or self._failure is not None:
            return
        self._lost("the client was closed")
        try:
            async with self._lock:
                self._protocol.send_close(1000)
                await self._flush(1.0)
        except (OSError, WebSocketException):
            pass  # gone already
        await stream.close()
        if reader is not None and not reader.is_current:
            await reader.join(1.0)

    def abandon(self) -> None:
        """Forget the connection without a word on it."""
        self._failure = "it belongs to another process"
        self._calls, self._listeners = {}, {}
        if self._stream is not None:
            self._stream.detach()


class _Nonsense(Exception):
    """Something came that is no message of this protocol."""


def _ending_command(command: Command) -> Command:
    """Find the command that ends a subscription which `command` made."""
    return STREAM_UNSUBSCRIBE if command is STREAM_SUBSCRIBE else PUBSUB_UNSUBSCRIBE


def _error(inbound: Inbound) -> SynapError:
    error = inbound.error
    if error is None:
        return SynapError("INTERNAL_ERROR", "the service ended it without saying why")
    return from_wire(error.code, error.message, error.details)
