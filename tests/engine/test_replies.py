"""Answers kept on disk: what version 0.1 wrote is read, and what can't be kept is refused when the table is made."""

from __future__ import annotations

import random
from itertools import chain
from typing import Any, Dict, List, Tuple

import msgspec
import pytest
from msgspec import Raw

from synap import commands as c
from synap.engine import records as r
from synap.engine.callers import WAITING
from synap.engine.engine import Limits
from synap.engine.journal import Journal
from synap.engine.remembered import DELIVERY_COST, learn
from tests.helpers.world import Client, World, dumped, replay

X: Any = b"1"
SESSION = "a" * 32

BEFORE: List[Tuple[int, Any]] = [
    (2, c.SetAnswer(True, "k", b'"old"')),
    (3, c.GetAnswer(True, b"1", 5)),
    (4, c.DeletedAnswer(2)),
    (5, c.ExistsAnswer(True)),
    (6, c.NumberAnswer(7)),
    (7, c.SuccessAnswer(True)),
    (8, c.TtlAnswer(9)),
    (9, c.ScanAnswer(["k"], None, False)),
    (10, c.MGetAnswer([c.GetAnswer(False)])),
    (11, c.CreatedAnswer(True, True)),
    (12, c.QueueDeletedAnswer(True)),
    (13, c.PurgedAnswer(3)),
    (14, c.PublishAnswer("1-1", 1)),
    (15, c.NackAnswer(True, "requeued")),
    (16, c.RedrivenAnswer(4)),
    (18, c.QueuesAnswer(["q"])),
    (19, c.PublishEventAnswer("1-1", 1, 0)),
    (20, c.HistoryAnswer([], 0, -1)),
    (21, c.RoomsAnswer(["r"])),
    (23, c.RoomDeletedAnswer(True)),
    (24, c.TopicPublishAnswer("1", "t", 0)),
    (25, c.TopicsAnswer(["t"])),
    (26, c.PubSubStatsAnswer(0, 0, 0, 0)),
]
"""Numbers of kinds as version 0.1 wrote them."""


@pytest.mark.parametrize(("kind", "answer"), BEFORE, ids=lambda part: type(part).__name__)
def test_what_version_0_1_wrote_is_read(kind: int, answer: Any) -> None:
    world = World(durable=True)
    packed = msgspec.msgpack.encode(answer)
    alone = (r.REPLY, SESSION, 1, world.now, kind, packed)
    in_a_batch = (r.REPLY, SESSION, 2, world.now, 1, [[kind, packed]])
    world.restart([alone, in_a_batch])
    assert world.engine.recall(SESSION, 1) == answer
    assert world.engine.recall(SESSION, 2).results == [c.BatchOutcome("success", answer)]


def test_a_command_whose_answer_can_not_be_kept_is_refused_when_the_table_is_made() -> None:
    class Loose(msgspec.Struct):
        thing: int

    command = c.Command(9_999, "kv.loose", c.KvGet, Loose, "Answer what can't be kept.", c.Flag.WRITE)
    with pytest.raises(TypeError, match=r"kv\.loose"):
        learn(command)


def test_an_overwritten_value_is_in_the_log_once() -> None:
    world, client = World(durable=True), Client(SESSION)
    old: Any = b'"' + b"o" * 20_000 + b'"'
    new: Any = b'"' + b"n" * 20_000 + b'"'
    world(c.KvSet("k", old), client, 1)
    world.engine.collect()
    assert world(c.KvSet("k", new), client, 2).previous == old
    records, _ = world.engine.collect()
    assert old not in msgspec.msgpack.encode(records)
    assert world.engine.recall(SESSION, 2).previous == old


def test_the_answer_of_a_batch_is_decoded_when_it_is_asked_for_and_kept_as_it_was_until_then() -> None:
    world, client = World(durable=True), Client(SESSION)
    value: Any = b"1"
    items: List[Any] = [c.KvSet(f"k{number}", value) for number in range(3)] + [c.KvGet("k1"), c.KvDel(["k0", "k9"])]
    answer = world.engine.execute_atomic(items, world.now, client, 1)
    failed = c.BatchOutcome("error", None, c.ErrorAnswer("WRONG_TYPE", "no number", {"key": "k"}))
    world.engine.replies.keep(SESSION, 2, c.BatchAnswer([failed]), world.now)
    kept = {1: answer, 2: c.BatchAnswer([failed])}
    for records in (world.engine.collect()[0], dumped(world.engine)):
        twin = replay(world.fresh(), records, world.now)
        again = replay(world.fresh(), dumped(twin), world.now)
        for engine in (twin, again):
            assert {number: engine.recall(SESSION, number) for number in kept} == kept
            assert (engine.replies.count, engine.replies.bytes > 0) == (2, True)
            engine.confirm(SESSION, 3)
            assert (engine.replies.count, engine.replies.bytes) == (0, 0)


