"""The function library against the engine of one machine: the same commands have the same answers and leave the same.

Each call of a function is made twice besides, the second time as one that may have been executed, and answers the same.
"""

from __future__ import annotations

import uuid
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from synap import SynapClient
from synap.cluster.calls import Call
from synap.cluster.link import Link
from synap.errors import SynapError
from synap.results import QueueMessage
from synap.testing.cluster import ThrowawayCluster
from tests.helpers.thorough import rounds

pytestmark = pytest.mark.timeout(600)  # thousands of steps, on a machine that may have much else to do

CLIENTS: List[SynapClient] = []
"""The one on a cluster."""
DIFFERENT: List[str] = []
"""Functions that answered something else the second time."""


@pytest.fixture(scope="module", autouse=True)
def cluster(one_node: ThrowawayCluster) -> Iterator[None]:
    """A client on a cluster, whose link makes each remembered call twice."""
    once = Link.call

    def twice(
        link: Link,
        partition: int,
        function: str,
        keys: Sequence[bytes],
        arguments: Sequence[Any] = (),
        *,
        retried: Tuple[int, ...] = (),
        changes: bool = True,
    ) -> Call:
        call = once(link, partition, function, keys, arguments, retried=retried, changes=changes)
        if retried and not link.recording:
            marked = [b"1" if place in retried else given for place, given in enumerate(arguments)]
            again = once(link, partition, function, keys, marked, retried=retried)
            if not any(
                arguments[place - 1] for place in retried
            ):  # not remembered, so it is done twice; figures have ages
                return call

            def shown(answered: Call) -> Any:
                value = answered.value
                if function == "syn_q_consume" and isinstance(value, list):
                    value = value[:-1]  # after how many ms something is due, which goes by
                return value, repr(answered.error)

            def compare() -> None:
                if shown(call) != shown(again):
                    DIFFERENT.append(f"{function}: {call.value or call.error!r}, then {again.value or again.error!r}")

            again.when_done(compare)
        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Link, "call", twice)
        engine = {"durability": "none", "space": "model" + uuid.uuid4().hex[:6], "partitions": 16}
        with SynapClient(url=one_node.url, engine=engine) as client:
            CLIENTS[:] = [client]
            yield


class Held(NamedTuple):
    """A message that both hold."""

    queue: str
    messages: Tuple[QueueMessage, QueueMessage]


def content(message: QueueMessage) -> Tuple[Any, ...]:
    """What of a message is the same on both."""
    headers = {name: text for name, text in message.headers.items() if not name.endswith(("message-id", "-time"))}
    return message.message, message.priority, message.retry_count, headers


VALUES = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.text(max_size=4), st.booleans(), st.lists(st.integers(), max_size=2)
)
KEYS = st.sampled_from(["a", "ab", "b", "c"])
QUEUES = st.sampled_from(["q", "q.dlq"])
TTLS = st.sampled_from([None, 1000, 5000])


