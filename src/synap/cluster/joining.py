"""Join the requests of one turn to one queue in one call, which reads and writes the queue's header once."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple, TypeVar, Union

from synap.cluster.link import Link
from synap.cluster.memory import Request
from synap.cluster.running import Pending
from synap.commands import Command

MOST = 50
MOST_BYTES = 256 * 1024


class Wanted(NamedTuple):
    """A request, and the arguments of the function that are its own."""

    request: Request
    own: Sequence[bytes]


class Asked(Pending):
    """A request that is sent together with others."""

    __slots__ = ("own", "request", "size")

    def __init__(self, request: Request, own: Sequence[bytes], size: int) -> None:
        super().__init__()
        self.request = request
        self.own = own
        self.size = size
        """Bytes of what may be long in `own`."""

    def take(self, answer: Any) -> Any:
        """Convert what the function answers to the request's result, or raise its error."""
        raise NotImplementedError

    def answered(self, answer: Any) -> None:
        """Take the function's answer."""
        try:
            value = self.take(answer)
        except Exception as error:  # whoever asked for this gets it, and nobody of those who left with it
            self.finish(error=error)
        else:
            self.finish(value)


Requests = Sequence[Union[Wanted, Asked]]
OneAsked = TypeVar("OneAsked", bound=Asked)


def packed_requests(
    link: Link, partition: int, before: int, requests: Requests, arguments: int
) -> Tuple[List[bytes], List[bytes], Tuple[int, ...]]:
    """Return the memories, the arguments and the places of the `retried` flags of requests that one call carries.

    `before` is how many keys, `arguments` how many arguments come before them.
    """
    memories: List[bytes] = []
    places: Dict[bytes, bytes] = {}
    packed: List[bytes] = []
    flags: List[int] = []
    for one in requests:
        if link.recording:  # an atomic batch is remembered as a whole
            packed += (b"0", b"", b"", *one.own)
            continue
        request = one.request
        session, number = request.session, request.number
        place = places.get(session)
        if place is None:
            memories.append(link.places.memory(partition, session))
            place = places[session] = b"%d" % (before + len(memories))
        request.touched.append((partition, number))
        flags.append(arguments + len(packed) + 2)
        packed += (place, number, request.retried, *one.own)
    return memories, packed, tuple(flags)


class Joiner:
    """Gathers requests of one command. `send(queue, asked)` sends those to one queue, and gives an answer to each."""

    def __init__(self, link: Link, command: Command, send: Callable[[str, List[Asked]], Pending]) -> None:
        self.link = link
        self.command = command
        self._send_all = send
        self._asked: Dict[str, List[Asked]] = {}
        self._orders: Set[Tuple[object, int]] = set()
        self._tries: Set[Tuple[str, bytes, bytes]] = set()
        """(queue, session, number) of those that may come twice."""
        self._size = 0

    def flush(self, order: object, queue: Optional[str]) -> None:
        """Send what was asked now, where some of it has this order (in the partition of `queue`, where one is given):
        its caller's next command must come after it."""
        if not self._orders or order is None:
            return
        if queue is None:
            matches = any(known == order for known, _ in self._orders)
        else:
            matches = (order, self.link.places.partition(queue)) in self._orders
        if matches:
            self._flush_all()

    def ask(self, queue: str, one: OneAsked) -> OneAsked:
        """Ask for something; it is sent with what the rest of this turn asks of the same queue.

        Two tries at one request are never in one call, which would execute both.
        """
        request = one.request
        if request.number and request.retried != b"0":
            this = queue, request.session, request.number
            if this in self._tries:
                self._flush_all()
            self._tries.add(this)
        asked = self._asked.get(queue)
        if asked is None:
            if not self._asked and not self.link.recording:
                self.link.soon(self._flush_all)
            asked = self._asked[queue] = []
        asked.append(one)
        order = request.order
        if order is not None and not self.link.recording:
            self._orders.add((order, self.link.places.partition(queue)))
        self._size += one.size
        if len(asked) >= MOST or self._size >= MOST_BYTES or self.link.recording:
            self._send(queue, self._asked.pop(queue))
        return one

    def _flush_all(self) -> None:
        asked, self._asked = self._asked, {}
        self._orders.clear()
        self._tries.clear()
        self._size = 0
        for queue, requests in asked.items():
            self._send(queue, requests)

    def _send(self, queue: str, asked: List[Asked]) -> None:
        call = self._send_all(queue, asked)

        def done() -> None:
            if call.error is not None:
                for one in asked:
                    one.finish(error=call.error)
            else:
                answers = [call.value] if len(asked) == 1 and not isinstance(call.value, list) else call.value
                for one, answer in zip(asked, answers):
                    one.answered(answer)

        call.when_done(done)


def function_of(link: Link, function: str, kinds: Tuple[bytes, ...]) -> Callable[[str, List[Asked]], Pending]:
    """Return what sends requests as one call of a function."""

    def send(queue: str, asked: List[Asked]) -> Pending:
        partition = link.places.partition(queue)
        keys = link.places.queue(partition, kinds, queue)
        memories, packed, flags = packed_requests(link, partition, len(keys), asked, 0)
        return link.call(partition, function, (*keys, *memories), packed, retried=flags)

    return send
