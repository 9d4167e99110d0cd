"""Consumers, those that wait included, across gateways.

A consume that finds nothing registers this gateway with the queue in the same call. Whoever then puts a message in
takes one registration and sends one hint, upon which the gateway consumes for its waiters, the longest waiting first,
until a call finds nothing and thereby registers again. Hints may be lost: waiters also ask when something is due, and
every second or so.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Container, Dict, Iterator, List, Optional, Sequence, Tuple

from synap import commands as c
from synap.cluster.batches import Recorder, send_atomic
from synap.cluster.calls import Call
from synap.cluster.channels import Channels
from synap.cluster.joining import Asked, Joiner, Requests, packed_requests
from synap.cluster.lines import Line, Waiter
from synap.cluster.link import Link
from synap.cluster.memory import Request
from synap.cluster.queues import CONSUME, NO_QUEUE, Delivery, Queues, id_text, lease_text, milliseconds
from synap.cluster.running import Pending, Running
from synap.engine.limits import check_name, fitting
from synap.engine.queues import acked_twice, no_message
from synap.engine.queuestore import SUFFIX, no_queue
from synap.errors import SynapError

ASKED_FIRST = 1.0
"""Seconds. A consume with a shorter timeout asks once before it waits: else the timeout could pass before the first
answer, and neither a message that is there nor a refusal of the queue's name would be told."""


