"""Large values are translated between the formats in pieces, and what comes out is what comes out in one go."""

from __future__ import annotations

import json
import random
from typing import Any, Iterator, List, Tuple

import msgspec
import pytest
from tests.wire.test_large import VALUES, nested

from synap.commands import COMMANDS
from synap.errors import SynapError
from synap.wire import translate as module
from synap.wire import values
from synap.wire.codec import CODECS
from synap.wire.large import Steps
from synap.wire.translate import translate

CONTENT = b"[" + b",".join([b"1"] * 1000) + b"]"


def run(value: bytes, format: str) -> Tuple[bytes, int]:
    """The translated value, and how many steps it took."""
    return finished(translate(value, format))


def finished(steps: Steps) -> Tuple[Any, int]:
    """What steps return, and how many it took."""
    count = 0
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value, count
        count += 1


def drawn(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.random() if depth else 0.5 + chance.random() / 2
    if depth > 6 or kind < 0.4:
        texts = [
            "",
            "x" * chance.randrange(40),
            'q"\\\n,[{}]:' * chance.randrange(9),
            "é\U0001f600" * chance.randrange(5),
        ]
        return chance.choice([1, -5, 2**63, 1.5, 1e300, True, False, None, *texts])
    if kind < 0.7:
        return [drawn(chance, depth + 1) for _ in range(chance.randrange(8))]
    keys = ["", "a", '"', "\\", "key,[" + "9" * chance.randrange(99)]
    return {chance.choice(keys): drawn(chance, depth + 1) for _ in range(chance.randrange(8))}


def all_values() -> Iterator[Any]:
    chance = random.Random(20261127)
    for _ in range(300):
        yield drawn(chance)
    yield from VALUES[1:]


@pytest.mark.parametrize("window", [16, 20, 64, 300, module.WINDOW])
def test_in_pieces_a_value_becomes_what_it_becomes_in_one_go(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    monkeypatch.setattr(module, "WINDOW", window)
    monkeypatch.setattr(module, "LEAST", 16)
    for value in all_values():
        text, packed = msgspec.json.encode(value), msgspec.msgpack.encode(value)
        if max(len(text), len(packed)) > 2000 * window:
            continue
        assert run(text, "msgpack")[0] == bytes(values.as_msgpack(text))
        assert run(packed, "json")[0] == bytes(values.as_json(packed))


def test_white_space_and_keys_that_come_twice_are_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 16)
    texts = ['{"a":[1,2,3,4,5,6,7,8,9,10],"b":2,"a":[1,2,3,4,5,6,7,8]}', '{"a":{"a":1,"a":{"b":[1,2,3,4,5]}},"a":2}']
    texts += [json.dumps(drawn(random.Random(number)), indent=number % 5) for number in range(300)]
    for text in texts:
        assert msgspec.msgpack.decode(run(text.encode(), "msgpack")[0]) == json.loads(text)


@pytest.mark.parametrize("format", ["json", "msgpack"])
@pytest.mark.parametrize("command", ["kv.set", "kv.del", "kv.expire"])
def test_a_large_value_to_compare_with_comes_with_its_translation(command: str, format: str) -> None:
    """The engine translated it at once: 9 MB took two thirds of a second."""
    value: List[Any] = [[] for _ in range(100_000)]
    others = {"kv.set": {"key": "k", "value": 1}, "kv.del": {"keys": ["k"]}, "kv.expire": {"key": "k", "ttl": 1}}
    fields: Any = others[command]
    codec = CODECS[format]

    def decoded(asked: Any) -> Any:
        payload, steps = finished(codec.decode_in_steps(COMMANDS[command], codec.encode({**fields, "if_value": asked})))
        assert steps >= 5
        assert payload.if_value == codec.encode(asked)
        return payload.if_value.other

    assert decoded(value) == CODECS["json" if format == "msgpack" else "msgpack"].encode(value)
    if format == "msgpack":
        assert decoded([*value, b"x"]) == b""


HEAVY: List[bytes] = [
    b"[" + b",".join([b"[]"] * 300_000) + b"]",
    b"[" + b",".join([b'{"a":1}'] * 100_000) + b"]",
    b"[" + b",".join([b'""'] * 300_000) + b"]",
    b"[" + b",".join([b"[" * 198 + CONTENT + b"]" * 198] * 300) + b"]",
    b'{"a":' * 200 + b",".join([b"1"]) + b"}" * 200,
    json.dumps({f"key {number}": {"k" * 9000: number} for number in range(100)}).encode(),
    json.dumps(['\\"\n' * 300_000, 1, "\1" * 300_000]).encode(),
    b"[" + b" " * 300_000 + b"1]",
]


class Counted:
    """Counts the bytes that msgspec is given at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = self.all = 0
        for name in ("_json_decode", "_pack_decode"):
            self._watch(monkeypatch, name)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        decode = getattr(module, name)

        def counting(data: bytes) -> Any:
            self.most = max(self.most, len(data))
            self.all += len(data)
            return decode(data)

        monkeypatch.setattr(module, name, counting)


@pytest.mark.parametrize("number", range(len(HEAVY)))
def test_no_step_decodes_much_and_all_together_decode_little_more_than_there_is(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    text = HEAVY[number]
    value = msgspec.json.decode(text)
    packed = msgspec.msgpack.encode(value)
    longest = max(map(len, text.replace(b'\\"', b"''").split(b'"')))
    for given, format in ((text, "msgpack"), (packed, "json")):
        counted = Counted(monkeypatch)
        run(given, format)
        monkeypatch.undo()
        assert counted.most <= 4 * module.WINDOW + 2 * longest
        assert counted.all <= 20 * len(given) + 10 * module.WINDOW


@pytest.mark.parametrize("around", [0, 150])
def test_what_an_earlier_version_stored_too_deep_is_an_error(around: int) -> None:
    for deep in (nested(values.MAX_DEPTH + 1 - around), nested(900 - around)):
        inner = [deep, *range(module.WINDOW)]
        for _ in range(around - 1):
            inner = [inner, *range(module.WINDOW)] if around < 3 else [inner]
        value = [inner] if around else deep
        for encoded, format in ((msgspec.json.encode(value), "msgpack"), (msgspec.msgpack.encode(value), "json")):
            with pytest.raises(SynapError) as caught:
                run(encoded, format)
            assert caught.value.code == "WRONG_TYPE"
    fits = nested(values.MAX_DEPTH)
    assert msgspec.msgpack.decode(run(msgspec.json.encode(fits), "msgpack")[0]) == fits
    assert msgspec.json.decode(run(msgspec.msgpack.encode(fits), "json")[0]) == fits


def test_the_decoder_tells_where_the_items_end() -> None:
    """What `_items` reads from the error of a decoder: without it a value would be translated item by item."""
    with pytest.raises(msgspec.DecodeError) as caught:
        msgspec.msgpack.decode(b"\x92\x01\xa1x\x03\x04")
    found = module._END.search(str(caught.value))
    assert found is not None
    assert int(found[1]) == 4
