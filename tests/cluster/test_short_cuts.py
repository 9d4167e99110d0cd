"""Where a function has a way of its own for what is usual, that answers and leaves what the way for all else does.

The library is loaded twice, once without its short cuts, and both with a clock that the test sets. Hypothesis makes
histories; what every call answers, and every byte that is left in the node, is compared.
"""

from __future__ import annotations

import re
import socket
import time
import uuid
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

import hiredis
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from synap.cluster import functions
from synap.cluster.places import Places
from synap.cluster.queues import ACK, CONSUME, PUBLISH
from synap.testing.cluster import ThrowawayCluster
from tests.helpers.patience import PATIENCE
from tests.helpers.thorough import rounds

pytestmark = pytest.mark.timeout(600)  # thousands of calls, on a machine that may have much else to do

SWITCH = "local SHORT_CUTS = true "
CLOCK = """
local now_micros = 0
local function clock() return {math.floor(now_micros / 1000000), now_micros % 1000000} end
"""
SET_CLOCK = """
redis.register_function('syn_clock@', function(K, A) now_micros = tonumber(A[1]) return 1 end)
"""
SESSIONS = (b"s" * 32, b"t" * 32)
KIN = tuple(session[:24] for session in SESSIONS)
INC, GATEWAY = b"ab", b"gateway"
WITH, WITHOUT = "_with", "_without"


def library(suffix: str) -> bytes:
    """Return the library with a suffix of its functions' names, by which it has its short cuts or hasn't."""
    text = functions._text()
    assert (text.count(SWITCH), text.count("call('TIME')")) == (1, 1)
    text = text.replace("call('TIME')", "clock()")
    text = re.sub(r"string.sub\(redis.sha1hex\(.*\), 1, 16\)", "'ab' .. incs", text)
    if suffix == WITHOUT:
        text = text.replace(SWITCH, "local SHORT_CUTS = false ")
    text = (CLOCK + text + SET_CLOCK).replace("@", suffix)
    return f"#!lua name=short_cuts{suffix}\n{text}".encode()


class Node:
    """A connection to a node with both libraries."""

    def __init__(self, port: int) -> None:
        self._reader = hiredis.Reader()
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        for suffix in (WITH, WITHOUT):
            self.ask("FUNCTION", "LOAD", "REPLACE", library(suffix))

    def close(self) -> None:
        self._socket.close()

    def ask(self, *command: Any) -> Any:
        """Send a command; what the function of a library refuses is returned as text."""
        self._socket.sendall(hiredis.pack_command(command))
        while (answer := self._reader.gets()) is False:
            data = self._socket.recv(1 << 16)
            assert data, "the node ended the connection"
            self._reader.feed(data)
        if isinstance(answer, hiredis.ReplyError):
            assert str(answer).startswith("SYNAP"), answer
            return str(answer)
        return answer


NODES: List[Node] = []


@pytest.fixture(scope="module", autouse=True)
def node(one_node: ThrowawayCluster) -> Iterator[None]:
    NODES[:] = [Node(one_node.members[0].port)]
    yield
    NODES[0].close()