class Consumers:
    """`queue.consume` and `queue.consume_many`, and the lines of those who wait."""

    def __init__(self, link: Link, queues: Queues, channels: Channels, gateway: bytes) -> None:
        self.link = link
        self.queues = queues
        self.places = link.places
        self.channels = channels
        self.gateway = gateway
        self.lines: Dict[str, Line] = {}
        self._left: Optional[Dict[str, Line]] = None
        """Lines that some have left, to be told of `together`."""
        self.joiner = Joiner(link, c.QUEUE_CONSUME, self._take_together)
        """For consumes that don't wait, or that ask once before they do."""

    def _take_together(self, queue: str, asked: List[Any]) -> Pending:
        """Consume for requests that were joined, which don't wait."""
        call = self._call(queue, asked, 0, b"")
        taken = Pending()

        def answer(answers: List[Any], inc: bytes, _: int) -> None:
            for one in asked:
                one.inc = inc
            taken.finish(answers)

        def done() -> None:
            if call.error is not None:
                taken.finish(error=call.error)
            elif call.value == DUE:
                mark(call, asked)
                again = Running(self.take(queue, asked, 0)).start()
                again.when_done(
                    lambda: answer(*again.value) if again.error is None else taken.finish(error=again.error)
                )
            else:
                answer(*deliveries(queue, call.value))

        call.when_done(done)
        return taken

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(len(line.waiters) for line in self.lines.values())

    # ------------------------------------------------------------------------------------------ commands

    def begin(self, command: c.Command, payload: Any, request: Request) -> Pending:
        """Begin to execute a command that leases; its result is a list of deliveries, of which `answer` makes the
        command's."""
        begun = getattr(self, command.method)(payload, request)
        return begun if isinstance(begun, Pending) else Running(begun).start()

    def consume(self, p: c.QueueConsume, request: Request) -> Pending:
        """Result in one delivery, or none once the time is up."""
        queue = p.queue
        if p.timeout > 0 or queue.endswith(SUFFIX):
            return Running(self._consume([queue], 1, p.timeout, p.ack_deadline, request, p.ack, p.ack_lease)).start()
        check_name("queue", queue)
        lease = b"" if p.ack_deadline is None else milliseconds(p.ack_deadline)
        if p.ack is not None:
            own = (lease, request.kin, b"1", id_text(p.ack), lease_text(p.ack_lease))
        else:
            own = (lease, request.kin, b"1", b"", b"")
            line = self.lines.get(queue)
            if line is not None and line.waiters:  # those who wait come first
                nothing = Pending()
                nothing.finish([])
                return nothing
        return self.joiner.ask(queue, Taking(self, queue, p.ack, request, own))

    async def consume_many(self, p: c.QueueConsumeMany, request: Request) -> List[Delivery]:
        """Return up to `max` deliveries of the first queue in order of preference that has any.

        What is acknowledged in the same step is so all or none in each partition.
        """
        held = p.ack or ()
        if len({(message.queue, message.message_id) for message in held}) < len(held):
            raise acked_twice()
        names = list(dict.fromkeys(p.queues))
        return await self._consume(names, p.max, p.timeout, p.ack_deadline, request, held=held)

    async def _settle(self, held: Sequence[c.Held], request: Request) -> None:
        groups: Dict[int, List[c.Held]] = {}
        for message in held:
            groups.setdefault(self.places.partition(message.queue), []).append(message)
        for group, messages in enumerate(groups.values()):
            recorder = Recorder(self.places)
            queues = Queues(recorder)
            part = request.piece("ack")
            items = [c.QueueAck(message.queue, message.message_id, message.lease) for message in messages]
            for item in items:
                queues.ack(item, part)
            with _after(group > 0):
                answers = await send_atomic(recorder.noted, part, self.link, True)
                if answers[0]:
                    failed = messages[answers[0] - 1]
                    if b"QUEUE_NOT_FOUND" in answers[1]:
                        raise no_queue(failed.queue)
                    raise no_message(failed.queue, failed.message_id, answers[1].decode().rpartition(" ")[2])

    async def _consume(
        self,
        queues: List[str],
        most: int,
        timeout: float,
        ack_deadline: Optional[float],
        request: Request,
        settled: Optional[str] = None,
        settled_lease: Optional[int] = None,
        held: Sequence[c.Held] = (),
    ) -> List[Delivery]:
        for queue in queues:
            check_name("queue", queue)
            if queue.endswith(SUFFIX):
                self.queues.settle(queue[: -len(SUFFIX)])
        if held:  # what the request itself may be refused for is behind it
            await self._settle(held, request)
        with _after(bool(held)):
            lease = b"" if ack_deadline is None else milliseconds(ack_deadline)
            waiter = Waiter(request, queues, lease, most)
            ack = (b"", b"") if settled is None else (id_text(settled), lease_text(settled_lease))
            listening = timeout >= ASKED_FIRST and settled is None
            if listening and all(self.channels.ready(self._channel(queue)) for queue in queues):
                return await self._wait(waiter, timeout)
            taken: List[Taking] = []
            found: List[Delivery] = []
            try:
                for queue in queues:
                    line = self.lines.get(queue)
                    if settled is None and line is not None and line.waiters:
                        continue  # those who wait come first
                    own = (*waiter.own[:2], b"%d" % (most - len(found)), *ack)
                    asked = self.joiner.ask(queue, Taking(self, queue, settled, waiter.requests[queue], own))
                    taken.append(asked)
                    got = await asked
                    waiter.known[queue] = asked.inc  # deleted before it waits, it isn't made again
                    fit = len(got)
                    if found:  # beside what the queues before gave
                        fit = max(len(fitting([one.answer for one in (*found, *got)])) - len(found), 0)
                    for delivery in got[fit:]:
                        self.queues.give_back(delivery)
                    found += got[:fit]
                    if len(found) >= most or isinstance(got, Cut) or fit < len(got):
                        break
                if found or timeout <= 0:
                    taken.clear()
                    return found
            finally:
                for asked in taken:  # its caller went away
                    asked.cancel()
            with _after(settled is not None):
                return await self._wait(waiter, timeout)

    async def _wait(self, waiter: Waiter, timeout: float) -> List[Delivery]:
        for queue in waiter.queues:
            await self.channels.listen(self.places.partition(queue), self._channel(queue))
        over = self.link.later(timeout, waiter.result.finish, [])
        try:
            for queue in waiter.queues:
                line = self.lines.get(queue)
                if line is None:
                    line = self.lines[queue] = Line(self, queue)
                line.waiters[waiter] = None
            for queue in waiter.queues:
                line = self.lines.get(queue)
                if line is not None and not waiter.result.done:
                    line.ask()
            found: List[Delivery] = await waiter.result
            return found
        finally:
            over()
            waiter.result.finish([])  # what a call under way still takes for it is given back by its line
            self.remove(waiter)

    def _channel(self, queue: str) -> bytes:
        return self.places.gateway(self.places.partition(queue), self.gateway)

    async def take(
        self, queue: str, wanted: Requests, waiting: int, *, known: bytes = b""
    ) -> Tuple[List[Any], bytes, int]:
        """Consume for some requests; returns for each its deliveries, or why it doesn't hold what it acknowledges, the
        queue's inc, and the ms after which something is due. With `waiting`, this gateway is registered where there was
        nothing.

        `known` is the inc of the queue that they wait for; where it isn't there any more, nothing and no inc is
        returned.
        """
        while True:
            call = self._call(queue, wanted, waiting, known)
            answers = await call
            if answers == [b"gone"]:
                return [], b"", 0
            if answers != DUE:
                return deliveries(queue, answers)
            mark(call, wanted)
            await self.queues.settle(queue)

    def _call(self, queue: str, wanted: Requests, waiting: int, known: bytes) -> Call:
        partition = self.places.partition(queue)
        keys = self.places.queue(partition, CONSUME, queue)
        register = b"%s %d %s" % (self.gateway, waiting, known) if waiting else b""
        memories, packed, flags = packed_requests(self.link, partition, len(keys), wanted, 1)
        if len(wanted) == 1 and not packed[-2]:  # acknowledges nothing
            del packed[-2:]
        return self.link.call(partition, "syn_q_consume", (*keys, *memories), (register, *packed), retried=flags)

    def answer(self, command: c.Command, found: List[Delivery]) -> Any:
        """Build the answer of a command that leases."""
        if command.answer is c.MessagesAnswer:
            return c.MessagesAnswer([delivery.answer.of_queue(delivery.queue) for delivery in found])
        return found[0].answer if found else None

    # ------------------------------------------------------------------------------------------ lines

    def remove(self, waiter: Waiter) -> None:
        """Remove a waiter from all its lines."""
        for queue in waiter.queues:
            line = self.lines.get(queue)
            if line is not None:
                line.leave(waiter)

    def withdraw(self, line: Line) -> None:
        """Tell the queue how many still wait in a line; with none, this gateway is no longer registered."""
        if self._left is None:
            self.queues.tend("syn_q_withdraw", line.queue, self.gateway, b"%d" % len(line.waiters))
        else:
            self._left[line.queue] = line

    @contextmanager
    def together(self) -> Iterator[None]:
        """Tell each queue how many still wait once, however many leave meanwhile."""
        left: Dict[str, Line] = {}
        self._left = left
        try:
            yield
        finally:
            self._left = None
            for line in left.values():
                self.withdraw(line)

    def hint(self, queue: str) -> None:
        """Act on a hint: there is something, or the queue was deleted."""
        line = self.lines.get(queue)
        if line is None:
            self.withdraw(Line(self, queue))  # none wait here any more: the hint goes to the next gateway
        else:
            line.ask()

    def look_again(self, channels: Container[bytes]) -> None:
        """Ask for all who wait for hints in some channels, where those may have been lost."""
        for queue, line in list(self.lines.items()):
            if self._channel(queue) in channels:
                line.ask()

    def drain(self) -> None:
        """Answer all who wait as if their time were up."""
        for line in list(self.lines.values()):
            for waiter in list(line.waiters):
                waiter.result.finish([])


