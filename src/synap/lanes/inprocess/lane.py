"""The lane without a socket: `memory://`, `file://` and clusters.

Payloads and answers are encoded and decoded as on every other lane, so the same values are accepted, refused and
copied; only `kv.get`, which is called in tight loops, skips the steps that could not change anything. Most requests are
answered within the call; those that wait (for a message, for the disk) are answered from the thread that produces the
answer.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
import weakref
from contextlib import suppress
from itertools import count
from time import monotonic
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from msgspec import Struct

from synap.commands import KV_GET, Command, GetAnswer
from synap.config import CLUSTERS, ClientConfig, Target
from synap.errors import SynapError
from synap.host.inprocess import LocalHost, drop, enter, enter_here, leave
from synap.lanes._async.base import AsyncLane
from synap.lanes._sync.base import Lane
from synap.lanes.errors import closed
from synap.lanes.inprocess.deadlines import Deadlines
from synap.lanes.inprocess.session import PENDING, LocalSession, PushedSession, Waiter
from synap.results import GetResult
from synap.wire.codec import Codec
from synap.wire.conversation import Listener
from synap.wire.frames import MAX_BODY
from synap.wire.outcomes import timed_out, too_large
from synap.wire.values import read

__all__ = ["AsyncLocalLane", "LocalLane"]


class _Place:
    """A lane's use of one engine: its sessions."""

    def __init__(self, local: LocalHost, codec: Codec, owner: object) -> None:
        self.local = local
        self.loop = local.loop
        self.lock = local.lock
        self.host = local.host
        self.codec = codec
        self.session = LocalSession(local.host, codec, "")
        self.consumer = LocalSession(local.host, codec, uuid.uuid4().hex)
        """Consumes use a named session, so that the engine can take back a message that nobody received."""
        self.sessions: List[LocalSession] = [self.session, self.consumer]
        self.open: Set[int] = set()
        """Requests whose outcome is unknown. Repeated, they are answered as before if they were executed."""
        self._dropped = weakref.finalize(owner, drop, local, self.sessions)
        self._dropped.atexit = False

    def begin(self, command: Command, payload: Any, number: int, make: Callable[[], Waiter]) -> Any:
        """Execute a request; returns its result, or a waiter where it has to wait. Raises its error."""
        decoded = command is KV_GET and _is_plain(payload.key)
        body = payload if decoded else self.codec.encode_payload(command, payload)
        if not decoded and len(body) > MAX_BODY:
            raise too_large(len(body), MAX_BODY)
        session = self.session
        host = self.host
        if command.leases or (command.settles and payload.lease is None) or (host.remembers and command.has_effects):
            session = self.consumer
        with self.lock:
            session.outcome = PENDING
            host.execute(session, number, command, body, number in self.open, decoded=decoded)
            host.end_turn()
            outcome = session.outcome
            if outcome is PENDING:
                waiter = session.waiters[number] = make()
                return waiter
            error, session.error = session.error, None
        if error is not None:
            raise error
        return self.result(command, outcome)

    def result(self, command: Command, answer: Any) -> Any:
        """Convert an answer to the client's result."""
        codec = self.codec
        if type(answer) is GetAnswer:
            # The same as encoding and decoding: JSON reads the same in both formats, MessagePack only in its own.
            value = answer.value
            if value is None:
                return GetResult(False)
            if value[0] < 0x80 or codec.format == "msgpack":
                return GetResult(True, read(value), answer.ttl)
        return codec.decode_result(command, codec.encode_answer(answer))

    def subscribe(self, session: PushedSession, command: Command, number: int, body: bytes, waiter: Waiter) -> None:
        """Request a subscription; `waiter`, which has the listener, gets the answer."""
        with self.lock:
            session.waiters[number] = waiter
            self.host.execute(session, number, command, body)
            self.host.end_turn()

    def unsubscribe(self, session: PushedSession, subscription_id: int) -> None:
        """End a subscription; its listener gets only items that were in flight already."""
        with self.lock:
            session.listeners.pop(subscription_id, None)
            self.host.unsubscribe(session, subscription_id)
            self.host.end_turn()

    def unsubscribe_late(self, session: PushedSession, waiter: Waiter) -> None:
        """End a subscription whose request was abandoned: now, or as soon as it is made."""
        waiter.listener = None
        if waiter.subscribed is not None:
            self.unsubscribe(session, waiter.subscribed)

    def failed(self, command: Command, number: int, error: BaseException) -> None:
        """Withdraw an abandoned request, or remember that its outcome is unknown."""
        if not isinstance(error, SynapError) or error.code == "TIMEOUT":
            self._withdraw(number)
        elif error.may_have_happened:
            self.open.add(number)

    def _withdraw(self, number: int) -> None:
        """Withdraw a request, and the message it may have leased."""
        with self.lock:
            for session in (self.session, self.consumer):
                if session.waiters.pop(number, None) is not None or session is self.consumer:
                    self.host.cancel(session, number)
            self.host.end_turn()

    def leave(self) -> None:
        """Leave the engine: waiting requests fail, subscriptions end."""
        if self._dropped.detach() is None:
            return
        with self.lock:
            for session in self.sessions:
                session.fail_waiters("the client was closed")
        leave(self.local, self.sessions)

    def inherited(self) -> bool:
        """Return, in a forked child, whether it has a copy of the engine to use."""
        for session in self.sessions:
            session.waiters.clear()
            session.listeners.clear()
            if not self.local.durable:  # no other thread is here, and the lock is held while the process forks
                self.host.leave(session)
        if self.local.durable:
            self._dropped.detach()
        return not self.local.durable


