"""Large values are looked at in steps, and what is taken and refused is what is when they are small."""

from __future__ import annotations

import functools
import json
import random
from typing import Any, Callable, List

import msgspec
import pytest

from synap.errors import SynapError
from synap.wire import large, values


def outcome(look: Callable[[], Any]) -> str:
    try:
        look()
    except SynapError as error:
        return error.code
    return "taken"


def run(steps: Any) -> int:
    return sum(1 for _ in steps)


def looked_at(data: bytes, format: str = "json") -> None:
    run(large.take(data, format))


def nested(depth: int) -> Any:
    value: Any = 1
    for number in range(depth):
        value = [value] if number % 2 else {"a": value}
    return value


VALUES: List[Any] = [
    None,
    [],
    {},
    "",
    [[], {}, "", None, True, False, 0, -1, 127, 128, -32, -33, 2**64 - 1, -(2**63), 1.5, -0.0, 1e300],
    "x" * 100_000,
    'quote " backslash \\ line \n tab \t snow ☃ clef 𝄞' * 3000,
    ["\\" * number for number in range(300)],
    [{"key": [number, str(number), {"ä": number / 7}]} for number in range(5000)],
    {f"key {number}": "\ud7ff\ue000" * (number % 50) for number in range(3000)},
    [number * 10**15 for number in range(9000)],
    [1.0 / (number + 1) for number in range(9000)],
    nested(values.MAX_DEPTH),
    [nested(values.MAX_DEPTH - 1), "x" * 70_000],
]


@pytest.mark.parametrize("number", range(len(VALUES)))
def test_what_may_be_stored_is_taken_in_either_format(number: int) -> None:
    value = VALUES[number]
    for text in (msgspec.json.encode(value), json.dumps(value).encode(), json.dumps(value, indent=1).encode()):
        assert outcome(functools.partial(looked_at, text)) == "taken"
    assert outcome(lambda: run(large.check_msgpack(msgspec.msgpack.encode(value)))) == "taken"


WRONG_JSON = [
    b"18446744073709551616",
    b"-9223372036854775809",
    b"1" * 30_000,
    b"1e999",
    b'"\\ud800"',
    b'"\\ud800x"',
    b'"\xff"',
    b'"\xc3"',
    msgspec.json.encode(nested(values.MAX_DEPTH + 1)),
]


@pytest.mark.parametrize("number", range(len(WRONG_JSON)))
@pytest.mark.parametrize("before", [0, 1, large.WINDOW - 9, large.WINDOW - 5, large.WINDOW, 100_000])
def test_what_may_not_be_stored_is_refused_wherever_it_is(number: int, before: int) -> None:
    wrong = WRONG_JSON[number]
    filling = b'"%b",' % (b"x" * before)
    assert outcome(lambda: run(large.check_json(b"[%b%b]" % (filling, wrong)))) == "INVALID_PAYLOAD"
    spread = b"%b,1," % (b"1," * before)
    assert outcome(lambda: run(large.check_json(b"[%b1,%b,%b]" % (spread, wrong, filling[:-1])))) == "INVALID_PAYLOAD"


WRONG_PACKED = [
    b"\x81\x01\x01",
    b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00",
    b"\xca\x7f\xc0\x00\x00",
    b"\xc7\x01\x05\x00",
    b"\xd6\xff\x00\x00\x00\x00",
    b"\xa1\xff",
    b"\x81\xc4\x01a\x01",
    msgspec.msgpack.encode(nested(values.MAX_DEPTH + 1)),
]


@pytest.mark.parametrize("number", range(len(WRONG_PACKED)))
@pytest.mark.parametrize("before", [0, 1, 5000])
def test_what_may_not_be_stored_is_refused_in_messagepack_too(number: int, before: int) -> None:
    body = b"\xdd" + (before + 1).to_bytes(4, "big") + b"\x90" * before + WRONG_PACKED[number]
    assert outcome(lambda: run(large.check_msgpack(body))) == "INVALID_PAYLOAD"
    assert outcome(lambda: values.from_msgpack(body)) == "INVALID_PAYLOAD"


def test_what_is_refused_of_changed_values_is_what_the_decoders_refuse() -> None:
    """The syntax is right of whatever comes so far: it was cut out of a message."""
    rng = random.Random(7)
    pool = b'0123456789-+.eE"\\[]{},: tfnu\xc3\xa9\xed\x00\n'
    cut = msgspec.json.Decoder(msgspec.Raw).decode
    seen = 0
    for _ in range(3000):
        text = bytearray(msgspec.json.encode(rng.choice([VALUES[4], ["a\\b", 12, {"k": [1.5e3, "é☃"]}, None]])))
        for _ in range(rng.randrange(1, 4)):
            text[rng.randrange(len(text))] = rng.choice(pool)
        data = bytes(text)
        try:
            cut(data)
        except msgspec.DecodeError:
            continue
        seen += 1
        data = data.strip()
        looked = outcome(functools.partial(looked_at, data))
        assert looked == outcome(functools.partial(values.from_json, data)), data
    assert seen > 100


def test_no_step_takes_in_much_of_a_value() -> None:
    value: Any
    for value in ([[]] * 1_000_000, '\\"' * 300_000, [1] * 500_000, [{"a": "b"}] * 100_000):
        text, packed = msgspec.json.encode(value), msgspec.msgpack.encode(value)
        assert run(large.check_json(text)) >= len(text) // large.WINDOW
        assert isinstance(value, str) or run(large.check_msgpack(packed)) >= len(packed) // 16 // large.PARTS // 2


def test_numbers_of_many_digits_take_as_long_to_look_at_as_others() -> None:
    text = b"[%b]" % b",".join([b"1." + b"0" * (large.WINDOW - 400)] * 500)  # it took ten minutes
    assert run(large.check_json(text)) >= len(text) // large.WINDOW


def test_the_end_of_a_value_that_is_cut_short_is_noticed() -> None:
    whole = msgspec.msgpack.encode([{"key": "text", "number": 1.5}] * 3)
    for size in range(1, len(whole)):
        assert outcome(functools.partial(looked_at, whole[:size], "msgpack")) == "INVALID_PAYLOAD"


def test_long_strings_are_taken_and_refused_as_short_ones_are_wherever_escapes_and_characters_stand() -> None:
    rng = random.Random(11)
    cut = msgspec.json.Decoder(msgspec.Raw).decode
    right = [b"\\n", b'\\"', b"\\\\", b"\\u00e4", b"\\ud834\\udd1e", "ä€𝄞".encode()]
    pieces = [*right, b"\xff", b"\xc3", b"\\ud800", b"\\x"]
    outcomes = set()
    for _ in range(400):
        parts = [b'["a", "' if rng.random() < 0.5 else b'["']
        wrong = rng.random() < 0.3
        for _ in range(rng.randrange(1, 6)):
            parts.append(b"x" * rng.choice([0, 1, 5, large.PLAIN - 1, large.PLAIN, large.WINDOW - 3, large.LARGE]))
            parts.append(rng.choice(pieces if wrong else right))
        data = b"".join([*parts, b'", 1]'])
        if rng.random() < 0.5:
            data = data[data.rindex(b'"', 0, len(parts[0])) : -4]  # the string alone
        try:
            cut(data)
        except msgspec.DecodeError:
            continue
        looked = outcome(functools.partial(looked_at, data))
        assert looked == outcome(functools.partial(values.from_json, data)), data[:200]
        outcomes.add(looked)
    assert outcomes == {"taken", "INVALID_PAYLOAD"}
