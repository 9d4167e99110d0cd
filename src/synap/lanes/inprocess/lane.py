"""The lane without a socket, for threads: `memory://`, `file://` and clusters."""

from __future__ import annotations

import threading
from contextlib import suppress
from itertools import count
from time import monotonic
from typing import Any, Callable, Dict, Optional, Tuple

from msgspec import Struct

from synap.commands import Command
from synap.config import ClientConfig, Target
from synap.errors import SynapError
from synap.host.inprocess import enter
from synap.lanes._sync.base import Lane
from synap.lanes.errors import client_closed, no_reader
from synap.lanes.inprocess.attachment import Attachment, enter_arguments
from synap.lanes.inprocess.session import PushedSession, Waiter
from synap.lanes.inprocess.uninterrupted import Uninterrupted
from synap.wire.codec import Codec
from synap.wire.conversation import Listener
from synap.wire.outcomes import timed_out


class _ThreadWaiter(Waiter):
    """A waiting thread."""

    def __init__(self, listener: Optional[Listener] = None) -> None:
        super().__init__(listener)
        # Not an event: an exception of a signal handler in the middle of its `wait` makes that raise another one.
        self._unsettled = threading.Lock()
        self._unsettled.acquire()
        self._answer: Any = None
        self._error: Optional[SynapError] = None

    def settle(self, answer: Any, error: Optional[SynapError]) -> None:
        self._answer = answer
        self._error = error
        with suppress(RuntimeError):  # it was settled already
            self._unsettled.release()

    def wait(self, command: Command, began: float, timeout: float) -> Any:
        left = began + timeout - monotonic()
        if not self._unsettled.acquire(timeout=min(max(left, 0.0), threading.TIMEOUT_MAX)):
            raise timed_out(command, True, timeout)
        if self._error is not None:
            raise self._error.copy()
        return self._answer


def _here(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


class LocalLane(Lane):
    """Reaches an engine in this process, from any thread.

    A directory's runs where no signal handler can interrupt it: what is half done in memory would contradict the log.
    """

    def __init__(self, config: ClientConfig, target: Target, codec: Codec) -> None:
        super().__init__(config, target, codec)
        self._attachment: Optional[Attachment] = None
        self._guard = threading.Lock()
        self._pushed: Optional[PushedSession] = None
        self._number = count(1).__next__
        self._apart: Optional[Uninterrupted] = Uninterrupted(self) if target.scheme == "file" else None
        self._run: Callable[..., Any] = self._apart or _here

    def connect(self, deadline: float) -> None:
        self._enter()

    def _enter(self) -> Attachment:
        attachment: Attachment = self._attachment or self._run(self._attach)
        return attachment

    def _attach(self) -> Attachment:
        with self._guard:
            attachment = self._attachment
            if attachment is not None:
                return attachment
            if self.closed:
                raise client_closed()
            local = enter(*enter_arguments(self.config, self.target))
            attachment = self._attachment = Attachment(local, self.codec, self)
        self.connected()
        return attachment

    def ticket(self) -> int:
        return self._number()

    def drop(self, ticket: Any) -> None:
        if self._attachment is not None:
            self._attachment.open.discard(ticket)

    def call(self, command: Command, payload: Struct, ticket: Any, began: float, timeout: float) -> Any:
        attachment = self._attachment
        if attachment is None:
            attachment = self._enter()
        answer = attachment.begin(command, payload, ticket, _ThreadWaiter, self._apart)
        if type(answer) is _ThreadWaiter:
            try:
                answer = answer.wait(command, began, timeout)
            except BaseException as error:
                self._run(attachment.failed, ticket, error)
                raise
        return attachment.result(command, answer)

    def subscribe(self, command: Command, payload: Struct, listener: Listener, deadline: float) -> Tuple[Any, Any]:
        attachment = self._enter()
        body = self.codec.encode_payload(command, payload)
        session = self._run(self._pushed_here, attachment)
        waiter = _ThreadWaiter(listener)
        try:
            self._run(attachment.subscribe, session, command, self._number(), body, waiter)
            answer = waiter.wait(command, monotonic(), max(deadline - monotonic(), 0.0))
        except BaseException:
            self._run(attachment.unsubscribe_late, session, waiter)
            raise
        return (attachment, session, answer.subscription_id), attachment.result(command, answer)

    def _pushed_here(self, attachment: Attachment) -> PushedSession:
        """Return the session for pushes, which are handed out on a thread of its own."""
        with self._guard:
            session = self._pushed
            if session is None:
                if self.closed:
                    raise client_closed()
                bell = threading.Event()
                session = PushedSession(attachment.host, attachment.codec, bell.set)
                reader = threading.Thread(
                    target=_read, args=(session, attachment.lock, bell), name="synap-reader", daemon=True
                )
                try:
                    reader.start()
                except RuntimeError as error:  # there are as many as there may be
                    raise no_reader(error) from None
                attachment.sessions.append(session)
                self._pushed = session
        return session

    def unsubscribe(self, handle: Any) -> None:
        attachment, session, subscription_id = handle
        self._run(attachment.unsubscribe, session, subscription_id)

    def health(self, deadline: float) -> Dict[str, Any]:
        health: Dict[str, Any] = self._run(self._enter().health)
        return health

    def close(self) -> None:
        self._run(self._leave)
        if self._apart is not None:
            self._apart.end()

    def _leave(self) -> None:
        with self._guard:
            self.closed = True
            attachment, self._attachment = self._attachment, None
            pushed, self._pushed = self._pushed, None
        if pushed is not None:
            pushed.stop()
        if attachment is not None:
            attachment.leave()
            self.disconnected("the client was closed")

    def abandon(self) -> None:
        self._guard = threading.Lock()
        self._pushed = None
        if self._apart is not None:
            self._run = self._apart = Uninterrupted(self)
        if self._attachment is not None and not self._attachment.inherited():
            self._attachment = None


def _read(session: PushedSession, lock: threading.Lock, bell: threading.Event) -> None:
    """Hand out pushed items until the session is stopped."""
    hand_out = session.hand_out_with(lock)
    while not session.stopped:
        bell.wait()
        bell.clear()
        hand_out()