def _options(config: ClientConfig) -> Dict[str, Any]:
    return {"fsync": config.fsync, **(config.engine or {})}


def _is_plain(key: Any) -> bool:
    """Return whether a key survives encoding and decoding unchanged: a valid one in ASCII."""
    return type(key) is str and key.isascii() and 0 < len(key) <= 1024


# ------------------------------------------------------------------------------------------ async


class _AsyncWaiter(Waiter):
    """A waiting task, in its event loop."""

    def __init__(self, deadlines: Deadlines, listener: Optional[Listener] = None) -> None:
        super().__init__(listener)
        self.deadlines = deadlines
        self.loop = deadlines.loop
        self.thread = threading.get_ident()
        self.future: asyncio.Future[Any] = self.loop.create_future()

    def settle(self, answer: Any, error: Optional[SynapError]) -> None:
        if threading.get_ident() == self.thread:
            self._settle(answer, error)
            return
        with suppress(RuntimeError):  # the loop is closed, and its tasks are gone
            self.loop.call_soon_threadsafe(self._settle, answer, error)

    def _settle(self, answer: Any, error: Optional[SynapError]) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(answer)
        else:
            self.future.set_exception(error.copy())

    async def wait(self, command: Command, began: float, timeout: Optional[float]) -> Any:
        if timeout is None or self.future.done():
            return await self.future
        self.deadlines.add(self, command, began, timeout)
        try:
            return await self.future
        finally:
            self.deadlines.withdraw(self)


