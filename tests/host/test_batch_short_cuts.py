"""The short cuts of batches: what is inlined for usual commands is what the general way gives."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any, List, Tuple

import msgspec
import pytest

from synap.commands import (
    BatchAnswer,
    BatchItem,
    BatchOutcome,
    BatchRequest,
    ErrorAnswer,
    GetAnswer,
    MGetAnswer,
    QueueCreate,
    SetAnswer,
)
from synap.engine.callers import STEP, run
from synap.engine.engine import Engine
from synap.engine.journal import Journal
from synap.errors import SynapError
from synap.host import EngineHost, Output, Session, batches
from synap.host.batches import HINTS, MEASURES, MOST_SECONDS, Batching, execute_batch
from synap.shapes import SMALL
from synap.wire.codec import CODECS
from synap.wire.frames import MAX_ANSWER

ANSWERS: List[Any] = [
    GetAnswer(False),
    GetAnswer(True, b'"x"', 7),
    GetAnswer(True, b"1" * 5_000),
    SetAnswer(True, "key"),
    SetAnswer(False, "key", b'"before"'),
    MGetAnswer([GetAnswer(True, b"22"), GetAnswer(False)]),
    None,
]
COMMANDS: List[Tuple[str, Any]] = [
    ("kv.set", {"key": "a", "value": "x" * 100}),
    ("kv.set", {"key": "a", "value": [1, 2]}),
    ("kv.get", {"key": "a"}),
    ("kv.get", {"key": "nothing"}),
    ("kv.get", {"key": 7}),
    ("kv.get", {"key": "a", "kye": 1}),
    ("kv.set", {"key": "a"}),
    ("kv.set", {"key": "a", "value": 1, "nx": True, "xx": True}),
    ("kv.mget", {"keys": ["a", "b"]}),
    ("kv.scan", {}),
    ("kv.gte", {"key": "a"}),
    ("queue.consume", {"queue": "q"}),
]


class Caller(Session):
    host: EngineHost

    def deliver(self, output: List[Output]) -> None:
        """Nobody reads it."""


def caller(format: str = "json") -> Caller:
    """Make a caller of an engine of its own, whose turns have no end: each batch is one slice."""
    numbers = iter(range(10**9))
    host = EngineHost(Engine(ids=lambda: next(numbers)))
    host.jobs.until = float("inf")
    return Caller(host, CODECS[format])


@pytest.mark.parametrize("answer", ANSWERS, ids=repr)
def test_an_answer_in_a_batch_weighs_what_its_class_says(answer: Any) -> None:
    batch = BatchAnswer([BatchOutcome("success", answer)] * 3 + [BatchOutcome("error", None, ErrorAnswer("A", "b"))])
    sizes = pytest.importorskip("synap.server.sizes", exc_type=ImportError)  # the service needs Python 3.10
    one_by_one = sum(32 + sizes.estimate(outcome.payload) for outcome in batch.results)
    assert sizes.estimate(batch) == SMALL + one_by_one


@pytest.mark.parametrize("format", ["json", "msgpack"])
def test_each_command_of_a_batch_is_decoded_and_weighed_as_it_is_by_itself(format: str) -> None:
    codec = CODECS[format]
    numbers = iter(range(10**9))
    host = EngineHost(Engine(ids=lambda: next(numbers)))
    session = Caller(host, codec)
    items = [BatchItem(name, msgspec.Raw(codec.encode(payload))) for name, payload in COMMANDS]
    items.append(BatchItem("kv.get", msgspec.Raw(b'{"key"' if format == "json" else b"\x81\xa3key")))
    assert len(items) < HINTS, "else errors are shorter"
    batching = Batching(host, session, 1, BatchRequest(items), False)
    host.jobs.until = float("inf")  # one slice
    assert list(batching.steps(False)) == []
    expected = 0
    for item, outcome in zip(items, batching.outcomes):
        alone = None
        try:
            codec.decode_item(item)
        except SynapError as error:
            alone = ErrorAnswer.of(error)
        assert alone is None or outcome.error == alone
        if outcome.error is not None:
            expected += SMALL + 2 * len(outcome.error.message)
        else:
            estimate, _ = MEASURES.get(type(outcome.payload), (lambda answer: SMALL, None))
            expected += estimate(outcome.payload)
    assert batching.weight == expected
    assert [outcome.status for outcome in batching.outcomes].count("error") == 7


def answered(session: Caller, codec: Any, commands: List[Tuple[str, Any]], *, atomic: bool = True) -> List[Any]:
    """Make a batch, and give what each command was answered: "success" or the code of its error."""
    items = [BatchItem(name, msgspec.Raw(codec.encode(payload))) for name, payload in commands]
    steps = execute_batch(session.host, session, 1, BatchRequest(items, atomic), False)
    return [outcome.status if outcome.error is None else outcome.error.code for outcome in run(steps).results]


def test_an_atomic_batch_whose_answers_are_too_large_together_does_nothing() -> None:
    session = caller()
    codec, engine = session.codec, session.host.engine
    many = [{"key": f"k{number}", "value": 1} for number in range(1_000)]
    assert answered(session, codec, [("kv.mset", {"pairs": many})]) == ["success"]
    scan = ("kv.scan", {"count": 1_000})
    write = ("kv.incr", {"key": "n"})
    assert answered(session, codec, [scan] * 200) == ["success"] * 200
    outcomes = answered(session, codec, [write, *[scan] * 201])
    assert outcomes == [*["BATCH_ABORTED"] * 201, "PAYLOAD_TOO_LARGE"]
    assert "n" not in engine.keys.values
    assert answered(session, codec, [("kv.set", {"key": "large", "value": "x" * 1_000_000}), write]) == ["success"] * 2
    outcomes = answered(session, codec, [write, *[("kv.get", {"key": "large"})] * 70])
    assert outcomes.count("PAYLOAD_TOO_LARGE") == 1
    assert outcomes.count("BATCH_ABORTED") == 70
    assert engine.keys.values["n"] == b"1"


def test_what_a_batch_has_done_is_told_however_large_the_answers_behind_it_would_be() -> None:
    session = caller()
    codec = session.codec
    write = ("kv.incr", {"key": "n"})
    large = ("kv.set", {"key": "large", "value": "x" * 9_000_000})
    assert answered(session, codec, [large]) == ["success"]
    commands = [write, *[("kv.get", {"key": "large"})] * 8, *[write] * 9_000]
    items = [BatchItem(name, msgspec.Raw(codec.encode(payload))) for name, payload in commands]
    steps = execute_batch(session.host, session, 1, BatchRequest(items), False)
    answer = run(steps)
    assert [outcome.status for outcome in answer.results] == ["success"] * 8 + ["error"] + ["success"] * 9_000
    assert 62_000_000 < len(codec.encode_answer(answer)) <= MAX_ANSWER
    assert answer.results[8].error.message.endswith("this command's is left out")


def test_a_read_that_is_left_out_of_a_batch_takes_nothing_along() -> None:
    """What it would have had was counted all the same, and the rest of the batch refused."""
    session = caller()
    codec = session.codec
    assert answered(session, codec, [("kv.set", {"key": "large", "value": "x" * 9_000_000})]) == ["success"]
    read = ("kv.mget", {"keys": ["large"] * 8 + ["none"] * 992})
    outcomes = answered(session, codec, [read] * 201 + [("kv.incr", {"key": "n"})], atomic=False)
    assert outcomes == ["PAYLOAD_TOO_LARGE"] * 201 + ["success"]


def test_refusals_with_long_words_leave_room_for_what_a_batch_has_done() -> None:
    """They came before the look at how much there is, and JSON writes some characters as six."""
    session = caller()
    codec = session.codec
    assert answered(session, codec, [("kv.set", {"key": "large", "value": "x" * 9_000_000})]) == ["success"]
    commands = [("kv.incr", {"key": "n"}), *[("kv.get", {"key": "large"})] * 7, *[("kv.get", {"\x01" * 80: 1})] * 9_900]
    items = [BatchItem(name, msgspec.Raw(codec.encode(payload))) for name, payload in commands]
    answer = run(execute_batch(session.host, session, 1, BatchRequest(items), False))
    assert answer.results[0].status == "success"
    assert len(codec.encode_answer(answer)) <= MAX_ANSWER


def test_an_atomic_batch_that_takes_too_long_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    session = caller()
    codec, engine = session.codec, session.host.engine
    write = ("kv.incr", {"key": "n"})
    taken, passed = itertools.count(), itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: 0.0, thread_time=lambda: next(taken) * MOST_SECONDS / 10)
    monkeypatch.setattr(batches, "time", clock)
    assert answered(session, codec, [write] * 100) == ["success"] * 100
    clock.perf_counter = lambda: next(passed) * MOST_SECONDS * 2  # else no more processor time can have passed either
    outcomes = answered(session, codec, [write] * 100)
    assert outcomes == [*["BATCH_ABORTED"] * 10, "PAYLOAD_TOO_LARGE", *["BATCH_ABORTED"] * 89]
    assert engine.keys.values["n"] == b"100"


def test_what_an_earlier_attempt_was_answered_counts_in_a_batch_that_goes_on() -> None:
    numbers = iter(range(10**9))
    host = EngineHost(Engine(ids=lambda: next(numbers)))
    codec = CODECS["json"]
    session = Caller(host, codec, "s" * 32)
    commands: List[Tuple[str, Any]] = [
        ("kv.gte", {}),
        ("kv.mget", {"keys": ["a"] * 9}),
        ("kv.get", {"key": "a"}),
        ("kv.set", {"key": "a", "value": 1}),
    ]
    items = [BatchItem(name, msgspec.Raw(codec.encode(payload))) for name, payload in [*commands, commands[0]]]
    first = Batching(host, session, 1, BatchRequest(items), False)
    host.jobs.until = 0.0  # each command is a slice
    steps = first.steps(False)
    while len(first.outcomes) < len(commands):
        next(steps)
    before = (first.weight, first.listed, first.errors)
    second = Batching(host, session, 1, BatchRequest(items), False)
    assert next(second.steps(True)) is None
    assert second.outcomes == first.outcomes
    assert (second.weight, second.listed, second.errors) == before
    assert second.listed == 9


MANY = [("kv.set", {"key": "large", "value": [{"number": number} for number in range(30_000)]}), ("queue.list", {})]


@pytest.mark.parametrize("slow", MANY, ids=["decoded in steps", "executed in steps"])
def test_what_a_batch_did_before_a_slice_ends_is_remembered_with_it(slow: Tuple[str, Any]) -> None:
    """The slice is a commit. After a crash, a retry must not do it again."""
    codec = CODECS["json"]

    def engine() -> Engine:
        numbers = iter(range(10**9))
        return Engine(ids=lambda: next(numbers), journal=Journal(keep_records=True))

    hosts = [EngineHost(engine()), EngineHost(engine())]
    hosts[0].engine.journal.keep_records = True
    commands: List[Tuple[str, Any]] = [("kv.incr", {"key": "n"}), slow, ("kv.incr", {"key": "n"})]
    items = [BatchItem(name, msgspec.Raw(codec.encode(payload))) for name, payload in commands]
    for number in range(2 * STEP):
        hosts[0].engine.execute(QueueCreate(f"q{number}"), 0.0, Caller(hosts[0], codec))
    session = Caller(hosts[0], codec, "s" * 32)
    slices = Batching(hosts[0], session, 1, BatchRequest(items), False).steps(False)
    hosts[0].jobs.until = float("inf")
    next(slices)
    hosts[1].engine.restore_all(hosts[0].engine.collect()[0])
    hosts[1].engine.restored(hosts[1].clock())
    assert hosts[1].engine.keys.values["n"] == b"1"
    session = Caller(hosts[1], codec, "s" * 32)
    hosts[1].jobs.until = float("inf")
    run(Batching(hosts[1], session, 1, BatchRequest(items), False).steps(True))
    assert hosts[1].engine.keys.values["n"] == b"2"
