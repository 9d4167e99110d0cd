"""Remembered answers: under which session and number, and when they may be forgotten.

The answer of a request is kept in its partition, by the function that executed it. It is dropped once its caller has
received it: sixteen at a time, and what doesn't become so many after half a minute, or sooner where much lingers. That
of a request that was made again is kept for ten minutes, and so is what a session that left had not confirmed; what
nobody drops expires with its session.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from itertools import count
from typing import Deque, Dict, List, Tuple, Union

from synap.cluster.calls import Call
from synap.cluster.link import Link
from synap.commands import CLIENT_PREFIX

TOGETHER = 16
"""Answers of one session and partition that are dropped by one command."""
LINGER = 30.0
"""Seconds after which fewer are dropped too: of names used now and then, few share a partition each second."""
MOST_LINGERING = 20_000
"""The most pairs of session and partition whose answers linger; of more, those of the oldest are dropped at once."""
MOST_AT_ONCE = 500
"""The most such pairs whose answers are dropped in one turn of the event loop."""
LATE = 600.0
"""Seconds for which answers are kept that the first of two tries may still ask for; as MEMORY in `lua/0_base.lua`."""
MOST_LATE = 100_000
"""The most of these that a gateway drops itself; those beyond expire with their sessions."""


class Request:
    """One request, and the session and number it is remembered under.

    `kin`: the prefix that all sessions of its client have in common, to which its leases belong.
    """

    __slots__ = ("kin", "number", "order", "retried", "session", "touched")

    def __init__(self, session: bytes, number: bytes, retried: bytes, kin: bytes) -> None:
        self.session = session
        self.number = number
        self.retried = retried
        self.kin = kin
        self.order: object = session if kin else None
        """Requests with the same one are executed in the order they came; None: in any."""
        self.touched: List[Tuple[int, bytes]] = []
        """(partition, field) of each remembered answer to it."""

    def piece(self, name: object) -> Request:
        """Return a part of this request that is remembered by itself."""
        part = Request(self.session, b"%s.%s" % (self.number, str(name).encode()), self.retried, self.kin)
        part.touched = self.touched
        part.order = self.order
        return part


Asked = Tuple[bytes, int]
"""(session, partition)."""


class Memory:
    """Makes requests, and drops their remembered answers. `own` is the session of callers that have none."""

    def __init__(self, link: Link, own: bytes, *, direct: bool) -> None:
        self.link = link
        self.own = own
        self.direct = direct
        """Whether callers are in this process: an answer that was given has been received."""
        self._next = count(1).__next__
        self._kept: Dict[str, Deque[Tuple[int, List[Tuple[int, bytes]]]]] = {}
        """(number, what is remembered) of answers that are not confirmed, by session."""
        self._idle: Dict[str, Deque[Tuple[int, List[Tuple[int, bytes]]]]] = {}
        """The same of sessions that have written nothing since `age` was called."""
        self._drop: OrderedDict[Asked, Tuple[float, List[bytes]]] = OrderedDict()
        """(since when, fields to be dropped), the oldest first."""
        self._timer = False
        self._late: Deque[Tuple[float, bytes, List[Tuple[int, bytes]]]] = deque()
        """(when it may be dropped, session, what is remembered)."""
        self._late_count = 0
        self._last, self._last_names = "", (b"", b"")

    def request(self, session: str, number: Union[int, str], retried: bool) -> Request:
        """Make a request of a caller's."""
        if not session:
            return Request(self.own, b"%d" % self._next(), b"0", b"")
        flag = b"1" if retried else b"0" if self.direct else b""
        if isinstance(number, str):  # HTTP: a text of the caller's own, remembered under a key that expires by itself
            return Request(f"{session}:{number}".encode(), b"1", flag, session[:CLIENT_PREFIX].encode())
        if session != self._last:
            self._last = session
            self._last_names = (session.encode(), session[:CLIENT_PREFIX].encode())
        name, kin = self._last_names
        request = Request(name, b"%d" % number, flag, kin)
        if self.direct:  # one session for all tasks and threads of a client, which are in no order among each other
            request.order = None
        return request

    def answered(self, session: str, number: Union[int, str], request: Request) -> None:
        """Note that a request was answered.

        The answer to a retry is kept for long: the first attempt may still be on its way, at another gateway.
        """
        fields = request.touched
        if not fields or (isinstance(number, str) and session):
            return
        if request.retried == b"1":
            self._forget_late(request.session, fields)
        elif self.direct or not session:
            for partition, field in fields:
                self._forget(request.session, partition, field)
        else:
            kept = self._kept.get(session)
            if kept is None:
                kept = self._kept[session] = self._idle.pop(session, deque())
            kept.append((number, fields))  # type: ignore[arg-type]  # an int here

    def confirm(self, session: str, below: int) -> None:
        """Forget what a session was answered to requests numbered below."""
        kept = self._kept.get(session) or self._idle.get(session)
        name = session.encode()
        while kept and kept[0][0] < below:
            for partition, field in kept.popleft()[1]:
                self._forget(name, partition, field)

    def leave(self, session: str) -> None:
        """Forget a session here. What it had not confirmed it may ask for at another gateway."""
        for known in (self._idle, self._kept):
            for _, fields in known.pop(session, ()):
                self._forget_late(session.encode(), fields)

    def age(self) -> None:
        """Forget sessions that have written nothing since the call before this one: their answers have expired.

        Called every `LATE` seconds. Those of plain HTTP never leave, and may never confirm.
        """
        self._idle, self._kept = self._kept, {}

    def _forget(self, session: bytes, partition: int, field: bytes) -> None:
        asked = (session, partition)
        waiting = self._drop.get(asked)
        if waiting is None:
            waiting = self._drop[asked] = (self.link.loop.time(), [])
            if not self._timer:
                self._timer = True
                self.link.later(1.0, self._drop_lingering)
            if len(self._drop) > MOST_LINGERING:
                self._drop_oldest()
        fields = waiting[1]
        fields.append(field)
        if len(fields) >= TOGETHER:
            del self._drop[asked]
            self._send(asked, fields)

    def _forget_late(self, session: bytes, fields: List[Tuple[int, bytes]]) -> None:
        if self._late_count >= MOST_LATE:
            return
        self._late_count += len(fields)
        self._late.append((self.link.loop.time() + LATE, session, fields))
        if len(self._late) == 1:
            self.link.later(LATE, self._drop_late)

    def _drop_late(self) -> None:
        late, now = self._late, self.link.loop.time()
        while late and late[0][0] <= now:
            _, session, fields = late.popleft()
            self._late_count -= len(fields)
            for partition, field in fields:
                self._forget(session, partition, field)
        if late:
            self.link.later(max(1.0, late[0][0] - now), self._drop_late)

    def _drop_lingering(self) -> None:
        self._timer = False
        last = self.link.loop.time() - LINGER
        for _ in range(MOST_AT_ONCE):
            if not self._lingers_since(last):
                break
            self._drop_oldest()
        if self._drop:
            self._timer = True
            self.link.later(0.0 if self._lingers_since(last) else 1.0, self._drop_lingering)

    def _lingers_since(self, time: float) -> bool:
        """Return whether some answers have lingered since `time`, or for longer."""
        return bool(self._drop) and next(iter(self._drop.values()))[0] <= time

    def _drop_oldest(self) -> None:
        asked, (_, fields) = self._drop.popitem(last=False)
        self._send(asked, fields)

    def close(self) -> None:
        """Drop all answers that may be dropped."""
        while self._drop:
            self._drop_oldest()

    def _send(self, asked: Asked, fields: List[bytes]) -> Call:
        session, partition = asked
        return self.link.command(partition, "HDEL", self.link.places.memory(partition, session), *fields)
