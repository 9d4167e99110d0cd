"""A large text that is received apart is stored as it would have been, or the whole body is taken."""

from __future__ import annotations

import random
from typing import Any, Dict, List

import pytest

from synap.commands import COMMANDS
from synap.errors import SynapError
from synap.wire.codec import CODECS
from synap.wire.frames import FrameReader, Kind, frame
from synap.wire.parts import FINDERS, MOST, Parts

FORMATS = sorted(CODECS)
TEXTS = {
    "plain": "x" * 300_000,
    "accents": "xyzé" * 90_000,
    "emoji at the end": "x" * 300_000 + "🙂",
    "emoji at the beginning": "🙂" + "x" * 300_000,
    "quotes": 'a"b\\c\n' * 60_000,
    "a quote early": '"' + "x" * 300_000,
    "brackets": '{"value":"' * 30_000,
}


def read(body: bytes, format: str, code: int = 1, seed: int = 0) -> Any:
    """The body as a reader that receives in place returns it, cut at random."""
    dice = random.Random(seed)
    reader = FrameReader(find=FINDERS[format])
    stream = frame(Kind.REQUEST, 1, body, code) + frame(Kind.PING, 2)
    frames = []
    most = dice.choice([1000, 5000, 70_000, 2_000_000])
    while stream:
        buffer = reader.buffer()
        count = min(len(buffer), len(stream), dice.randint(1, most))
        buffer[:count] = stream[:count]
        frames += reader.filled(count)
        stream = stream[count:]
    assert [(kind, id) for kind, _, _, id, _ in frames] == [(Kind.REQUEST, 1), (Kind.PING, 2)]
    assert reader.empty
    assert reader.pending == 0
    return frames[0][-1]


def payloads(text: Any) -> List[Dict[str, Any]]:
    return [
        {"key": "k", "value": text},
        {"key": "k", "value": text, "ttl": 5},
        {"ttl": 5, "nx": True, "key": "k", "value": text},
        {"key": "k", "if_value": 7, "value": text},
        {"key": "k", "if_value": {"a": [1]}, "value": text},
        {"value": text, "key": "k"},
        {"key": "k", "value": text, "if_value": text},
        {"key": text, "value": "small"},
        {"key": "k", "value": [text]},
    ]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_payload_is_the_same_from_parts(format: str, text: str) -> None:
    codec, command = CODECS[format], COMMANDS["kv.set"]
    for seed, payload in enumerate(payloads(text)):
        body = codec.encode(payload)
        got = read(body, format, seed=seed)
        whole = got.join() if isinstance(got, Parts) else bytes(got)
        assert whole == body
        if isinstance(got, Parts):
            decoded = codec.decode_parts(command, got)
            assert decoded is None or decoded == codec.decode_payload(command, body)
            assert decoded is None or type(decoded.value) is bytes


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["plain", "accents", "emoji at the end", "emoji at the beginning"])
def test_the_usual_payload_is_taken_in_parts(format: str, name: str) -> None:
    codec = CODECS[format]
    got = read(codec.encode({"key": "k", "value": TEXTS[name]}), format)

    assert isinstance(got, Parts)
    assert codec.decode_parts(COMMANDS["kv.set"], got).value == codec.encode(TEXTS[name])
    assert got.ascii is TEXTS[name].isascii()


@pytest.mark.parametrize("command", ["queue.publish", "stream.publish", "pubsub.publish"])
@pytest.mark.parametrize("format", FORMATS)
def test_payloads_of_other_commands_are_taken_in_parts(format: str, command: str) -> None:
    fields: Dict[str, Dict[str, Any]] = {
        "queue.publish": {"queue": "q", "message": TEXTS["plain"]},
        "stream.publish": {"room": "r", "event_type": "t", "data": TEXTS["plain"]},
        "pubsub.publish": {"topic": "t", "message": TEXTS["plain"]},
    }
    codec = CODECS[format]
    body = codec.encode(fields[command])
    got = read(body, format)

    assert isinstance(got, Parts)
    assert codec.decode_parts(COMMANDS[command], got) == codec.decode_payload(COMMANDS[command], body)


