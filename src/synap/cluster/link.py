"""Calls to the cluster: to the node that has the partition, through redirects, failovers and lost connections.

A call is made once and under way at once. It is sent again, marked as one that may have been executed, after whatever
leaves that open, until `patience` is over; the functions remember what each request was answered, so sending again is
safe. `Order` keeps it in its place meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import nullcontext
from itertools import count
from typing import Any, Callable, ContextManager, Dict, Iterable, List, Optional, Sequence, Tuple

import hiredis

from synap.cluster import functions
from synap.cluster.calls import Call, Refused, unavailable
from synap.cluster.node import Lost, Node, Short
from synap.cluster.options import Address, EngineOptions
from synap.cluster.order import Order
from synap.cluster.places import Places
from synap.cluster.topology import ANSWER, Topology, in_a_function, lacks_right, missing_right
from synap.cluster.watch import Loader, Watch
from synap.errors import SynapError

log = logging.getLogger("synap.cluster")

MOST_CALLS, MOST_BYTES = 20_000, 8 * 1024 * 1024
"""Calls and bytes under way from which on the link is `stalled`."""
REDIRECTS = 5
"""Redirects that a call follows at once; further ones after a while."""
_AGAIN = frozenset((
    "TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY", "NOREPLICAS", "BUSY", "UNBLOCKED", "MISCONF",
    "UNKILLABLE",
))  # fmt: skip
"""First words of answers after which a call is sent again: it was not executed, or that is unknown."""
_TOGETHER = frozenset(("TRYAGAIN", "READONLY", "NOREPLICAS", "MISCONF"))
"""Those after which others may be taken: reads, or those of other keys while a slot is moved."""


class Link:
    """The connections to a cluster's primaries. For the event loop it was opened in; hold `guard` to use it.

    `turned` is called after the answers of one read of a socket were handed out: the end of a turn.
    """

    def __init__(
        self,
        options: EngineOptions,
        *,
        guard: Optional[ContextManager[Any]] = None,
        turned: Callable[[], None] = lambda: None,
        flowing: Callable[[], None] = lambda: None,
    ) -> None:
        self.options = options
        self.places = Places(options.partitions or 256, options.space)
        self.topology = Topology(options, guard)
        self.guard: ContextManager[Any] = nullcontext() if guard is None else guard
        self.recording = False
        self.turned = turned
        self.flowing = flowing
        self.calls = 0
        self.bytes = 0
        self.stalled = False
        """Whether so much is under way that callers should not be read for now."""
        self.retries: Dict[str, int] = {}
        """How often calls were sent again, by the reason."""
        self.closed = False
        self.moved: Callable[[], None] = lambda: None
        """Called when partitions have another node than before."""
        self.nodes: Dict[Address, Node] = {}
        """The open connections."""
        self.parked: Dict[Address, List[Call]] = {}
        """Calls to nodes to which a connection is being opened."""
        self._fences: Dict[Address, List[Tuple[bytes, int]]] = {}
        """Connections that were lost with changing calls under way, by `Node.identity`."""
        self._order = Order(self)
        self._backlogs = self._order.backlogs
        self._under_way = self._order.under_way
        self._next_number = count(1).__next__
        self.topology.moved = self._order.move
        self._watch = Watch(self)
        self._loader = Loader(self)
        self._tasks: set[asyncio.Task[Any]] = set()
        self.loop: asyncio.AbstractEventLoop

    # ------------------------------------------------------------------------------------------ life

    async def open(self) -> None:
        """Learn the topology; raises `SynapError` where no node of a cluster can be reached."""
        self.loop = asyncio.get_running_loop()
        await self.topology.learn(self.places, (), last=max(ANSWER, self.options.patience))
        self._watch.check()

    async def settle(self, timeout: float) -> None:
        """Wait until no call is under way, at most `timeout` seconds."""
        end = self.loop.time() + timeout
        while self.calls and self.loop.time() < end:  # noqa: ASYNC110  # calls end in many places; this waits but once
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        """End all connections. All calls that have no answer fail."""
        self.closed = True
        self._watch.end()
        with self.guard:
            self._order.close()
            for address in list(self.parked):
                for call in self.parked.pop(address):
                    self.fail(call, unavailable("the connection to the cluster was closed"))
            self.turned()
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for node in list(self.nodes.values()):
            node.abort()
        await asyncio.sleep(0)

    def soon(self, callback: Callable[[], Any]) -> None:
        """Have the loop call something. From any thread."""
        running: Optional[asyncio.AbstractEventLoop]
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None  # no loop runs in this thread
        if running is self.loop:
            self.loop.call_soon(self._guarded, callback)
        elif not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._guarded, callback)

    def later(self, delay: float, callback: Callable[..., None], *arguments: Any) -> Callable[[], None]:
        """Have the loop call something in `delay` seconds, under the guard. From any thread, as what prevents it, which
        is returned."""
        timers: List[asyncio.TimerHandle] = []

        def prevent() -> None:
            for timer in timers:
                timer.cancel()

        if not self.closed:
            self.soon(lambda: timers.append(self.loop.call_later(delay, self._guarded, callback, *arguments)))
        return lambda: self.soon(prevent)

    def _guarded(self, callback: Callable[..., Any], *arguments: Any) -> None:
        if self.closed:
            return
        with self.guard:
            callback(*arguments)
            self.turned()

    def spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        """Run a task that ends with the link."""
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ------------------------------------------------------------------------------------------ calls

    def call(
        self,
        partition: int,
        function: str,
        keys: Sequence[bytes],
        arguments: Sequence[Any] = (),
        *,
        retried: Tuple[int, ...] = (),
        changes: bool = True,
        once: bool = False,
    ) -> Call:
        """Call a function of the library; it is under way when this returns."""
        name = functions.name(function)
        return self.send(Call(partition, name, keys, arguments, retried=retried, changes=changes, once=once))

    def command(self, partition: int, *command: Any, changes: bool = False) -> Call:
        """Call a plain command at a partition's node. It must be safe to execute twice."""
        return self.send(Call.plain(command, partition, changes))

    def send(self, call: Call) -> Call:
        """Send a call."""
        call.deadline = self.loop.time() + self.options.patience
        call.size = 200 + len(call.packed())
        self.calls += 1
        self.bytes += call.size
        call.number = self._next_number()
        partition = call.partition
        self._under_way[partition] += 1
        if self.calls >= MOST_CALLS or self.bytes >= MOST_BYTES:
            self.stalled = True
        if self._backlogs and partition in self._backlogs:
            self._backlogs[partition].calls.append(call)
            return call
        node = self.nodes.get(self.topology.owners[partition])  # type: ignore[arg-type]  # None has no node
        if node is None or self.closed:
            self.dispatch(call)
        else:
            node.send(call, self.soon)
        return call

    def dispatch(self, call: Call) -> None:
        """Send a call to the node that has its partition."""
        if call.done:  # nobody waits for it any more
            self._done(call)
            return
        address = self.topology.owners[call.partition]
        if address is None:
            self._order.again(call, "no node")
        else:
            self._send_to(address, call)

    def _send_to(self, address: Address, call: Call) -> None:
        if self.closed:
            self.fail(call, unavailable("the connection to the cluster was closed"))
            return
        node = self.nodes.get(address)
        if node is not None:
            node.send(call, self.soon)
            return
        parked = self.parked.get(address)
        if parked is not None:
            parked.append(call)
            return
        self.parked[address] = [call]
        self.soon(lambda: self.spawn(self._open_node(address)))

    def _done(self, call: Call) -> None:
        size = call.size
        if not size:
            return
        self.calls -= 1
        self.bytes -= size
        call.size = 0
        self._under_way[call.partition] -= 1
        if self._backlogs:
            self._order.ended(call.partition)
        if self.stalled and self.calls < MOST_CALLS // 2 and self.bytes < MOST_BYTES // 2:
            self.stalled = False
            self.soon(self.flowing)

    def fail(self, call: Call, error: BaseException) -> None:
        """End a call with an error, which says whether it may have been executed."""
        self._done(call)
        if call.done:
            return
        if isinstance(error, SynapError) and call.uncertain and call.changes:
            error.may_have_happened = True  # whatever the last attempt was refused for
        call.finish(error=error)

    # ------------------------------------------------------------------------------------------ answers

    def _answered(self, node: Node, answered: List[Tuple[Call, Any]]) -> None:
        with self.guard:
            for call, answer in answered:
                if call.done:
                    self._done(call)
                    continue
                try:
                    if not isinstance(answer, Exception):
                        self._done(call)
                        call.finish(answer)
                    elif call.partition < 0:
                        call.finish(error=answer)
                    else:
                        self._refused(node.address, call, answer)
                except Exception:  # of one caller; the other answers belong to others
                    log.exception("an answer of %s was not taken well", node.address)
                    self._done(call)
            node.flush()
            self.turned()

    def _refused(self, address: Address, call: Call, error: Exception) -> None:
        """Act on an answer that is an error: go elsewhere, try again, or give up."""
        text = str(error)
        word, _, rest = text.partition(" ")
        if isinstance(error, Short):
            if error.refused is None:
                self._order.again(call, "too few replicas", uncertain=True, together=True)
            elif lacks_right(error.refused):
                missing = missing_right(address, error.refused, self.options)
                missing.may_have_happened = True
                self.fail(call, missing)
            else:  # the node became a replica meanwhile
                self._order.again(call, str(error.refused), uncertain=True, together=True)
        elif word == "SYNAP":
            code, _, more = rest.partition(" ")
            self.fail(call, Refused(code, more))
        elif word == "MOVED":
            self.topology.owners[call.partition] = self._where(address, rest)
            call.redirects += 1
            if call.redirects > REDIRECTS:  # two nodes that redirect to each other
                self._order.again(call, "MOVED")
                return
            self.count("MOVED")
            self._order.moved(call)
            self.refresh()
        elif word == "ASK":
            self.count("ASK")
            if self._order.asks(call):
                call.asking = True
                self._send_to(self._where(address, rest), call)
        elif "unction not found" in text:
            self.count("function not found")
            self._order.load(call)
            self._loader.load(address, call.partition)
        elif word in _AGAIN:
            self._order.again(call, word, together=word in _TOGETHER)
        elif word == "OOM":
            full = "the node that has this is full (maxmemory); delete something or give it more memory"
            self.fail(call, SynapError("MEMORY_LIMIT", full))
        elif lacks_right(error):
            missing = missing_right(address, error, self.options)
            missing.may_have_happened = call.changes and in_a_function(error)  # what it did before stays
            self.fail(call, missing)
        else:
            log.error("%s answered %r to %s", address, text, call.function.decode() or call.arguments[0])
            failed = SynapError("INTERNAL_ERROR", "a node of the cluster answered with an error; the log says which")
            failed.may_have_happened = call.changes
            self.fail(call, failed)

    def _where(self, address: Address, rest: str) -> Address:
        """Parse the end of a redirect, 'slot host:port'; without a host it means the node that sent it."""
        host, _, port = rest.split(" ")[1].rpartition(":")
        return Address(host.strip("[]") or address.host, int(port))

    def count(self, reason: str) -> None:
        """Count that a call is sent again."""
        self.retries[reason] = self.retries.get(reason, 0) + 1

    # ------------------------------------------------------------------------------------------ connections

    async def _open_node(self, address: Address) -> None:
        error: Exception = ConnectionError("refused")
        node = None
        try:
            node = await self.connect(address)
        except (OSError, asyncio.TimeoutError, hiredis.ReplyError) as refused:
            error = refused
        with self.guard:
            calls = self.parked.pop(address, [])
            if node is not None and node.open:
                self.nodes[address] = node
                for call in calls:
                    node.send(call, self.soon)
            elif lacks_right(error):
                for call in calls:
                    self.fail(call, missing_right(address, error, self.options))
            else:
                self.refresh()
                why = f"{address} can't be reached: {str(error) or type(error).__name__}"
                for call in calls:
                    self._order.again(call, why if call.attempts > 3 else "not reached")
            self.turned()

    async def connect(self, address: Address) -> Node:
        """Open a command connection to a node and sign in."""
        node = Node(address, self._order, replicas=self.options.copies, turn=self._answered, lost=self._lost)
        try:
            await asyncio.wait_for(
                self.loop.create_connection(lambda: node, address.host, address.port, ssl=self.options.ssl),
                self.options.connect_timeout,
            )
            if self.options.login is not None:
                await asyncio.wait_for(node.ask(*self.options.login), 2)
            await asyncio.wait_for(node.identify(), 2)
            await asyncio.wait_for(self._fence(node), 2)
            if node.gone:  # before Python 3.12, `wait_for` goes on a while after what it waited for
                raise Lost(f"{address} ended the connection")
        except BaseException:
            node.abort()
            raise
        node.open = True
        return node

    async def _fence(self, node: Node) -> None:
        """Have the server end connections that were lost, before calls are sent again that were under way on them.

        What the network still holds of such a connection would else be executed after the second try, and not as one
        that may have been executed before.
        """
        fences = self._fences.get(node.address, [])
        while fences:
            run, number = fences[-1]
            if run == node.identity[0]:
                try:
                    await node.ask("CLIENT", "KILL", "ID", number)
                except hiredis.ReplyError as error:
                    if str(error).startswith("NOPERM"):
                        log.warning("%s doesn't let this user end its own lost connections: %s", node.address, error)
            fences.remove((run, number))

    def _lost(self, node: Node) -> None:
        with self.guard:
            sent, unsent = node.unanswered()
            if self.nodes.get(node.address) is node:
                del self.nodes[node.address]
            if any(call.changes for call in sent):
                self._fences.setdefault(node.address, []).append(node.identity)
            for call in sent:
                if call.partition < 0:
                    call.finish(error=Lost(f"{node.address} ended the connection"))
                elif call.done:
                    self._done(call)
                else:
                    self._order.again(call, "connection lost", uncertain=True)
            for call in unsent:
                if not call.done:
                    self._order.again(call, "connection lost")
            if not self.closed:
                self.refresh()
            self.turned()

    # ------------------------------------------------------------------------------------------ topology

    def refresh(self) -> None:
        """Learn anew who has which partition; one refresh at a time."""
        self._watch.refresh()

    def check(self, now: float) -> None:
        """Fail the calls that waited too long until they may be sent."""
        self._order.check(now)

    def late(self, node: Node, now: float) -> None:
        """Fail the calls that a node did not answer in time."""
        for calls, sent in zip(node.overdue(now), (True, False)):
            for call in calls:
                self.fail(call, unavailable(f"{node.address} did not answer in time", call.changes and sent))

    def loaded(self, partitions: Iterable[int], error: str) -> None:
        """Send calls again that missed the library; `error` is why it can't be loaded."""
        self._order.loaded(partitions, error)