class AsyncLocalLane(AsyncLane):
    """Reaches an engine in this process, from any event loop."""

    def __init__(self, config: ClientConfig, target: Target, codec: Codec) -> None:
        super().__init__(config, target, codec)
        self._place: Optional[_Place] = None
        self._elsewhere: Optional[_Place] = None
        """For event loops other than the one that a cluster's host runs in."""
        self._pushed: Dict[asyncio.AbstractEventLoop, PushedSession] = {}
        self._number = count(1).__next__
        self._deadlines: Optional[Deadlines] = None
        """Of the event loop that called last."""

    async def connect(self, deadline: Optional[float] = None) -> None:
        await self._enter()

    async def _enter(self) -> _Place:
        place = self._here()
        if place is not None:
            return place
        if self.closed:
            raise closed()
        target, config = self.target, self.config
        loop = asyncio.get_running_loop()
        if target.scheme == "memory":
            local = enter("memory", target.path, _options(config), config.clock)
        elif target.scheme in CLUSTERS and self._place is None:
            local = await enter_here(target.scheme, target.path, _options(config))
        else:  # reading a directory takes its time, and so does reaching a cluster from a second event loop
            entering = loop.run_in_executor(None, enter, target.scheme, target.path, _options(config), config.clock)
            try:
                local = await asyncio.shield(entering)
            except asyncio.CancelledError:
                entering.add_done_callback(_leave_again)
                raise
        place = self._here()
        if place is not None or self.closed:  # another task was faster, or `close()`
            await loop.run_in_executor(None, leave, local)
            if place is None:
                raise closed()
            return place
        place = _Place(local, self.codec, self)
        if self._place is None:
            self._place = place
            self.connected()
        else:
            self._elsewhere = place
        return place

    def _here(self) -> Optional[_Place]:
        """Return the place that can be used from the running event loop; None where there is none yet."""
        place = self._place
        if place is None or place.loop is None or place.loop is asyncio.get_running_loop():
            return place
        return self._elsewhere

    def ticket(self) -> int:
        return self._number()

    def drop(self, ticket: Any) -> None:
        if self._place is not None:
            self._place.open.discard(ticket)

    def _waiter(self, listener: Optional[Listener] = None) -> _AsyncWaiter:
        loop = asyncio.get_running_loop()
        deadlines = self._deadlines
        if deadlines is None or deadlines.loop is not loop:
            deadlines = self._deadlines = Deadlines(loop)
        return _AsyncWaiter(deadlines, listener)

    async def call(self, command: Command, payload: Struct, ticket: Any, began: float, timeout: Optional[float]) -> Any:
        place = self._place
        if place is None or place.loop is not None:
            place = self._here() or await self._enter()
        result = place.begin(command, payload, ticket, self._waiter)
        if type(result) is not _AsyncWaiter:
            return result
        try:
            answer = await result.wait(command, began, timeout)
        except BaseException as error:
            place.failed(command, ticket, error)
            raise
        return place.result(command, answer)

    async def subscribe(
        self, command: Command, payload: Struct, listener: Listener, deadline: float
    ) -> Tuple[Any, Any]:
        place = await self._enter()
        session = self._pushed_here(place)
        body = self.codec.encode_payload(command, payload)
        waiter = self._waiter(listener)
        place.subscribe(session, command, self._number(), body, waiter)
        try:
            answer = await waiter.wait(command, monotonic(), max(deadline - monotonic(), 0.0))
        except BaseException:
            place.unsubscribe_late(session, waiter)
            raise
        return (place, session, answer.subscription_id), place.result(command, answer)

    def _pushed_here(self, place: _Place) -> PushedSession:
        """Return the session for pushes to the running event loop."""
        loop = asyncio.get_running_loop()
        for former in [former for former in self._pushed if former.is_closed()]:
            del self._pushed[former]
        session = self._pushed.get(loop)
        if session is None:
            thread = threading.get_ident()

            def wake() -> None:
                try:
                    if threading.get_ident() == thread:
                        loop.call_soon(hand_out)
                    else:
                        loop.call_soon_threadsafe(hand_out)
                except RuntimeError:
                    pass  # the loop is closed

            session = self._pushed[loop] = PushedSession(place.host, place.codec, wake)
            hand_out = session.hand_out_with(place.lock)
            place.sessions.append(session)
        return session

    async def unsubscribe(self, handle: Any) -> None:
        place, session, subscription_id = handle
        place.unsubscribe(session, subscription_id)

    async def health(self, deadline: float) -> Dict[str, Any]:
        place = await self._enter()
        with place.lock:
            return place.host.health()

    async def close(self) -> None:
        self.closed = True
        places = [place for place in (self._place, self._elsewhere) if place is not None]
        self._place = self._elsewhere = None
        self._pushed.clear()
        for place in places:
            if place.local.durable:  # waits for the disk
                await asyncio.get_running_loop().run_in_executor(None, place.leave)
            else:
                place.leave()
            self.disconnected("the client was closed")

    def abandon(self) -> None:
        self._pushed.clear()
        if self._elsewhere is not None:
            self._elsewhere.inherited()
        self._elsewhere = None
        if self._place is not None and not self._place.inherited():
            self._place = None


def _leave_again(entering: asyncio.Future[LocalHost]) -> None:
    """Leave an engine whose opening was abandoned."""
    if not entering.cancelled() and entering.exception() is None:
        leave(entering.result())