def test_bytes_are_taken_in_parts() -> None:
    codec, body = CODECS["msgpack"], bytes(range(256)) * 2000
    got = read(codec.encode({"key": "k", "value": body}), "msgpack")

    assert isinstance(got, Parts)
    assert codec.decode_parts(COMMANDS["kv.set"], got).value == codec.encode(body)


BROKEN = {
    "json": [
        b'{"key":"k","value":"' + b"x" * 300_000 + b'\x01"}',
        b'{"key":"k","value":"' + b"x" * 300_000 + b'\xff"}',
        b'{"key":"k","value":"' + b"x" * 300_000 + b"}",
        b'{"key":"k","value":"' + b"x" * 300_000 + b'\\ud800"}',
        b'{"key":"k","value":"' + b"x" * 300_000 + b'","value":"y"}',
        b'{"value":"y","key":"k","value":"' + b"x" * 300_000 + b'"}',
        b'{"key":"k","value":"' + b"x" * 300_000 + b'","other":1}',
        b'{"key":"k","other":1,"value":"' + b"x" * 300_000 + b'"}',
        b'{"key":"k","ttl":-1,"value":"' + b"x" * 300_000 + b'"}',
        b'{"key":"k","value":"' + b"x" * 300_000 + b'"]',
    ],
    "msgpack": [
        b"\x82\xa3key\xa1k\xa5value\xdb" + (300_000).to_bytes(4, "big") + b"x" * 299_999 + b"\xff",
        b"\x82\xa3key\xa1k\xa5value\xdb" + (300_000).to_bytes(4, "big") + b"\xc3" + b"x" * 299_999,
        b"\x83\xa3key\xa1k\xa5value\xdb" + (300_000).to_bytes(4, "big") + b"x" * 300_000 + b"\xa5value\xa1y",
        b"\x83\xa5value\xa1y\xa3key\xa1k\xa5value\xdb" + (300_000).to_bytes(4, "big") + b"x" * 300_000,
        b"\x83\xa3key\xa1k\xa5value\xdb" + (300_000).to_bytes(4, "big") + b"x" * 300_000 + b"\xa5other\xa1y",
        b"\x82\xa3key\xa1k\xa5value\xdb" + (300_001).to_bytes(4, "big") + b"x" * 300_000,
        b"\x82\xa3key\xa1k\xa5value\xdb" + (299_999).to_bytes(4, "big") + b"x" * 300_000,
    ],
}


def outcome(decode: Any) -> Any:
    try:
        return decode()
    except SynapError as error:
        return error.code, error.message


@pytest.mark.parametrize(("format", "body"), [(format, body) for format in FORMATS for body in BROKEN[format]])
def test_what_is_not_as_it_began_is_taken_whole(format: str, body: bytes) -> None:
    codec, command = CODECS[format], COMMANDS["kv.set"]
    got = read(body, format)

    if isinstance(got, Parts):
        assert got.join() == body
        decoded = codec.decode_parts(command, got)
        expected = outcome(lambda: codec.decode_payload(command, body))
        assert decoded is None or decoded == expected


@pytest.mark.parametrize("format", FORMATS)
def test_values_that_are_checked_in_steps_are_not_received_apart(format: str) -> None:
    body = CODECS[format].encode({"key": "k", "value": "x" * (MOST + 10)})

    got = read(body, format)
    assert not isinstance(got, Parts)
    assert bytes(got) == body


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("seed", range(50))
def test_a_finder_takes_any_bytes(format: str, seed: int) -> None:
    dice = random.Random(seed)
    body = bytearray(CODECS[format].encode({"key": "k", "ttl": 5, "nx": True, "value": "x" * 300_000}))
    for _ in range(dice.randint(1, 6)):
        body[dice.randrange(60)] = dice.randrange(256)
    place = FINDERS[format](bytes(body[: dice.randint(0, 2048)]), len(body))

    if place is not None:
        assert 0 < place[1] <= place[1] + place[2] <= len(body)
    codec, command = CODECS[format], COMMANDS["kv.set"]
    got = read(bytes(body), format, seed=seed)
    if isinstance(got, Parts):
        assert got.join() == bytes(body)
        decoded = codec.decode_parts(command, got)
        assert decoded is None or decoded == codec.decode_payload(command, bytes(body))