class EngineAndCluster(RuleBasedStateMachine):
    """Gives both the same commands under names that nobody else uses, all in one partition."""

    def __init__(self) -> None:
        super().__init__()
        DIFFERENT.clear()
        self.tag = f"{{{uuid.uuid4().hex}}}"
        self.memory = SynapClient(url=f"memory://{self.tag}")
        self.held: List[Held] = []
        self.settled: List[Held] = []
        self.number = 0

    def both(self, ask: Callable[[SynapClient, int], Any], show: Callable[[Any], Any] = lambda answer: answer) -> Any:
        """Ask both, see that they answer alike, and return both answers, or nothing where they refuse.

        One machine doesn't remember of a message that is ready whether it was given back: so it is as good as settled.
        """
        answers: List[Any] = []
        shown: List[Any] = []
        for place, client in enumerate((self.memory, CLIENTS[0])):
            try:
                answers.append(ask(client, place))
                shown.append(show(answers[-1]))
            except SynapError as error:
                reason = error.details.get("reason")
                shown.append((error.code, "settled" if reason == "lease_over" else reason))
        assert shown[0] == shown[1]
        assert not DIFFERENT
        return answers or None

    def name(self, name: str) -> str:
        return self.tag + name

    # ---- keys

    @rule(key=KEYS, value=VALUES, ttl=TTLS, rule=st.sampled_from(["", "nx", "xx", "keep"]))
    def set(self, key: str, value: Any, ttl: Optional[int], rule: str) -> None:
        options: Dict[str, Any] = {"nx": rule == "nx", "xx": rule == "xx"}
        if rule == "keep":
            options["keep_ttl"] = True
        else:
            options["ttl"] = ttl
        self.both(lambda client, _: client.kv.set(self.name(key), value, **options))

    @rule(key=KEYS, expected=VALUES, value=VALUES)
    def set_if(self, key: str, expected: Any, value: Any) -> None:
        seen = self.memory.kv.get(self.name(key)).value
        self.both(lambda client, _: client.kv.set(self.name(key), value, if_value=expected))
        self.both(lambda client, _: client.kv.set(self.name(key), value, if_value=seen))

    @rule(keys=st.lists(KEYS, min_size=1, max_size=3, unique=True))
    def delete(self, keys: List[str]) -> None:
        self.both(lambda client, _: client.kv.delete(*map(self.name, keys)))

    @rule(key=KEYS, expected=VALUES)
    def delete_if(self, key: str, expected: Any) -> None:
        seen = self.memory.kv.get(self.name(key)).value
        self.both(lambda client, _: client.kv.delete(self.name(key), if_value=expected))
        self.both(lambda client, _: client.kv.delete(self.name(key), if_value=seen))

    @rule(key=KEYS, amount=st.one_of(st.integers(-5, 5), st.sampled_from([2**62, -(2**62)])))
    def incr(self, key: str, amount: int) -> None:
        self.both(lambda client, _: client.kv.incr(self.name(key), amount))
        self.both(lambda client, _: client.kv.decr(self.name(key), amount))
        self.both(lambda client, _: client.kv.incr(self.name(key), amount))

    @rule(key=KEYS, persist=st.booleans())
    def expire(self, key: str, persist: bool) -> None:
        if persist:
            self.both(lambda client, _: client.kv.persist(self.name(key)))
        else:
            self.both(lambda client, _: client.kv.expire(self.name(key), 3000))

    @rule(values=st.dictionaries(KEYS, VALUES, min_size=1, max_size=3), ttl=TTLS)
    def mset(self, values: Dict[str, Any], ttl: Optional[int]) -> None:
        named = {self.name(key): value for key, value in values.items()}
        self.both(lambda client, _: client.kv.mset(named, ttl))

    @rule(prefix=st.sampled_from(["a", "c"]))
    def clear(self, prefix: str) -> None:
        self.both(lambda client, _: client.kv.clear(self.name(prefix)))

    # ---- queues

    @rule(retries=st.integers(0, 2), depth=st.integers(1, 6), letters=st.booleans(), delay=st.sampled_from([0, 1000]))
    def create(self, retries: int, depth: int, letters: bool, delay: int) -> None:
        self.both(
            lambda client, _: client.queue.create(
                self.name("q"), max_retries=retries, max_depth=depth, dead_letter=letters, retry_delay=delay
            )
        )

    @rule(queue=QUEUES, priority=st.integers(0, 9), delay=st.sampled_from([0, 0, 0, 1000]))
    def publish(self, queue: str, priority: int, delay: int) -> None:
        self.number += 1
        number = self.number
        self.both(
            lambda client, _: client.queue.publish(self.name(queue), number, priority, {"n": str(number)}, delay=delay),
            lambda answer: answer.position,
        )

    @rule(queue=QUEUES, most=st.integers(1, 3))
    def consume(self, queue: str, most: int) -> None:
        answers = self.both(
            lambda client, _: client.queue.consume_many([self.name(queue)], max=most, ack_deadline=3000),
            lambda answer: [content(message) for message in answer],
        )
        self.held += [Held(self.name(queue), pair) for pair in zip(*answers)]

    @precondition(lambda self: self.held)
    @rule(place=st.integers(0, 100))
    def consume_and_ack(self, place: int) -> None:
        held = self.take(place)
        answers = self.both(
            lambda client, side: client.queue.consume(
                held.queue, ack=held.messages[side].message_id, ack_deadline=3000
            ),
            lambda answer: answer and content(answer),
        )
        if answers and answers[0] is not None:
            self.held.append(Held(held.queue, (answers[0], answers[1])))

    def take(self, place: int) -> Held:
        held = self.held.pop(place % len(self.held))
        self.settled.append(held)
        return held

    @precondition(lambda self: self.held)
    @rule(place=st.integers(0, 100))
    def ack(self, place: int) -> None:
        held = self.take(place)
        self.both(lambda client, side: client.queue.ack(held.queue, held.messages[side].message_id))

    @precondition(lambda self: self.held)
    @rule(place=st.integers(0, 100), requeue=st.booleans(), delay=st.sampled_from([0, 1000]))
    def nack(self, place: int, requeue: bool, delay: int) -> None:
        held = self.take(place)
        self.both(
            lambda client, side: client.queue.nack(held.queue, held.messages[side].message_id, requeue, delay=delay)
        )

    @precondition(lambda self: self.settled)
    @rule(place=st.integers(0, 100))
    def ack_what_is_over(self, place: int) -> None:
        over = self.settled[place % len(self.settled)]
        self.both(lambda client, side: client.queue.ack(over.queue, over.messages[side].message_id))

    @precondition(lambda self: self.held)
    @rule(place=st.integers(0, 100))
    def extend(self, place: int) -> None:
        held = self.held[place % len(self.held)]
        self.both(lambda client, side: client.queue.extend(held.queue, held.messages[side].message_id, 5000))

    @rule(limit=st.sampled_from([None, 1]))
    def redrive(self, limit: Optional[int]) -> None:
        self.both(lambda client, _: client.queue.redrive(self.name("q"), limit))

    @rule(queue=QUEUES, all=st.booleans())
    def purge(self, queue: str, all: bool) -> None:
        if all:
            self.both(lambda client, _: client.queue.delete(self.name(queue)))
        else:
            self.both(lambda client, _: client.queue.purge(self.name(queue)))

    # ---- rooms, batches

    @rule(metadata=st.dictionaries(st.sampled_from(["m"]), st.text(max_size=3), max_size=1))
    def tell(self, metadata: Dict[str, str]) -> None:
        self.number += 1
        number = self.number
        self.both(
            lambda client, _: client.stream.publish(self.name("r"), "e", number, metadata), lambda answer: answer.offset
        )

    @rule(name=st.sampled_from(["x", "y"]), offset=st.integers(0, 4), forget=st.booleans())
    def commit(self, name: str, offset: int, forget: bool) -> None:
        if forget:
            self.both(lambda client, _: client.stream.forget(self.name("r"), name))
        else:
            self.both(lambda client, _: client.stream.commit(self.name("r"), name, offset))

    @rule()
    def delete_room(self) -> None:
        self.both(lambda client, _: client.stream.delete(self.name("r")))

    @rule(key=KEYS, value=VALUES, required=KEYS)
    def atomic(self, key: str, value: Any, required: str) -> None:
        self.number += 1
        commands = [
            {"command": "kv.set", "payload": {"key": self.name(key), "value": value}},
            {"command": "queue.publish", "payload": {"queue": self.name("q"), "message": self.number}},
            {"command": "kv.incr", "payload": {"key": self.name("c")}},
            {"command": "stream.publish", "payload": {"room": self.name("r"), "event_type": "e", "data": 1}},
            {"command": "kv.persist", "payload": {"key": self.name(required)}},
        ]
        self.both(
            lambda client, _: client.batch(commands, atomic=True),
            lambda results: [result.error and result.error["code"] for result in results],
        )

    # ---- what is left

    def teardown(self) -> None:
        self.both(lambda client, _: sorted(client.kv.scan(self.tag, count=1000).keys))
        for key in ("a", "ab", "b", "c"):
            self.key_is_the_same(self.name(key))
        for queue in ("q", "q.dlq"):
            for state in ("ready", "leased", "delayed"):
                self.messages_are_the_same(self.name(queue), state)
            self.figures_are_the_same(self.name(queue))
        self.both(
            lambda client, _: client.stream.history(self.name("r")),
            lambda found: [(event.offset, event.data, event.metadata) for event in found.events],
        )
        self.both(
            lambda client, _: client.stream.cursors(self.name("r")),
            lambda found: sorted((cursor.name, cursor.offset) for cursor in found),
        )
        self.memory.close()

    def key_is_the_same(self, key: str) -> None:
        self.both(lambda client, _: client.kv.get(key), lambda answer: (answer.found, answer.value))
        self.both(lambda client, _: client.kv.ttl(key), lambda ttl: ttl and round(ttl, -3))

    def messages_are_the_same(self, queue: str, state: str) -> None:
        """Those that are ready in order; leases and delays of one millisecond are in none."""
        self.both(
            lambda client, _: client.queue.peek(queue, state=state),
            lambda found: (
                [message.message for message in found.messages]
                if state == "ready"
                else sorted(message.message for message in found.messages)
            ),
        )

    def figures_are_the_same(self, queue: str) -> None:
        self.both(
            lambda client, _: client.queue.stats(queue),
            lambda stats: [
                getattr(stats, name) for name in stats.__dataclass_fields__ if name != "oldest_message_age_secs"
            ],
        )


TestEngineAndCluster = EngineAndCluster.TestCase
TestEngineAndCluster.settings = settings(
    max_examples=rounds(10, 500),
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
)
