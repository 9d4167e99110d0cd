"""Call the functions of queues as a gateway does, each request twice; and how their keys are named."""

from __future__ import annotations

from typing import Any, List, Tuple

from synap.cluster.queues import CONSUME, PUBLISH
from tests.cluster.asking import Asking

Q = "jobs"
INC = b"ab"


def key(asking: Asking, name: str) -> Tuple[bytes, ...]:
    partition = asking.places.partition(name)
    return (asking.places.key(partition, name), *asking.places.index(partition))


def whole(asking: Asking, queue: str = Q) -> List[bytes]:
    return asking.places.whole_queue(asking.places.partition(queue), queue)


async def publish(asking: Asking, *bodies: bytes, priority: int = 5, delay: int = 0, queue: str = Q) -> List[Any]:
    """Publish some messages with one call, as a gateway does that joins them; then the same again."""
    keys = asking.places.queue(asking.places.partition(queue), PUBLISH, queue)
    memory = asking.places.memory(asking.places.partition(queue), asking.session)
    numbers = [b"%d" % asking._number() for _ in bodies]
    answers = []
    for retried in (b"", b"1"):
        arguments: List[bytes] = []
        for number, body in zip(numbers, bodies):
            arguments += [b"%d" % (len(keys) + 1), number, retried, b"%d" % priority, b"%d" % delay, body]
        answers.append(await asking.call(queue, "syn_q_publish", (*keys, memory), *arguments))
    assert answers[0] == answers[1]
    return answers[0] if isinstance(answers[0], list) else [answers[0]]


async def consume(asking: Asking, lease: bytes = b"", most: int = 1, ack: Tuple[bytes, bytes] = (b"", b"")) -> Any:
    """Consume, and the same request again; returns (id, body, tries, lease) of each message, or why it was refused.

    With a `lease` of its own, which may end before that, it is made once.
    """
    keys = asking.places.queue(asking.places.partition(Q), CONSUME, Q)
    memory = asking.places.memory(asking.places.partition(Q), asking.session)
    number = b"%d" % asking._number()
    answers = []
    for retried in (b"",) if lease else (b"", b"1"):
        own = (lease, asking.session[:24], b"%d" % most, *ack)
        arguments = (b"", b"%d" % (len(keys) + 1), number, retried, *own)
        answers.append(await asking.call(Q, "syn_q_consume", (*keys, memory), *arguments))
    if isinstance(answers[0], bytes):  # one message
        assert answers[0] == answers[-1]
        id, tries, lease, _, _, _, body = answers[0].split(b" ", 6)
        return [(id, body[9:], int(tries), lease)]
    assert answers[0][:-1] == answers[-1][:-1]
    count, *found = answers[0][:-2]
    if isinstance(count, bytes):
        return count
    given = []
    for state, body in zip(found[::2], found[1::2]):
        id, tries, lease, *_ = state.split(b" ")
        given.append((id, body[9:], int(tries), lease))
    assert count == len(given)
    return given


async def stats(asking: Asking, queue: str = Q) -> Any:
    return await asking.change(queue, "syn_q_stats", whole(asking, queue), queue.encode())
