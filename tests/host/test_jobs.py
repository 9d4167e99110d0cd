"""Whose requests are executed in slices, or wait for one, is known without looking at all of them."""

from __future__ import annotations

import json
from typing import Any, Callable, Deque, Dict, Iterator, List

import pytest

from synap.commands import COMMANDS, DeletedAnswer
from synap.engine.engine import Engine
from synap.host import EngineHost, Output, Session, jobs
from synap.host.base import ANSWER
from synap.wire.codec import CODECS


class Counted(Deque[Any]):
    walked = 0

    def __iter__(self) -> Iterator[Any]:
        self.walked += 1
        return super().__iter__()


class Caller(Session):
    answers = 0

    def deliver(self, output: List[Output]) -> None:
        self.answers += len(output)


class Kept(Session):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.told: List[Output] = []

    def deliver(self, output: List[Output]) -> None:
        self.told += output


def test_who_is_worked_for_is_known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "SLICE", 0.0)
    later: List[Callable[[], None]] = []
    numbers = iter(range(10**9))
    host = EngineHost(Engine(ids=lambda: next(numbers)), soon=later.append)
    first, second, third = (Caller(host, CODECS["json"]) for _ in range(3))
    many = json.dumps({"pairs": [{"key": f"k{number}", "value": number} for number in range(1_200)]}).encode()
    host.execute(first, 1, COMMANDS["kv.mset"], many)
    for number in range(1, 4):
        host.execute(second, number, COMMANDS["kv.exists"], b'{"key":"k"}')
    assert host.jobs.waiting
    running, waiting = host.jobs.running, host.jobs.waiting = Counted(host.jobs.running), Counted(host.jobs.waiting)
    assert [host.working_for(one) for one in (first, second, third)] == [True, True, False]
    host.leave(third)
    assert (running.walked, waiting.walked) == (0, 0)
    host.leave(second)
    assert [host.working_for(one) for one in (first, second)] == [True, False]
    while later:
        later.pop(0)()
    assert (host.working_for(first), host.busy) == (False, False)


@pytest.mark.parametrize(
    ("make", "fields", "command"),
    [
        ("queue.publish", {"queue": "%s", "message": 1}, "queue.list"),
        ("stream.publish", {"room": "%s", "event_type": "t", "data": 1}, "stream.rooms"),
        ("pubsub.subscribe", {"topics": ["%s"]}, "pubsub.topics"),
    ],
)
def test_others_are_served_while_names_are_listed(
    monkeypatch: pytest.MonkeyPatch, make: str, fields: Dict[str, Any], command: str
) -> None:
    monkeypatch.setattr(jobs, "SLICE", 0.0)
    later: List[Callable[[], None]] = []
    numbers = iter(range(10**9))
    host = EngineHost(Engine(ids=lambda: next(numbers)), soon=later.append)
    caller, other = (Caller(host, CODECS["json"]) for _ in range(2))
    for number in range(1_200):
        host.execute(other, number, COMMANDS[make], (json.dumps(fields) % f"n{number}").encode())
    host.end_turn()
    before = other.answers
    host.execute(caller, 1, COMMANDS[command], b"{}")
    host.end_turn()
    host.execute(other, 2_000, COMMANDS["kv.exists"], b'{"key":"k"}')
    host.end_turn()
    assert (caller.answers, other.answers - before) == (0, 1)
    while later:
        later.pop(0)()
    assert caller.answers == 1


@pytest.mark.parametrize("gone", [False, True])
def test_a_clear_sent_again_while_it_is_worked_off_has_the_answer_of_the_first(gone: bool) -> None:
    numbers = iter(range(10**9))
    host = EngineHost(Engine(ids=lambda: next(numbers)))
    first, again = (Kept(host, CODECS["json"], "a" * 32) for _ in range(2))
    pairs = [{"key": f"k{number:05}", "value": number} for number in range(5_000)]
    host.execute(first, 1, COMMANDS["kv.mset"], json.dumps({"pairs": pairs}).encode())
    for session in (first, again, again):
        host.execute(session, 2, COMMANDS["kv.clear"], b'{"prefix":"k"}', session is again)
    host.end_turn()
    if gone:
        host.leave(first)
    while host.engine.keys.clearings:
        host.wake()
    answer = [(ANSWER, 2, DeletedAnswer(5_000), 0)]
    assert again.told == answer
    assert first.told[1:] == ([] if gone else answer)
    assert not first.waiting
    assert not again.waiting