class Taking(Asked):
    """A consume that asks once. Its messages are given back where its caller went away meanwhile."""

    __slots__ = ("_brought", "_consumers", "_queue", "_settled", "inc")

    def __init__(
        self, consumers: Consumers, queue: str, settled: Optional[str], request: Request, own: Sequence[bytes]
    ) -> None:
        super().__init__(request, own, len(own[3]))
        self._consumers = consumers
        self._queue = queue
        self._settled = settled
        self._brought: List[Delivery] = []
        self.inc = b""
        """The inc of the queue that was asked."""

    def take(self, answer: Any) -> List[Delivery]:
        if isinstance(answer, bytes):
            if answer == NO_QUEUE:
                raise no_queue(self._queue)
            raise no_message(self._queue, self._settled or "", answer.decode())
        if self.done:
            self._give_back(answer)
        self._brought = answer
        return self._brought

    def cancel(self) -> None:
        """Give back its messages, also those that come later, and end without a result."""
        if self.done:
            self._give_back(self._brought)
        super().cancel()

    def _give_back(self, brought: List[Delivery]) -> None:
        for delivery in brought:
            self._consumers.queues.give_back(delivery)


class Cut(List[Delivery]):
    """Deliveries of a queue that may have more, which one answer should not hold."""


DUE = [b"due"]
"""What a consume is answered where `syn_q_settle` must come first."""


@contextmanager
def _after(effect: bool) -> Iterator[None]:
    """Let what is refused now say that the request may have happened, where some of it has taken effect."""
    try:
        yield
    except SynapError as error:
        if not effect or error.may_have_happened:
            raise
        error = error.copy()  # which requests that were sent together share
        error.may_have_happened = True
        raise error from None


def mark(call: Call, wanted: Requests) -> None:
    """Note of what is asked again whether an earlier attempt of the call may have been executed."""
    if call.uncertain:
        for one in wanted:
            one.request.retried = b"1"


def deliveries(queue: str, answers: Any) -> Tuple[List[Any], bytes, int]:
    """Parse the answer of a consume: for each request its deliveries or why not, the queue's inc, the ms after which
    something is due (0, unknown, where one request got one message)."""
    if isinstance(answers, bytes):
        *state, inc, body = answers.split(b" ", 6)
        return [[Delivery(queue, inc, state, body)]], inc, 0
    inc, due = answers[-2:]
    found: List[Any] = []
    place = 0
    while place < len(answers) - 2:
        got = answers[place]
        place += 1
        if isinstance(got, bytes):
            found.append(got)
        else:
            end = place + 2 * abs(got)
            states = [state.split(b" ") for state in answers[place:end:2]]
            bodies = answers[place + 1 : end : 2]
            some = [Delivery(queue, inc, state, body) for state, body in zip(states, bodies)]
            found.append(Cut(some) if got < 0 else some)
            place = end
    return found, inc, int(due)
