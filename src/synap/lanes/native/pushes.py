"""The sync client's connection for subscriptions, and the thread that reads it."""

from __future__ import annotations

import logging
import threading
import uuid
import weakref
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Callable, Optional, Set, Tuple

from msgspec import Struct

from synap.commands import Command
from synap.errors import SynapError
from synap.lanes.errors import client_closed, no_reader, subscription_lost
from synap.lanes.io.threads import LONGEST
from synap.lanes.native.blocking import BlockingConnection, Outcome
from synap.wire.compression import WORTH
from synap.wire.conversation import SILENCE, Fault, Listener
from synap.wire.frames import Kind, frame
from synap.wire.outcomes import decoded, lost, timed_out, why

if TYPE_CHECKING:
    from synap.lanes.native.lane import NativeLane


log = logging.getLogger("synap.client")


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


class _Reader:
    """One connection and its reader thread, which holds no reference to the lane or the client."""

    def __init__(self, connection: BlockingConnection, ended: Callable[[_Reader, str], None]) -> None:
        self.connection = connection
        self.conversation = connection.conversation
        self._ended = weakref.WeakMethod(ended)
        self.over = False
        try:
            threading.Thread(target=self._read, name="synap-reader", daemon=True).start()
        except RuntimeError as error:  # there are as many as there may be
            connection.close()
            raise no_reader(error) from None

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
            if not outcome.known.wait(min(timeout, LONGEST)):
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
                    self.connection.flush(monotonic() + SILENCE)
                    self.connection.receive(due)
                except TimeoutError:
                    continue
        except (OSError, Fault) as error:
            self._end(why(error))
        except Exception as error:  # else subscriptions would get nothing more, in silence
            log.exception("the reader of a connection failed")
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
    """The connection for subscriptions, opened with the first one and kept."""

    def __init__(self, lane: NativeLane) -> None:
        self._lane = weakref.proxy(lane)
        self._guard = threading.Lock()
        """Held while a connection is opened, and to take a number."""
        self._change = threading.Lock()
        """Held to replace the connection, for a moment only."""
        self._session = uuid.uuid4().hex
        self._number = 0
        self._reader: Optional[_Reader] = None
        self._readers: Set[_Reader] = set()
        """All whose connections are there: the current one, and those that the service lets end by themselves."""

    @property
    def open(self) -> bool:
        """Whether there is a connection."""
        return bool(self._readers)

    def subscribe(self, command: Command, payload: Struct, listener: Listener, deadline: float) -> Tuple[Any, Any]:
        """Subscribe; returns a handle and the answer."""
        lane = self._lane
        body = lane.codec.encode_payload(command, payload)
        reader, number = self._open_and_number(deadline)
        reader.conversation.subscribing(command, number, listener)
        try:
            received = reader.request(command, number, body, deadline)
            answer = decoded(command, lane.codec.results[command.name], received)
        except BaseException:
            reader.conversation.withdraw(number)
            raise
        return (reader, command, answer.subscription_id), answer

    def _open_and_number(self, deadline: float) -> Tuple[_Reader, int]:
        """Return an open connection, and a number for a request."""
        first = False
        try:
            with self._guard:
                reader = self._reader
                if reader is None or not reader.conversation.open:
                    connection, first = self._lane.open(self._session, deadline)
                    reader = _Reader(connection, self._ended)
                    with self._change:
                        self._reader = reader
                        if not reader.over:
                            self._readers.add(reader)
                    if self._lane.closed:  # while it connected
                        self.close()
                        raise client_closed()
                self._number += 1
                return reader, self._number
        finally:
            if first:
                self._lane.connected()

    def unsubscribe(self, handle: Any) -> None:
        """End a subscription."""
        reader, command, subscription_id = handle
        ending, body = reader.conversation.unsubscribing(command, subscription_id)
        if not reader.conversation.open:
            return
        with self._guard:
            self._number += 1
            number = self._number
        with suppress(SynapError):  # the connection is gone, and the subscription with it
            reader.request(ending, number, body, monotonic() + self._lane.config.timeout)

    def close(self) -> None:
        """Close the connections; the reader threads end."""
        with self._change:
            readers, self._readers = self._readers, set()
            self._reader = None
        for reader in readers:
            reader.connection.close()

    def abandon(self) -> None:
        """Drop the connections: they belong to the parent process."""
        for reader in self._readers:
            reader.connection.stream.detach()
        self._readers.clear()
        self._reader = None

    def _ended(self, reader: _Reader, reason: str) -> None:
        with self._change:
            self._readers.discard(reader)
            current = self._reader is reader
            if current:
                self._reader = None
        if current:
            self._lane.ended(reason)
