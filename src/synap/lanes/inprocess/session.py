"""Sessions of the in-process lane. They are called under the engine's lock, on any thread."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import Any, Callable, Deque, Dict, List, Optional, Tuple

from synap.commands import Command, EventAnswer
from synap.errors import SynapError
from synap.host import ANSWER, ENDED, PUSH, Host, Output, Session
from synap.lanes import errors
from synap.wire.codec import Codec
from synap.wire.conversation import Listener
from synap.wire.outcomes import lost
from synap.wire.values import too_deep

MAX_PUSHED = 4096
"""The buffer of pushed items: when it is full, events wait in their room and topic subscriptions end as too slow."""

Pushed = Tuple[int, Any, Optional[SynapError]]
"""(subscription, item, None), or (subscription, None, why it ended)."""

log = logging.getLogger("synap")


PENDING: Any = object()
"""Stands for an answer that has not come yet."""


class Waiter:
    """Waits for an answer; to a subscription, with its `listener`."""

    command: Command
    """The command that is to be answered."""

    def __init__(self, listener: Optional[Listener] = None) -> None:
        self.listener = listener
        self.subscribed: Optional[int] = None

    def settle(self, answer: Any, error: Optional[SynapError]) -> None:
        """Receive the answer, or the error."""
        raise NotImplementedError


class LocalSession(Session):
    """Receives answers: `outcome` and `error` to the request being executed, `waiters` to earlier ones."""

    __slots__ = ("error", "outcome", "waiters")

    def __init__(self, host: Host, codec: Codec, session: str) -> None:
        super().__init__(host, codec, session)
        self.outcome: Any = PENDING
        self.error: Optional[SynapError] = None
        self.waiters: Dict[int, Waiter] = {}

    @property
    def listeners(self) -> Dict[int, Listener]:
        """Listeners of subscriptions; there are none in this session."""
        return {}

    def answer(self, number: int, answer: Any) -> None:
        if self.waiters or self.host.holds:
            super().answer(number, answer)
        else:  # to the request being executed, on the thread that executes it
            self.outcome = answer

    def deliver(self, output: List[Output]) -> None:
        for what, number, content, _ in output:
            waiter = self.waiters.pop(number, None)
            if waiter is not None:
                waiter.settle(*((content, None) if what == ANSWER else (None, content)))
            elif what == ANSWER:
                self.outcome = content
            else:
                self.outcome = None
                self.error = content

    def has_room(self) -> bool:
        return False

    def abort(self) -> None:
        self.fail_waiters("its answers could not be delivered")

    def fail_waiters(self, why: str) -> None:
        """Fail all waiting requests. Their changes may be on their way to the disk, or to other machines."""
        waiters, self.waiters = list(self.waiters.values()), {}
        for waiter in waiters:
            waiter.settle(None, lost(waiter.command, True, why))


class PushedSession(LocalSession):
    """Buffers pushed items in order. `wake` wakes the lane's event loop or thread, which hands them out."""

    __slots__ = ("_inbox", "_lagging", "_listeners", "_wake", "stopped")

    def __init__(self, host: Host, codec: Codec, wake: Callable[[], None]) -> None:
        super().__init__(host, codec, "")
        self.stopped = False
        self._listeners: Dict[int, Listener] = {}
        self._inbox: Deque[Pushed] = deque()
        self._lagging = False
        self._wake = wake

    @property
    def listeners(self) -> Dict[int, Listener]:
        return self._listeners

    def answer(self, number: int, answer: Any) -> None:
        Session.answer(self, number, answer)

    def deliver(self, output: List[Output]) -> None:
        for what, number, content, _ in output:
            if what == PUSH:
                self._take((number, content, None))
            elif what == ENDED:
                self._take((number, None, content))
            else:
                self._settle(number, *((content, None) if what == ANSWER else (None, content)))

    def _settle(self, number: int, answer: Any, error: Optional[SynapError]) -> None:
        waiter = self.waiters.pop(number, None)
        if waiter is None:
            return
        if error is None:
            if waiter.listener is not None:
                self._listeners[answer.subscription_id] = waiter.listener
            waiter.subscribed = answer.subscription_id
        waiter.settle(answer, error)

    def _take(self, pushed_item: Pushed) -> None:
        self._inbox.append(pushed_item)
        if len(self._inbox) == 1:
            self._wake()

    def has_room(self) -> bool:
        if len(self._inbox) + len(self.output) < MAX_PUSHED:
            return True
        self._lagging = True
        return False

    def stop(self) -> None:
        """Stop the thread that hands out items."""
        self.stopped = True
        self._wake()

    def lose_pushes(self, weight: int) -> None:
        error = errors.connect_failed("the engine", "what it had pushed was taken back")
        for subscription_id in list(self._listeners):
            self.host.unsubscribe(self, subscription_id)
            self._take((subscription_id, None, error))

    def hand_out_with(self, lock: threading.Lock) -> Callable[[], None]:
        """Return a function that hands out buffered items, to be called in the listeners' thread or event loop."""

        def hand_out() -> None:
            with lock:
                pushed = self._drain()
                self.host.end_turn()
            for listener, item, error in pushed:
                try:
                    if error is None:
                        try:
                            item = _copy(self.codec, item)
                        except SynapError as failed:
                            error = failed
                            with lock:
                                self._give_up(listener)
                                self.host.end_turn()
                    _notify(listener, item, error)
                except Exception:
                    log.exception("a listener raised")

        return hand_out

    def _give_up(self, listener: Listener) -> None:
        """End the subscription of a listener whose item can't be encoded."""
        for subscription_id in [number for number, one in self._listeners.items() if one is listener]:
            del self._listeners[subscription_id]
            self.host.unsubscribe(self, subscription_id)

    def _drain(self) -> List[Tuple[Listener, Any, Optional[SynapError]]]:
        """Empty the buffer, each item with its listener, and resume subscriptions that lag."""
        pushed: List[Tuple[Listener, Any, Optional[SynapError]]] = []
        inbox, listeners = self._inbox, self._listeners
        while inbox:
            subscription_id, item, error = inbox.popleft()
            listener = listeners.get(subscription_id)
            if listener is not None:
                pushed.append((listener, item, error))
                if error is not None:
                    del listeners[subscription_id]
        if self._lagging:
            self._lagging = False
            for subscription_id in list(self.subscriptions):
                if not self.host.resume(self, subscription_id):
                    break
        return pushed


def _copy(codec: Codec, item: Any) -> Any:
    """Make a listener's own copy of a pushed item; raises `SynapError` where it can't be encoded."""
    body = codec.encode_answer(item)
    try:
        return codec.decode_event(body) if type(item) is EventAnswer else codec.decode_message(body)
    except RecursionError:
        raise too_deep() from None


def _notify(listener: Listener, item: Any, error: Optional[SynapError]) -> None:
    """Call a listener with a pushed item, or with the end of its subscription."""
    if error is None:
        listener.push(item)
    elif error.code == "CONNECTION_FAILED":
        listener.lost(error)
    else:
        listener.ended(error)