def test_a_batch_with_an_answer_of_a_kind_that_is_not_known_is_refused_at_the_start() -> None:
    world = World(durable=True)
    with pytest.raises(KeyError):
        world.restart([(r.REPLY, SESSION, 1, world.now, 1, [[1001, b"\xc0"], [77_777, b"\xc0"]])])


class Counted(Dict[str, Any]):
    """Counts how often it is asked for a session."""

    looks = 0

    def get(self, *arguments: Any) -> Any:
        Counted.looks += 1
        return super().get(*arguments)


@pytest.mark.parametrize("confirmed", ["all", "some", "from the front"])
def test_no_answer_costs_much_however_many_are_remembered_and_confirmed(confirmed: str) -> None:
    limit = 20_000
    world = World(limits=Limits(replies=limit))
    replies = world.engine.replies
    replies.sessions = Counted()
    most = total = longest = kept = 0

    def keep(session: str, number: int) -> None:
        nonlocal most, total, longest, kept
        before = Counted.looks
        replies.keep(session, number, c.SuccessAnswer(True), world.now)
        looks = Counted.looks - before
        most, total, kept = max(most, looks), total + looks, kept + 1
        longest = max(longest, len(replies.order) + len(replies.swept))
        assert replies.count <= limit + 64

    for turn in range(8):
        for session in range(10):
            for number in range(limit // 8):
                keep(f"{session}", turn * limit + number)
            if confirmed == "all":
                replies.confirm(f"{session}", (turn + 1) * limit)
            elif confirmed == "some" and session % 3:
                replies.confirm(f"{session}", turn * limit + limit // 10)
        if confirmed == "from the front":
            replies.confirm(f"{turn}", (turn + 1) * limit)
    assert most <= 5000
    assert total <= 8 * kept
    assert longest <= 2 * limit + 5000
    # What is left is forgotten in its order, and all of it.
    for _ in range(limit):
        keep("last", kept)
    assert list(replies.sessions) == ["last"]
    world.sleep(1000)
    assert (replies.count, replies.bytes, len(replies.order), len(replies.swept)) == (0, 0, 0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_the_oldest_are_forgotten_first_while_others_are_confirmed(seed: int) -> None:
    chance = random.Random(seed)
    limit = 3000
    world = World(limits=Limits(replies=limit, reply_age=10_000))
    replies = world.engine.replies
    plain: Dict[Tuple[str, int], float] = {}
    for number in range(1, 30_000):
        session = str(chance.randrange(5))
        replies.keep(session, number, c.SuccessAnswer(True), world.now)
        plain[session, number] = world.now
        while len(plain) > limit:
            del plain[next(iter(plain))]
        if chance.random() < 0.001:
            session, below = str(chance.randrange(5)), number - chance.randrange(limit)
            replies.confirm(session, below)
            plain = {key: time for key, time in plain.items() if key[0] != session or key[1] >= below}
        if chance.random() < 0.0005:
            world.sleep(chance.randrange(5000))
            plain = {key: time for key, time in plain.items() if time + 10_000 > world.now}
        if chance.random() < 0.001:
            assert {(s, n) for s, kept in replies.sessions.items() for n in kept} == set(plain)
            assert replies.count == len(plain)
    world.restart(dumped(world.engine))
    assert {(s, n) for s, kept in world.engine.replies.sessions.items() for n in kept} == set(plain)


@pytest.mark.parametrize("confirmed", [False, True])
@pytest.mark.parametrize("numbers", [1, 3000])
def test_a_number_that_is_used_again_and_again_takes_no_more_memory(numbers: int, confirmed: bool) -> None:
    world = World()
    replies = world.engine.replies
    longest = 0
    for number in range(50_000):
        replies.keep("a", number % numbers, c.SuccessAnswer(True), world.now)
        if confirmed:
            replies.confirm("a", numbers)
        longest = max(longest, len(replies.order) + len(replies.swept))
    assert longest <= 3 * numbers + 3500
    assert replies.count == (0 if confirmed else numbers)
    replies.keep("b", 1, c.SuccessAnswer(True), world.now)
    world.sleep(1000)
    assert (replies.count, len(replies.order), len(replies.swept)) == (0, 0, 0)


def check(world: World) -> None:
    """Each answer has an entry that it ends with, and what is counted is what is there."""
    replies = world.engine.replies
    entries = [*replies.swept, *replies.order]
    assert {id(entry) for entry in replies.last.values()} <= set(map(id, entries))
    kept: Dict[Tuple[str, Any], Any] = {
        (session, number): answer for session, answers in replies.sessions.items() for number, answer in answers.items()
    }
    assert set(kept) <= {entry[1:] for entry in entries if replies.last.get(entry[1:], entry) is entry}
    assert all(replies.sessions.values())
    assert (replies.count, replies.bytes) == (len(kept), sum(len(answer.value or b"") for answer in kept.values()))


@pytest.mark.parametrize("seed", range(8))
def test_an_answer_is_forgotten_at_its_age_however_often_its_number_was_used_before(seed: int) -> None:
    chance = random.Random(seed)
    faithful = seed % 2 == 0
    """Whether numbers are used again only for what was not confirmed, as clients do, and few enough are kept."""
    limit = 100_000 if faithful else chance.choice([200, 2000])
    world = World(durable=True, limits=Limits(replies=limit))
    numbers = chance.choice([20, 300, 1500])
    log: List[List[Any]] = []
    model: Dict[Tuple[str, int], Tuple[float, Any]] = {}

    def use(session: str, number: int) -> None:
        answer = c.GetAnswer(True, b"x" * chance.randrange(5))
        world.engine.replies.keep(session, number, answer, world.now)
        model[session, number] = (world.now, answer)

    for _ in range(150):
        act = chance.random()
        session = chance.choice("ab")
        if act < 0.6:
            for _ in range(chance.choice([1, 40, 700])):
                use(session, chance.randrange(numbers))
            log.append(world.engine.collect()[0])
        elif act < 0.7:  # a commit that failed
            before = dict(model)
            again = list(model)
            for key in chance.sample(again, min(len(again), 30)):
                use(*key)
            Journal.roll_back(world.engine.collect()[1])
            world.engine.collect()
            model = before
            if faithful:
                assert {key: world.engine.recall(*key) for key in model} == {
                    key: kept for key, (_, kept) in model.items()
                }
            for key in list(model):
                use(*key)
            log.append(world.engine.collect()[0])
        elif act < 0.9:
            world.sleep(chance.choice([1, 100, 599, 601]))
            model = {key: (time, answer) for key, (time, answer) in model.items() if time + 600 > world.now}
        elif act < 0.95:
            from_there = log if chance.random() < 0.5 else [dumped(world.engine), *log[-2:]]
            world.restart(list(chain(*from_there)))
        elif not faithful:
            world.engine.replies.confirm(session, chance.randrange(numbers))
            for _ in range(chance.choice([0, 3000])):
                use(session, 0)
                world.engine.replies.confirm(session, 1)
            log.append(world.engine.collect()[0])
        check(world)
        if faithful:
            assert {key: world.engine.recall(*key) for key in model} == {
                key: answer for key, (_, answer) in model.items()
            }
            assert world.engine.replies.count == len(model)
        else:
            assert world.engine.replies.count <= limit + 64
    world.sleep(1000)
    replies = world.engine.replies
    assert (replies.count, replies.bytes, len(replies.order), len(replies.swept), replies.last) == (0, 0, 0, 0, {})
    assert replies.budget.aside == 0


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("restarts", [False, True])
def test_what_a_consume_acknowledged_is_known_as_long_as_it_waits(many: bool, restarts: bool) -> None:
    world, first, again = World(durable=True), Client(SESSION), Client(SESSION)
    log: List[Any] = []
    world(c.QueuePublish("q", Raw(b"1")))
    taken = world(c.QueueConsume("q", ack_deadline=5000), first, 1)
    request = (
        c.QueueConsumeMany(["q"], 1, timeout=3000, ack=[c.Held("q", taken.message_id, taken.lease)])
        if many
        else c.QueueConsume("q", timeout=3000, ack=taken.message_id, ack_lease=taken.lease)
    )
    world(request, first, 2)
    world.sleep(1900)
    log.extend(world.engine.collect()[0])
    if restarts:
        world.restart(log)
    world(request, again, 2)  # the connection was lost
    world(c.QueuePublish("q", Raw(b"2")))
    assert 2 in again.answers
    world.sleep(1000)
    assert not world.engine.replies.sessions


def test_what_a_consume_acknowledged_is_known_after_its_answer_was_taken_back() -> None:
    world, client = World(durable=True), Client(SESSION)
    world(c.QueuePublish("q", Raw(b"1")))
    taken = world(c.QueueConsume("q"), client, 1)
    request = c.QueueConsume("q", timeout=100, ack=taken.message_id, ack_lease=taken.lease)
    world(request, client, 2)
    world.engine.collect()
    world(c.QueuePublish("q", Raw(b"2")))
    assert 2 in client.answers
    Journal.roll_back(world.engine.collect()[1])
    world.engine.collect()
    assert world(request, Client(SESSION), 2) is WAITING


def waiting(world: World, caller: Client, queue: str = "q", *, many: bool = False) -> Any:
    """Have a consume acknowledge a message and wait; returns the request."""
    world(c.QueuePublish(queue, Raw(b"1")))
    taken = world(c.QueueConsume(queue, ack_deadline=5000), caller, 1)
    request: Any = c.QueueConsume(queue, timeout=3000, ack=taken.message_id, ack_lease=taken.lease)
    if many:
        request = c.QueueConsumeMany([queue], 1, timeout=3000, ack=[c.Held(queue, taken.message_id, taken.lease)])
    assert world(request, caller, 2) is WAITING
    return request


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("how", ["left", "withdrawn", "released", "restarted", "timed out", "too many"])
def test_what_a_consume_acknowledged_is_known_for_ten_minutes_after_its_wait(how: str, many: bool) -> None:
    world, first = World(durable=True, limits=Limits(replies=300)), Client(SESSION)
    age = world.engine.replies.age
    request = waiting(world, first, many=many)
    log: List[Any] = world.engine.collect()[0]
    if how == "too many":
        for number in range(5_000):
            world(c.KvSet("k", Raw(b"1")), Client("b" * 32), number)
        assert world.engine.replies.count <= 300
        world.engine.forget(first, world.now)
    elif how == "timed out":
        world.sleep(3000)
        assert 2 in first.answers
    else:
        world.sleep(age - 1)
        if how == "left":
            world.engine.forget(first, world.now)
        elif how == "withdrawn":
            world.engine.cancel(first, 2, world.now)
        elif how == "released":
            world.engine.release_waiters(world.now)
        else:
            world.restart(log)
    world.sleep(age - 1)
    again = Client(SESSION)
    assert world(request, again, 2) is WAITING
    assert not again.errors
    assert world.stats().acked_total == 1
    world.engine.forget(again, world.now)
    world.sleep(age + 1)
    assert not world.engine.replies.sessions


def test_nothing_is_forgotten_for_long_though_all_is_needed_still() -> None:
    world = World(limits=Limits(replies=100))
    callers = [Client(f"{number:032x}") for number in range(200)]
    for caller in callers:
        waiting(world, caller, caller.session)
    replies = world.engine.replies
    assert all(replies.acked(caller.session, 2) for caller in callers)
    for caller in callers:
        world.engine.forget(caller, world.now)
    for number in range(1_000):
        world(c.KvSet("k", Raw(b"1")), Client("b" * 32), number)
    assert replies.count <= 100


@pytest.mark.parametrize("many", [False, True])
def test_what_a_consume_acknowledged_is_known_though_its_message_went_back(many: bool) -> None:
    world, first = World(durable=True), Client(SESSION)
    request = waiting(world, first, many=many)
    world(c.QueuePublish("q", Raw(b"2")))
    assert 2 in first.answers
    world.engine.cancel(first, 2, world.now)
    assert world.stats().depth == 1
    again = Client(SESSION)
    taken = world(request, again, 2)
    assert bytes((taken.messages[0] if many else taken).message) == b"2"
    assert world.stats().acked_total == 1


def test_messages_that_were_delivered_together_weigh_each() -> None:
    world, client = World(durable=True), Client(SESSION)
    for _ in range(100):
        world(c.QueuePublish("q", X))
    assert len(world(c.QueueConsumeMany(["q"], 60), client, 1).messages) == 60
    weight = world.engine.replies.bytes
    assert len(world(c.QueueConsumeMany(["q"], 40), client, 2).messages) == 40
    assert world.engine.replies.bytes == weight * 100 / 60 == 100 * DELIVERY_COST
    for records in (world.engine.collect()[0], dumped(world.engine)):
        again = replay(world.fresh(), records, world.now)
        assert again.replies.bytes == 100 * DELIVERY_COST
        again.confirm(SESSION, 3)
        assert again.replies.bytes == 0
