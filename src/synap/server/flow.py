"""Back-pressure: accounts for the bytes in flight to one caller, in one place for every lane that pushes.

Output counts as `promised` from when the host produces it until it is handed to the network, and as `buffered` until
the network has sent it. Of a caller that is behind no requests are read, its rooms' events wait in their rooms, and its
topic subscriptions end once its buffer is full.
"""

from __future__ import annotations

from typing import Any

from synap.commands import Command, EventAnswer, GetAnswer, Item, SetAnswer
from synap.errors import SynapError
from synap.host import ANSWER, ENDED, PUSH, REFUSE, Output, Session
from synap.server.service import Principal, Service
from synap.server.sizes import ESTIMATES
from synap.shapes import SMALL
from synap.wire.codec import Codec
from synap.wire.large import LARGE, Steps
from synap.wire.translate import foreign

SLICE = 128 * 1024
"""Bytes of events for one connection in one turn; the rest follows in later turns, after other requests."""
TURN = 1024 * 1024
"""Bytes of answers for one connection in one turn; its further requests are executed once these are sent."""
HIGH_WATER = 256 * 1024
"""Bytes in the send buffer from which on a connection is not read."""
MAX_UNSENT = 64 * 1024 * 1024
"""Bytes in the send buffer at which the connection of a peer that doesn't read is aborted."""

_estimate = ESTIMATES.get


