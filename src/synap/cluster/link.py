"""Calls to the cluster: to the node that has the partition, through redirects, failovers and lost connections.

A call is made once and under way at once. It is sent again, marked as one that may have been executed, after whatever
leaves that open, until `patience` is over; the functions remember what each request was answered, so sending again is
safe.
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import nullcontext
from typing import Any, Callable, ContextManager, Dict, List, Optional, Sequence, Tuple

import hiredis

from synap.cluster import functions
from synap.cluster.calls import Call, Refused
from synap.cluster.node import Lost, Node, Short
from synap.cluster.options import Address, EngineOptions
from synap.cluster.places import Places
from synap.cluster.topology import Topology, converse, lacks_right, missing_right
from synap.errors import SynapError

__all__ = ["Link"]

log = logging.getLogger("synap.cluster")

MOST_CALLS, MOST_BYTES = 20_000, 8 * 1024 * 1024
"""Calls and bytes under way from which on the link is `stalled`."""
SILENCE = 1.0
"""Seconds that a node may say nothing before the others are asked whether it still has its slots."""
DEAD = 3.0
"""Seconds that a connection may carry nothing before it is given up, where its node answers on another."""

REDIRECTS = 5
"""Redirects that a call follows at once; further ones after a while."""
_AGAIN = frozenset(
    (
        "TRYAGAIN",
        "CLUSTERDOWN",
        "LOADING",
        "MASTERDOWN",
        "READONLY",
        "NOREPLICAS",
        "BUSY",
        "UNBLOCKED",
        "MISCONF",
        "UNKILLABLE",
    )
)
"""First words of answers after which a call is sent again: nothing was done, or nobody can say."""


class Link:
    """The connections to a cluster's primaries. Belongs to the event loop it was opened in, and to whoever holds
    `guard`.

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
        self.topology = Topology(options)
        self.guard: ContextManager[Any] = nullcontext() if guard is None else guard
        self.recording = False
        self.turned = turned
        self.flowing = flowing
        self.calls = 0
        self.bytes = 0
        self.retries: Dict[str, int] = {}
        """How often calls were sent again, by the reason."""
        self.closed = False
        self.moved: Callable[[], None] = lambda: None
        """Called when partitions have another node than before."""
        self._nodes: Dict[Address, Node] = {}
        self._opening: Dict[Address, asyncio.Task[None]] = {}
        self._parked: Dict[Address, List[Call]] = {}
        self._fences: Dict[Address, List[Tuple[bytes, int]]] = {}
        """Connections that were lost with changing calls under way, by `Node.identity`."""
        self._stalled = False
        self._refreshing: Optional[asyncio.Task[None]] = None
        self._loading: Dict[Address, List[Call]] = {}
        self._ticker: Optional[asyncio.TimerHandle] = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.loop: asyncio.AbstractEventLoop

    # ------------------------------------------------------------------------------------------ life

    async def open(self) -> None:
        """Learn the topology; raises `SynapError` where no node of a cluster can be reached."""
        self.loop = asyncio.get_running_loop()
        await self.topology.learn(self.places, ())
        self._tick()

    async def settle(self, timeout: float) -> None:
        """Wait until no call is under way, at most `timeout` seconds."""
        end = self.loop.time() + timeout
        while self.calls and self.loop.time() < end:  # noqa: ASYNC110  # calls end in many places; this waits but once
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        """End all connections; calls under way fail."""
        self.closed = True
        if self._ticker is not None:
            self._ticker.cancel()
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for node in list(self._nodes.values()):
            node.abort()
        await asyncio.sleep(0)

    def soon(self, callback: Callable[[], None]) -> None:
        """Have the loop call something, from whatever thread."""
        running: Optional[asyncio.AbstractEventLoop]
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None  # no loop runs in this thread
        if running is self.loop:
            self.loop.call_soon(self._guarded, callback)
        elif not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._guarded, callback)

    def later(self, delay: float, callback: Callable[..., None], *arguments: Any) -> None:
        """Have the loop call something in `delay` seconds, under the guard. From whatever thread."""
        if not self.closed:
            self.soon(lambda: self._set_timer(delay, callback, arguments))

    def _set_timer(self, delay: float, callback: Callable[..., None], arguments: Tuple[Any, ...]) -> None:
        self.loop.call_later(delay, self._guarded, callback, *arguments)

    def _guarded(self, callback: Callable[..., None], *arguments: Any) -> None:
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
    ) -> Call:
        """Call a function of the library; it is under way when this returns."""
        return self.send(Call(partition, functions.name(function), keys, arguments, retried=retried, changes=changes))

    def command(self, partition: int, *command: Any, changes: bool = False) -> Call:
        """Call a plain command at a partition's node. It must be safe to execute twice."""
        return self.send(Call.plain(command, partition, changes))

    def send(self, call: Call) -> Call:
        """Send a call."""
        call.deadline = self.loop.time() + self.options.patience
        call.size = 200 + len(call.packed())
        self.calls += 1
        self.bytes += call.size
        if self.calls >= MOST_CALLS or self.bytes >= MOST_BYTES:
            self._stalled = True
        self._dispatch(call)
        return call

    @property
    def stalled(self) -> bool:
        """Whether so much is under way that callers should not be read for now."""
        return self._stalled

    def _dispatch(self, call: Call) -> None:
        address = self.topology.owners[call.partition]
        if address is None:
            self._again(call, "no node")
        else:
            self._send_to(address, call)

    def _send_to(self, address: Address, call: Call) -> None:
        if self.closed:
            self._fail(call, _unavailable("the connection to the cluster was closed", call.uncertain))
            return
        node = self._nodes.get(address)
        if node is not None:
            node.send(call, self.soon)
            return
        parked = self._parked.get(address)
        if parked is not None:
            parked.append(call)
            return
        self._parked[address] = [call]
        self.soon(lambda: self._start_opening(address))

    def _done(self, call: Call) -> None:
        self.calls -= 1
        self.bytes -= call.size
        if self._stalled and self.calls < MOST_CALLS // 2 and self.bytes < MOST_BYTES // 2:
            self._stalled = False
            self.soon(self.flowing)

    def _fail(self, call: Call, error: BaseException) -> None:
        if call.done:
            return
        if call.partition >= 0:
            self._done(call)
        call.finish(error=error)

    # ------------------------------------------------------------------------------------------ answers

    def _answered(self, node: Node, answered: List[Tuple[Call, Any]]) -> None:
        with self.guard:
            for call, answer in answered:
                if call.done:
                    continue
                try:
                    if not isinstance(answer, Exception):
                        if call.partition >= 0:
                            self._done(call)
                        call.finish(answer)
                    elif call.partition < 0:
                        call.finish(error=answer)
                    else:
                        self._refused(node.address, call, answer)
                except Exception:  # of one caller; the other answers belong to others
                    log.exception("an answer of %s was not taken well", node.address)
            node.flush()
            self.turned()

    def _refused(self, address: Address, call: Call, error: Exception) -> None:
        """Act on an answer that is an error: go elsewhere, try again, or give up."""
        text = str(error)
        word, _, rest = text.partition(" ")
        if isinstance(error, Short):
            if error.refused is not None:
                missing = missing_right(address, error.refused)
                missing.may_have_happened = True
                self._fail(call, missing)
                return
            self._again(call, "too few replicas", uncertain=True)
        elif word == "SYNAP":
            code, _, more = rest.partition(" ")
            self._fail(call, Refused(code, more))
        elif word == "MOVED":
            self.topology.owners[call.partition] = target = self._where(address, rest)
            call.redirects += 1
            if call.redirects > REDIRECTS:  # two nodes that redirect to each other
                self._again(call, "MOVED")
                return
            self._count("MOVED")
            self._send_to(target, call)
            self.refresh()
        elif word == "ASK":
            self._count("ASK")
            call.asking = True
            self._send_to(self._where(address, rest), call)
        elif "unction not found" in text:
            self._load(address, call)
        elif word in _AGAIN:
            self._again(call, word)
        elif word == "OOM":
            full = "the node that has this is full (maxmemory); delete something or give it more memory"
            self._fail(call, SynapError("MEMORY_LIMIT", full))
        elif lacks_right(error):
            self._fail(call, missing_right(address, error))
        else:
            log.error("%s answered %r to %s", address, text, call.function.decode() or call.arguments[0])
            failed = SynapError("INTERNAL_ERROR", "a node of the cluster answered with an error; the log says which")
            failed.may_have_happened = call.changes
            self._fail(call, failed)

    def _where(self, address: Address, rest: str) -> Address:
        """Read the end of a redirect, 'slot host:port'; without a host it means the node that said it."""
        host, _, port = rest.split(" ")[1].rpartition(":")
        return Address(host.strip("[]") or address.host, int(port))

    def _count(self, reason: str) -> None:
        self.retries[reason] = self.retries.get(reason, 0) + 1

    def _again(self, call: Call, reason: str, *, uncertain: bool = False) -> None:
        """Send a call again after a while, if there is time."""
        self._count(reason)
        if uncertain:
            call.mark()
        delay = min(0.02 * 1.6**call.attempts, 0.4) * random.uniform(0.5, 1.0)
        call.attempts += 1
        if self.closed or self.loop.time() + delay > call.deadline:
            self._fail(
                call, _unavailable(f"the cluster did not take it in time ({reason})", call.uncertain and call.changes)
            )
            return
        log.debug("%s again: %s", call.function.decode(), reason)
        self.refresh()
        self.later(delay, self._resend, call)

    def _resend(self, call: Call) -> None:
        if not call.done:
            self._dispatch(call)

    # ------------------------------------------------------------------------------------------ connections

    def _start_opening(self, address: Address) -> None:
        if address not in self._opening and not self.closed:
            task = self._opening[address] = self.spawn(self._open_node(address))
            task.add_done_callback(lambda _: self._opening.pop(address, None))

    async def _open_node(self, address: Address) -> None:
        error: Exception = ConnectionError("refused")
        node = None
        try:
            node = await self.connect(address)
        except (OSError, asyncio.TimeoutError, hiredis.ReplyError) as refused:
            error = refused
        with self.guard:
            calls = self._parked.pop(address, [])
            if node is not None and node.open:
                self._nodes[address] = node
                for call in calls:
                    node.send(call, self.soon)
            elif lacks_right(error):
                for call in calls:
                    self._fail(call, missing_right(address, error))
            else:
                self.refresh()
                why = f"{address} can't be reached: {str(error) or type(error).__name__}"
                for call in calls:
                    self._again(call, why if call.attempts > 3 else "not reached")
            self.turned()

    async def connect(self, address: Address) -> Node:
        """Open a command connection to a node and sign in."""
        ready = self.options.ssl
        node = Node(
            address,
            replicas=self.options.copies,
            turn=self._answered,
            lost=self._lost,
        )
        await asyncio.wait_for(
            self.loop.create_connection(lambda: node, address.host, address.port, ssl=ready),
            self.options.connect_timeout,
        )
        try:
            password = self.options.password
            if password is not None:
                await asyncio.wait_for(node.ask("AUTH", *filter(None, (self.options.user,)), password), 2)
            await asyncio.wait_for(node.identify(), 2)
            await asyncio.wait_for(self._fence(node), 2)
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
            if self._nodes.get(node.address) is node:
                del self._nodes[node.address]
            if any(call.changes for call in sent):
                self._fences.setdefault(node.address, []).append(node.identity)
            for call in sent:
                if call.partition < 0:
                    call.finish(error=Lost(f"{node.address} ended the connection"))
                elif not call.done:
                    self._again(call, "connection lost", uncertain=True)
            for call in unsent:
                if not call.done:
                    self._again(call, "connection lost")
            if not self.closed:
                self.refresh()
            self.turned()

    # ------------------------------------------------------------------------------------------ topology

    def refresh(self) -> None:
        """Learn anew who has which partition; one refresh at a time."""
        if self._refreshing is None and not self.closed:
            self.soon(self._start_refreshing)

    def _start_refreshing(self) -> None:
        if self._refreshing is None and not self.closed:
            task = self._refreshing = self.spawn(self._learn())
            task.add_done_callback(lambda _: setattr(self, "_refreshing", None))

    async def _learn(self) -> None:
        silent = [node.address for node in self._nodes.values() if self._silent(node)]
        try:
            changed = await self.topology.learn(self.places, silent)
        except SynapError as error:
            log.debug("no node says who has the slots: %s", error.message)
        else:
            with self.guard:
                if changed:
                    self.moved()
                for address in silent:
                    node = self._nodes.get(address)
                    if node is not None and self._silent(node) and address not in self.topology.owners:
                        log.warning("%s is silent and has no slots any more; its calls go elsewhere", address)
                        node.abort()
                self.turned()
        for address in silent:
            node = self._nodes.get(address)
            if node is not None and self._silent(node, DEAD):
                await self._try_another(node)
        await asyncio.sleep(0.05)

    async def _try_another(self, node: Node) -> None:
        """Give a silent connection up where its node answers on another: something between them forgot it."""
        heard = node.heard
        try:
            await converse(node.address, self.options, ("PING",), timeout=1.0)
        except (OSError, asyncio.TimeoutError, hiredis.ReplyError):
            return  # the node is busy, or gone; then the others will say so
        await asyncio.sleep(0.25)
        if node.heard == heard and node.waiting:
            log.warning("a connection to %s carries nothing any more; its calls go over another", node.address)
            with self.guard:
                node.abort()

    def _silent(self, node: Node, seconds: float = SILENCE) -> bool:
        return bool(node.waiting) and self.loop.time() - node.heard > seconds

    def _tick(self) -> None:
        """Look after silent nodes and calls whose time is over: one timer for all of them."""
        if self.closed:
            return
        self._ticker = self.loop.call_later(0.25, self._tick)
        now = self.loop.time()
        if now - self.topology.learned > 30:
            self.refresh()
        with self.guard:
            for node in list(self._nodes.values()):
                if node.moves():
                    node.heard = now
                if self._silent(node):
                    self.refresh()
                    for call, commit in list(node.waiting):
                        if call is not None and call.deadline < now and call.partition >= 0:
                            self._late(node, call)
                        elif call is None and commit is not None:
                            for held, _ in commit.answers:
                                if held.deadline < now:
                                    self._late(node, held)
            self.turned()

    def _late(self, node: Node, call: Call) -> None:
        self._fail(call, _unavailable(f"{node.address} did not answer in time", call.changes))

    # ------------------------------------------------------------------------------------------ the library

    def _load(self, address: Address, call: Call) -> None:
        """Load the library where it is missing, once at a time, and send the calls again that missed it."""
        self._count("function not found")
        waiting = self._loading.get(address)
        if waiting is not None:
            waiting.append(call)
            return
        self._loading[address] = [call]
        self.soon(lambda: self._start_loading(address))

    def _start_loading(self, address: Address) -> None:
        self.spawn(self._load_at(address))

    async def _load_at(self, address: Address) -> None:
        error = ""
        try:
            await self.topology.load(address)
        except (OSError, asyncio.TimeoutError, hiredis.ReplyError) as refused:
            error = str(refused)
        with self.guard:
            for call in self._loading.pop(address, []):
                if error:
                    self._again(call, f"the library can't be loaded: {error}")
                else:
                    self._send_to(address, call)
            self.turned()


def _unavailable(text: str, may_have_happened: bool) -> SynapError:
    error = SynapError("SERVICE_UNAVAILABLE", text, {"retry_after": 1})
    error.may_have_happened = may_have_happened
    return error
