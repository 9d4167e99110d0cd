"""The sync client's connection for subscriptions, and the thread that reads it."""

from __future__ import annotations

import threading
import uuid
import weakref
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Callable, Optional, Tuple

from msgspec import Struct

from synap.commands import Command
from synap.errors import SynapError
from synap.lanes.errors import client_closed, subscription_lost
from synap.lanes.native.blocking import BlockingConnection, Outcome
from synap.wire.compression import WORTH
from synap.wire.conversation import SILENCE, Fault, Listener
from synap.wire.frames import Kind, frame
from synap.wire.outcomes import decoded, lost, timed_out, why

if TYPE_CHECKING:
    from synap.lanes.native.lane import NativeLane

__all__ = ["Pushes"]


class _AwaitedOutcome(Outcome):
    """An outcome that the reader thread sets, and the thread that sent the request waits for."""

    __slots__ = ("known",)

    def __init__(self, command: Command) -> None:
        super().__init__(command)
        self.known = threading.Event()

    def answer(self, body: bytes) -> None:
        super().answer(body)
        self.known.set()

    def fail(self, error: BaseException) -> None:
        super().fail(error)
        self.known.set()


class _PushConnection:
    """One connection and its reader thread, which holds no reference to the lane or the client."""

    def __init__(self, connection: BlockingConnection, ended: Callable[[_PushConnection, str], None]) -> None:
        self.connection = connection
        self.conversation = connection.conversation
        self._ended = weakref.WeakMethod(ended)
        self.over = False
        threading.Thread(target=self._read, name="synap-reader", daemon=True).start()

    def request(self, command: Command, number: int, body: bytes, deadline: float) -> bytes:
        """Send a request; returns the body of its answer."""
        flags = 0
        if len(body) >= WORTH:
            body, flags = self.conversation.fit(body, 0)
        outcome = self.conversation.calls[number] = _AwaitedOutcome(command)
        sent = False
        timeout = max(deadline - monotonic(), 0.0)
        try:
            self.connection.send(frame(Kind.REQUEST, number, body, command.code, flags), deadline)
            sent = True
            if self.over and not outcome.answered:  # the reader may have ended before it saw the request
                raise lost(command, True, None)
            if not outcome.known.wait(timeout):
                raise timed_out(command, True, timeout)
            if outcome.error is not None:
                raise outcome.error
            return outcome.body
        except SynapError:
            raise
        except TimeoutError:
            raise timed_out(command, sent, timeout) from None
        except OSError as error:
            raise lost(command, sent, error) from None
        finally:
            self.conversation.calls.pop(number, None)

    def _read(self) -> None:
        try:
            while True:
                try:
                    due = self.conversation.watch(monotonic())
                    self.connection.speak(monotonic() + SILENCE)
                    self.connection.receive(due)
                except TimeoutError:
                    continue
        except (OSError, Fault) as error:
            self._end(why(error))

    def _end(self, reason: str) -> None:
        self.over = True
        listeners = self.conversation.end(reason)
        self.connection.stream.close()
        ended = self._ended()
        if ended is not None:
            ended(self, reason)
        for listener in listeners:
            listener.lost(subscription_lost(reason))


class Pushes:
    """Opens that connection with the first subscription, and keeps it."""

    def __init__(self, lane: NativeLane) -> None:
        self._lane = weakref.proxy(lane)
        self._guard = threading.Lock()
        """Held while a connection is opened, and to take a number."""
        self._change = threading.Lock()
        """Held to put another connection in place of one, or none, for a moment."""
        self._session = uuid.uuid4().hex
        self._number = 0
        self._reading: Optional[_PushConnection] = None

    @property
    def open(self) -> bool:
        """Whether there is a connection."""
        return self._reading is not None

    def subscribe(self, command: Command, payload: Struct, listener: Listener, deadline: float) -> Tuple[Any, Any]:
        """Subscribe; returns a handle and the answer."""
        lane = self._lane
        body = lane.codec.encode_payload(command, payload)
        reading, number = self._open_and_number(deadline)
        reading.conversation.subscribing(command, number, listener)
        try:
            received = reading.request(command, number, body, deadline)
            answer = decoded(command, lane.codec.results[command.name], received)
        except BaseException:
            reading.conversation.withdraw(number)
            raise
        return (reading, command, answer.subscription_id), answer

    def _open_and_number(self, deadline: float) -> Tuple[_PushConnection, int]:
        """Return an open connection, and a number for a request."""
        with self._guard:
            reading = self._reading
            if reading is None or not reading.conversation.open:
                connection = self._lane.open(self._session, deadline)
                reading = _PushConnection(connection, self._ended)
                with self._change:
                    self._reading = reading
                if self._lane.closed:  # while it connected
                    self.close()
                    raise client_closed()
            self._number += 1
            return reading, self._number

    def unsubscribe(self, handle: Any) -> None:
        """End a subscription."""
        reading, command, subscription_id = handle
        ending, body = reading.conversation.unsubscribing(command, subscription_id)
        if not reading.conversation.open:
            return
        with self._guard:
            self._number += 1
            number = self._number
        with suppress(SynapError):  # the connection is gone, and the subscription with it
            reading.request(ending, number, body, monotonic() + self._lane.config.timeout)

    def close(self) -> None:
        """Close the connection; the reading thread ends."""
        with self._change:
            reading, self._reading = self._reading, None
        if reading is not None:
            reading.connection.close()

    def abandon(self) -> None:
        """Drop the connection: it belongs to the parent process."""
        if self._reading is not None:
            self._reading.connection.stream.detach()
            self._reading = None

    def _ended(self, reading: _PushConnection, reason: str) -> None:
        with self._change:
            current = self._reading is reading
            if current:
                self._reading = None
        if current:
            self._lane.ended(reason)
