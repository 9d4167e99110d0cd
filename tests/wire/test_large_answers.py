"""A large answer is decoded as a small one is, and its buffer is for the next one."""

from __future__ import annotations

from typing import Any, Callable, Dict, List

import pytest

from synap.commands import COMMANDS, KV_GET
from synap.wire import buffer_pool
from synap.wire.buffer_pool import BUFFERS, BufferPool
from synap.wire.codec import CODECS
from synap.wire.outcomes import UNREADABLE

TEXTS = {
    "plain": "x" * 300_000,
    "accents": "xyzé" * 90_000,
    "emoji": "🙂" * 90_000,
    "quotes": 'a"b\\c\n' * 60_000,
    "a quote at the end": "x" * 300_000 + '"',
    "a backslash at the end": "x" * 300_000 + "\\",
    "brackets": "{'value':'}" * 30_000,
    "larger than what is kept": "x" * (buffer_pool.MAX_SIZE + 10),
}


def received(body: bytes) -> memoryview:
    """The body as a connection receives it in place, with what an earlier one left behind it."""
    return memoryview(bytearray(body + b'"\\x"}'))[: len(body)]


def answers(text: str) -> List[Dict[str, Any]]:
    return [
        {"found": True, "value": text},
        {"found": True, "value": text, "ttl": 5},
        {"ttl": None, "found": True, "value": text},
        {"found": True, "value": [text]},
        {"found": True, "value": {"value": text, "b": text}},
        {"found": True, "value": text, "other": text},
        {"other": "small", "found": True, "value": text},
        {"other": text, "found": True, "value": "small"},
        {"found": True, "value": text, "": [1, {"a": 2}]},
    ]


@pytest.mark.parametrize("format", sorted(CODECS))
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_large_answer_is_decoded_as_any_other(format: str, text: str) -> None:
    codec = CODECS[format]
    for answer in answers(text):
        body = codec.encode(answer)

        assert codec.decode_large(KV_GET, received(body)) == codec.decode_result(KV_GET, body)


def outcome(decode: Callable[[Any, Any], Any], command: Any, body: Any) -> Any:
    try:
        return decode(command, body)
    except UNREADABLE as error:
        return str(error)


@pytest.mark.parametrize("command", [one for one in COMMANDS.values() if not one.pushes], ids=lambda one: one.name)
def test_answers_of_other_commands_are_what_they_are(command: Any) -> None:
    codec = CODECS["json"]
    for name in command.answer.__struct_fields__:
        body = codec.encode({name: TEXTS["plain"]})
        assert outcome(codec.decode_large, command, received(body)) == outcome(codec.decode_result, command, body)


@pytest.mark.parametrize(
    "broken",
    [
        b'{"found":true,"value":"' + b"x" * 300_000 + b'\xff"}',
        b'{"found":true,"value":"' + b"x" * 300_000 + b'"',
        b'{"found":true,"value":"' + b"x" * 300_000 + b"}",
        b'{"found":true,"value":"' + b"x" * 300_000 + b'"}}',
        b'{"found":7,"value":"' + b"x" * 300_000 + b'"}',
    ],
    ids=["not UTF-8", "no bracket", "no quote", "a bracket too many", "a wrong type"],
)
def test_a_broken_answer_is_refused_all_the_same(broken: bytes) -> None:
    with pytest.raises(UNREADABLE):
        CODECS["json"].decode_large(KV_GET, received(broken))


# ----------------------------------------------------------------------------------------------------------- buffers


@pytest.mark.parametrize("format", sorted(CODECS))
@pytest.mark.parametrize("fine", [True, False])
def test_a_decoded_answer_gives_its_buffer_back(format: str, fine: bool) -> None:
    codec = CODECS[format]
    body = codec.encode({"found": True, "value": TEXTS["plain"]})[: None if fine else -10]
    view = BUFFERS.take(len(body))
    view[:] = body
    buffer = view.obj
    try:
        assert codec.decode_large(KV_GET, view).value == TEXTS["plain"]
    except UNREADABLE:
        assert not fine

    with pytest.raises(ValueError, match="released"):
        view.tobytes()
    assert BUFFERS.take(10).obj is buffer


def test_a_buffer_is_had_by_one_at_a_time() -> None:
    kept = BufferPool()
    first = kept.take(100)
    second = kept.take(100)
    assert first.obj is not second.obj
    assert len(first) == len(second) == 100
    buffer = first.obj
    kept.give(first)

    third = kept.take(50)
    assert third.obj is buffer
    assert len(third) == 50
    assert kept.take(50).obj is not buffer


def test_few_and_none_of_the_largest_are_kept() -> None:
    kept = BufferPool()
    kept.give(kept.take(buffer_pool.MAX_SIZE + 1))
    assert kept.size == 0

    for view in [kept.take(buffer_pool.MAX_SIZE) for _ in range(10)]:
        kept.give(view)
    assert kept.size == buffer_pool.MAX_BUFFERS * buffer_pool.MAX_SIZE


def test_one_that_is_too_small_makes_room_for_a_larger_one() -> None:
    kept = BufferPool()
    for size in (1000, 5000, 3000):
        view = kept.take(size)
        assert len(view) == size
        kept.give(view)
    assert kept.size == 5000
