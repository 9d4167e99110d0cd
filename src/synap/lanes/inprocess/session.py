"""What an engine in this process says to a lane. All of it happens under the engine's lock, on whatever thread."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import Any, Callable, Deque, Dict, List, Optional, Tuple, Union

from synap.commands import EventAnswer
from synap.engine.streams import RoomSubscription
from synap.errors import SynapError
from synap.host import Host, Session
from synap.lanes import errors
from synap.lanes._async.base import Listener as AsyncListener
from synap.lanes._sync.base import Listener
from synap.wire.codec import Codec

__all__ = ["PENDING", "LocalSession", "PushedSession", "Waiter"]

MOST_PUSHED = 4096
"""Items that may be under way to a lane; with more, events wait in their room and topics count as too slow."""

AnyListener = Union[Listener, AsyncListener]
Thing = Tuple[int, Any, Optional[SynapError]]
"""(subscription, item, None), or (subscription, None, why it ended)."""

log = logging.getLogger("synap")


class _Pending:
    """The type of `PENDING`."""


PENDING = _Pending()
"""Stands for an answer that has not come yet."""


class Waiter:
    """Somebody who waits for an answer, with the `listener` where it is to a subscription."""

    def __init__(self, listener: Optional[AnyListener] = None) -> None:
        self.listener = listener
        self.subscribed: Optional[int] = None

    def settle(self, answer: Any, error: Optional[SynapError]) -> None:
        """Take the answer, or the error."""
        raise NotImplementedError


class LocalSession(Session):
    """Takes answers: `outcome` and `error` that to the request which is being made, `waiters` those to earlier ones."""

    __slots__ = ("error", "outcome", "waiters")

    def __init__(self, host: Host, codec: Codec, session: str) -> None:
        super().__init__(host, codec, session)
        self.outcome: Any = PENDING
        self.error: Optional[SynapError] = None
        self.waiters: Dict[int, Waiter] = {}

    @property
    def listeners(self) -> Dict[int, AnyListener]:
        """Who hears what is pushed; nothing is pushed here."""
        return {}

    def send_answer(self, number: int, answer: Any) -> None:
        waiter = self.waiters.pop(number, None) if self.waiters else None
        if waiter is None:
            self.outcome = answer
        else:
            waiter.settle(answer, None)

    def send_error(self, number: int, error: SynapError) -> None:
        waiter = self.waiters.pop(number, None)
        if waiter is None:
            self.outcome = None
            self.error = error
        else:
            waiter.settle(None, error)

    def send_push(self, subscription_id: int, item: Any) -> None:
        raise AssertionError("nothing subscribes here")

    def send_ended(self, subscription_id: int, error: SynapError) -> None:
        raise AssertionError("nothing subscribes here")

    def has_room(self) -> bool:
        return False

    def flush(self) -> None:
        """Everything went out already."""

    def fail_waiters(self, why: str) -> None:
        """Let all who wait know that nothing will come."""
        waiters, self.waiters = list(self.waiters.values()), {}
        for waiter in waiters:
            waiter.settle(None, errors.failed("the engine", why))


class PushedSession(LocalSession):
    """Takes what is pushed, in order, until its lane's loop or thread, which `wake` wakes, hands it out."""

    __slots__ = ("_inbox", "_lagging", "_listeners", "_wake", "stopped")

    def __init__(self, host: Host, codec: Codec, wake: Callable[[], None]) -> None:
        super().__init__(host, codec, "")
        self.stopped = False
        self._listeners: Dict[int, AnyListener] = {}
        self._inbox: Deque[Thing] = deque()
        self._lagging = False
        self._wake = wake

    @property
    def listeners(self) -> Dict[int, AnyListener]:
        return self._listeners

    def send_answer(self, number: int, answer: Any) -> None:
        waiter = self.waiters.pop(number, None)
        if waiter is None:
            return
        if waiter.listener is not None:
            self._listeners[answer.subscription_id] = waiter.listener
        waiter.subscribed = answer.subscription_id
        waiter.settle(answer, None)

    def send_error(self, number: int, error: SynapError) -> None:
        waiter = self.waiters.pop(number, None)
        if waiter is not None:
            waiter.settle(None, error)

    def send_push(self, subscription_id: int, item: Any) -> None:
        self._take((subscription_id, item, None))

    def send_ended(self, subscription_id: int, error: SynapError) -> None:
        self._take((subscription_id, None, error))

    def _take(self, thing: Thing) -> None:
        if not self._inbox:
            self.host.touched.append(self)
        self._inbox.append(thing)

    def has_room(self) -> bool:
        if len(self._inbox) < MOST_PUSHED:
            return True
        self._lagging = True
        return False

    def flush(self) -> None:
        self._wake()

    def stop(self) -> None:
        """Let the thread that hands out end."""
        self.stopped = True
        self._wake()

    def lose_pushes(self) -> None:
        lost = errors.failed("the engine", "what it had pushed was taken back")
        for subscription_id in list(self._listeners):
            self.end(subscription_id)
            self._take((subscription_id, None, lost))

    def end(self, subscription_id: int) -> None:
        """End a subscription in the engine."""
        engine = self.host.engine
        subscription = self.subscriptions.get(subscription_id)
        if isinstance(subscription, RoomSubscription):
            engine.streams.drop(subscription)
        elif subscription is not None:
            engine.topics.drop(subscription)

    def hand_out_with(self, lock: threading.Lock) -> Callable[[], None]:
        """Return a function that hands out what has come, to be called where listeners want to be called."""

        def hand_out() -> None:
            with lock:
                things = self._handed()
                self.host.end_turn()
            for listener, item, error in things:
                try:
                    _hear(self.codec, listener, item, error)
                except Exception:
                    log.exception("a listener raised")

        return hand_out

    def _handed(self) -> List[Tuple[AnyListener, Any, Optional[SynapError]]]:
        """Take what has come, each item with its listener, and let more come."""
        things: List[Tuple[AnyListener, Any, Optional[SynapError]]] = []
        inbox, listeners = self._inbox, self._listeners
        while inbox:
            subscription_id, item, error = inbox.popleft()
            listener = listeners.get(subscription_id)
            if listener is not None:
                things.append((listener, item, error))
                if error is not None:
                    del listeners[subscription_id]
        if self._lagging:
            self._lagging = False
            now = self.host.clock()
            for subscription_id in list(self.subscriptions):
                if not self.host.engine.resume(self, subscription_id, now):
                    break
        return things


def _hear(codec: Codec, listener: AnyListener, item: Any, error: Optional[SynapError]) -> None:
    """Tell a listener what was pushed, as a copy of its own."""
    if error is None:
        body = codec.encode_answer(item)
        listener.push(codec.decode_event(body) if type(item) is EventAnswer else codec.decode_message(body))
    elif error.code == "CONNECTION_FAILED":
        listener.lost(error)
    else:
        listener.ended(error)