class Side:
    """A space of names that one of the libraries works in."""

    def __init__(self, suffix: str, space: str) -> None:
        self.suffix = suffix
        self.space = space
        self.places = Places(16, space)
        self.partition = self.places.partition("q")
        self.memories = [self.places.memory(self.partition, session) for session in SESSIONS]

    def call(self, function: str, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Any:
        return NODES[0].ask("FCALL", function + self.suffix, len(keys), *keys, *arguments)

    def left(self) -> Dict[bytes, Any]:
        """Read every key of the space, and whether it expires."""
        found: Dict[bytes, Any] = {}
        ask = NODES[0].ask
        for key in ask("KEYS", self.space + ":*"):
            kind = ask("TYPE", key)
            content: Any
            if kind == b"hash":
                pairs = ask("HGETALL", key)
                content = dict(zip(pairs[::2], pairs[1::2]))
            elif kind == b"zset":
                content = ask("ZRANGE", key, 0, -1, "WITHSCORES")
            elif kind == b"set":
                content = sorted(ask("SMEMBERS", key))
            else:
                content = ask("GET", key)
            found[key[len(self.space) :]] = (content, ask("PTTL", key) >= 0)
        return found


REQUESTS = st.tuples(
    st.integers(0, 1), st.sampled_from(["new", "new", "new", "again", "late", "unnamed"]), st.integers(0, 9)
)
"""A request: its session, whether it was made before, and which of the session's it then is."""
QUEUES = st.sampled_from(["{q}a", "{q}a", "{q}a", "{q}b", "{q}a.dlq"])
KEYS = st.sampled_from(["{q}k", "{q}l"])
LEASES = st.sampled_from([b"", b"50"])
TTLS = st.sampled_from([b"", b"", b"900000", b"keep"])
HELD = st.tuples(st.sampled_from(["lease", "lease", "lease", "whoever", "kin", "nobody"]), st.integers(0, 3))
"""Which of the messages that were ever delivered, and how its lease is proved."""
STEPS = st.one_of(
    st.tuples(st.just("publish"), QUEUES, REQUESTS, st.integers(0, 9), st.sampled_from([0, 0, 0, 500])),
    st.tuples(st.just("publish"), QUEUES, REQUESTS, st.just(5), st.just(0)),
    st.tuples(st.just("publish_several"), QUEUES, st.lists(REQUESTS, min_size=2, max_size=4)),
    st.tuples(st.just("consume"), QUEUES, REQUESTS, st.integers(1, 3), LEASES, st.integers(0, 2)),
    st.tuples(st.just("consume"), QUEUES, REQUESTS, st.just(1), st.just(b""), st.just(0)),
    st.tuples(st.just("consume_and_ack"), HELD, REQUESTS, st.sampled_from([1, 1, 2])),
    st.tuples(st.just("ack"), HELD, REQUESTS),
    st.tuples(st.just("ack"), HELD, REQUESTS),
    st.tuples(st.just("nack"), HELD, REQUESTS, st.booleans(), st.sampled_from([b"", b"500"])),
    st.tuples(st.just("rare"), st.sampled_from(["settle", "purge", "delete", "stats"]), QUEUES, REQUESTS),
    st.tuples(st.just("create"), QUEUES, REQUESTS, st.sampled_from([b"md", b"md", b"mr", b"dl"]), st.integers(0, 3)),
    st.tuples(st.just("set"), KEYS, REQUESTS, TTLS, st.sampled_from([b"", b"", b"nx"])),
    st.tuples(st.just("delete"), KEYS, REQUESTS),
    st.tuples(st.just("tick"), st.sampled_from([1, 60, 1000, 70_000])),
)  # fmt: skip


class History:
    """What happens, with short cuts and without."""

    def __init__(self) -> None:
        name = uuid.uuid4().hex[:12]
        self.sides = [Side(WITH, f"y{name}"), Side(WITHOUT, f"n{name}")]
        self.now = int(time.time() * 1_000_000)
        self.held: List[Tuple[str, bytes, bytes]] = []
        """(queue, message, lease) of what was ever delivered."""
        self.numbers: Tuple[List[bytes], ...] = ([], [])
        self.values = 0
        self.tick(1)

    def tick(self, ms: int) -> None:
        self.now += 1000 * ms
        for side in self.sides:
            side.call("syn_clock", (), (b"%d" % self.now,))

    def both(self, function: str, keys: Callable[[Side], Sequence[bytes]], arguments: Sequence[bytes]) -> Any:
        """Call a function of both libraries, and return what both answer."""
        answers = [side.call(function, keys(side), arguments) for side in self.sides]
        assert answers[0] == answers[1], (function, arguments)
        return answers[0]

    def named(self, request: Tuple[int, str, int]) -> Tuple[bytes, bytes]:
        """Return the number of a request, and whether it may have been made before."""
        session, kind, which = request
        numbers = self.numbers[session]
        if kind == "unnamed":
            return b"", b""
        if kind in ("again", "late") and numbers:
            return numbers[which % len(numbers)], b"1" if kind == "again" else b""
        numbers.append(b"%d" % len(numbers))
        return numbers[-1], b"1" if kind == "again" else (b"0", b"")[which % 2]

    def joined(
        self, function: str, kinds: Tuple[bytes, ...], queue: str, head: Sequence[bytes], each: Sequence[Any]
    ) -> Any:
        """Call a function that takes what several requests ask of one queue."""
        arguments = [*head]
        sessions = sorted({request[0] for request, _ in each})
        for request, own in each:
            number, retried = self.named(request)
            place = len(kinds) + 1 + sessions.index(request[0])
            arguments += (b"%d" % place if number else b"0", number, retried, *own)

        def keys(side: Side) -> Sequence[bytes]:
            memories = [side.memories[session] for session in sessions]
            return (*side.places.queue(side.partition, kinds, queue), *memories)

        return self.both(function, keys, arguments)

    def write(self, function: str, keys: Callable[[Side], Sequence[bytes]], request: Any, *own: bytes) -> Any:
        """Call a function that takes one request."""
        return self.both(function, lambda side: (side.memories[request[0]], *keys(side)), (*self.named(request), *own))

    def whole(self, function: str, queue: str, request: Any, *own: bytes) -> Any:
        """Call a function that takes all keys of a queue."""
        return self.write(
            function, lambda side: side.places.whole_queue(side.partition, queue), request, queue.encode(), *own
        )

    # ---- queues

    def body(self) -> bytes:
        self.values += 1
        return b"\x92\xc0\xa3%03d" % (self.values % 1000)

    def publish(self, queue: str, request: Any, priority: int, delay: int) -> None:
        own = (b"%d" % priority, b"%d" % delay, self.body())
        self.joined("syn_q_publish", PUBLISH, queue, (), [(request, own)])

    def publish_several(self, queue: str, requests: Sequence[Any]) -> None:
        each = [(request, (b"5", b"0", self.body())) for request in requests]
        self.joined("syn_q_publish", PUBLISH, queue, (), each)

    def consume(
        self, queue: str, request: Any, most: int, lease: bytes, waiting: int, ack: Tuple[bytes, bytes] = (b"", b"")
    ) -> None:
        registers = b"%s %d " % (GATEWAY, waiting) if waiting else b""
        own = (lease, KIN[request[0]], b"%d" % most, *(ack if ack[0] else ()))
        answer = self.joined("syn_q_consume", CONSUME, queue, (registers,), [(request, own)])
        if isinstance(answer, bytes):
            id, _, given, _, _, inc, _ = answer.split(b" ", 6)
            self.held.append((queue, inc + b"-" + id, given))
        elif answer[0] == b"due":
            self.whole("syn_q_settle", queue, (0, "unnamed", 0))
        elif isinstance(answer[0], int):
            for state in answer[1:-2:2]:
                id, _, given = state.split(b" ")[:3]
                self.held.append((queue, answer[-2] + b"-" + id, given))

    def proof(self, held: Tuple[str, int]) -> Tuple[str, bytes, bytes]:
        """Return a queue, a message of it and what is given for its lease."""
        how, which = held
        if not self.held:
            return "{q}a", b"ab-15", b"7"
        queue, message, lease = self.held[-1 - which % len(self.held)]
        return queue, message, {"lease": lease, "whoever": b"0", "kin": b"", "nobody": b"7"}[how]

    def consume_and_ack(self, held: Any, request: Any, most: int) -> None:
        queue, *ack = self.proof(held)
        self.consume(queue, request, most, b"", 0, (ack[0], ack[1]))  # what acknowledges doesn't wait in the same call

    def ack(self, held: Any, request: Any) -> None:
        queue, message, lease = self.proof(held)
        self.joined("syn_q_ack", ACK, queue, (), [(request, (message, lease, KIN[request[0]]))])

    def nack(self, held: Any, request: Any, requeue: bool, delay: bytes) -> None:
        queue, message, lease = self.proof(held)
        self.whole("syn_q_nack", queue, request, message, lease, KIN[request[0]], b"%d" % requeue, delay)

    def rare(self, name: str, queue: str, request: Any) -> None:
        self.whole("syn_q_" + name, queue, (0, "unnamed", 0) if name in ("settle", "stats") else request)

    def create(self, queue: str, request: Any, rule: bytes, value: int) -> None:
        self.whole("syn_q_create", queue, request, INC, rule, b"%d" % (value % 2 if rule == b"dl" else value))

    # ---- keys

    def set(self, key: str, request: Any, ttl: bytes, condition: bytes) -> None:
        def keys(side: Side) -> Sequence[bytes]:
            return (side.places.key(side.partition, key), *side.places.index(side.partition))

        options = (ttl, condition) if ttl or condition else ()
        self.write("syn_set", keys, request, key.encode(), self.body(), *options)

    def delete(self, key: str, request: Any) -> None:
        def keys(side: Side) -> Sequence[bytes]:
            return (*side.places.index(side.partition), side.places.key(side.partition, key))

        self.write("syn_del", keys, request, key.encode())


@settings(max_examples=rounds(100, 3000), suppress_health_check=list(HealthCheck))
@given(st.lists(STEPS, min_size=20, max_size=60))
def test_short_cuts_answer_and_leave_what_the_way_for_all_else_does(steps: List[Tuple[Any, ...]]) -> None:
    history = History()
    for name, *given_to_it in steps:
        getattr(history, name)(*given_to_it)
    one, other = (side.left() for side in history.sides)
    assert one == other
    for side in history.sides:
        keys = NODES[0].ask("KEYS", side.space + ":*")
        for key in keys:
            NODES[0].ask("UNLINK", key)
