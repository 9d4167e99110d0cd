"""Join what one turn asks of one queue to one call: it reads and writes the queue's header once for all of them."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

from synap.cluster.link import Link
from synap.cluster.memory import Request
from synap.cluster.running import Pending
from synap.commands import Command

__all__ = ["Joiner", "Wanted", "function_of", "packed_requests"]

MOST = 50
MOST_BYTES = 256 * 1024

Asked = List[Tuple[Request, Sequence[bytes], Pending]]
Wanted = Tuple[Request, Sequence[bytes]]


def packed_requests(
    link: Link, partition: int, before: int, requests: Sequence[Wanted], arguments: int
) -> Tuple[List[bytes], List[bytes], Tuple[int, ...]]:
    """Return the memories, the arguments and the places of the `retried` flags of requests that one call carries.

    `before` is how many keys, `arguments` how many arguments come before them.
    """
    memories: List[bytes] = []
    places: Dict[bytes, int] = {}
    packed: List[bytes] = []
    flags: List[int] = []
    for request, own in requests:
        if link.recording:  # an atomic batch is remembered as a whole
            packed += (b"0", b"", b"", *own)
            continue
        place = places.get(request.session)
        if place is None:
            memories.append(link.places.memory(partition, request.session))
            place = places[request.session] = before + len(memories)
        request.touched.append((partition, request.number))
        flags.append(arguments + len(packed) + 2)
        packed += (b"%d" % place, request.number, request.retried, *own)
    return memories, packed, tuple(flags)


class Joiner:
    """Gathers what is asked of queues by one command. `send(queue, wanted)` sends it, and gives one answer for each."""

    def __init__(self, link: Link, command: Command, send: Callable[[str, List[Wanted]], Pending]) -> None:
        self.link = link
        self.command = command
        self._send_all = send
        self._asked: Dict[str, Asked] = {}
        self._orders: Set[Tuple[object, int]] = set()
        self._size = 0

    def hurry(self, order: object, queue: Optional[str]) -> None:
        """Let what was asked leave now, where some of it has this order (in the partition of `queue`, where one is
        given): its caller's next command must come after it."""
        if not self._orders or order is None:
            return
        if queue is None:
            hurried = any(known == order for known, _ in self._orders)
        else:
            hurried = (order, self.link.places.partition(queue)) in self._orders
        if hurried:
            self._leave()

    def ask(self, queue: str, request: Request, own: Sequence[bytes]) -> Pending:
        """Ask for something; it leaves with what the rest of this turn asks of the same queue."""
        pending = Pending()
        asked = self._asked.get(queue)
        if asked is None:
            if not self._asked and not self.link.recording:
                self.link.soon(self._leave)
            asked = self._asked[queue] = []
        asked.append((request, own, pending))
        if request.order is not None:
            self._orders.add((request.order, self.link.places.partition(queue)))
        self._size += sum(map(len, own))
        if len(asked) >= MOST or self._size >= MOST_BYTES or self.link.recording:
            self._send(queue, self._asked.pop(queue))
        return pending

    def _leave(self) -> None:
        asked, self._asked = self._asked, {}
        self._orders.clear()
        self._size = 0
        for queue, requests in asked.items():
            self._send(queue, requests)

    def _send(self, queue: str, asked: Asked) -> None:
        call = self._send_all(queue, [(request, own) for request, own, _ in asked])

        def done() -> None:
            if call.error is not None:
                for _, _, pending in asked:
                    pending.finish(error=call.error)
            else:
                answers: List[Any] = call.value
                for (_, _, pending), answer in zip(asked, answers):
                    pending.finish(answer)

        call.when_done(done)


def function_of(
    link: Link, function: str, kinds: Tuple[bytes, ...], head: Callable[[], Tuple[bytes, ...]]
) -> Callable[[str, List[Wanted]], Pending]:
    """Return what sends requests as one call of a function. `head` gives arguments that come behind the queue's
    name."""

    def send(queue: str, wanted: List[Wanted]) -> Pending:
        partition = link.places.partition(queue)
        keys = link.places.queue(partition, kinds, queue)
        first = (queue.encode(), *head())
        memories, packed, flags = packed_requests(link, partition, len(keys), wanted, len(first))
        return link.call(partition, function, (*keys, *memories), (*first, *packed), retried=flags)

    return send