class FlowSession(Session):
    """A session that accounts for the bytes in flight to its caller. Lanes implement `deliver` and `buffered`."""

    __slots__ = (
        "_accepted", "_behind", "_check_quota", "_lagging", "_pubsub_buffer", "_stream_buffer", "_transit",
        "_translations", "_weighed", "closed", "elsewhere", "promised", "stalled",
    )  # fmt: skip

    principal: Principal

    def __init__(self, service: Service, codec: Codec, session: str = "") -> None:
        super().__init__(service.host, codec, session)
        self._stream_buffer = service.config.stream_buffer
        self._pubsub_buffer = service.config.pubsub_buffer
        self._weighed = service.weighed
        self._lagging: set[int] = set()
        """Subscriptions to rooms that were paused because the buffer was full."""
        self.promised = 0
        """Estimated bytes of output that is not handed to the network yet."""
        self.elsewhere = 0
        """Those of them that are being translated, which `Translations` counts."""
        self.stalled = False
        """Whether the send buffer is above its high-water mark."""
        self.closed = False
        self._accepted: set[int] = set()
        """Subscriptions that took long, and are within the quota."""
        self._check_quota = service.check_quota
        self._transit = service.transit
        self._translations = service.translations
        self._behind: dict[int, list[Output]] = {}
        """What is delivered to a subscription once an earlier item of it is translated."""

    def buffered(self) -> int:
        """Return the bytes in the send buffer."""
        raise NotImplementedError

    # ---- called by the host
    def check_again(self, command: Command, payload: Any, made: int = 0) -> None:
        self.check(command, payload)
        subscribed = len(self.subscriptions)
        if made:  # others may be there that are not answered yet either
            self._accepted.intersection_update(self.subscriptions)
            subscribed = len(self._accepted)
        self._check_quota(command, self.principal.access, subscribed, (self,))
        if made:
            self._accepted.add(made)

    def answer(self, number: Any, answer: Any) -> None:
        kind = type(answer)
        if kind is GetAnswer:  # as in `ESTIMATES`, inlined for the most frequent answer
            weight = SMALL + len(answer.value or b"")
        else:
            permit = self.permit
            # A `set` that shows what may be read is the most frequent answer here, and is spared the call.
            if permit is not None and (
                kind is not SetAnswer or (answer.previous is not None and not answer.key.startswith(permit.readable))
            ):
                answer = permit.visible(answer)
            estimate = _estimate(kind)
            weight = SMALL if estimate is None else estimate(answer)
        self.promised += weight
        output = self.output
        if not output:
            self.host.touched.append(self)
        output.append((ANSWER, number, answer, weight))

    def refuse(self, number: Any, error: SynapError) -> None:
        error.__traceback__ = error.__context__ = None  # they would keep the whole request in memory
        weight = 256 + len(error.message)
        self.promised += weight
        self._emit((REFUSE, number, error, weight))

    def push(self, subscription_id: int, item: Item) -> bool:
        promised = self.promised
        if promised > SLICE or self.stalled or self.closed:
            event = type(item) is EventAnswer
            limit = self._stream_buffer if event else self._pubsub_buffer
            if (event and promised > SLICE) or promised + self.buffered() > limit or self.closed:
                if event:
                    self._lagging.add(subscription_id)
                return False
        weight = self._weighed.weight if item is self._weighed.item else self._weighed.weigh(item)
        self.promised = promised + weight
        output = self.output
        if not output:
            self.host.touched.append(self)
        output.append((PUSH, subscription_id, item, weight))
        return True

    def ended(self, subscription_id: int, error: SynapError) -> None:
        self._lagging.discard(subscription_id)
        self._emit((ENDED, subscription_id, error, 0))

    def has_room(self) -> bool:
        return not self.stalled and self.promised <= SLICE

    # ---- called by lanes
    def put_off(self, entry: Output) -> bool:
        """Return whether an output that is due is delivered later: once it is translated, or behind an item that is.

        Raises `SERVICE_UNAVAILABLE` where there is no room for it.
        """
        what, number, content, weight = entry
        if what == PUSH and number in self._behind:
            self._behind[number].append(entry)
        else:
            format = self.codec.format if what == ANSWER else self.format_of(number)
            steps = None
            if weight <= LARGE:
                return False
            if foreign(content, format) < LARGE:
                steps = self.in_steps(content, weight) if what == ANSWER else None
                if steps is None:
                    return False
            if what == PUSH:
                self._behind[number] = []
            elif not self._transit.has_room(weight, promised=True):
                raise self._transit.refusal(weight, content)
            else:
                self.elsewhere += weight
            owner, key = None if what == PUSH else self, self.principal.access.name
            subscription = self.subscriptions.get(number) if what == PUSH else None  # watched figures have none
            reader = _Reader(self, entry, subscription)
            self._translations.begin(key, owner, content, format, reader, weight, steps=steps, counted=what == PUSH)
        self.promised += weight
        return True

    def in_steps(self, content: Any, weight: int) -> Steps | None:
        """Return the steps to encode an answer that is too long to do it at once; None: do it when it is delivered."""
        return None

    def translated(self, entry: Output, subscription: Any, outcome: Any) -> None:
        """Deliver what was translated, and what came for the same subscription since; nothing if that has ended."""
        what, number, _, weight = entry
        output = [(what, number, outcome, weight)]
        if what == ANSWER:
            self.elsewhere -= weight
        else:
            output += self._behind.pop(number)
            if self.subscriptions.get(number) is not subscription:
                self.promised -= sum([one[3] for one in output])
                return
        if isinstance(outcome, SynapError):
            if what == PUSH:
                self.host.unsubscribe(self, number)
                self._lagging.discard(number)
            weight = sum([one[3] for one in output])
            output = [(REFUSE if what == ANSWER else ENDED, number, outcome.copy(), weight)]
        try:
            self.deliver(output)
        except Exception:  # others wait for the same translation
            self.host.undeliverable(self)

    def format_of(self, subscription_id: int) -> str:
        """Return the format in which items are pushed to a subscription."""
        return self.codec.format

    def catch_up(self) -> None:
        """Resume paused subscriptions. A turn of its own."""
        if self.stalled or self.closed or not self._lagging:
            return
        host = self.host
        while self._lagging and self.has_room() and not self.closed:  # else some are paused again
            subscription_id = self._lagging.pop()
            if subscription_id in self.subscriptions:
                host.resume(self, subscription_id)
        host.end_turn()

    def undeliverable(self, what: int, number: Any, failure: Exception) -> SynapError:
        """Convert the exception of an output that can't be delivered to the error that is sent instead.

        A subscription whose item can't be delivered ends with it.
        """
        if what == PUSH:
            self.host.unsubscribe(self, number)
            self._lagging.discard(number)
        if isinstance(failure, SynapError):
            self.host.count_error(failure.code)
            return failure
        return self.host.crashed("encoding an answer" if what == ANSWER else "encoding an item that is pushed")


class _Reader:
    """An answer or push that a session delivers once it is translated."""

    __slots__ = ("_entry", "_session", "_subscription")

    def __init__(self, session: FlowSession, entry: Output, subscription: Any) -> None:
        self._session = session
        self._entry = entry
        self._subscription = subscription

    def wanted(self) -> bool:
        session, (what, number, _, _) = self._session, self._entry
        return not session.closed and (what == ANSWER or session.subscriptions.get(number) is self._subscription)

    def translated(self, outcome: Any) -> None:
        self._session.translated(self._entry, self._subscription, outcome)