# ------------------------------------------------------------------------------------------ sync


class _ThreadWaiter(Waiter):
    """A waiting thread."""

    def __init__(self, listener: Optional[Listener] = None) -> None:
        super().__init__(listener)
        self._settled = threading.Event()
        self._answer: Any = None
        self._error: Optional[SynapError] = None

    def settle(self, answer: Any, error: Optional[SynapError]) -> None:
        self._answer = answer
        self._error = error
        self._settled.set()

    def wait(self, command: Command, began: float, timeout: Optional[float]) -> Any:
        if not self._settled.wait(None if timeout is None else max(began + timeout - monotonic(), 0.0)):
            raise timed_out(command, True, timeout)
        if self._error is not None:
            raise self._error.copy()
        return self._answer


class LocalLane(Lane):
    """Reaches an engine in this process, from any thread."""

    def __init__(self, config: ClientConfig, target: Target, codec: Codec) -> None:
        super().__init__(config, target, codec)
        self._place: Optional[_Place] = None
        self._guard = threading.Lock()
        self._pushed: Optional[PushedSession] = None
        self._number = count(1).__next__

    def connect(self, deadline: Optional[float] = None) -> None:
        self._enter()

    def _enter(self) -> _Place:
        with self._guard:
            place = self._place
            if place is not None:
                return place
            if self.closed:
                raise closed()
            place = self._place = _Place(
                enter(self.target.scheme, self.target.path, _options(self.config), self.config.clock), self.codec, self
            )
        self.connected()
        return place

    def ticket(self) -> int:
        return self._number()

    def drop(self, ticket: Any) -> None:
        if self._place is not None:
            self._place.open.discard(ticket)

    def call(self, command: Command, payload: Struct, ticket: Any, began: float, timeout: Optional[float]) -> Any:
        place = self._place
        if place is None:
            place = self._enter()
        result = place.begin(command, payload, ticket, _ThreadWaiter)
        if type(result) is not _ThreadWaiter:
            return result
        try:
            answer = result.wait(command, began, timeout)
        except BaseException as error:
            place.failed(command, ticket, error)
            raise
        return place.result(command, answer)

    def subscribe(self, command: Command, payload: Struct, listener: Listener, deadline: float) -> Tuple[Any, Any]:
        place = self._enter()
        session = self._pushed_here(place)
        body = self.codec.encode_payload(command, payload)
        waiter = _ThreadWaiter(listener)
        place.subscribe(session, command, self._number(), body, waiter)
        try:
            answer = waiter.wait(command, monotonic(), max(deadline - monotonic(), 0.0))
        except BaseException:
            place.unsubscribe_late(session, waiter)
            raise
        return (place, session, answer.subscription_id), place.result(command, answer)

    def _pushed_here(self, place: _Place) -> PushedSession:
        """Return the session for pushes, which are handed out on a thread of its own."""
        with self._guard:
            session = self._pushed
            if session is None:
                if self.closed:
                    raise closed()
                bell = threading.Event()
                session = self._pushed = PushedSession(place.host, place.codec, bell.set)
                place.sessions.append(session)
                reader = threading.Thread(
                    target=_read, args=(session, place.lock, bell), name="synap-reader", daemon=True
                )
                reader.start()
        return session

    def unsubscribe(self, handle: Any) -> None:
        place, session, subscription_id = handle
        place.unsubscribe(session, subscription_id)

    def health(self, deadline: float) -> Dict[str, Any]:
        place = self._enter()
        with place.lock:
            return place.host.health()

    def close(self) -> None:
        with self._guard:
            self.closed = True
            place, self._place = self._place, None
            pushed, self._pushed = self._pushed, None
        if pushed is not None:
            pushed.stop()
        if place is not None:
            place.leave()
            self.disconnected("the client was closed")

    def abandon(self) -> None:
        self._guard = threading.Lock()
        self._pushed = None
        if self._place is not None and not self._place.inherited():
            self._place = None


def _read(session: PushedSession, lock: threading.Lock, bell: threading.Event) -> None:
    """Hand out pushed items until the session is stopped."""
    hand_out = session.hand_out_with(lock)
    while not session.stopped:
        bell.wait()
        bell.clear()
        hand_out()
