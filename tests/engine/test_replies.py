"""Answers kept on disk: what version 0.1 wrote is read, and what can't be kept is refused when the table is made."""

from __future__ import annotations

from typing import Any, List, Tuple

import msgspec
import pytest

from synap import commands as c
from synap.engine import records as r
from synap.engine.replies import learn
from tests.helpers.world import Client, World

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
